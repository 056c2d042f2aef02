"""AdminNetworkPolicies to Calico's global policies, for agents of Calico 3.29 to 3.31. Pure.

They are the predecessors of ClusterNetworkPolicies, with other actions and ports, and keys of their own
(docs/data-model.md, section 5.7).
"""

from collections.abc import Collection, Sequence

import msgspec

from cache import objects
from cache.feeds.calico import clusterpolicies, kubepolicies, model, policies, rules

ADMIN_TIER = "adminnetworkpolicy"
BASELINE_TIER = "baselineadminnetworkpolicy"
ADMIN_PREFIX = f"kanp.{ADMIN_TIER}."
"""Of the names that these policies have in their keys."""
BASELINE_PREFIX = f"kbanp.{BASELINE_TIER}."

_ADMIN_ACTIONS = frozenset({"Allow", "Deny", "Pass"})
_BASELINE_ACTIONS = frozenset({"Allow", "Deny"})
_BASELINE_ORDER = 1000
_UINT16_MAX = 0xFFFF


class _PortNumber(msgspec.Struct, gc=False):
    protocol: str | None = None
    port: clusterpolicies.Int32 = 0


class _PortRange(msgspec.Struct, gc=False):
    protocol: str | None = None
    start: clusterpolicies.Int32 = 0
    end: clusterpolicies.Int32 = 0


class _Port(msgspec.Struct, gc=False):
    portNumber: _PortNumber | None = None  # noqa: N815
    portRange: _PortRange | None = None  # noqa: N815


class _Rule(clusterpolicies.Rule, gc=False):
    ports: list[_Port] | None = None


class _Spec(msgspec.Struct, gc=False):
    priority: clusterpolicies.Int32 | None = None
    subject: clusterpolicies.Subject | None = None
    ingress: list[_Rule] | None = None
    egress: list[_Rule] | None = None


class _Policy(msgspec.Struct, gc=False):
    spec: _Spec = msgspec.field(default_factory=_Spec)


_decoder = msgspec.json.Decoder(_Policy)


def convert_admin(event: objects.ObjectEvent) -> Sequence[model.Item]:
    """Convert an AdminNetworkPolicy. A rule that cannot be converted rejects the whole policy.

    Raises:
        ConversionError: bad-rule, no-subject, selector-too-deep, too-large, invalid-object.
    """
    spec = model.typed(_decoder, event).spec
    return _items(event, spec, ADMIN_PREFIX, ADMIN_TIER, order=spec.priority or 0, actions=_ADMIN_ACTIONS)


def convert_baseline(event: objects.ObjectEvent) -> Sequence[model.Item]:
    """Convert a BaselineAdminNetworkPolicy, with the same errors. It has no priority."""
    spec = model.typed(_decoder, event).spec
    return _items(event, spec, BASELINE_PREFIX, BASELINE_TIER, order=_BASELINE_ORDER, actions=_BASELINE_ACTIONS)


def _items(
    event: objects.ObjectEvent, spec: _Spec, prefix: str, tier: str, *, order: int, actions: Collection[str]
) -> Sequence[model.Item]:
    conversion = kubepolicies.Conversion()
    converted = clusterpolicies.policy_spec(
        spec.subject,
        _rules(spec.ingress, actions, conversion, is_ingress=True),
        _rules(spec.egress, actions, conversion, is_ingress=False),
        tier=tier,
        order=order,
    )
    key = f"/calico/v1/policy/tier/{tier}/policy/{prefix}{model.escaped(event.name)}"
    return policies.global_items(event, key, converted, warnings=conversion.warnings)


def _rules(
    found: Sequence[_Rule] | None, actions: Collection[str], conversion: kubepolicies.Conversion, *, is_ingress: bool
) -> list[rules.Rule]:
    converted: list[rules.Rule] = []
    for rule in found or ():
        try:
            action = rule.action or ""
            if action not in actions:
                raise kubepolicies.BadRule(f"not an action: {rule.action!r}")
            by_protocol = _ports(rule.ports)
            converted += clusterpolicies.products(rule, action, by_protocol, conversion, is_ingress=is_ingress)
        except kubepolicies.BadRule as error:
            raise model.ConversionError("bad-rule", f"the rule {rule.name or ''!r}: {error}") from error
    return converted


def _ports(ports: Sequence[_Port] | None) -> kubepolicies.PortsByProtocol:
    """Sort ports by protocol. One without number and range, such as a named one, stands for everything."""
    by_protocol: kubepolicies.PortsByProtocol = {}
    for port in ports or (_Port(),):
        given = port.portNumber or port.portRange
        if given is None:
            return {"": None}
        number = (
            given.port & _UINT16_MAX
            if isinstance(given, _PortNumber)
            else clusterpolicies.port_range(given.start, given.end)
        )
        kubepolicies.add_port(by_protocol, kubepolicies.protocol_name(given.protocol or "TCP"), number)
    return by_protocol
