"""Which routes, tunnel and neighbours the kernel must have. Pure."""

import enum
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

from clients.agents.node import desired
from clients.agents.node.dataplane import base, compiler

VXLAN_DEVICE = "vxlan.calico"
DEFAULT_VNI = 4096
MAX_VNI = (1 << 24) - 1


class PathKind(enum.Enum):
    """How packets to a destination leave."""

    LINK = "link"
    """Through the interface `Path.to`, directly."""
    VIA = "via"
    """Through the gateway `Path.to`, which is in a subnet of this node."""
    TUNNEL = "tunnel"
    """Through the VXLAN device, to the tunnel's end `Path.to`."""
    NOWHERE = "nowhere"
    """Not at all: without this, packets would take the default route."""


class Path(NamedTuple):
    """Where a route leads."""

    kind: PathKind
    to: str = ""


class Tunnel(NamedTuple):
    """The VXLAN device of this node."""

    vni: int
    port: int
    local: str
    """Address of this node that encapsulated packets come from."""
    mac: str
    address: str
    mtu: int | None
    """None: what the interface with the local address leaves room for."""


class Peer(NamedTuple):
    """The tunnel's end on another node."""

    address: str
    mac: str
    parent: str
    """Where encapsulated packets go."""


@dataclass(frozen=True, slots=True)
class Network:
    """Everything beside the rules that the kernel must have."""

    routes: Mapping[str, Path] = field(default_factory=dict)
    """By destination, a CIDR."""
    tunnel: Tunnel | None = None
    peers: frozenset[Peer] = frozenset()


def network(state: desired.State, *, node: str) -> Network:
    """What this node must have."""
    tunnel = _tunnel(state, node)
    peers = {
        name: Peer(vtep.ipv4_address, vtep.mac.lower(), vtep.parent_ipv4_address)
        for name, vtep in state.vteps.items()
        if tunnel is not None and name != node and vtep.ipv4_address and vtep.mac and vtep.parent_ipv4_address
    }
    routes: dict[str, Path] = {}
    for destination, route in state.routes.items():
        if ":" not in destination:
            path = _path(route, node, peers, state.settings)
            if path is not None:
                routes[destination] = path
    for _, endpoint in sorted(state.endpoints.items()):
        if compiler.INTERFACE_NAME.fullmatch(endpoint.interface):
            for net in endpoint.nets:
                if ":" not in net:
                    routes[net] = Path(PathKind.LINK, endpoint.interface)
    return Network(routes, tunnel, frozenset(peers.values()))


def _path(route: desired.Route, node: str, peers: Mapping[str, Peer], settings: desired.Settings) -> Path | None:
    """The way to a destination, or None if it is none of this agent's: BIRD's, or one of a local workload."""
    if route.local_workload:
        return None
    encapsulated = route.pool_type is desired.PoolType.VXLAN and settings.vxlan
    if not encapsulated and not (route.pool_type is desired.PoolType.NO_ENCAPSULATION and settings.no_encapsulation):
        return None
    if desired.RouteType.LOCAL_WORKLOAD in route.types and route.node == node:
        return Path(PathKind.NOWHERE)
    if desired.RouteType.REMOTE_WORKLOAD not in route.types:
        return None
    if not encapsulated or route.same_subnet:
        return Path(PathKind.VIA, route.node_address) if route.node_address else Path(PathKind.NOWHERE)
    peer = peers.get(route.node)
    return Path(PathKind.NOWHERE) if peer is None else Path(PathKind.TUNNEL, peer.address)


def _tunnel(state: desired.State, node: str) -> Tunnel | None:
    own = state.vteps.get(node)
    if not state.settings.vxlan or own is None or not (own.ipv4_address and own.mac and own.parent_ipv4_address):
        return None
    values = {name.lower(): value.strip() for name, value in state.settings.values.items()}
    port = base.defaults(state.settings).vxlan_port or base.DEFAULT_VXLAN_PORT
    vni = base.number(values.get("vxlanvni", ""), 1, MAX_VNI) or DEFAULT_VNI
    mtu = base.number(values.get("vxlanmtu", ""), MIN_MTU, MAX_MTU)
    return Tunnel(vni, port, own.parent_ipv4_address, own.mac.lower(), own.ipv4_address, mtu)


MIN_MTU, MAX_MTU = 576, 65535 - 50
"""What IPv4 asks of every link, and what a packet's length leaves for the inner one."""

OVERHEAD_BYTES = 50
"""Ethernet, VXLAN, UDP and IPv4 headers around an inner packet."""
