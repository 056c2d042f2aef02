"""Looks at the cluster: the API server, Calico's kinds, permissions, the agents' releases and the operator.

Every exchange has a deadline. What the credentials do not allow to see is unknown, and no failure. Nothing is written:
a review is a question.
"""

import asyncio
import collections
import re
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from typing import Any, Final, NamedTuple

import msgspec

from cache import resources
from cache.feeds.calico import releases, syncers
from cache.kube import access, api, discovery
from cache.watch import decoding, policy
from typha import settings
from typha.hub import bootstrap
from typha.peers import watch
from typha.preflight import permissions
from typha.preflight.findings import Finding, Status
from typha.settings import feeds_file
from typha.upstream import source

ANSWER_SECONDS: Final = 10.0
"""Limit for one exchange. A healthy API server takes milliseconds."""
ACCESS_SECONDS: Final = 70.0
"""Limit for loading the credentials: a plugin may ask an identity provider over the network."""

_REVIEWS_AT_A_TIME: Final = 8
"""One API server answers some thousand reviews a second; no need to be one of its heavy clients."""
_PODS_LIMIT: Final = 100
"""Pods whose images are looked at: agents of another release are seldom fewer than one in a hundred."""
_AGENTS: Final = "calico-node"
_NAMESPACES: Final = ("calico-system", "kube-system")
_OPERATOR_PATH: Final = "/apis/apps/v1/namespaces/tigera-operator/deployments/tigera-operator"
_MATRIX: Final = "docs/support-matrix.md"
_POLICY_MINOR: Final = 36
"""Kubernetes 1.36 and later have MutatingAdmissionPolicy."""
_SHARED_IMAGE_MINOR: Final = 44
"""Operators from 1.44 on have one image for all of Calico."""
_TAG = re.compile(r":(\w[\w.-]{0,127})$", re.ASCII)
_VERSION = re.compile(r"v?([0-9]{1,4})\.([0-9]{1,4})")
_SHOWN_CHARS: Final = 200


class Account(NamedTuple):
    """A service account other than our own, whose permissions are in question."""

    namespace: str
    name: str

    @property
    def user(self) -> dict[str, Any]:
        """As the spec of a SubjectAccessReview names it."""
        groups = ["system:serviceaccounts", f"system:serviceaccounts:{self.namespace}", "system:authenticated"]
        return {"user": f"system:serviceaccount:{self.namespace}:{self.name}", "groups": groups}


class _Unanswered(Exception):
    """There is no answer to be used; the message says why."""

    def __init__(self, detail: str, status: int = 0, failure: policy.Failure | None = None) -> None:
        super().__init__(detail)
        self.status = status
        self.advice = _ADVICE_BY_STATUS.get(status, "") or _ADVICE_BY_FAILURE.get(failure, "")


async def examine(
    configured: settings.Settings,
    environment: Mapping[str, str],
    *,
    load: Callable[[], Awaitable[access.Access]] | None = None,
    account: Account | None = None,
) -> list[Finding]:
    """Everything that can be known of the cluster. With `account`, its permissions are asked for instead of our own.

    `load` replaces the loading of the credentials.

    Raises:
        ConfigurationError: the feeds file is invalid.
    """
    session = api.KubeApi() if load is None else api.KubeApi(load)
    try:
        async with asyncio.timeout(ACCESS_SECONDS):
            await session.start()
    except TimeoutError:
        return [Finding(Status.FAILED, "API server", f"no credentials within {ACCESS_SECONDS:g} s")]
    except access.AccessError as error:
        return [Finding(Status.FAILED, "API server", str(error), "mend the file or variable that it names")]
    try:
        return await _Examination(session, configured, environment, account).run()
    finally:
        await session.close()


class _Examination:
    """The checks, one after the other. Later ones use what earlier ones found."""

    def __init__(
        self,
        session: api.KubeApi,
        configured: settings.Settings,
        environment: Mapping[str, str],
        account: Account | None,
    ) -> None:
        self._session = session
        self._settings = configured
        self._environment = environment
        self._account = account
        self._minor = 0
        self._findings: list[Finding] = []

    async def run(self) -> list[Finding]:
        if not await self._is_answered():
            return self._findings
        await self._say_who()
        choice = await self._choose_group()
        types = {} if choice is None else self._calico_types(choice.group)
        types |= {type: False for type in self._raw_types() if type not in types}
        installed = await self._installed(list(types))
        self._say_installed([type for type in types if not types[type]], installed)
        await self._check_permissions(types, installed)
        await self._check_replicas()
        if choice is not None:
            await self._check_creation(choice.group)
            await self._check_agents(choice.group)
            await self._check_operator()
        return self._findings

    def _add(self, status: Status, check: str, found: str, advice: str = "") -> None:
        self._findings.append(Finding(status, check, found, advice))

    # Access

    async def _is_answered(self) -> bool:
        host = self._session.host
        for warning in self._session.warnings:  # it may be the cause of what comes
            self._add(Status.WARNING, "API server", warning)
        try:
            found = await self._get("/version")
        except _Unanswered as error:
            if error.status == discovery.FORBIDDEN:
                self._add(Status.OK, "API server", f"{host} answers; its version may not be seen")
                return True
            self._add(Status.FAILED, "API server", f"{host}: {error}", error.advice or _ADVICE)
            return False
        self._minor = int((re.match("[0-9]+", str(found.get("minor"))) or ["0"])[0])
        self._add(Status.OK, "API server", f"{host} answers: {found.get('gitVersion')}")
        return True

    async def _say_who(self) -> None:
        body = {"apiVersion": "authentication.k8s.io/v1", "kind": "SelfSubjectReview"}
        try:
            found = await self._post("/apis/authentication.k8s.io/v1/selfsubjectreviews", body)
        except _Unanswered as error:
            if error.status == _UNAUTHORIZED:
                self._add(Status.FAILED, "credentials", f"rejected: {error}", _ADVICE_BY_STATUS[_UNAUTHORIZED])
            else:
                self._add(Status.UNKNOWN, "credentials", f"the API server does not say who this is: {error}")
            return
        name = _at(found, "status", "userInfo", "username")
        self._add(Status.OK, "credentials", f"accepted as {name}")

    # Kinds

    async def _choose_group(self) -> bootstrap.Choice | None:
        """The group of Calico's custom resources. None: Calico's feeds are off."""
        off = self._settings.calico_feeds in bootstrap.NEVER
        if off:
            self._add(Status.OK, "kinds", "not looked at: CalicoFeeds is false")
            return None
        try:
            async with asyncio.timeout(ANSWER_SECONDS):
                listed: frozenset[str] | None = await discovery.group_names(self._session)
        except (api.Interrupted, discovery.Refused, TimeoutError) as error:
            self._add(Status.UNKNOWN, "kinds", f"the API groups may not be seen: {error}")
            listed = None
        choice = bootstrap.choose(self._environment.get(bootstrap.GROUP_VARIABLE, ""), listed)
        if listed is not None and choice.group.group not in listed:
            if self._settings.calico_feeds == bootstrap.AUTO and self._settings.feeds_file and not choice.is_listed:
                self._add(Status.OK, "kinds", "not installed: only the feeds of FeedsFile are served")
                return None
            self._add(
                Status.FAILED,
                "kinds",
                f"no group {choice.group.group} ({choice.reason}): the service waits, and is not ready",
                "install Calico's custom resource definitions",
            )
        else:
            self._add(Status.OK, "kinds", f"{choice.group.value}: {choice.reason}")
        return choice

    def _calico_types(self, group: syncers.Group) -> dict[resources.ResourceType, bool]:
        return permissions.calico_types(group, use_pod_cidr=settings.uses_pod_cidrs(self._environment))

    def _raw_types(self) -> Iterable[resources.ResourceType]:
        specs = feeds_file.load(self._settings.feeds_file) if self._settings.feeds_file else []
        return [resource.type for spec in specs for resource in spec.resources]

    async def _installed(self, types: list[resources.ResourceType]) -> dict[resources.ResourceType, bool | None]:
        """Which types the API server serves. None: it does not tell."""
        by_version = collections.defaultdict[tuple[str, str], list[resources.ResourceType]](list)
        found: dict[resources.ResourceType, bool | None] = {}
        for type in types:
            if type.group:
                by_version[type.group, type.version].append(type)
            else:
                found[type] = True  # the core group is always there
        for members in by_version.values():
            try:
                async with asyncio.timeout(ANSWER_SECONDS):
                    served = await discovery.installed_types(self._session, members)
                found |= {type: type in served for type in members}
            except (api.Interrupted, discovery.Refused, TimeoutError):
                found |= dict.fromkeys(members)
        return found

    def _say_installed(
        self, types: list[resources.ResourceType], installed: Mapping[resources.ResourceType, bool | None]
    ) -> None:
        missing = [str(type) for type in types if installed[type] is False]
        unknown = [str(type) for type in types if installed[type] is None]
        if missing:
            self._add(
                Status.WARNING,
                "kinds",
                f"not installed, counted as empty until they are: {', '.join(missing)}",
                "nothing, if this release of Calico lacks them, or if nobody uses KubeVirt or ClusterNetworkPolicies",
            )
        if unknown:
            self._add(Status.UNKNOWN, "kinds", f"installed or not: {', '.join(unknown)}")

    # Permissions

    async def _check_permissions(
        self, types: Mapping[resources.ResourceType, bool], installed: Mapping[resources.ResourceType, bool | None]
    ) -> None:
        answers = await self._reviews([(verb, type) for type in types for verb in permissions.READING])
        unknown = [problem for problem in answers.values() if isinstance(problem, str)]
        denied = {type: [verb for verb in permissions.READING if answers[verb, type] is False] for type in types}
        for type, verbs in denied.items():
            if not verbs:
                continue
            status, consequence = Status.FAILED, "the service is not ready"
            if installed[type] is False:
                status, consequence = Status.WARNING, "not installed now; if it is, the service is not ready"
            elif types[type]:
                status, consequence = Status.WARNING, "agents of Calico 3.29 to 3.31 lack these policies"
            elif installed[type] is None:
                status, consequence = Status.WARNING, "if it is installed, the service is not ready"
            self._deny(status, verbs, type, consequence)
        if unknown:
            self._add(
                Status.UNKNOWN,
                "permissions",
                f"{len(unknown)} questions of {len(answers)} have no answer: {unknown[0]}",
                "ask as a user that may create this review" if self._account else "",
            )
        allowed = sum(not verbs for verbs in denied.values())
        if not unknown and allowed:
            self._add(Status.OK, "permissions", f"{self._whose()} may list and watch {allowed} of {len(types)} kinds")

    async def _check_replicas(self) -> None:
        """What the replicas need to find and to elect each other."""
        wanted: dict[resources.ResourceType, tuple[Sequence[str], str]] = {}
        if self._settings.connection_rebalancing_mode == watch.KUBERNETES:
            consequence = "replicas do not find each other, and clients are not spread over them; the service goes on"
            wanted[permissions.ENDPOINT_SLICES] = permissions.READING, consequence
        if self._settings.upstream == source.ELECTED:
            consequence = "none is elected to watch, and replicas may watch the API server each for itself"
            wanted[permissions.LEASES] = permissions.ELECTING, consequence
        questions = [(verb, type) for type, (verbs, _) in wanted.items() for verb in verbs]
        answers = await self._reviews(questions, namespace=self._settings.k8s_namespace)
        for type, (verbs, consequence) in wanted.items():
            denied = [verb for verb in verbs if answers[verb, type] is False]
            unknown = [answer for verb in verbs if isinstance(answer := answers[verb, type], str)]
            if denied:
                self._deny(Status.WARNING, denied, type, consequence)
            elif unknown:
                self._add(Status.UNKNOWN, "permissions", f"{type}: no answer: {unknown[0]}")

    async def _check_creation(self, group: syncers.Group) -> None:
        if self._settings.read_only:
            self._add(Status.OK, "permissions", "ReadOnly is set: nothing is created")
            return
        wanted = permissions.creating(group)
        answers = await self._reviews([(verb, type) for type, verbs in wanted.items() for verb in verbs])
        for type, verbs in wanted.items():
            denied = [verb for verb in verbs if answers[verb, type] is False]
            if denied:
                consequence = "the objects that Calico needs are not created if they are missing; the service goes on"
                self._deny(Status.WARNING, denied, type, consequence)

    def _deny(self, status: Status, verbs: list[str], type: resources.ResourceType, consequence: str) -> None:
        rule = f'{{apiGroups: ["{type.group}"], resources: [{type.resource}], verbs: [{", ".join(verbs)}]}}'
        found = f"{self._whose()} may not {' and '.join(verbs)} {type}: {consequence}"
        self._add(status, "permissions", found, f"add a rule to its role: {rule}")

    def _whose(self) -> str:
        return f"{self._account.namespace}/{self._account.name}" if self._account else "the service"

    async def _reviews(
        self, questions: list[tuple[str, resources.ResourceType]], *, namespace: str = ""
    ) -> dict[tuple[str, resources.ResourceType], bool | str]:
        """Whether each verb is allowed for each type, everywhere or in a namespace; a text says why nobody answers."""
        turn = asyncio.Semaphore(_REVIEWS_AT_A_TIME)

        async def ask(verb: str, type: resources.ResourceType) -> bool | str:
            async with turn:
                try:
                    return await self._may(verb, type, namespace)
                except _Unanswered as error:
                    return str(error)

        return dict(zip(questions, await asyncio.gather(*(ask(*question) for question in questions)), strict=True))

    async def _may(self, verb: str, type: resources.ResourceType, namespace: str) -> bool:
        attributes = {"verb": verb, "group": type.group, "version": type.version, "resource": type.resource}
        attributes |= {"namespace": namespace} if namespace else {}
        kind = "SubjectAccessReview" if self._account else "SelfSubjectAccessReview"
        spec = {"resourceAttributes": attributes, **(self._account.user if self._account else {})}
        body = {"apiVersion": "authorization.k8s.io/v1", "kind": kind, "spec": spec}
        found = await self._post(f"/apis/authorization.k8s.io/v1/{kind.lower()}s", body)
        status = found.get("status")
        if not isinstance(status, dict) or not isinstance(status.get("allowed"), bool):
            raise _Unanswered("the review has no result")
        return bool(status["allowed"])

    # Calico and its operator

    async def _check_agents(self, group: syncers.Group) -> None:
        seen, problems = collections.Counter[str](), []
        for namespace in _NAMESPACES:
            path = f"/api/v1/namespaces/{namespace}/pods?labelSelector=k8s-app%3D{_AGENTS}&limit={_PODS_LIMIT}"
            try:
                pods = _objects(await self._get(path), "items")
            except _Unanswered as error:
                problems.append(f"pods in {namespace}: {error}")
                continue
            seen.update(_tag(image) for pod in pods for image in _images(_at(pod, "spec"), _AGENTS))
        try:
            information = await self._get(f"{syncers.custom_type(group, 'clusterinformations').list_path}/default")
            version = _at(information, "spec", "calicoVersion")
            if isinstance(version, str) and version and not seen:
                seen[version] = 0
        except _Unanswered as error:
            problems.append(f"ClusterInformation: {error}")
        for version, count in sorted(seen.items()):
            self._say_agent(version, f"{count} pods of {_AGENTS}" if count else "ClusterInformation")
        if not seen:
            self._add(Status.UNKNOWN, "agents", f"no release seen: {'; '.join(problems) or f'no {_AGENTS} found'}")

    def _say_agent(self, version: str, where: str) -> None:
        try:
            flag = releases.parse_release(version).has_modern_policy_keys
        except ValueError:
            flag = False
        overrides = releases.parse_overrides(self._settings.agent_releases)
        choice = releases.choose(version, flag, overrides)
        said = f"{version or 'without a version'} ({where})"
        if choice.release is None:
            advice = f"upgrade Calico to 3.29 or later first; {_MATRIX}"
            self._add(Status.FAILED, "agents", f"{said}: Felix is refused: {choice.reason}", advice)
        elif _VERSION.match(version) or overrides:
            self._add(Status.OK, "agents", f"{said}: served as {choice.release.value}")
        else:
            advice = "set AgentReleases if that is wrong"
            self._add(Status.WARNING, "agents", f"{said}: unknown, served as {choice.release.value}", advice)

    async def _check_operator(self) -> None:
        try:
            deployment = await self._get(_OPERATOR_PATH)
        except _Unanswered as error:
            if error.status == discovery.NOT_FOUND:
                self._add(Status.OK, "operator", "none: replace the image of the Deployment calico-typha")
            else:
                self._add(Status.UNKNOWN, "operator", str(error))
            return
        images = _images(_at(deployment, "spec", "template", "spec"), "tigera-operator")
        tag = _tag(images[0]) if images else ""
        found = _VERSION.match(tag)
        if found is None:
            self._add(Status.UNKNOWN, "operator", f"its version cannot be seen in its image {images}", f"see {_MATRIX}")
        elif self._minor >= _POLICY_MINOR:
            advice = f"apply deploy/operator/image-policy.yaml; {_MATRIX}"
            self._add(Status.OK, "operator", f"{tag}: an admission policy gives its pods this image", advice)
        elif int(found[2]) >= _SHARED_IMAGE_MINOR:
            problem = f"{tag} on Kubernetes 1.{self._minor}: all of Calico shares one image, no way is provided"
            advice = f"Kubernetes 1.{_POLICY_MINOR} or later, or a webhook that changes the image; {_MATRIX}"
            self._add(Status.FAILED, "operator", problem, advice)
        else:
            advice = f"push the image as calico/typha to a registry of your own; {_MATRIX}"
            self._add(Status.WARNING, "operator", f"{tag} on Kubernetes 1.{self._minor}: it chooses the image", advice)

    # Exchanges

    async def _get(self, path: str) -> dict[str, Any]:
        return await self._exchange("GET", path)

    async def _post(self, path: str, body: Mapping[str, Any]) -> dict[str, Any]:
        return await self._exchange("POST", path, msgspec.json.encode(body))

    async def _exchange(self, method: str, path: str, body: bytes | None = None) -> dict[str, Any]:
        """The object in the answer. Raises _Unanswered."""
        try:
            answer = await discovery.exchange(
                self._session, method, path, json_body=body, answer_seconds=ANSWER_SECONDS
            )
        except api.Interrupted as error:
            raise _Unanswered(error.detail, failure=error.failure) from error
        try:
            found: dict[str, Any] = msgspec.json.decode(answer.body, type=dict[str, Any])
        except decoding.UNDECODABLE as error:
            if answer.status in (200, 201):
                raise _Unanswered(f"{path.partition('?')[0]}: the answer is no JSON object") from error
            found = {}
        if answer.status not in (200, 201):
            reason = " ".join(str(found.get("message") or "").split())[:_SHOWN_CHARS]
            raise _Unanswered(f"{answer.status} {reason}".strip(), answer.status)
        return found


_UNAUTHORIZED: Final = 401
_ADVICE: Final = "check address and proxy"
_ADVICE_BY_STATUS: Final = {_UNAUTHORIZED: "renew the token or certificate, or mend the kubeconfig"}
_ADVICE_BY_FAILURE: Final[Mapping[policy.Failure | None, str]] = {
    policy.Failure.CREDENTIALS: "check certificate authority, address, validity of the certificates, and the clock",
    policy.Failure.NETWORK: "check address, proxy, name service and network policies",
    policy.Failure.DEADLINE: "check address, proxy and network policies",
    policy.Failure.DISCONNECTED: "check whether the address has https:// where the API server uses TLS, and the proxy",
}


def _at(found: Any, *names: str) -> Any:
    """A member within members; None where one is missing."""
    for name in names:
        found = found.get(name) if isinstance(found, dict) else None
    return found


def _objects(found: Any, *names: str) -> list[Any]:
    value = _at(found, *names)
    return value if isinstance(value, list) else []


def _images(pod_spec: Any, container: str) -> list[str]:
    found = [one for one in _objects(pod_spec, "containers") if _at(one, "name") == container]
    return [image for one in found if isinstance(image := _at(one, "image"), str)]


def _tag(image: str) -> str:
    """The tag of an image; empty if it has only a digest."""
    found = _TAG.search(image.partition("@")[0])
    return found[1] if found else ""
