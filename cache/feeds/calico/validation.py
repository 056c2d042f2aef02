"""What the original refuses of resources that are sent whole, after conversion (docs/data-model.md, section 7). Pure.

Two layers: the `check` tags of the fields in `schema`, and rules for whole types. Rules that the API server's own
schemas enforce are not repeated.
"""

import re
from collections.abc import Callable, Iterator
from typing import Any

from cache.feeds.calico import rules, schema
from cache.feeds.calico.codecs import addresses, goregexp, kubenames

_DNS_LABEL_TEXT = r"[a-z0-9](?:[-a-z0-9]*[a-z0-9])?"
_NAME = re.compile(rf"{_DNS_LABEL_TEXT}(?:\.{_DNS_LABEL_TEXT})*")
_DNS_LABEL = re.compile(_DNS_LABEL_TEXT)
_INTERFACE = re.compile(r"[a-zA-Z0-9_.-]{1,15}")
_INTERFACE_PATTERN = re.compile(r"[a-zA-Z0-9_.*-]{1,15}")
_INTERFACE_FILTER = re.compile(r"[a-zA-Z0-9:._+-]{1,15}")
_PROMETHEUS_HOST = re.compile(r"[a-zA-Z0-9:._+-]{1,64}")
_KEY_VALUE = re.compile(r"[\t\n\f\r ]*[0-9A-Za-z_]+=[^\n]*")
# The original writes "." for the dots. As the host must be an address, that means the same, but backtracking over 200
# digits would take half a second here.
_IPV4_PORT = re.compile(r"([0-9]+\.[0-9]+\.[0-9]+\.[0-9]+):([0-9]+)")
_IPV6_PORT = re.compile(r"\[([0-9a-fA-F:.]+)\]:([0-9]+)")
_COMMUNITY = re.compile(r"([0-9]+):([0-9]+)")
_LARGE_COMMUNITY = re.compile(r"([0-9]+):([0-9]+):([0-9]+)")
_TIMEOUT_NAME = re.compile(r"[a-zA-Z0-9_ -]+")
_MAX_PORT = 65535
_MAX_NODE_PORT_RANGES = 7
_MAX_REGION_LENGTH = 46  # a DNS label of 63 characters minus the prefix of the namespaces named after regions
_MAX_TABLE_RANGE_INDEX = 250
_MAX_TABLE_INDEX = (1 << 32) - 1
_MAX_TABLES = (1 << 16) - 1
_IP_TYPES = frozenset({"CalicoNodeIP", "InternalIP", "ExternalIP"})


def problem(type_name: str, values: schema.Values) -> str:
    """Return why an object of the type (as from `schema.read`) is invalid. Empty if it is valid. Names the field.

    Raises:
        ConversionError: selector-too-deep. This is a limit of this implementation, not an error in the object.
    """
    for field in schema.TYPES[type_name]:
        found = _field_problem(field, values.get(field.name))
        if found:
            return found
    rule = _TYPE_RULES.get(type_name)
    return rule(values) if rule else ""


def peer_address(text: str) -> tuple[addresses.IP, int] | None:
    """Return a BGP peer's address and port (0 for none) from `IP`, `IPv4:port` or `[IPv6]:port`. None if invalid."""
    matched = _IPV4_PORT.fullmatch(text) or _IPV6_PORT.fullmatch(text)
    host, port = (matched[1], _number(matched[2])) if matched else (text, 0)
    address = addresses.parse_ip(host)
    if address is None or (matched and not 1 <= port <= _MAX_PORT):
        return None
    return address, port


def _field_problem(field: schema.Field, value: Any) -> str:
    tags = field.check.split(",") if field.check else []
    if value is None:
        if field.kind == "object" and not field.pointer:
            value = {}
        else:
            return f"{field.name}: absent" if "required" in tags else ""
    return _value_problem(field, field.value_type, value, tags)


def _value_problem(field: schema.Field, value_type: schema.FieldType, value: Any, tags: list[str]) -> str:
    if value_type.kind == "object":
        found = problem(value_type.type, value)
        return f"{field.name}.{found}" if found else ""
    if value_type.kind == "port":
        return _port_problem(field.name, value)
    for index, tag in enumerate(tags):
        if tag == "omitempty":
            if not field.pointer and not value and value_type.kind not in ("list", "map"):
                return ""
        elif tag == "dive":
            rest = tags[index + 1 :]
            of = value_type.of or value_type
            return next(filter(None, (_value_problem(field, of, element, rest) for element in value)), "")
        elif not _passes(tag, value, is_pointer=field.pointer):
            return f"{field.name}: not {tag.replace('=', ' ')}: {value!r:.200}"
    return ""


def _passes(tag: str, value: Any, *, is_pointer: bool) -> bool:
    name, _, parameter = tag.partition("=")
    if name == "required":
        return is_pointer or isinstance(value, list | dict) or bool(value)
    if name == "oneof":
        return value in parameter.split(" ")
    if name in _COMPARISONS:
        return _COMPARISONS[name](value, int(parameter))
    return _TAGS[name](value)


def _port_problem(name: str, port: int | str) -> str:
    if isinstance(port, int):
        return "" if port >= 1 else f"{name}: not a port: {port}"
    if ":" in port:
        return "" if _number(port.partition(":")[0]) >= 1 else f"{name}: not a port range: {port}"
    return "" if kubenames.is_port_name(port) else f"{name}: not a port name: {port!r}"


def _is_network(value: str) -> bool:
    """Return whether the text is an address, or a CIDR without host bits."""
    parsed = addresses.parse_interface(value)
    if parsed is None:
        return not value or addresses.parse_ip(value) is not None
    address, network = parsed
    # Compare the printed forms: an IPv4-mapped address counts as IPv4 only if enough of its mask is left.
    return str(address) == str(addresses.IP(network.version, network.value))


def _ip_version(value: str) -> int:
    address = addresses.parse_ip(value)
    return 0 if address is None else address.version


def _is_cidr(value: str) -> bool:
    return not value or addresses.version(value) != 0  # Go reads the empty text as an address without bytes


def _is_key_value_list(value: str) -> bool:
    return not value.strip() or all(not item or _KEY_VALUE.fullmatch(item) for item in value.split(","))


def _is_unique(value: list[Any]) -> bool:
    return len(set(value)) == len(value)


_COMPARISONS: dict[str, Callable[[int, int], bool]] = {
    "gt": lambda value, bound: value > bound,
    "gte": lambda value, bound: value >= bound,
    "lt": lambda value, bound: value < bound,
    "lte": lambda value, bound: value <= bound,
}
_TAGS: dict[str, Callable[[Any], bool]] = {
    "name": lambda value: bool(_NAME.fullmatch(value)),
    "selector": rules.is_selector,
    "interface": lambda value: value == "*" or bool(_INTERFACE.fullmatch(value)),
    "ignoredInterface": lambda value: value != "*" and bool(_INTERFACE_PATTERN.fullmatch(value)),
    "bgpFilterInterface": lambda value: bool(_INTERFACE_PATTERN.fullmatch(value)),
    "ifaceFilter": lambda value: bool(_INTERFACE_FILTER.fullmatch(value)),
    "ifaceFilterSlice": lambda value: all(map(_INTERFACE_FILTER.fullmatch, value)),
    "bpfLogFilters": lambda value: all(map(_INTERFACE.fullmatch, value)),
    "bgpFilterPrefixLengthV4": lambda value: 0 <= value <= 32,
    "bgpFilterPrefixLengthV6": lambda value: 0 <= value <= 128,
    "prometheusHost": lambda value: bool(_PROMETHEUS_HOST.fullmatch(value)),
    "keyValueList": _is_key_value_list,
    "regexp": goregexp.compiles,
    "cidr": _is_cidr,
    "cidrv4": lambda value: addresses.version(value) == 4,
    "cidrv6": lambda value: addresses.version(value) == 6,
    "cidrs": lambda value: all(map(_is_cidr, value)),
    "net": _is_network,
    "netv4": lambda value: addresses.version(value) == 4 and _is_network(value),
    "netv6": lambda value: addresses.version(value) == 6 and _is_network(value),
    "ip": lambda value: _ip_version(value) != 0,
    "ipv4": lambda value: _ip_version(value) == 4,
    "ipv6": lambda value: _ip_version(value) == 6,
    "reachableBy": lambda value: not value or _ip_version(value) != 0,
    "IP:port": lambda value: peer_address(value) is not None,
    "mac": addresses.is_mac,
    "ipType": _IP_TYPES.__contains__,
    "wireguardPublicKey": kubenames.is_wireguard_key,
    "labels": lambda value: not kubenames.labels_problem(value),
    "unique": _is_unique,
}


def _bgp_peer_problem(values: schema.Values) -> str:
    reachable_by = addresses.parse_ip(values.get("reachableBy", ""))
    peer = peer_address(values.get("peerIP", ""))
    if reachable_by is not None and peer is not None and reachable_by.version != peer[0].version:
        return "reachableBy: IP version differs from that of peerIP"
    return ""


def _bgp_configuration_problem(values: schema.Values) -> str:
    communities = values.get("communities", [])
    for community in communities:
        if _community_problem(community.get("value", "")):
            return f"communities: not a community: {community.get('value', '')!r:.100}"
    names = {community.get("name", "") for community in communities}
    for advertisement in values.get("prefixAdvertisements", []):
        for text in advertisement.get("communities", []):
            # A text of the right form must have valid numbers, even if a community has it as its name.
            found = _community_problem(text)
            if found == "value" or (found == "form" and text not in names):
                return f"prefixAdvertisements.communities: neither a community nor the name of one: {text!r:.100}"
    return ""


def _community_problem(text: str) -> str:
    if matched := _COMMUNITY.fullmatch(text):
        bits = 16
    elif matched := _LARGE_COMMUNITY.fullmatch(text):
        bits = 32
    else:
        return "form"
    return "" if all(0 <= _number(group) < 1 << bits for group in matched.groups()) else "value"


def _felix_problem(values: schema.Values) -> str:
    return next(filter(None, _felix_problems(values)), "")


def _felix_problems(values: schema.Values) -> Iterator[str]:
    ports = values.get("kubeNodePortRanges", [])
    if len(ports) > _MAX_NODE_PORT_RANGES:
        yield f"kubeNodePortRanges: more than {_MAX_NODE_PORT_RANGES} ranges"
    if any(isinstance(port, str) and ":" not in port for port in ports):
        yield "kubeNodePortRanges: a port name instead of a number or range"
    for text in values.get("externalNodesList", []):
        if addresses.version(text) != 4:
            yield f"externalNodesList: not an IPv4 address or CIDR: {text!r:.100}"
    region = values.get("openstackRegion", "")
    if region and (len(region) > _MAX_REGION_LENGTH or not _DNS_LABEL.fullmatch(region)):
        yield f"openstackRegion: not a DNS label of at most {_MAX_REGION_LENGTH} characters: {region!r:.100}"
    for name in ("natOutgoingAddress", "deviceRouteSourceAddress", "deviceRouteSourceAddressIPv6"):
        text = values.get(name, "")
        if text and not _ip_version(text):
            yield f"{name}: not an IP: {text!r:.100}"
    tables = sum(span.get("max", 0) - span.get("min", 0) + 1 for span in values.get("routeTableRanges", []))
    if tables > _MAX_TABLES:
        yield f"routeTableRanges: {tables} tables, more than {_MAX_TABLES}"


def _route_table_range_problem(values: schema.Values) -> str:
    low, high = values.get("min", 0), values.get("max", 0)
    return "" if 1 <= low <= high <= _MAX_TABLE_RANGE_INDEX else f"not a range within 1 to 250: {low}-{high}"


def _route_table_ids_problem(values: schema.Values) -> str:
    low, high = values.get("min", 0), values.get("max", 0)
    return "" if 1 <= low <= high <= _MAX_TABLE_INDEX else f"not a range from 1 up: {low}-{high}"


def _health_timeout_problem(values: schema.Values) -> str:
    if not _TIMEOUT_NAME.fullmatch(values.get("name", "")):
        return f"name: not letters, digits, spaces, _ or -: {values.get('name', '')!r:.100}"
    return "timeout: negative" if values.get("timeout", 0) < 0 else ""


def _node_problem(values: schema.Values) -> str:
    bgp = values.get("bgp")
    return "bgp: empty" if bgp is not None and not any(bgp.values()) and "asNumber" not in bgp else ""


def _number(text: str) -> int:
    """Return the number, or -1 if it has too many digits to be valid (leading zeros do not count)."""
    digits = text.lstrip("0")
    return int(digits or "0") if len(digits) < 20 else -1


_TYPE_RULES: dict[str, Callable[[schema.Values], str]] = {
    "metav1.ObjectMeta": kubenames.metadata_problem,
    "v3.BGPPeerSpec": _bgp_peer_problem,
    "v3.BGPConfigurationSpec": _bgp_configuration_problem,
    "v3.FelixConfigurationSpec": _felix_problem,
    "v3.RouteTableRange": _route_table_range_problem,
    "v3.RouteTableIDRange": _route_table_ids_problem,
    "v3.HealthTimeoutOverride": _health_timeout_problem,
    "internal.NodeSpec": _node_problem,
}
