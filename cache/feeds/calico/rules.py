"""A policy's rules: from Calico's API to what agents get, and validation (docs/data-model.md, section 5.5). Pure.

The structs here are the form of the API. Kubernetes' policies are converted to them first.
"""

from collections.abc import Sequence
from typing import Any

import msgspec

from cache.feeds.calico import model, schema
from cache.feeds.calico.codecs import addresses, gojson, kubenames
from protocol import selector

_LABEL_NAMESPACE = "projectcalico.org/namespace"
_LABEL_SERVICE_ACCOUNT = "projectcalico.org/serviceaccount"
_UINT8_MAX = 0xFF
_PROTOCOL_NAMES = frozenset({"tcp", "udp", "icmp", "icmpv6", "sctp", "udplite"})
_PROTOCOLS_WITH_PORTS = frozenset({"tcp", "udp", "sctp", 6, 17, 132})
_ICMP_TYPE_MAX = 254
_ICMP_CODE_MAX = 255
_IP_VERSIONS = (4, 6)
_PORT_FIELDS = ("src_ports", "dst_ports", "!src_ports", "!dst_ports")
_SELECTOR_FIELDS = (
    "src_selector",
    "dst_selector",
    "!src_selector",
    "!dst_selector",
    "orig_src_selector",
    "orig_src_namespace_selector",
    "orig_dst_selector",
    "orig_dst_namespace_selector",
    "orig_src_service_acct_selector",
    "orig_dst_service_acct_selector",
)


class Icmp(msgspec.Struct, gc=False):
    """ICMP type and code."""

    type: int | None = None
    code: int | None = None


class Services(msgspec.Struct, gc=False):
    """A service by name."""

    name: str | None = None
    namespace: str | None = None


class ServiceAccounts(msgspec.Struct, gc=False):
    """Service accounts by name or selector."""

    names: list[str] | None = None
    selector: str | None = None


class Entity(msgspec.Struct, gc=False):
    """The source or destination of a rule."""

    nets: list[str] | None = None
    selector: str | None = None
    namespaceSelector: str | None = None  # noqa: N815
    services: Services | None = None
    ports: list[int | str] | None = None
    notNets: list[str] | None = None  # noqa: N815
    notSelector: str | None = None  # noqa: N815
    notPorts: list[int | str] | None = None  # noqa: N815
    serviceAccounts: ServiceAccounts | None = None  # noqa: N815


class HttpPath(msgspec.Struct, gc=False):
    """An exact path, or the prefix of paths."""

    exact: str | None = None
    prefix: str | None = None


class Http(msgspec.Struct, gc=False):
    """HTTP methods and paths."""

    methods: list[str] | None = None
    paths: list[HttpPath] | None = None


class RuleMetadata(msgspec.Struct, gc=False):
    """A rule's annotations."""

    annotations: dict[str, str] | None = None


class Rule(msgspec.Struct, gc=False):
    """A rule in the form of the API."""

    action: str | None = None
    ipVersion: int | None = None  # noqa: N815
    protocol: int | str | None = None
    icmp: Icmp | None = None
    notProtocol: int | str | None = None  # noqa: N815
    notICMP: Icmp | None = None  # noqa: N815
    source: Entity | None = None
    destination: Entity | None = None
    http: Http | None = None
    metadata: RuleMetadata | None = None


def convert(rules: Sequence[Rule] | None, namespace: str, warnings: list[str]) -> list[dict[str, Any]]:
    """Convert rules to the form of agents, and append warnings. `namespace` is empty for a global policy.

    Raises:
        ConversionError: undecodable, selector-too-deep.
    """
    return [_convert(rule, namespace, warnings) for rule in rules or ()]


def problem(rules: Sequence[dict[str, Any]], *, where: str) -> str:
    """Return why validation rejects a policy with these rules (as from `convert`). Empty if they are valid."""
    for number, rule in enumerate(rules):
        found = _rule_problem(rule)
        if found:
            return f"{where}[{number}]: {found}"
    return ""


def canonical(text: str, prefix: str) -> str | None:
    """Print a selector in its canonical form. None if it does not parse. Raises ConversionError: selector-too-deep."""
    try:
        return selector.canonical(text, prefix=prefix)
    except selector.SelectorTooDeep as error:
        raise model.ConversionError("selector-too-deep", f"{error}: {text[:80]!r}...") from error
    except selector.SelectorError:
        return None


def is_selector(text: str) -> bool:
    """Return whether the text parses as a selector. Raises ConversionError: selector-too-deep."""
    return canonical(text, "") is not None


def protocol_value(protocol: int | str | None) -> int | str | None:
    """Return the protocol in lower case, or as a number. Raises ConversionError: undecodable."""
    if isinstance(protocol, str):
        digits = protocol.lstrip("0") or "0"  # Python refuses to read more than 4,300 digits.
        is_number = protocol.isascii() and protocol.isdigit() and len(digits) <= 3
        return int(digits) if is_number and int(digits) <= _UINT8_MAX else protocol.lower()
    if protocol is not None and not 0 <= protocol <= _UINT8_MAX:
        raise model.ConversionError("undecodable", f"not a protocol: {protocol}")
    return protocol


def _convert(rule: Rule, namespace: str, warnings: list[str]) -> dict[str, Any]:
    source, destination = rule.source or _NO_ENTITY, rule.destination or _NO_ENTITY
    icmp, not_icmp = rule.icmp or _NO_ICMP, rule.notICMP or _NO_ICMP
    source_accounts = source.serviceAccounts or _NO_SERVICE_ACCOUNTS
    destination_accounts = destination.serviceAccounts or _NO_SERVICE_ACCOUNTS
    source_services, destination_services = source.services or _NO_SERVICES, destination.services or _NO_SERVICES
    pointers = {
        "ip_version": rule.ipVersion,
        "protocol": protocol_value(rule.protocol),
        "!protocol": protocol_value(rule.notProtocol),
        "icmp_type": icmp.type,
        "icmp_code": icmp.code,
        "!icmp_type": not_icmp.type,
        "!icmp_code": not_icmp.code,
    }
    others = {
        "src_nets": _nets(source.nets),
        "src_selector": entity_selector(source, namespace, warnings),
        "src_ports": _ports(source.ports),
        "src_service": source_services.name,
        "src_service_ns": source_services.namespace,
        "dst_selector": entity_selector(destination, namespace, warnings),
        "dst_nets": _nets([net for net in destination.nets or () if net]),
        "dst_ports": _ports(destination.ports),
        "dst_service": destination_services.name,
        "dst_service_ns": destination_services.namespace,
        "!src_nets": _nets(source.notNets),
        "!src_selector": source.notSelector,
        "!src_ports": _ports(source.notPorts),
        "!dst_selector": destination.notSelector,
        "!dst_nets": _nets([net for net in destination.notNets or () if net]),
        "!dst_ports": _ports(destination.notPorts),
        "orig_src_selector": source.selector,
        "orig_src_namespace_selector": source.namespaceSelector,
        "orig_dst_selector": destination.selector,
        "orig_dst_namespace_selector": destination.namespaceSelector,
        "!orig_src_selector": source.notSelector,
        "!orig_dst_selector": destination.notSelector,
        "orig_src_service_acct_names": source_accounts.names,
        "orig_src_service_acct_selector": source_accounts.selector,
        "orig_dst_service_acct_names": destination_accounts.names,
        "orig_dst_service_acct_selector": destination_accounts.selector,
    }
    converted: dict[str, Any] = {"action": _action(rule.action or "")} if rule.action else {}
    converted.update({name: value for name, value in pointers.items() if value is not None})
    converted.update({name: value for name, value in others.items() if value})
    if rule.http is not None:
        converted["http"] = _http(rule.http)
    if rule.metadata is not None and rule.metadata.annotations is not None:
        converted["metadata"] = gojson.omit_empty({"annotations": gojson.sorted_map(rule.metadata.annotations)})
    return converted


_NO_ENTITY = Entity()
_NO_ICMP = Icmp()
_NO_SERVICES = Services()
_NO_SERVICE_ACCOUNTS = ServiceAccounts()


def _action(action: str) -> str:
    return "next-tier" if action == "Pass" else action.lower()


def _nets(texts: Sequence[str] | None) -> list[str]:
    return [net for net in map(addresses.network_text, texts or ()) if net is not None]


def _ports(ports: Sequence[int | str] | None) -> list[int | str]:
    try:
        return [schema.parse_port(port) for port in ports or ()]
    except ValueError as error:
        raise model.ConversionError("undecodable", str(error)) from error


def _http(http: Http) -> dict[str, Any]:
    paths = [gojson.omit_empty({"exact": path.exact, "prefix": path.prefix}) for path in http.paths or ()]
    return gojson.omit_empty({"methods": http.methods, "paths": paths})


def entity_selector(entity: Entity, namespace: str, warnings: list[str]) -> str:
    """Join the selectors of the entity, its service accounts and its namespaces to one selector."""
    accounts = _accounts_selector(entity.serviceAccounts, warnings) if entity.serviceAccounts is not None else ""
    given = [text for text in (accounts, entity.selector) if text]
    own = given[0] if len(given) == 1 else " && ".join(f"({text})" for text in given)
    namespaces = ""
    if entity.namespaceSelector:
        parsed = canonical(entity.namespaceSelector, "pcns.")
        if parsed is None:
            warnings.append(f"a rule's namespaceSelector does not parse and is left out: {entity.namespaceSelector!r}")
        namespaces = (parsed or "").replace("all()", f"has({_LABEL_NAMESPACE})")
        namespaces = namespaces.replace("global()", f"!has({_LABEL_NAMESPACE})")
    elif namespace:
        namespaces = f"{_LABEL_NAMESPACE} == '{namespace}'"
    if namespaces and (own or entity.notSelector or entity.namespaceSelector):
        return f"({namespaces}) && ({own})" if own else namespaces
    return own


def _accounts_selector(accounts: ServiceAccounts, warnings: list[str]) -> str:
    by_label = ""
    if accounts.selector:
        parsed = canonical(accounts.selector, "pcsa.")
        if parsed is None:
            warnings.append(f"a rule's service account selector does not parse and is left out: {accounts.selector!r}")
        by_label = parsed or ""
    if not accounts.names:
        return by_label
    joined = "', '".join(accounts.names)
    by_name = canonical(f"{_LABEL_SERVICE_ACCOUNT} in {{ '{joined}' }}", "")
    if by_name is None:
        warnings.append(f"a rule's service account names do not parse and are left out: {joined!r}")
        return ""
    return f"({by_label}) && ({by_name})" if by_label else by_name


def _rule_problem(rule: dict[str, Any]) -> str:
    if rule.get("ip_version", 4) not in _IP_VERSIONS:
        return f"not an IP version: {rule['ip_version']}"
    for name in ("protocol", "!protocol"):
        protocol = rule.get(name, 1)
        if protocol == 0 or (isinstance(protocol, str) and protocol not in _PROTOCOL_NAMES):
            return f"not a protocol: {protocol!r}"
    for name, largest in (("type", _ICMP_TYPE_MAX), ("code", _ICMP_CODE_MAX)):
        for field in (f"icmp_{name}", f"!icmp_{name}"):
            if not 0 <= rule.get(field, 0) <= largest:
                return f"not an ICMP {name}: {rule[field]}"
    for name in _SELECTOR_FIELDS:
        text = rule.get(name, "")
        if text and canonical(text, "") is None:
            return f"{name} is not a selector: {text!r}"
    return _ports_problem(rule)


def _ports_problem(rule: dict[str, Any]) -> str:
    protocol = rule.get("protocol")
    for field in _PORT_FIELDS:
        for port in rule.get(field, ()):
            is_name = isinstance(port, str) and ":" not in port
            if is_name and not kubenames.is_port_name(port):
                return f"not a port name: {port!r}"
            if not is_name and str(port).partition(":")[0] == "0":
                return "port 0"
            if protocol not in _PROTOCOLS_WITH_PORTS and not (is_name and protocol is None):
                return f"port {port!r} with a protocol that has no ports: {protocol!r}"
    return ""
