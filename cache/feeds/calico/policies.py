"""Calico's policies, enforced and staged, and tiers (docs/data-model.md, sections 5.5, 5.8, 5.9). Pure."""

from collections.abc import Sequence
from typing import Any

import msgspec

from cache import objects
from cache.feeds.calico import customresource, model, rules
from cache.feeds.calico.codecs import gojson

NETWORK_POLICY = "NetworkPolicy"
GLOBAL_NETWORK_POLICY = "GlobalNetworkPolicy"
STAGED_NETWORK_POLICY = "StagedNetworkPolicy"
STAGED_GLOBAL_NETWORK_POLICY = "StagedGlobalNetworkPolicy"

_TIER_DEFAULT = "default"
_TIER_ORDER_DEFAULT = 1000000.0
_STAGED_DELETE = "Delete"
_PERFORMANCE_HINTS = frozenset({"AssumeNeededOnEveryNode"})
_LABEL_NAMESPACE = "projectcalico.org/namespace"
_LABEL_SERVICE_ACCOUNT = "projectcalico.org/serviceaccount"


class Spec(msgspec.Struct, gc=False):
    """A policy's specification, with the members of namespaced, global and staged policies together."""

    tier: str | None = None
    order: float | None = None
    selector: str | None = None
    namespaceSelector: str | None = None  # noqa: N815
    serviceAccountSelector: str | None = None  # noqa: N815
    ingress: list[rules.Rule] | None = None
    egress: list[rules.Rule] | None = None
    types: list[str] | None = None
    doNotTrack: bool | None = None  # noqa: N815
    preDNAT: bool | None = None  # noqa: N815
    applyOnForward: bool | None = None  # noqa: N815
    performanceHints: list[str] | None = None  # noqa: N815
    stagedAction: str | None = None  # noqa: N815


class _Policy(msgspec.Struct, gc=False):
    metadata: customresource.Metadata
    spec: Spec = msgspec.field(default_factory=Spec)


class _TierSpec(msgspec.Struct, gc=False):
    order: float | None = None
    defaultAction: str | None = None  # noqa: N815


class _Tier(msgspec.Struct, gc=False):
    metadata: customresource.Metadata
    spec: _TierSpec = msgspec.field(default_factory=_TierSpec)


_decode_policy = msgspec.json.Decoder(_Policy)
_decode_tier = msgspec.json.Decoder(_Tier)


def convert_tier(event: objects.ObjectEvent, group: customresource.Group) -> Sequence[model.Item]:
    """Convert a tier. Raises ConversionError: bad-metadata-annotation, invalid-object."""
    tier = model.typed(_decode_tier, event)
    customresource.effective_metadata(tier.metadata, group)
    order = _TIER_ORDER_DEFAULT if tier.spec.order is None else tier.spec.order
    action = "Pass" if tier.spec.defaultAction == "Pass" else "Deny"
    value = gojson.encode({"order": gojson.number(order), "defaultAction": action})
    return (model.Item(f"/calico/v1/policy/tier/{event.name}/metadata", value, event.resource_version),)


def convert_policy(event: objects.ObjectEvent, policy_kind: str, group: customresource.Group) -> Sequence[model.Item]:
    """Convert a policy of one of the four kinds in this module.

    Raises:
        ConversionError: undecodable, selector-too-deep, bad-metadata-annotation, invalid-object.
    """
    policy = model.typed(_decode_policy, event)
    customresource.effective_metadata(policy.metadata, group)
    staged_action = policy.spec.stagedAction or "" if policy_kind.startswith("Staged") else ""
    if staged_action == _STAGED_DELETE:
        return (model.Item(policy_key(policy_kind, event), None, ""),)
    if policy_kind in (GLOBAL_NETWORK_POLICY, STAGED_GLOBAL_NETWORK_POLICY):
        return global_items(event, policy_key(policy_kind, event), policy.spec, staged_action=staged_action)
    return namespaced_items(event, policy_key(policy_kind, event), policy.spec, staged_action=staged_action)


def policy_key(kind: str, event: objects.ObjectEvent) -> str:
    """Return the key of a policy of any kind. A global policy has no namespace."""
    return f"/calico/v1/policy/{kind}/{event.namespace}/{event.name}"


def namespaced_items(
    event: objects.ObjectEvent, key: str, spec: Spec, *, staged_action: str = "", warnings: Sequence[str] = ()
) -> Sequence[model.Item]:
    """Return the item of a namespaced policy at this key. Raises ConversionError: undecodable, selector-too-deep."""
    found = list(warnings)
    own = f"{_LABEL_NAMESPACE} == '{event.namespace}'"
    text = f"({spec.selector}) && {own}" if spec.selector else own
    text = _with_selector(text, spec.serviceAccountSelector, "pcsa.", found)
    return _items(event, key, spec, text, staged_action=staged_action, warnings=found)


def global_items(
    event: objects.ObjectEvent, key: str, spec: Spec, *, staged_action: str = "", warnings: Sequence[str] = ()
) -> Sequence[model.Item]:
    """Return the item of a global policy at this key. Raises ConversionError: undecodable, selector-too-deep."""
    found = list(warnings)
    text = spec.selector or ""
    if spec.namespaceSelector:
        text = _with_selector(text, spec.namespaceSelector, "pcns.", found)
        text = text.replace("all()", f"has({_LABEL_NAMESPACE})")
    if spec.serviceAccountSelector:
        text = _with_selector(text, spec.serviceAccountSelector, "pcsa.", found)
        text = text.replace("all()", f"has({_LABEL_SERVICE_ACCOUNT})")
    return _items(event, key, spec, text, staged_action=staged_action, warnings=found)


def _with_selector(text: str, added: str | None, prefix: str, warnings: list[str]) -> str:
    if not added:
        return text
    parsed = rules.canonical(added, prefix)
    if parsed is None:
        warnings.append(f"the policy's selector of {prefix} labels does not parse and is left out: {added!r}")
        return text
    return f"({text}) && {parsed}" if text else parsed


def _items(
    event: objects.ObjectEvent, key: str, spec: Spec, text: str, *, staged_action: str, warnings: list[str]
) -> Sequence[model.Item]:
    inbound = rules.convert(spec.ingress, event.namespace, warnings)
    outbound = rules.convert(spec.egress, event.namespace, warnings)
    problem = (
        _selector_problem(text)
        or rules.problem(inbound, where="ingress")
        or rules.problem(outbound, where="egress")
        or _hints_problem(spec.performanceHints or ())
    )
    if problem:
        return (model.Item(key, None, event.resource_version, invalid=problem),)
    is_global = not event.namespace
    value: dict[str, Any] = {
        "namespace": event.namespace,
        "tier": spec.tier or _TIER_DEFAULT,
        "order": None if spec.order is None else gojson.number(spec.order),
        "inbound_rules": inbound,
        "outbound_rules": outbound,
        "selector": text,
        "untracked": is_global and spec.doNotTrack,
        "pre_dnat": is_global and spec.preDNAT,
        "apply_on_forward": is_global and spec.applyOnForward,
        "types": [type.lower() for type in spec.types or ()],
        "performance_hints": spec.performanceHints,
        "staged_action": staged_action,
    }
    written = {name: member for name, member in value.items() if member or name == "selector"}
    item = model.Item(key, gojson.encode(written), event.resource_version, warning="; ".join(warnings))
    return (item,)


def _selector_problem(text: str) -> str:
    return "" if rules.is_selector(text) else f"not a selector: {text!r}"


def _hints_problem(hints: Sequence[str]) -> str:
    if len(set(hints)) < len(hints) or not _PERFORMANCE_HINTS.issuperset(hints):
        return f"not performance hints: {', '.join(hints)}"
    return ""
