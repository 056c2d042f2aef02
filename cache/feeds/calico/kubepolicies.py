"""Kubernetes' policies to Calico's (docs/data-model.md, sections 5.6 and 5.8): enforced and staged. Pure."""

from collections.abc import Sequence

import msgspec

from cache import objects
from cache.feeds.calico import customresource, model, policies, rules, schema
from cache.feeds.calico.codecs import addresses

KUBERNETES_NETWORK_POLICY = "KubernetesNetworkPolicy"
STAGED_KUBERNETES_NETWORK_POLICY = "StagedKubernetesNetworkPolicy"

_ORDER = 1000.0
POD_TERM = "projectcalico.org/orchestrator == 'k8s'"
_PROTOCOLS = {name.lower(): name for name in ("TCP", "UDP", "SCTP", "ICMP", "ICMPv6", "UDPLite")}
_STAGED_DELETE = "Delete"
_MAX_RULES = 50_000
_MAX_PORTS = 1_000_000
_MAX_TEXT = 16_000_000
"""Characters of selectors, networks and names. An object of 1.5 MB with the three protocols that the API server takes
comes to 4.5 million. The value would be at least as long."""
Port = int | str
PortsByProtocol = dict[str, list[Port] | None]


class _Expression(msgspec.Struct, gc=False):
    key: str = ""
    operator: str = ""
    values: list[str] | None = None


class LabelSelector(msgspec.Struct, gc=False):
    matchLabels: dict[str, str] | None = None  # noqa: N815
    matchExpressions: list[_Expression] | None = None  # noqa: N815


class _IPBlock(msgspec.Struct, gc=False):
    cidr: str = ""
    excepted: list[str] | None = msgspec.field(default=None, name="except")


class _Peer(msgspec.Struct, gc=False):
    podSelector: LabelSelector | None = None  # noqa: N815
    namespaceSelector: LabelSelector | None = None  # noqa: N815
    ipBlock: _IPBlock | None = None  # noqa: N815


class _PolicyPort(msgspec.Struct, gc=False):
    protocol: str | None = None
    port: Port | None = None
    endPort: int | None = None  # noqa: N815


class _PolicyRule(msgspec.Struct, gc=False):
    ports: list[_PolicyPort] | None = None
    sources: list[_Peer] | None = msgspec.field(default=None, name="from")
    destinations: list[_Peer] | None = msgspec.field(default=None, name="to")


class _PolicySpec(msgspec.Struct, gc=False):
    podSelector: LabelSelector | None = None  # noqa: N815
    ingress: list[_PolicyRule] | None = None
    egress: list[_PolicyRule] | None = None
    policyTypes: list[str] | None = None  # noqa: N815
    stagedAction: str | None = None  # noqa: N815


class _Policy(msgspec.Struct, gc=False):
    metadata: customresource.Metadata
    spec: _PolicySpec = msgspec.field(default_factory=_PolicySpec)


class Conversion:
    """The conversion of one policy: its warnings, and its budget of rules, ports and text.

    Peers, protocols and ports multiply. Without the budget, an object of 1 MB could grow to terabytes.
    """

    def __init__(self) -> None:
        self.warnings: list[str] = []
        self._rules = _MAX_RULES
        self._ports = _MAX_PORTS
        self._text = _MAX_TEXT

    def spend(self, *, rules: int, ports: int, text: int) -> None:
        """Use up a part of the budget; `text` is in characters. Raises ConversionError: too-large."""
        self._rules -= rules
        self._ports -= ports
        self._text -= text
        if self._rules < 0 or self._ports < 0 or self._text < 0:
            raise model.ConversionError(
                "too-large",
                f"peers and ports multiply to more than {_MAX_RULES} rules, {_MAX_PORTS} ports or "
                f"{_MAX_TEXT} characters",
            )


class BadRule(ValueError):
    """A rule cannot be converted."""


_decode_policy = msgspec.json.Decoder(_Policy)


def convert_policy(event: objects.ObjectEvent) -> Sequence[model.Item]:
    """Convert a Kubernetes NetworkPolicy. A rule that cannot be converted is left out, with a warning.

    Raises:
        ConversionError: selector-too-deep, invalid-object.
    """
    conversion = Conversion()
    spec = _spec(model.typed(_decode_policy, event).spec, conversion, is_strict=False)
    key = policies.policy_key(KUBERNETES_NETWORK_POLICY, event)
    return policies.namespaced_items(event, key, spec, warnings=conversion.warnings)


def convert_staged_policy(event: objects.ObjectEvent, group: customresource.Group) -> Sequence[model.Item]:
    """Convert a StagedKubernetesNetworkPolicy. A rule that cannot be converted rejects the whole policy.

    Raises:
        ConversionError: bad-rule, selector-too-deep, bad-metadata-annotation, invalid-object.
    """
    policy = model.typed(_decode_policy, event)
    customresource.effective_metadata(policy.metadata, group)
    key = policies.policy_key(STAGED_KUBERNETES_NETWORK_POLICY, event)
    if policy.spec.stagedAction == _STAGED_DELETE:
        return (model.Item(key, None, ""),)
    conversion = Conversion()
    spec = _spec(policy.spec, conversion, is_strict=True)
    return policies.namespaced_items(
        event, key, spec, staged_action=policy.spec.stagedAction or "", warnings=conversion.warnings
    )


def _spec(spec: _PolicySpec, conversion: Conversion, *, is_strict: bool) -> policies.Spec:
    given = spec.policyTypes or ()
    return policies.Spec(
        order=_ORDER,
        selector=pod_selector(spec.podSelector),
        ingress=_policy_rules(spec.ingress, conversion, is_strict=is_strict, is_ingress=True),
        egress=_policy_rules(spec.egress, conversion, is_strict=is_strict, is_ingress=False),
        types=[name for name in ("Ingress", "Egress") if name in given] or ["Ingress"],
    )


def _policy_rules(
    found: Sequence[_PolicyRule] | None, conversion: Conversion, *, is_strict: bool, is_ingress: bool
) -> list[rules.Rule]:
    converted: list[rules.Rule] = []
    for rule in found or ():
        try:
            by_protocol = _policy_ports(rule.ports)
        except BadRule as error:
            if is_strict:
                raise model.ConversionError("bad-rule", str(error)) from error
            conversion.warnings.append(f"a rule is left out: {error}")
            continue
        peers = [_peer_entity(peer, conversion) for peer in (rule.sources if is_ingress else rule.destinations) or ()]
        converted += cross_product(
            by_protocol, peers or [rules.Entity()], action="Allow", is_ingress=is_ingress, conversion=conversion
        )
    return converted


def cross_product(
    by_protocol: PortsByProtocol,
    peers: Sequence[rules.Entity],
    *,
    action: str,
    is_ingress: bool,
    conversion: Conversion,
    name: str | None = None,
) -> list[rules.Rule]:
    """Return a rule for each protocol and peer. A name goes into the rules' annotations. Raises ConversionError."""
    metadata = rules.RuleMetadata(annotations={"name": name}) if name else None
    peers_text = sum(map(_text_length, peers))
    converted: list[rules.Rule] = []
    for protocol in sorted(by_protocol):
        ports = _simplified(by_protocol[protocol] or [])
        own_text = len(name or "") + len(protocol) + sum(len(port) for port in ports if isinstance(port, str))
        conversion.spend(rules=len(peers), ports=len(peers) * len(ports), text=peers_text + len(peers) * own_text)
        for peer in peers:
            rule = rules.Rule(action=action, protocol=protocol or None, metadata=metadata)
            if is_ingress:
                rule.source, rule.destination = peer, rules.Entity(ports=ports)
            else:
                rule.destination = rules.Entity(
                    nets=peer.nets,
                    notNets=peer.notNets,
                    selector=peer.selector,
                    namespaceSelector=peer.namespaceSelector,
                    ports=ports,
                )
            converted.append(rule)
    return converted


def _text_length(peer: rules.Entity) -> int:
    nets = (*(peer.nets or ()), *(peer.notNets or ()))
    return len(peer.selector or "") + len(peer.namespaceSelector or "") + sum(map(len, nets))


def add_port(by_protocol: PortsByProtocol, protocol: str, port: Port | None) -> None:
    """Add a port to a protocol. None stands for all ports, whatever else is listed."""
    if port is None:
        by_protocol[protocol] = None
        return
    ports = by_protocol.setdefault(protocol, [])
    if ports is not None:
        ports.append(port)


def _policy_ports(ports: Sequence[_PolicyPort] | None) -> PortsByProtocol:
    by_protocol: PortsByProtocol = {}
    for port in ports or ():
        protocol = "TCP" if port.protocol is None else protocol_name(port.protocol)
        add_port(by_protocol, protocol, _policy_port(port))
    return by_protocol or {"": None}


def protocol_name(given: str) -> str:
    """Return the API's spelling of a protocol. Unknown ones are left as they are, for validation to find."""
    return _PROTOCOLS.get(given.lower(), given)


def _policy_port(port: _PolicyPort) -> Port | None:
    if port.port is None:
        return None
    text = str(port.port) if port.endPort is None else f"{port.port}:{port.endPort}"
    try:
        parsed: Port = schema.parse_port(text)
    except ValueError as error:
        raise BadRule(str(error)) from error
    return parsed


def _simplified(ports: list[Port]) -> list[Port]:
    """Merge ports: names first, then numbers and ranges in order. A single number stays as it is."""
    if len(ports) <= 1:
        return ports
    names = [port for port in ports if isinstance(port, str) and ":" not in port]
    ranges = sorted(_range(port) for port in ports if not (isinstance(port, str) and ":" not in port))
    if sum(high - low + 1 for low, high in ranges) <= 1:
        return ports
    merged: list[tuple[int, int]] = []
    for low, high in ranges:
        if merged and low <= merged[-1][1] + 1:
            merged[-1] = (merged[-1][0], max(merged[-1][1], high))
        else:
            merged.append((low, high))
    return [*names, *(low if low == high else f"{low}:{high}" for low, high in merged)]


def _range(port: Port) -> tuple[int, int]:
    low, _, high = str(port).partition(":")
    return int(low), int(high or low)


def _peer_entity(peer: _Peer, conversion: Conversion) -> rules.Entity:
    if peer.ipBlock is None:
        return rules.Entity(
            selector=pod_selector(peer.podSelector), namespaceSelector=namespace_selector(peer.namespaceSelector)
        )
    network = addresses.parse_cidr(peer.ipBlock.cidr)
    if network is None:
        conversion.warnings.append(f"an ipBlock is not a CIDR and is left out of its rule: {peer.ipBlock.cidr!r}")
        return rules.Entity()
    excepted: list[str] = []
    for text in peer.ipBlock.excepted or ():
        exception = addresses.parse_cidr(text)
        if exception is None:
            conversion.warnings.append(
                f"an exception of an ipBlock is not a CIDR and is left out, with all later ones: {text!r}"
            )
            break
        excepted.append(str(exception))
    return rules.Entity(nets=[str(network)], notNets=excepted)


def pod_selector(selector: LabelSelector | None) -> str:
    return " && ".join([POD_TERM, *_terms(selector)])


def namespace_selector(selector: LabelSelector | None) -> str:
    """Convert a namespace selector. None gives an empty text; an empty selector selects every namespace."""
    if selector is None:
        return ""
    if not selector.matchLabels and not selector.matchExpressions:
        return "all()"
    return " && ".join(_terms(selector))


def _terms(selector: LabelSelector | None) -> list[str]:
    if selector is None:
        return []
    terms = [f"{key} == '{value}'" for key, value in sorted((selector.matchLabels or {}).items())]
    for expression in selector.matchExpressions or ():
        values = "', '".join(expression.values or ())
        match expression.operator:
            case "In":
                terms.append(f"{expression.key} in {{ '{values}' }}")
            case "NotIn":
                terms.append(f"{expression.key} not in {{ '{values}' }}")
            case "Exists":
                terms.append(f"has({expression.key})")
            case "DoesNotExist":
                terms.append(f"! has({expression.key})")
    return terms
