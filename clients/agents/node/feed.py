"""The keys and values of the `felix` feed that the calculation needs (docs/data-model.md). Pure.

Everything here was sent by someone else: what does not decode raises `ValueError`, and nothing else.
"""

import enum
from collections.abc import Callable
from typing import Any, NamedTuple, TypeVar

import msgspec

_V1 = "/calico/v1/"
_HOST = "/calico/v1/host/"
_RESOURCE = "/calico/resources/v3/projectcalico.org/"
_BLOCK = "/calico/ipam/v2/assignment/"
PREFIXES = (
    _V1,
    _BLOCK,
    *(f"{_RESOURCE}{plural}/" for plural in ("profiles", "nodes", "kubernetesendpointslices")),
)
"""Where every key that the calculation needs begins. Other nodes' pods are among them: a rule's selector is about all
pods. What remains are whole Services, and the configuration of BGP."""
_SEGMENTS_OF_HOST = 4
"""How many slashes stand before the name of a host."""


class Kind(enum.Enum):
    """What a key is about."""

    WORKLOAD = enum.auto()
    HOST_ENDPOINT = enum.auto()
    HOST_SETTING = enum.auto()
    SETTING = enum.auto()
    READY = enum.auto()
    POOL = enum.auto()
    BLOCK = enum.auto()
    NETWORK_SET = enum.auto()
    TIER = enum.auto()
    POLICY = enum.auto()
    PROFILE = enum.auto()
    """The labels that a profile gives to endpoints."""
    PROFILE_RULES = enum.auto()
    NODE = enum.auto()
    SLICE = enum.auto()
    """An EndpointSlice."""


class Key(NamedTuple):
    """A key, taken apart."""

    kind: Kind
    name: str
    """Unique within the kind, and for kinds that belong to a node, within the node."""
    node: str = ""


def parse_key(key: str) -> Key | None:
    """Takes a key apart. None for keys that the calculation has no use for."""
    if key.startswith(_HOST):
        return _host_key(key)
    if key.startswith(_RESOURCE):
        return _resource_key(key.removeprefix(_RESOURCE))
    if key.startswith(_BLOCK):
        return Key(Kind.BLOCK, key.rpartition("/")[2].replace("-", "/"))
    if key.startswith(_V1):
        return _v1_key(key.removeprefix(_V1))
    return None


def _host_key(key: str) -> Key | None:
    parts = key.split("/")
    match parts[_SEGMENTS_OF_HOST:]:
        case [node, "workload", orchestrator, workload, "endpoint", name]:
            return Key(Kind.WORKLOAD, f"{orchestrator}/{unescape(workload)}/{unescape(name)}", node)
        case [node, "endpoint", name]:
            return Key(Kind.HOST_ENDPOINT, unescape(name), node)
        case [node, "config", name]:
            return Key(Kind.HOST_SETTING, name, node)
    return None


def _resource_key(rest: str) -> Key | None:
    plural, _, name = rest.partition("/")
    kind = _RESOURCE_KINDS.get(plural)
    return None if kind is None else Key(kind, name)


def _v1_key(rest: str) -> Key | None:
    match rest.split("/"):
        case ["policy", "tier", name, "metadata"]:
            return Key(Kind.TIER, name)
        case ["policy", "profile", name, "rules"]:
            return Key(Kind.PROFILE_RULES, unescape(name))
        case ["policy", "tier" | "profile", *_]:
            return None
        case ["policy", kind, namespace, name]:
            return Key(Kind.POLICY, f"{kind}/{namespace}/{name}" if namespace else f"{kind}/{name}")
        case ["netset", name]:
            return Key(Kind.NETWORK_SET, unescape(name))
        case ["ipam", _, "pool", net]:
            return Key(Kind.POOL, net.replace("-", "/"))
        case ["config", name]:
            return Key(Kind.SETTING, name)
        case ["Ready"]:
            return Key(Kind.READY, "")
    return None


_RESOURCE_KINDS = {
    "profiles": Kind.PROFILE,
    "nodes": Kind.NODE,
    "kubernetesendpointslices": Kind.SLICE,
}


def unescape(text: str) -> str:
    """Undoes the escaping of names in keys."""
    return text.replace("%2f", "/").replace("%25", "%") if "%" in text else text


# Values. Fields that the calculation does not need are skipped.

Labels = dict[str, str] | None


class EndpointPort(msgspec.Struct, frozen=True):
    """A named port of an endpoint."""

    name: str
    port: int
    protocol: str | int = "tcp"


class Translation(msgspec.Struct, frozen=True):
    """A floating address."""

    int_ip: str = ""
    ext_ip: str = ""


class Workload(msgspec.Struct, frozen=True):
    """A workload endpoint."""

    name: str
    profile_ids: list[str] | None = None
    ipv4_nets: list[str] | None = None
    ipv6_nets: list[str] | None = None
    ipv4_nat: list[Translation] | None = None
    ipv6_nat: list[Translation] | None = None
    labels: Labels = None
    ports: list[EndpointPort] | None = None
    allow_spoofed_source_ips: list[Any] | None = None


class HostEndpoint(msgspec.Struct, frozen=True):
    """A host endpoint."""

    name: str = ""
    expected_ipv4_addrs: list[str] | None = None
    expected_ipv6_addrs: list[str] | None = None
    labels: Labels = None
    profile_ids: list[str] | None = None
    ports: list[EndpointPort] | None = None


class NetworkSet(msgspec.Struct, frozen=True):
    """A network set, of a namespace or global."""

    nets: list[str] | None = None
    labels: Labels = None
    profile_ids: list[str] | None = None


class Tier(msgspec.Struct, frozen=True):
    """The metadata of a tier."""

    order: float | None = None
    defaultAction: str = ""  # noqa: N815


class Rule(msgspec.Struct, frozen=True, rename=lambda name: "!" + name[4:] if name.startswith("not_") else name):
    """A rule of a policy or a profile."""

    action: str = ""
    ip_version: int | None = None
    protocol: str | int | None = None
    not_protocol: str | int | None = None
    icmp_type: int | None = None
    icmp_code: int | None = None
    not_icmp_type: int | None = None
    not_icmp_code: int | None = None
    src_nets: list[str] | None = None
    src_selector: str = ""
    src_ports: list[str | int] | None = None
    src_service: str = ""
    src_service_ns: str = ""
    dst_nets: list[str] | None = None
    dst_selector: str = ""
    dst_ports: list[str | int] | None = None
    dst_service: str = ""
    dst_service_ns: str = ""
    not_src_nets: list[str] | None = None
    not_src_selector: str = ""
    not_src_ports: list[str | int] | None = None
    not_dst_nets: list[str] | None = None
    not_dst_selector: str = ""
    not_dst_ports: list[str | int] | None = None
    http: Any = None


class Rules(msgspec.Struct, frozen=True):
    """The rules of a policy or a profile."""

    inbound_rules: list[Rule] | None = None
    outbound_rules: list[Rule] | None = None


class PolicyHead(msgspec.Struct, frozen=True):
    """A policy without its rules: what decides where it applies."""

    selector: str
    namespace: str = ""
    tier: str = "default"
    order: float | None = None
    types: list[str] | None = None
    untracked: bool = False
    pre_dnat: bool = False
    apply_on_forward: bool = False
    performance_hints: list[str] | None = None


class _ProfileSpec(msgspec.Struct, frozen=True):
    labelsToApply: Labels = None  # noqa: N815


class Profile(msgspec.Struct, frozen=True):
    """A profile as a whole resource; its rules have a key of their own."""

    spec: _ProfileSpec = _ProfileSpec()


class Pool(msgspec.Struct, frozen=True):
    """An IP pool."""

    cidr: str
    ipip_mode: str = ""
    vxlan_mode: str = ""
    masquerade: bool = False
    allowed_uses: list[str] | None = None


class BlockAttributes(msgspec.Struct, frozen=True):
    """Who has some addresses of a block."""

    secondary: dict[str, str] | None = None


class Block(msgspec.Struct, frozen=True):
    """A block of addresses."""

    cidr: str
    affinity: str | None = None
    allocations: list[int | None] | None = None
    attributes: list[BlockAttributes] | None = None


class NodeBgp(msgspec.Struct, frozen=True):
    """The part of a node about BGP."""

    ipv4_address: str = msgspec.field(default="", name="ipv4Address")
    ipv6_address: str = msgspec.field(default="", name="ipv6Address")
    ipip_address: str = msgspec.field(default="", name="ipv4IPIPTunnelAddr")
    as_number: Any = msgspec.field(default=None, name="asNumber")
    cluster_id: str = msgspec.field(default="", name="routeReflectorClusterID")


class NodeWireguard(msgspec.Struct, frozen=True):
    """The part of a node about WireGuard."""

    ipv4_address: str = msgspec.field(default="", name="interfaceIPv4Address")
    ipv6_address: str = msgspec.field(default="", name="interfaceIPv6Address")


class NodeAddress(msgspec.Struct, frozen=True):
    """An address of a node."""

    address: str = ""
    type: str = ""


class NodeSpec(msgspec.Struct, frozen=True):
    """What is known about a node's addresses."""

    bgp: NodeBgp | None = None
    vxlan_ipv4_address: str = msgspec.field(default="", name="ipv4VXLANTunnelAddr")
    vxlan_ipv6_address: str = msgspec.field(default="", name="ipv6VXLANTunnelAddr")
    wireguard: NodeWireguard | None = None
    addresses: list[NodeAddress] | None = None


class Node(msgspec.Struct, frozen=True):
    """A node."""

    spec: NodeSpec = NodeSpec()


class _SliceMetadata(msgspec.Struct, frozen=True):
    labels: Labels = None
    namespace: str = ""


class SliceEndpoint(msgspec.Struct, frozen=True):
    """One backend of a service, ready or not."""

    addresses: list[str] | None = None


class SlicePort(msgspec.Struct, frozen=True):
    """A port of all backends of a slice."""

    port: int | None = None
    protocol: str | None = None


class Slice(msgspec.Struct, frozen=True):
    """An EndpointSlice."""

    metadata: _SliceMetadata = _SliceMetadata()
    endpoints: list[SliceEndpoint] | None = None
    ports: list[SlicePort] | None = None


Decoded = TypeVar("Decoded")


def _decoder(type: type[Decoded]) -> Callable[[bytes], Decoded]:
    decode = msgspec.json.Decoder(type).decode

    def decode_value(value: bytes) -> Decoded:
        try:
            return decode(value)
        except (msgspec.DecodeError, RecursionError, UnicodeDecodeError) as error:
            raise ValueError(f"not a {type.__name__}: {error}") from error

    return decode_value


decode_workload = _decoder(Workload)
decode_host_endpoint = _decoder(HostEndpoint)
decode_network_set = _decoder(NetworkSet)
decode_tier = _decoder(Tier)
decode_rules = _decoder(Rules)
decode_policy_head = _decoder(PolicyHead)
decode_profile = _decoder(Profile)
decode_pool = _decoder(Pool)
decode_block = _decoder(Block)
decode_node = _decoder(Node)
decode_slice = _decoder(Slice)
