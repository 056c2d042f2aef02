"""What agents hold, as resources: from keys and values back to the kinds that `calicoctl get` shows. Pure.

Agents get less than the API has, so some members cannot come back; docs/operations.md names them. Values that are no
JSON, or not of their kind's shape, give a resource with nothing but its name: a page never fails for one value.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import msgspec

from cache.feeds.calico import syncers
from typha.admin import answers

API_VERSION = "projectcalico.org/v3"
_RESOURCES = "/calico/resources/v3/projectcalico.org/"
_LABEL_NAMESPACE = "projectcalico.org/namespace"
_CELL_CHARS_MAX = 80
_ACTIONS = {"allow": "Allow", "deny": "Deny", "log": "Log", "next-tier": "Pass"}
_PROTOCOLS = {"tcp": "TCP", "udp": "UDP", "icmp": "ICMP", "icmpv6": "ICMPv6", "sctp": "SCTP", "udplite": "UDPLite"}
_MODES = {"": "Never", "always": "Always", "cross-subnet": "CrossSubnet"}

Members = dict[str, Any]
Build = Callable[[answers.Entry, Members], Members]
"""The resource of an entry and its decoded value, without apiVersion and kind."""
Cell = Callable[[Members], object]


class Kind(NamedTuple):
    """A kind that can be shown."""

    name: str
    aliases: tuple[str, ...]
    feed: str
    prefix: str
    """Of its keys. Other kinds may have keys with this prefix: `owners` and `part` choose."""
    build: Build
    columns: Mapping[str, Cell]
    wide: Mapping[str, Cell]
    is_namespaced: bool = False
    owners: frozenset[str] = frozenset()
    """The kinds of the objects that its keys come from; empty for any."""
    part: str = ""
    """What a key contains."""
    is_gathered: bool = False
    """All keys of an object are one resource."""


class Name(NamedTuple):
    """A resource's name, by which a list of them is sorted."""

    namespace: str
    name: str


def find(text: str) -> Kind | None:
    """The kind with this name or alias, in any case."""
    return _BY_ALIAS.get(text.lower())


def resources(kind: Kind, entries: Iterable[answers.Entry]) -> list[Members]:
    """The resources of a kind, sorted by namespace and name."""
    chosen = [entry for entry in entries if _is_of(kind, entry)]
    found = _gathered(kind, chosen) if kind.is_gathered else [_resource(kind, entry) for entry in chosen]
    return sorted(found, key=name_of)


def name_of(resource: Members) -> Name:
    """Namespace and name of a resource."""
    metadata = resource["metadata"]
    return Name(str(metadata.get("namespace", "")), str(metadata.get("name", "")))


def entries_of(kind: Kind, entries: Iterable[answers.Entry]) -> list[answers.Entry]:
    """The keys and values that make up the resources of a kind, by key."""
    return sorted((entry for entry in entries if _is_of(kind, entry)), key=lambda entry: entry.key)


def row(resource: Members, columns: Mapping[str, Cell]) -> list[str]:
    """The cells of a table."""
    return [_text(cell(resource)) for cell in columns.values()]


def _is_of(kind: Kind, entry: answers.Entry) -> bool:
    return (
        entry.key.startswith(kind.prefix)
        and kind.part in entry.key
        and (not kind.owners or entry.owner_kind in kind.owners)
    )


def _resource(kind: Kind, entry: answers.Entry) -> Members:
    value: Any = None
    try:
        value = msgspec.json.decode(entry.value)
        built = kind.build(entry, value if isinstance(value, dict) else {})
    except (msgspec.DecodeError, ValueError, TypeError, AttributeError, KeyError, IndexError, RecursionError):
        built = {"metadata": _owner_metadata(entry)}
    metadata = built.pop("metadata")
    if entry.revision:
        metadata["resourceVersion"] = entry.revision
    return {"apiVersion": API_VERSION, "kind": kind.name, "metadata": metadata, **built}


def _gathered(kind: Kind, entries: Sequence[answers.Entry]) -> list[Members]:
    """Resources of several keys each: a configuration has one for each value. Values stay the texts that agents get."""
    by_owner: dict[str, list[answers.Entry]] = {}
    for entry in entries:
        if entry.key.startswith(_RESOURCES):
            by_owner.setdefault("/whole/" + entry.key, []).append(entry)
        else:
            by_owner.setdefault(entry.owner_name, []).append(entry)
    found = []
    for name, group in by_owner.items():
        if name.startswith("/whole/"):
            found.append(_resource(kind._replace(build=_whole), group[0]))
            continue
        spec = {_field_name(entry.key.rpartition("/")[2]): entry.value for entry in group}
        metadata = {"name": name, "resourceVersion": max(group, key=lambda entry: entry.sequence).revision}
        found.append({"apiVersion": API_VERSION, "kind": kind.name, "metadata": metadata, "spec": _sorted(spec)})
    return found


def _field_name(config_name: str) -> str:
    """The name of a configuration value as the API's fields are spelled, as far as that follows from it."""
    if config_name == "Ready":
        return "datastoreReady"
    capitals = len(config_name) - len(config_name.lstrip("ABCDEFGHIJKLMNOPQRSTUVWXYZ"))
    lowered = capitals if capitals in (1, len(config_name)) else capitals - 1
    return config_name[:lowered].lower() + config_name[lowered:]


def _owner_metadata(entry: answers.Entry) -> Members:
    namespace, _, name = entry.owner_name.rpartition("/")
    return _metadata(name or entry.key, namespace)


def _metadata(name: str, namespace: str = "", labels: Mapping[str, str] | None = None) -> Members:
    found: Members = {"name": name}
    if namespace:
        found["namespace"] = namespace
    if labels:
        found["labels"] = dict(labels)
    return found


def _sorted(members: Members) -> Members:
    return dict(sorted(members.items()))


def _without_empty(members: Members) -> Members:
    return {name: value for name, value in members.items() if value not in (None, "", [], {}, False)}


def _unescaped(part: str) -> str:
    return part.replace("%2f", "/").replace("%25", "%")


# Kinds that agents get whole.


def _whole(entry: answers.Entry, value: Members) -> Members:
    found = {name: member for name, member in value.items() if name not in ("apiVersion", "kind")}
    metadata = dict(found.pop("metadata"))
    metadata.pop("resourceVersion", None)
    return {"metadata": metadata, **found}


# Endpoints.


def _workload_endpoint(entry: answers.Entry, value: Members) -> Members:
    _, _, _, _, node, _, orchestrator, workload, _, endpoint = entry.key.split("/")
    namespace, _, pod = _unescaped(workload).partition("/")
    dashed = [part.replace("-", "--") for part in (node, orchestrator, pod, endpoint)]
    spec = {
        "orchestrator": orchestrator,
        "node": node,
        "pod": pod,
        "endpoint": endpoint,
        "serviceAccountName": (value.get("labels") or {}).get("projectcalico.org/serviceaccount"),
        "interfaceName": value.get("name"),
        "ipNetworks": [*(value.get("ipv4_nets") or ()), *(value.get("ipv6_nets") or ())],
        "ipNATs": [
            {"internalIP": nat.get("int_ip"), "externalIP": nat.get("ext_ip")}
            for nat in [*(value.get("ipv4_nat") or ()), *(value.get("ipv6_nat") or ())]
        ],
        "profiles": value.get("profile_ids"),
        "ports": [_endpoint_port(port) for port in value.get("ports") or ()],
        "mac": value.get("mac"),
        "allowSpoofedSourcePrefixes": value.get("allow_spoofed_source_ips"),
        "qosControls": value.get("qosControls"),
    }
    metadata = _metadata("-".join(dashed), namespace, value.get("labels"))
    if value.get("generate_name"):
        metadata["generateName"] = value["generate_name"]
    if value.get("annotations"):
        metadata["annotations"] = value["annotations"]
    return {"metadata": metadata, "spec": _without_empty(spec)}


def _endpoint_port(port: Members) -> Members:
    return {**port, "protocol": _protocol(port.get("protocol"))}


def _host_endpoint(entry: answers.Entry, value: Members) -> Members:
    _, _, _, _, node, _, name = entry.key.split("/")
    spec = {
        "node": node,
        "interfaceName": value.get("name"),
        "expectedIPs": [*(value.get("expected_ipv4_addrs") or ()), *(value.get("expected_ipv6_addrs") or ())],
        "profiles": value.get("profile_ids"),
        "ports": [_endpoint_port(port) for port in value.get("ports") or ()],
        "qosControls": value.get("qosControls"),
    }
    return {"metadata": _metadata(_unescaped(name), "", value.get("labels")), "spec": _without_empty(spec)}


# Policies.


def _policy(entry: answers.Entry, value: Members) -> Members:
    *_, namespace, name = entry.key.split("/")
    selector = value.get("selector", "")
    if namespace:
        own = f"{_LABEL_NAMESPACE} == '{namespace}'"
        if selector == own:
            selector = ""
        elif selector.startswith("(") and selector.endswith(f") && {own}"):
            selector = selector[1 : -len(f") && {own}")]
    spec = {
        "tier": value.get("tier"),
        "order": value.get("order"),
        "selector": selector,
        "types": [type.capitalize() for type in value.get("types") or ()],
        "ingress": [_rule(rule) for rule in value.get("inbound_rules") or ()],
        "egress": [_rule(rule) for rule in value.get("outbound_rules") or ()],
        "doNotTrack": value.get("untracked"),
        "preDNAT": value.get("pre_dnat"),
        "applyOnForward": value.get("apply_on_forward"),
        "performanceHints": value.get("performance_hints"),
        "stagedAction": value.get("staged_action"),
    }
    return {"metadata": _metadata(name, namespace), "spec": _without_empty(spec) | _order(value)}


def _order(value: Members) -> Members:
    return {"order": value["order"]} if value.get("order") is not None else {}


def _rule(rule: Members) -> Members:
    found = {
        "action": _ACTIONS.get(rule.get("action", ""), rule.get("action")),
        "ipVersion": rule.get("ip_version"),
        "protocol": _protocol(rule.get("protocol")),
        "notProtocol": _protocol(rule.get("!protocol")),
        "icmp": _given({"type": rule.get("icmp_type"), "code": rule.get("icmp_code")}),
        "notICMP": _given({"type": rule.get("!icmp_type"), "code": rule.get("!icmp_code")}),
        "source": _entity(rule, "src"),
        "destination": _entity(rule, "dst"),
        "http": rule.get("http"),
        "metadata": rule.get("metadata"),
    }
    return _without_empty(found)


def _given(members: Members) -> Members:
    return {name: value for name, value in members.items() if value is not None}


def _entity(rule: Members, end: str) -> Members:
    accounts = {
        "names": rule.get(f"orig_{end}_service_acct_names"),
        "selector": rule.get(f"orig_{end}_service_acct_selector"),
    }
    services = {"name": rule.get(f"{end}_service"), "namespace": rule.get(f"{end}_service_ns")}
    return _without_empty(
        {
            "nets": rule.get(f"{end}_nets"),
            "selector": rule.get(f"orig_{end}_selector"),
            "namespaceSelector": rule.get(f"orig_{end}_namespace_selector"),
            "services": _without_empty(services),
            "ports": rule.get(f"{end}_ports"),
            "notNets": rule.get(f"!{end}_nets"),
            "notSelector": rule.get(f"!orig_{end}_selector"),
            "notPorts": rule.get(f"!{end}_ports"),
            "serviceAccounts": _without_empty(accounts),
        }
    )


def _protocol(protocol: object) -> object:
    return _PROTOCOLS.get(protocol, protocol) if isinstance(protocol, str) else protocol


def _tier(entry: answers.Entry, value: Members) -> Members:
    return {"metadata": _metadata(entry.key.split("/")[-2]), "spec": value}


# Networks.


def _network_set(entry: answers.Entry, value: Members) -> Members:
    namespace, _, name = _unescaped(entry.key.rpartition("/")[2]).rpartition("/")
    labels = dict(value.get("labels") or {})
    if namespace:
        labels.pop(_LABEL_NAMESPACE, None)
    return {"metadata": _metadata(name, namespace, labels), "spec": _without_empty({"nets": value.get("nets")})}


def _pool(entry: answers.Entry, value: Members) -> Members:
    spec = {
        "cidr": value.get("cidr"),
        "ipipMode": _MODES.get(value.get("ipip_mode", ""), value.get("ipip_mode")),
        "vxlanMode": _MODES.get(value.get("vxlan_mode", ""), value.get("vxlan_mode")),
        "natOutgoing": value.get("masquerade"),
        "disabled": value.get("disabled"),
        "disableBGPExport": value.get("disableBGPExport"),
        "assignmentMode": value.get("assignment_mode"),
        "allowedUses": value.get("allowed_uses"),
    }
    return {"metadata": _owner_metadata(entry), "spec": _without_empty(spec)}


def _block(entry: answers.Entry, value: Members) -> Members:
    return {"metadata": _owner_metadata(entry), "spec": value}


def _affinity(entry: answers.Entry, value: Members) -> Members:
    *_, type, node, _, _, cidr = entry.key.split("/")
    address, _, length = cidr.rpartition("-")
    spec = {"type": type, "node": node, "cidr": f"{address}/{length}", "state": value.get("state")}
    return {"metadata": _owner_metadata(entry), "spec": _without_empty(spec)}


# Columns.


def _at(*path: str) -> Cell:
    def cell(resource: Members) -> object:
        found: Any = resource
        for part in path:
            found = found.get(part) if isinstance(found, dict) else None
        return found

    return cell


def _or(cell: Cell, text: str) -> Cell:
    return lambda resource: cell(resource) or text


def _count(*path: str) -> Cell:
    cell = _at(*path)

    def counted(resource: Members) -> object:
        found = cell(resource)
        return len(found) if isinstance(found, list) else 0

    return counted


def _short(cell: Cell) -> Cell:
    def cut(resource: Members) -> object:
        text = _text(cell(resource))
        return text if len(text) <= _CELL_CHARS_MAX else text[: _CELL_CHARS_MAX - 3] + "..."

    return cut


def _peer_node(resource: Members) -> object:
    spec = resource.get("spec") or {}
    return spec.get("node") or spec.get("nodeSelector") or "(global)"


def _nats(resource: Members) -> object:
    return [nat.get("externalIP", "") for nat in (resource.get("spec") or {}).get("ipNATs") or ()]


def _labels(resource: Members) -> object:
    labels = _at("metadata", "labels")(resource)
    return [f"{name}={value}" for name, value in labels.items()] if isinstance(labels, dict) else ""


def _text(value: object) -> str:
    if value is None:
        return ""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, list):
        return ",".join(_text(part) for part in value)
    if isinstance(value, dict):
        return ",".join(map(str, value))
    return f"{value:g}" if isinstance(value, float) else str(value)


_NAME = {"NAME": _at("metadata", "name")}
_SPEC_TIER = {"TIER": _at("spec", "tier")}
_POLICY_WIDE = {**_NAME, **_SPEC_TIER, "ORDER": _at("spec", "order"), "SELECTOR": _at("spec", "selector")}
_SET_WIDE = {**_NAME, "NETS": _short(_at("spec", "nets"))}
_PEER = {**_NAME, "PEERIP": _at("spec", "peerIP"), "NODE": _peer_node, "ASN": _or(_at("spec", "asNumber"), "0")}
_BGP_CONFIGURATION = {
    **_NAME,
    "LOGSEVERITY": _at("spec", "logSeverityScreen"),
    "MESHENABLED": _or(_at("spec", "nodeToNodeMeshEnabled"), "-"),
    "ASNUMBER": _or(_at("spec", "asNumber"), "-"),
}
_BGP_FILTER = {
    **_NAME,
    "NUMEXPORTV4": _count("spec", "exportV4"),
    "NUMIMPORTV4": _count("spec", "importV4"),
    "NUMEXPORTV6": _count("spec", "exportV6"),
    "NUMIMPORTV6": _count("spec", "importV6"),
}
_CLUSTER_INFORMATION = {
    **_NAME,
    "CLUSTERGUID": _at("spec", "clusterGUID"),
    "CLUSTERTYPE": _at("spec", "clusterType"),
    "CALICOVERSION": _at("spec", "calicoVersion"),
    "DATASTOREREADY": _at("spec", "datastoreReady"),
}
_WORKLOAD = {
    "WORKLOAD": _at("spec", "pod"),
    "NODE": _at("spec", "node"),
    "NETWORKS": _at("spec", "ipNetworks"),
    "INTERFACE": _at("spec", "interfaceName"),
}
_NATOUTGOING = _or(_at("spec", "natOutgoing"), "false")
_POOL = {**_NAME, "CIDR": _at("spec", "cidr")}


def _policy_kind(name: str, aliases: tuple[str, ...], *, is_namespaced: bool) -> Kind:
    prefix = f"/calico/v1/policy/{name}/"
    return Kind(
        *(name, aliases, syncers.FELIX, prefix, _policy, {**_NAME, **_SPEC_TIER}, _POLICY_WIDE),
        is_namespaced=is_namespaced,
    )


def _whole_kind(
    name: str,
    plural: str,
    aliases: tuple[str, ...],
    feed: str = syncers.FELIX,
    *,
    columns: Mapping[str, Cell] = _NAME,
    wide: Mapping[str, Cell] | None = None,
    is_namespaced: bool = False,
) -> Kind:
    return Kind(name, aliases, feed, f"{_RESOURCES}{plural}/", _whole, columns, wide or columns, is_namespaced)


KINDS: tuple[Kind, ...] = (
    _whole_kind(
        "BGPConfiguration",
        "bgpconfigurations",
        ("bgpconfigurations", "bgpconfig", "bgpconfigs"),
        columns=_BGP_CONFIGURATION,
    ),
    _whole_kind(
        "BGPFilter",
        "bgpfilters",
        ("bgpfilters", "bgpf", "bgpfs", "bf", "bfs"),
        syncers.BGP,
        columns=_BGP_FILTER,
    ),
    _whole_kind("BGPPeer", "bgppeers", ("bgppeers", "bgpp", "bgpps", "bp", "bps"), columns=_PEER),
    Kind(
        "BlockAffinity",
        ("blockaffinities",),
        syncers.BGP,
        "/calico/ipam/v2/",
        _affinity,
        {**_NAME, "CIDR": _at("spec", "cidr"), "NODE": _at("spec", "node"), "STATE": _at("spec", "state")},
        {**_NAME, "CIDR": _at("spec", "cidr"), "NODE": _at("spec", "node"), "STATE": _at("spec", "state")},
        owners=frozenset({"BlockAffinity"}),
    ),
    _whole_kind(
        "CalicoNodeStatus",
        "caliconodestatuses",
        ("caliconodestatuses", "nodestatus", "nodestatuses"),
        syncers.NODE_STATUS,
        columns={**_NAME, "NODE": _at("spec", "node")},
        wide={**_NAME, "NODE": _at("spec", "node"), "CLASSES": _at("spec", "classes")},
    ),
    Kind(
        "ClusterInformation",
        ("clusterinformations", "clusterinfo", "clusterinfos"),
        syncers.FELIX,
        "/calico/",
        _whole,
        _CLUSTER_INFORMATION,
        _CLUSTER_INFORMATION,
        owners=frozenset({"ClusterInformation"}),
        is_gathered=True,
    ),
    Kind(
        "FelixConfiguration",
        ("felixconfigurations", "felixconfig", "felixconfigs"),
        syncers.FELIX,
        "/calico/",
        _whole,
        _NAME,
        _NAME,
        owners=frozenset({"FelixConfiguration"}),
        is_gathered=True,
    ),
    _policy_kind("GlobalNetworkPolicy", ("globalnetworkpolicies", "gnp", "gnps"), is_namespaced=False),
    Kind(
        "GlobalNetworkSet",
        ("globalnetworksets", "gnetsets"),
        syncers.FELIX,
        "/calico/v1/netset/",
        _network_set,
        _NAME,
        _SET_WIDE,
        owners=frozenset({"GlobalNetworkSet"}),
    ),
    Kind(
        "HostEndpoint",
        ("hostendpoints", "hep", "heps"),
        syncers.FELIX,
        "/calico/v1/host/",
        _host_endpoint,
        {**_NAME, "NODE": _at("spec", "node")},
        {
            **_NAME,
            "NODE": _at("spec", "node"),
            "INTERFACE": _at("spec", "interfaceName"),
            "IPS": _at("spec", "expectedIPs"),
            "PROFILES": _at("spec", "profiles"),
        },
        owners=frozenset({"HostEndpoint"}),
    ),
    Kind(
        "IPAMBlock",
        ("ipamblocks",),
        syncers.FELIX,
        "/calico/ipam/v2/assignment/",
        _block,
        {**_NAME, "CIDR": _at("spec", "cidr"), "AFFINITY": _at("spec", "affinity")},
        {**_NAME, "CIDR": _at("spec", "cidr"), "AFFINITY": _at("spec", "affinity")},
    ),
    Kind(
        "IPPool",
        ("ippools", "ipp", "ipps", "pool", "pools"),
        syncers.FELIX,
        "/calico/v1/ipam/",
        _pool,
        _POOL,
        {
            **_POOL,
            "NAT": _NATOUTGOING,
            "IPIPMODE": _at("spec", "ipipMode"),
            "VXLANMODE": _at("spec", "vxlanMode"),
            "DISABLED": _or(_at("spec", "disabled"), "false"),
            "DISABLEBGPEXPORT": _or(_at("spec", "disableBGPExport"), "false"),
            "ASSIGNMENTMODE": _at("spec", "assignmentMode"),
        },
    ),
    _policy_kind("KubernetesClusterNetworkPolicy", ("clusternetworkpolicy", "kcnp", "cnp"), is_namespaced=False),
    _policy_kind("KubernetesNetworkPolicy", ("kubernetesnetworkpolicies", "knp", "knps"), is_namespaced=True),
    _whole_kind(
        "KubernetesEndpointSlice",
        "kubernetesendpointslices",
        ("endpointslice", "endpointslices"),
        is_namespaced=True,
    ),
    _whole_kind("KubernetesService", "kubernetesservice", ("service", "services", "svc"), is_namespaced=True),
    _whole_kind("LiveMigration", "livemigrations", ("livemigrations",), is_namespaced=True),
    _policy_kind(
        "NetworkPolicy",
        ("networkpolicies", "policy", "np", "policies", "pol", "pols"),
        is_namespaced=True,
    ),
    Kind(
        "NetworkSet",
        ("networksets", "netsets"),
        syncers.FELIX,
        "/calico/v1/netset/",
        _network_set,
        _NAME,
        _SET_WIDE,
        is_namespaced=True,
        owners=frozenset({"NetworkSet"}),
    ),
    _whole_kind(
        "Node",
        "nodes",
        ("nodes", "no", "nos"),
        wide={
            **_NAME,
            "ASN": _or(_at("spec", "bgp", "asNumber"), "(default)"),
            "IPV4": _at("spec", "bgp", "ipv4Address"),
            "IPV6": _at("spec", "bgp", "ipv6Address"),
        },
    ),
    _whole_kind(
        "Profile",
        "profiles",
        ("profiles", "pro", "pros"),
        wide={**_NAME, "LABELS": _at("spec", "labelsToApply")},
    ),
    _policy_kind("StagedGlobalNetworkPolicy", ("stagedglobalnetworkpolicies", "sgnp", "sgnps"), is_namespaced=False),
    _policy_kind(
        "StagedKubernetesNetworkPolicy",
        (
            "stagedkubernetesnetworkpolicies",
            *("stagedkubernetespolicy", "sknp", "stagedkubernetespolicies", "skpol", "skpols"),
        ),
        is_namespaced=True,
    ),
    _policy_kind(
        "StagedNetworkPolicy",
        ("stagednetworkpolicies", "stagedpolicy", "snp", "stagedpolicies", "spol", "spols"),
        is_namespaced=True,
    ),
    Kind(
        "Tier",
        ("tiers",),
        syncers.FELIX,
        "/calico/v1/policy/tier/",
        _tier,
        {**_NAME, "ORDER": _at("spec", "order")},
        {**_NAME, "ORDER": _at("spec", "order")},
        part="/metadata",
    ),
    Kind(
        "WorkloadEndpoint",
        ("workloadendpoints", "wep", "weps", "pod", "pods", "po"),
        syncers.FELIX,
        "/calico/v1/host/",
        _workload_endpoint,
        _WORKLOAD,
        {**_NAME, **_WORKLOAD, "PROFILES": _at("spec", "profiles"), "NATS": _nats},
        is_namespaced=True,
        part="/workload/",
    ),
)

_BY_ALIAS = {alias: kind for kind in KINDS for alias in (kind.name.lower(), *kind.aliases)}
