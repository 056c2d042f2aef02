"""ClusterNetworkPolicies to Calico's global policies (docs/data-model.md, section 5.7). Pure.

What its predecessors share with it, in `adminpolicies`, is public here: subjects, peers, and products of rules.
"""

import re
from collections.abc import Sequence
from typing import Annotated, TypeAlias

import msgspec

from cache import objects
from cache.feeds.calico import kubepolicies, model, policies, rules
from cache.feeds.calico.codecs import addresses

KUBERNETES_CLUSTER_NETWORK_POLICY = "KubernetesClusterNetworkPolicy"

_TIERS = {"Admin": "kube-admin", "Baseline": "kube-baseline"}
_ACTIONS = {"Accept": "Allow", "Deny": "Deny", "Pass": "Pass"}
_NAMED_PORT = re.compile(r"[a-zA-Z0-9_.-]{1,128}")
_UINT16_MAX = 0xFFFF
Int32: TypeAlias = Annotated[int, msgspec.Meta(ge=-(2**31), le=2**31 - 1)]
"""The original cannot read an object with any other number."""


class _Pods(msgspec.Struct, gc=False):
    namespaceSelector: kubepolicies.LabelSelector | None = None  # noqa: N815
    podSelector: kubepolicies.LabelSelector | None = None  # noqa: N815


class Subject(msgspec.Struct, gc=False):
    """The pods that a policy is for. One of both is set."""

    namespaces: kubepolicies.LabelSelector | None = None
    pods: _Pods | None = None


class Peer(msgspec.Struct, gc=False):
    """A peer of a rule. Others than these are not supported."""

    namespaces: kubepolicies.LabelSelector | None = None
    pods: _Pods | None = None
    networks: list[str] | None = None


class Rule(msgspec.Struct, gc=False):
    """What the rules of all cluster-wide policies of Kubernetes have."""

    name: str | None = None
    action: str | None = None
    sources: list[Peer] | None = msgspec.field(default=None, name="from")
    destinations: list[Peer] | None = msgspec.field(default=None, name="to")


class _PortRange(msgspec.Struct, gc=False):
    start: Int32 = 0
    end: Int32 = 0


class _ClusterPort(msgspec.Struct, gc=False):
    number: Int32 | None = None
    range: _PortRange | None = None


class _ProtocolPorts(msgspec.Struct, gc=False):
    destinationPort: _ClusterPort | None = None  # noqa: N815


class _ClusterProtocol(msgspec.Struct, gc=False):
    tcp: _ProtocolPorts | None = None
    udp: _ProtocolPorts | None = None
    sctp: _ProtocolPorts | None = None
    destinationNamedPort: str | None = None  # noqa: N815


class _ClusterRule(Rule, gc=False):
    protocols: list[_ClusterProtocol] | None = None


class _ClusterSpec(msgspec.Struct, gc=False):
    tier: str | None = None
    priority: Int32 | None = None
    subject: Subject | None = None
    ingress: list[_ClusterRule] | None = None
    egress: list[_ClusterRule] | None = None


class _ClusterPolicy(msgspec.Struct, gc=False):
    spec: _ClusterSpec = msgspec.field(default_factory=_ClusterSpec)


_decoder = msgspec.json.Decoder(_ClusterPolicy)


def convert(event: objects.ObjectEvent) -> Sequence[model.Item]:
    """Convert a ClusterNetworkPolicy. A rule that cannot be converted fails closed, with a warning.

    Raises:
        ConversionError: bad-tier, no-subject, selector-too-deep, invalid-object.
    """
    spec = model.typed(_decoder, event).spec
    tier = _TIERS.get(spec.tier or "")
    if tier is None:
        raise model.ConversionError("bad-tier", f"spec.tier: {spec.tier!r}")
    conversion = kubepolicies.Conversion()
    converted = policy_spec(
        spec.subject,
        _cluster_rules(spec.ingress, conversion, is_ingress=True),
        _cluster_rules(spec.egress, conversion, is_ingress=False),
        tier=tier,
        order=spec.priority or 0,
    )
    key = policies.policy_key(KUBERNETES_CLUSTER_NETWORK_POLICY, event)
    return policies.global_items(event, key, converted, warnings=conversion.warnings)


def policy_spec(
    subject: Subject | None, ingress: list[rules.Rule], egress: list[rules.Rule], *, tier: str, order: int
) -> policies.Spec:
    """Return the policy with these rules. Raises ConversionError: no-subject."""
    subject = subject or Subject()
    if subject.namespaces is not None:
        namespace_selector, pod_selector = kubepolicies.namespace_selector(subject.namespaces), kubepolicies.POD_TERM
    elif subject.pods is not None:
        namespace_selector, pod_selector = _pods_selectors(subject.pods)
    else:
        raise model.ConversionError("no-subject", "spec.subject selects nothing")
    return policies.Spec(
        tier=tier,
        order=float(order),
        selector=pod_selector,
        namespaceSelector=namespace_selector,
        ingress=ingress,
        egress=egress,
        types=[name for name, found in (("Ingress", ingress), ("Egress", egress)) if found],
    )


def _pods_selectors(pods: _Pods) -> tuple[str, str]:
    """Return the selectors (namespaces, pods). An absent one counts as an empty one."""
    return kubepolicies.namespace_selector(
        pods.namespaceSelector or kubepolicies.LabelSelector()
    ), kubepolicies.pod_selector(pods.podSelector)


def _cluster_rules(
    found: Sequence[_ClusterRule] | None, conversion: kubepolicies.Conversion, *, is_ingress: bool
) -> list[rules.Rule]:
    converted: list[rules.Rule] = []
    for rule in found or ():
        try:
            converted += _cluster_rule(rule, conversion, is_ingress=is_ingress)
        except kubepolicies.BadRule as error:
            fails_closed = rule.action in ("Deny", "Pass")
            outcome = "denies everything" if fails_closed else "is left out"
            conversion.warnings.append(f"the rule {rule.name or ''!r} {outcome}: {error}")
            if fails_closed:
                converted.append(rules.Rule(action="Deny"))
    return converted


def _cluster_rule(rule: _ClusterRule, conversion: kubepolicies.Conversion, *, is_ingress: bool) -> list[rules.Rule]:
    action = _ACTIONS.get(rule.action or "")
    if action is None:
        raise kubepolicies.BadRule(f"not an action: {rule.action!r}")
    return products(rule, action, _cluster_ports(rule.protocols), conversion, is_ingress=is_ingress)


def products(
    rule: Rule,
    action: str,
    by_protocol: kubepolicies.PortsByProtocol,
    conversion: kubepolicies.Conversion,
    *,
    is_ingress: bool,
) -> list[rules.Rule]:
    """Return the products of a rule's protocols and peers.

    Raises:
        BadRule: a peer cannot be converted.
        ConversionError: too-large.
    """
    found = (rule.sources if is_ingress else rule.destinations) or ()
    peers = [_peer_entity(peer, is_ingress=is_ingress) for peer in found]
    return kubepolicies.cross_product(
        by_protocol, peers, action=action, is_ingress=is_ingress, conversion=conversion, name=rule.name
    )


def _peer_entity(peer: Peer, *, is_ingress: bool) -> rules.Entity:
    networks = () if is_ingress else peer.networks or ()
    if peer.namespaces is None and peer.pods is None and not networks:
        raise kubepolicies.BadRule("a peer selects nothing")
    entity = rules.Entity()
    if peer.namespaces is not None:
        entity.namespaceSelector = kubepolicies.namespace_selector(peer.namespaces)
    if peer.pods is not None:
        entity.namespaceSelector, entity.selector = _pods_selectors(peer.pods)
    nets = [addresses.parse_cidr(text) for text in networks]
    if None in nets:
        raise kubepolicies.BadRule(f"not CIDRs: {', '.join(networks)}")
    entity.nets = [str(net) for net in nets]
    return entity


def _cluster_ports(protocols: Sequence[_ClusterProtocol] | None) -> kubepolicies.PortsByProtocol:
    by_protocol: kubepolicies.PortsByProtocol = {}
    for protocol in protocols or (_ClusterProtocol(),):
        for name, ports in (("TCP", protocol.tcp), ("UDP", protocol.udp), ("SCTP", protocol.sctp)):
            if ports is not None:
                kubepolicies.add_port(by_protocol, name, _cluster_port(ports.destinationPort))
                break
        else:
            if not protocol.destinationNamedPort:
                return {"": None}
            if not _NAMED_PORT.fullmatch(protocol.destinationNamedPort):
                raise kubepolicies.BadRule(f"not a port name: {protocol.destinationNamedPort!r}")
            kubepolicies.add_port(by_protocol, "", protocol.destinationNamedPort)
    return by_protocol


def _cluster_port(port: _ClusterPort | None) -> kubepolicies.Port | None:
    if port is None:
        return None
    if port.number:
        return port.number & _UINT16_MAX
    if port.range is None:
        return None
    return port_range(port.range.start, port.range.end)


def port_range(start: int, end: int) -> kubepolicies.Port:
    """Return a range, or the one number in it. Only 16 bits of the numbers count. Raises BadRule."""
    low, high = start & _UINT16_MAX, end & _UINT16_MAX
    if low > high:
        raise kubepolicies.BadRule(f"the port range {low}:{high} is not in order")
    return low if low == high else f"{low}:{high}"
