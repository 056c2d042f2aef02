"""Which policies and profiles apply to the endpoints of this node, in which order, and with which rules. Pure.

Rules are decoded and converted once a local endpoint needs them. A policy whose rules do not decode denies everything:
the feed's own checks make that a fault of the server.
"""

import math
from collections.abc import Iterable, Mapping, Set
from typing import Any, NamedTuple

from clients.agents.node import desired, feed
from clients.agents.node.labels import LabelIndex, Moved
from clients.agents.node.rules import Sources, convert_rules
from clients.agents.node.sections import Section
from clients.agents.node.sets import AddressSets
from protocol import selector

_NEEDED_EVERYWHERE = "AssumeNeededOnEveryNode"
_DENY_ALL = (desired.Rule(desired.Action.DENY),)
_MISSING_PROFILE = desired.Profile(_DENY_ALL, _DENY_ALL)


class LocalEndpoint(NamedTuple):
    """A workload or host endpoint of this node, without its policies."""

    name: str
    """Its key in the desired state."""
    interface: str
    addresses: tuple[str, ...]
    """CIDRs of workloads; bare addresses of host endpoints."""
    profiles: tuple[str, ...]
    translations: tuple[desired.AddressTranslation, ...] = ()
    is_host: bool = False


class _Policy(NamedTuple):
    """What is kept of every policy, whether it applies here or not."""

    value: bytes
    selector: str
    """As it was written: the index has the parsed form."""
    tier: str
    namespace: str
    position: tuple[float, str]
    """Order in the tier: the order, then NAME/NAMESPACE/KIND."""
    ingress: bool
    egress: bool
    untracked: bool
    pre_dnat: bool
    on_forward: bool
    needed_everywhere: bool


class Policies:
    """Policies, tiers, the rules of profiles, and the endpoints of this node."""

    def __init__(self, sets: AddressSets) -> None:
        self.endpoints: Section[desired.Endpoint] = Section()
        self.host_endpoints: Section[desired.HostEndpoint] = Section()
        self.policies: Section[desired.Policy] = Section()
        self.profiles: Section[desired.Profile] = Section()
        self.refusals: list[tuple[str, str]] = []
        """Policies and profiles whose rules were refused since this was last emptied, with reasons."""
        self._sets = sets
        self._index: LabelIndex[str, str] = LabelIndex()
        self._policies: dict[str, _Policy] = {}
        self._tiers: dict[str, feed.Tier] = {}
        self._profile_rules: dict[str, bytes] = {}
        self._local: dict[str, LocalEndpoint] = {}
        self._endpoints_of: dict[str, set[str]] = {}
        """Local endpoints by the policy that selects them."""
        self._profile_users: dict[str, set[str]] = {}
        self._dirty_endpoints: set[str] = set()
        self._dirty_policies: set[str] = set()
        self._dirty_profiles: set[str] = set()

    def set_endpoint(self, key: str, endpoint: LocalEndpoint, labels: Mapping[str, str]) -> None:
        """Adds a local endpoint, or changes it. The key is the feed's: names of hosts and workloads can be the same."""
        old = self._local.get(key)
        before = self._index.matches(key)
        self._index.set_item(key, labels, endpoint.profiles)
        after = self._index.matches(key)
        if old == endpoint and before is after:
            return
        self._local[key] = endpoint
        self._dirty_endpoints.add(key)
        self._rematch(key, gained=after - before, lost=before - after)
        self._use_profiles(key, before=old.profiles if old is not None else (), after=endpoint.profiles)

    def remove_endpoint(self, key: str) -> None:
        """Removes a local endpoint, if it is there."""
        old = self._local.pop(key, None)
        if old is None:
            return
        section: Section[Any] = self.host_endpoints if old.is_host else self.endpoints
        section.put(old.name, None)
        self._dirty_endpoints.discard(key)
        self._rematch(key, gained=frozenset(), lost=set(self._index.matches(key)))
        self._index.remove_item(key)
        self._use_profiles(key, before=old.profiles, after=())

    def set_parent(self, profile: str, labels: Mapping[str, str]) -> None:
        """Sets the labels that a profile gives; none removes them."""
        self._move(self._index.set_parent(profile, labels))

    def set_tier(self, name: str, tier: feed.Tier | None) -> None:
        """Sets a tier; None removes it."""
        if tier is None:
            self._tiers.pop(name, None)
        else:
            self._tiers[name] = tier
        self._dirty_endpoints |= self._local.keys()

    def set_profile_rules(self, name: str, value: bytes | None) -> None:
        """Sets the rules of a profile; None removes them."""
        if value is None:
            self._profile_rules.pop(name, None)
        else:
            self._profile_rules[name] = value
        if name in self._profile_users:
            self._dirty_profiles.add(name)

    def set_policy(self, key: str, value: bytes) -> None:
        """Adds a policy, or changes it.

        Raises:
            ValueError: it does not decode, but for its rules. Nothing has changed.
        """
        head = feed.decode_policy_head(value)
        parsed = selector.parse(head.selector)
        old = self._policies.get(key)
        new = _policy(key, value, head)
        self._policies[key] = new
        self._dirty_policies.add(key)
        if old is None or old.selector != new.selector:
            self._move(self._index.set_selector(key, parsed))
        if old is not None and old._replace(value=b"") != new._replace(value=b""):
            self._dirty_endpoints |= self._endpoints_of.get(key, frozenset())

    def remove_policy(self, key: str) -> None:
        """Removes a policy, if it is there."""
        if self._policies.pop(key, None) is not None:
            self._dirty_policies.add(key)
            self._move(self._index.remove_selector(key))

    def flush(self) -> None:
        """Brings the sections up to date."""
        for key in self._dirty_policies:
            self._flush_policy(key)
        self._dirty_policies.clear()
        for name in self._dirty_profiles:
            self._flush_profile(name)
        self._dirty_profiles.clear()
        # Endpoints with the same labels share their matches, and so their tiers.
        tiers: dict[tuple[int, bool], _Tiers] = {}
        for key in self._dirty_endpoints:
            self._flush_endpoint(key, tiers)
        self._dirty_endpoints.clear()

    # Matches

    def _move(self, moves: Iterable[Moved[str, str]]) -> None:
        for moved in moves:
            for key in moved.items:
                self._dirty_endpoints.add(key)
                self._rematch(key, gained=moved.gained, lost=moved.lost)

    def _rematch(self, key: str, *, gained: Set[str], lost: Set[str]) -> None:
        for policy in gained:
            endpoints = self._endpoints_of.setdefault(policy, set())
            if not endpoints:
                self._dirty_policies.add(policy)
            endpoints.add(key)
        for policy in lost:
            endpoints = self._endpoints_of[policy]
            endpoints.discard(key)
            if not endpoints:
                del self._endpoints_of[policy]
                self._dirty_policies.add(policy)

    def _use_profiles(self, key: str, *, before: tuple[str, ...], after: tuple[str, ...]) -> None:
        for name in after:
            self._profile_users.setdefault(name, set()).add(key)
        for name in set(before) - set(after):
            users = self._profile_users[name]
            users.discard(key)
            if not users:
                del self._profile_users[name]
        self._dirty_profiles.update(set(before) ^ set(after))

    # Results

    def _flush_policy(self, key: str) -> None:
        known = self._policies.get(key)
        if known is None or desired.is_staged(key) or not (known.needed_everywhere or key in self._endpoints_of):
            self._sets.use(("policy", key), {})
            self.policies.put(key, None)
            return
        ingress, egress = self._rules(key, known.value, ("policy", key))
        text = selector.canonical(known.selector)
        self.policies.put(
            key,
            desired.Policy(known.tier, known.namespace, ingress, egress, text, known.untracked, known.pre_dnat),
        )

    def _flush_profile(self, name: str) -> None:
        user = ("profile", name)
        if name not in self._profile_users:
            self._sets.use(user, {})
            self.profiles.put(name, None)
        elif (value := self._profile_rules.get(name)) is None:
            self._sets.use(user, {})
            self.profiles.put(name, _MISSING_PROFILE)
        else:
            self.profiles.put(name, desired.Profile(*self._rules(name, value, user)))

    def _rules(
        self, key: str, value: bytes, user: tuple[str, str]
    ) -> tuple[tuple[desired.Rule, ...], tuple[desired.Rule, ...]]:
        sources: Sources = {}
        try:
            rules = feed.decode_rules(value)
            ingress = convert_rules(rules.inbound_rules, sources)
            egress = convert_rules(rules.outbound_rules, sources)
        except ValueError as error:
            self.refusals.append((key, str(error)))
            self._sets.use(user, {})
            return _DENY_ALL, _DENY_ALL
        self._sets.use(user, sources)
        return ingress, egress

    def _flush_endpoint(self, key: str, cache: "dict[tuple[int, bool], _Tiers]") -> None:
        local = self._local[key]
        matches = self._index.matches(key)
        place = (id(matches), local.is_host)
        tiers = cache.get(place)
        if tiers is None:
            tiers = cache[place] = self._tiers_of(matches)
        if local.is_host:
            self.host_endpoints.put(
                local.name,
                desired.HostEndpoint(
                    local.interface,
                    local.addresses,
                    local.profiles,
                    tuple(tiers.normal),
                    tuple(tiers.untracked),
                    tuple(tiers.pre_dnat),
                    tuple(tiers.forward),
                ),
            )
        else:
            self.endpoints.put(
                local.name,
                desired.Endpoint(
                    local.interface, local.addresses, local.profiles, tuple(tiers.normal), local.translations
                ),
            )

    def _tiers_of(self, matches: Set[str]) -> "_Tiers":
        by_tier: dict[str, list[str]] = {}
        for key in matches:
            by_tier.setdefault(self._policies[key].tier, []).append(key)
        tiers = _Tiers([], [], [], [])
        for name in sorted(by_tier, key=self._tier_position):
            keys = sorted(by_tier[name], key=lambda key: self._policies[key].position)
            action = desired.Action.DENY
            tier = self._tiers.get(name)
            if tier is not None and tier.defaultAction.lower() == "pass":
                action = desired.Action.PASS
            policies = [(key, self._policies[key]) for key in keys]
            normal = [(key, found) for key, found in policies if not found.untracked and not found.pre_dnat]
            tiers.normal.extend(_tier(name, action, normal))
            tiers.forward.extend(_tier(name, action, [(key, found) for key, found in normal if found.on_forward]))
            untracked = [(key, found) for key, found in policies if found.untracked]
            tiers.untracked.extend(_tier(name, desired.Action.PASS, untracked))
            pre_dnat = [
                (key, found._replace(egress=False)) for key, found in policies if found.pre_dnat and not found.untracked
            ]
            tiers.pre_dnat.extend(_tier(name, desired.Action.PASS, pre_dnat))
        return tiers

    def _tier_position(self, name: str) -> tuple[bool, float, str]:
        """By order, then name; tiers that do not exist are last."""
        tier = self._tiers.get(name)
        order = math.inf if tier is None or tier.order is None else tier.order
        return tier is None, order, name


class _Tiers(NamedTuple):
    normal: list[desired.Tier]
    forward: list[desired.Tier]
    untracked: list[desired.Tier]
    pre_dnat: list[desired.Tier]


def _tier(name: str, action: desired.Action, policies: list[tuple[str, _Policy]]) -> list[desired.Tier]:
    """The tier, if any policy counts in any direction."""
    ingress = tuple(key for key, found in policies if found.ingress)
    egress = tuple(key for key, found in policies if found.egress)
    return [desired.Tier(name, action, ingress, egress)] if ingress or egress else []


def _policy(key: str, value: bytes, head: feed.PolicyHead) -> _Policy:
    kind, _, rest = key.partition("/")
    namespace, _, name = rest.rpartition("/")
    types = {text.lower() for text in head.types or ()}
    return _Policy(
        value=value,
        selector=head.selector,
        tier=head.tier,
        namespace=head.namespace,
        position=(math.inf if head.order is None else head.order, f"{name}/{namespace}/{kind}"),
        ingress=not types or "ingress" in types,
        egress=not types or "egress" in types,
        untracked=head.untracked,
        pre_dnat=head.pre_dnat,
        on_forward=head.apply_on_forward,
        needed_everywhere=_NEEDED_EVERYWHERE in (head.performance_hints or ()),
    )
