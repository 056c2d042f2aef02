"""How the felix feed of an older release differs from the newest one (docs/data-model.md, section 8). Pure.

A projection is the felix feed as the Typha of an older release sends it. It is made from the newest feed's items, and
from items that converters mark as older: agents of the newest release do not get those.
"""

import functools
import re
from collections.abc import Callable, Sequence
from typing import Final, NamedTuple, TypeAlias

import msgspec

from cache import objects
from cache.feeds.calico import adminpolicies, model, schema, syncers
from cache.feeds.calico.releases import Release

Rewrite: TypeAlias = Callable[[objects.ObjectEvent, Sequence[model.Item]], Sequence[model.Item]]
"""Takes an object's items, and returns those of the older release. Of the object only its names are known."""

_AGES: Final = {release: age for age, release in enumerate(Release)}
_CONFIG: Final = "/config/"
_RESOURCES: Final = "/calico/resources/"


def rewrite_for(release: Release, source: syncers.Source) -> Rewrite | None:
    """Return how the items of a kind's objects change for a release; None if the release does not have the kind."""
    if not _has(release, since=_SINCE.get(source.kind), until=_UNTIL.get(source.kind)):
        return None
    policy = _POLICY_KINDS.get((source.type.group in _KUBERNETES_GROUPS, source.kind))
    if policy is not None and not release.has_modern_policy_keys:
        return functools.partial(_legacy_policy, policy)
    return _REWRITES.get(source.kind, _unchanged)(release)


def _has(release: Release, *, since: Release | None = None, until: Release | None = None) -> bool:
    """Return whether a release has what came with one release and went after another."""
    age = _AGES[release]
    return (since is None or age <= _AGES[since]) and (until is None or age >= _AGES[until])


_SINCE: Final = {
    "StagedGlobalNetworkPolicy": Release.V3_30,
    "StagedNetworkPolicy": Release.V3_30,
    "StagedKubernetesNetworkPolicy": Release.V3_30,
    "BGPPeer": Release.V3_30,
    "BaselineAdminNetworkPolicy": Release.V3_30,
    "ClusterNetworkPolicy": Release.V3_32,
    "VirtualMachineInstanceMigration": Release.V3_32,
}
_UNTIL: Final = {
    "AdminNetworkPolicy": Release.V3_31,
    "BaselineAdminNetworkPolicy": Release.V3_31,
}


def _unchanged(_: Release) -> Rewrite:
    return lambda event, items: items


# Pods and configurations


def _pods(release: Release) -> Rewrite:
    """3.29 has no named ports of init containers: a pod with some has an older item, too, with the same key."""
    if _has(release, since=Release.V3_30):
        return lambda event, items: items if len(items) < 2 else [item for item in items if not item.is_older]
    return lambda event, items: items if len(items) < 2 else [item for item in items if item.is_older]


def _configuration(release: Release) -> Rewrite:
    """A release has the values of its own fields. Objects of other names than `default` and `node.NAME` came later.

    An annotation makes a value of any name; if it has the name of a later field, the item is marked as older.
    """
    has_whole = _has(release, since=Release.V3_32)
    later = {
        field.config_name
        for field in schema.TYPES[schema.FELIX_CONFIGURATION_SPEC]
        if field.since and not _has(release, since=Release(field.since))
    }
    gone = {
        field.config_name
        for field in schema.TYPES[schema.OLDER_FELIX_CONFIGURATION_SPEC]
        if not _has(release, until=Release(field.until))
    }

    def rewrite(_: objects.ObjectEvent, items: Sequence[model.Item]) -> Sequence[model.Item]:
        kept = []
        for item in items:
            if item.key.startswith(_RESOURCES):
                is_kept = has_whole
            else:
                is_kept = item.key.rpartition(_CONFIG)[2] not in (gone if item.is_older else later)
            if is_kept:
                kept.append(item)
        return kept

    return rewrite


_REWRITES: Final = {
    "Pod": _pods,
    "FelixConfiguration": _configuration,
    "ClusterInformation": _configuration,
}


# Policies


class _PolicyKind(NamedTuple):
    """How the name in the legacy key of a policy is made of the object's name."""

    prefix: str = ""
    is_staged: bool = False


_KUBERNETES_GROUPS: Final = frozenset({"networking.k8s.io"})
_OF_KUBERNETES: Final = "knp.default."
_POLICY_KINDS: Final = {
    (False, "GlobalNetworkPolicy"): _PolicyKind(),
    (False, "NetworkPolicy"): _PolicyKind(),
    (False, "StagedGlobalNetworkPolicy"): _PolicyKind(is_staged=True),
    (False, "StagedNetworkPolicy"): _PolicyKind(is_staged=True),
    (False, "StagedKubernetesNetworkPolicy"): _PolicyKind(_OF_KUBERNETES, is_staged=True),
    (True, "NetworkPolicy"): _PolicyKind(_OF_KUBERNETES),
}
"""By whether the kind is Kubernetes' own, and kind."""
_TIER_DEFAULT: Final = "default"
_TIERS: Final = {
    _OF_KUBERNETES: _TIER_DEFAULT,
    "ossg.": _TIER_DEFAULT,
    adminpolicies.ADMIN_PREFIX: adminpolicies.ADMIN_TIER,
    adminpolicies.BASELINE_PREFIX: adminpolicies.BASELINE_TIER,
}
"""Beginnings of names that say the tier in another way than before the first dot."""


_TIER_MEMBER: Final = re.compile(rb'"tier":"((?:[^"\\]|\\.)*)",')
"""In a policy's value, which has it before anything that could look like it."""


def legacy_tier(name: str) -> str:
    """Return the tier that a policy has by its name, as releases up to 3.31 read it."""
    for beginning, tier in _TIERS.items():
        if name.startswith(beginning):
            return tier
    tier, dot, _ = name.partition(".")
    return tier if dot else _TIER_DEFAULT


def _legacy_policy(kind: _PolicyKind, event: objects.ObjectEvent, items: Sequence[model.Item]) -> Sequence[model.Item]:
    name = kind.prefix + event.name
    tier = legacy_tier(name)
    own = ("staged:" if kind.is_staged else "") + name
    path = f"{event.namespace}%2f{own}" if event.namespace else own
    key = f"/calico/v1/policy/tier/{tier}/policy/{path}"
    return [_in_tier(item, key, tier) for item in items]


def _in_tier(item: model.Item, key: str, tier: str) -> model.Item:
    """Return a policy under its legacy key. Its value has no tier, so that a change of the tier alone is no update."""
    if item.value is None:
        return msgspec.structs.replace(item, key=key)
    if _has_ports_without_protocol(item.value):
        problem = "agents up to 3.31 cannot have it: a rule has ports and no protocol"
        return msgspec.structs.replace(item, key=key, value=None, invalid=problem)
    stated = _TIER_MEMBER.search(item.value)
    warning = item.warning
    if stated is not None and stated[1] != tier.encode():
        warning = f"agents up to 3.31 enforce it in tier {tier!r}, by its name: it is of tier {stated[1].decode()!r}"
    value = _TIER_MEMBER.sub(b"", item.value, count=1)
    return msgspec.structs.replace(item, key=key, value=value, warning=warning)


class _Rule(msgspec.Struct, gc=False):
    protocol: int | str | None = None
    source: list[int | str] | None = msgspec.field(default=None, name="src_ports")
    destination: list[int | str] | None = msgspec.field(default=None, name="dst_ports")
    not_source: list[int | str] | None = msgspec.field(default=None, name="!src_ports")
    not_destination: list[int | str] | None = msgspec.field(default=None, name="!dst_ports")


class _Rules(msgspec.Struct, gc=False):
    inbound_rules: list[_Rule] = []
    outbound_rules: list[_Rule] = []


_decode_rules = msgspec.json.Decoder(_Rules).decode


def _has_ports_without_protocol(value: bytes) -> bool:
    """Return whether a rule has ports of all protocols: named ones, which 3.32 and later allow."""
    if b'_ports":[' not in value:
        return False
    policy = _decode_rules(value)
    return any(
        rule.protocol is None and (rule.source or rule.destination or rule.not_source or rule.not_destination)
        for rule in (*policy.inbound_rules, *policy.outbound_rules)
    )
