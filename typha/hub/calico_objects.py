"""Creates the objects that Calico needs, if they are missing at start: ClusterInformation and tiers.

Source: docs/data-model.md, section 2.3. No failure here ends the service: it is logged, and the service goes on.
"""

import asyncio
import datetime
import secrets
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import msgspec
import structlog

from cache import resources
from cache.feeds.calico import adminpolicies, customresource, syncers
from cache.kube import api, discovery
from cache.watch import decoding

_log = structlog.get_logger("typha.calico")

CLUSTER_TYPES = ("typha", "kdd")
_TRIES = 5
"""Another replica, or Calico's operator, may write the same object at the same moment."""
_CONFLICT = 409
_GUID_BYTES = 16

_decode = msgspec.json.Decoder(dict[str, Any]).decode


class Tier(NamedTuple):
    """A tier to create if it is absent. One that is there stays as it is."""

    name: str
    order: int
    default_action: str


_TIERS = (
    Tier("default", 1_000_000, "Deny"),
    Tier("kube-admin", 1_000, "Pass"),
    Tier("kube-baseline", 10_000_000, "Pass"),
)
ADMIN_TIER = Tier(adminpolicies.ADMIN_TIER, 1_000, "Pass")
"""For the policies of agents of Calico 3.29 to 3.31."""
BASELINE_ADMIN_TIER = Tier(adminpolicies.BASELINE_TIER, 10_000_000, "Pass")
"""The same for 3.30 and 3.31."""


class _Wanted(NamedTuple):
    type: resources.ResourceType
    kind: str
    name: str
    spec: Mapping[str, Any]

    @property
    def path(self) -> str:
        return f"{self.type.list_path}/{self.name}"


class _NotAllowed(Exception):
    """The credentials do not allow a request; the message names the request."""


def filled_in(spec: Mapping[str, Any]) -> dict[str, Any]:
    """A ClusterInformation's spec with its missing members added; a `datastoreReady` that is false stays."""
    types = [text for text in str(spec.get("clusterType") or "").split(",") if text]
    types += [text for text in CLUSTER_TYPES if text not in types]
    filled = dict(spec)
    filled["clusterGUID"] = spec.get("clusterGUID") or secrets.token_hex(_GUID_BYTES)
    filled["clusterType"] = ",".join(types)
    if filled.get("datastoreReady") is None:
        filled["datastoreReady"] = True
    return filled


def new_object(group: syncers.Group, kind: str, name: str, spec: Mapping[str, Any]) -> dict[str, Any]:
    """The object to create. In group v1 Calico keeps the metadata of its own API in an annotation."""
    metadata: dict[str, Any] = {"name": name}
    if group is syncers.Group.V1:
        now = datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
        inner = msgspec.json.encode({"creationTimestamp": now}).decode()
        metadata["annotations"] = {customresource.METADATA_ANNOTATION: inner}
    return {"apiVersion": group.value, "kind": kind, "metadata": metadata, "spec": dict(spec)}


def _wanted_tiers(group: syncers.Group, tiers: Iterable[Tier]) -> list[_Wanted]:
    type = syncers.custom_type(group, "tiers")
    return [
        _Wanted(type, "Tier", tier.name, {"order": tier.order, "defaultAction": tier.default_action}) for tier in tiers
    ]


async def ensure(session: api.KubeApi, group: syncers.Group, *, retry_seconds: float = 1.0) -> None:
    """Creates the missing objects, and adds the missing members of ClusterInformation's spec."""
    type = syncers.custom_type(group, "clusterinformations")
    information = _Wanted(type, "ClusterInformation", "default", filled_in({}))
    wanted = [information, *_wanted_tiers(group, _TIERS)]
    await _ensure_all(session, group, wanted, retry_seconds=retry_seconds)


async def ensure_tiers(
    session: api.KubeApi, group: syncers.Group, tiers: Iterable[Tier], *, retry_seconds: float = 1.0
) -> None:
    """Creates those of the tiers that are absent."""
    await _ensure_all(session, group, _wanted_tiers(group, tiers), retry_seconds=retry_seconds)


async def _ensure_all(
    session: api.KubeApi, group: syncers.Group, all_wanted: Sequence[_Wanted], *, retry_seconds: float
) -> None:
    denied = []
    for wanted in all_wanted:
        try:
            await _ensure_one(session, group, wanted, retry_seconds=retry_seconds)
        except _NotAllowed as error:
            denied.append(str(error))
    if denied:
        _log.warning(
            "Cannot check or create objects that Calico needs: the credentials do not allow it",
            denied="; ".join(denied),
        )


async def _ensure_one(session: api.KubeApi, group: syncers.Group, wanted: _Wanted, *, retry_seconds: float) -> None:
    problem = ""
    for attempt in range(_TRIES):
        if attempt:
            await asyncio.sleep(retry_seconds)
        try:
            answer = await _try_one(session, group, wanted)
        except api.Interrupted as error:
            problem = error.detail
            continue
        if answer is None:
            return
        problem = f"{answer.status}: {answer.body[:200].decode('utf-8', 'replace')}"
        if answer.status not in (_CONFLICT, 429) and answer.status < 500:
            break
    _log.warning(
        "Cannot create or update an object that Calico needs", kind=wanted.kind, name=wanted.name, error=problem
    )


async def _try_one(session: api.KubeApi, group: syncers.Group, wanted: _Wanted) -> discovery.Answer | None:
    """Returns None if the object is as it must be, or else the API server's answer.

    Raises:
        _NotAllowed: the credentials do not allow it.
        api.Interrupted: there is no answer.
    """
    found = await _exchange(session, "GET", wanted.path)
    if found.status == discovery.NOT_FOUND:
        body = msgspec.json.encode(new_object(group, wanted.kind, wanted.name, wanted.spec))
        answer = await _exchange(session, "POST", wanted.type.list_path, body)
    elif found.status != 200 or wanted.kind != "ClusterInformation":
        return found if found.status != 200 else None
    else:
        try:
            members = _decode(found.body)
            spec = members.get("spec")
            spec = spec if isinstance(spec, dict) else {}
            filled = filled_in(spec)
            if filled == spec:
                return None
            body = msgspec.json.encode({**members, "spec": filled})
        except decoding.UNDECODABLE:
            return found
        answer = await _exchange(session, "PUT", wanted.path, body)
    if answer.status in (200, 201):
        _log.info("Created or updated an object that Calico needs", kind=wanted.kind, name=wanted.name)
        return None
    return answer


async def _exchange(session: api.KubeApi, method: str, path: str, json_body: bytes | None = None) -> discovery.Answer:
    answer = await discovery.exchange(session, method, path, json_body=json_body)
    if answer.status == discovery.FORBIDDEN:
        raise _NotAllowed(f"{method} {path}")
    return answer
