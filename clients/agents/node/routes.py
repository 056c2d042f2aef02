"""Where addresses are: routes from pools, blocks, nodes, workloads and tunnels. Pure.

A route is a function of what is known about the networks around its destination, so it does not depend on history:
`_Place` is what is known about one network, and `Routes` computes those again whose surroundings have changed.
"""

import bisect
from collections.abc import Iterator
from typing import NamedTuple

from clients.agents.node import desired, feed
from clients.agents.node.nets import Net, parse_address, parse_net
from clients.agents.node.nodes import IPIP, VXLAN, WIREGUARD, WORKLOAD, NodeInfo
from clients.agents.node.sections import Section

_TUNNELS = {WIREGUARD: "wireguard", IPIP: "ipip", VXLAN: "vxlan"}
_AFFINITIES = ("host:", "virtual:")
_UNSET = frozenset({Net(4, 0, 32), Net(6, 0, 128)})
_LOAD_BALANCER = ["LoadBalancer"]
_CROSS_SUBNET = "cross-subnet"


class PoolInfo(NamedTuple):
    """What a pool says about the addresses in it."""

    type: desired.PoolType
    nat_outgoing: bool
    cross_subnet: bool


class _Owner(NamedTuple):
    node: str
    kind: int


class _Place:
    """What is known about one network."""

    __slots__ = ("block", "hosts", "owners", "pool")

    def __init__(self) -> None:
        self.pool: PoolInfo | None = None
        self.block: dict[str, str] = {}
        """Nodes by the key of the block that says so: there is one, but for moments in which addresses move."""
        self.hosts: list[str] = []
        """Nodes of which this is an address, sorted."""
        self.owners: dict[_Owner, int] = {}
        """Workloads and tunnels that have this address, counted."""

    def is_empty(self) -> bool:
        return not self.block and self.is_only_block()

    def is_only_block(self) -> bool:
        return self.pool is None and not (self.hosts or self.owners)


class Routes:
    """Everything that routes are made of. With `enabled` off there are none."""

    def __init__(self, node: str) -> None:
        self.routes: Section[desired.Route] = Section()
        self._node = node
        self._enabled = False
        self._uses_blocks = True
        self._nodes: dict[str, NodeInfo] = {}
        self._blocks: dict[str, dict[Net, str]] = {}
        self._workloads: dict[str, tuple[str, tuple[Net, ...]]] = {}
        self._places: dict[Net, _Place] = {}
        self._order: list[Net] = []
        """The places, sorted: those within a network are neighbours."""
        self._lengths: dict[tuple[int, int], int] = {}
        """How many places there are of each version and length."""
        self._of_node: dict[str, dict[Net, int]] = {}
        """Destinations that are on a node, counted."""
        self._dirty: set[Net] = set()

    def enable(self, enabled: bool) -> None:
        """Sets whether there are any routes."""
        if enabled is not self._enabled:
            self._enabled = enabled
            self._dirty.update(self._order)

    def use_blocks(self, uses_blocks: bool) -> None:
        """Sets whether blocks count. Where they do not, all routes to workloads come from `set_workload`."""
        self._uses_blocks = uses_blocks
        self._dirty.update(self._order)

    def set_pool(self, net: Net, pool: PoolInfo | None) -> None:
        """Sets a pool; None removes it."""
        place = self._place(net)
        if place.pool != pool:
            place.pool = pool
            self._touch_within(net)
        self._tidy(net)

    def set_node(self, name: str, info: NodeInfo | None) -> None:
        """Sets what is known about a node; None forgets it."""
        old = self._nodes.get(name)
        if old == info:
            return
        if info is not None:
            self._nodes[name] = info
            for kind, address in info.tunnels:
                self._own(address, name, kind)
            for address in info.addresses:
                self._place(address).hosts = sorted([*self._place(address).hosts, name])
                self._dirty.add(address)
        else:
            del self._nodes[name]
        if old is not None:
            for kind, address in old.tunnels:
                self._disown(address, name, kind)
            for address in old.addresses:
                self._place(address).hosts.remove(name)
                self._dirty.add(address)
                self._tidy(address)
        if name == self._node:
            self._dirty.update(self._order)
        self._dirty.update(self._of_node.get(name, ()))

    def set_workload(self, key: str, node: str, nets: tuple[Net, ...]) -> None:
        """Sets the addresses of a workload; none removes it."""
        old_node, old = self._workloads.pop(key, (node, ()))
        if nets:
            self._workloads[key] = node, nets
        for net in nets:
            self._own(net, node, WORKLOAD)
        for net in old:
            self._disown(net, old_node, WORKLOAD)

    def set_block(self, key: str, destinations: dict[Net, str]) -> None:
        """Sets the nodes that a block leads to, by destination; none removes it."""
        old = self._blocks.pop(key, {})
        if destinations:
            self._blocks[key] = destinations
        for net, node in destinations.items():
            if old.get(net) != node:
                self._place(net).block[key] = node
                self._count(node, net, 1)
                self._touch_within(net)
        for net, node in old.items():
            if destinations.get(net) != node:
                self._count(node, net, -1)
                self._touch_within(net)
                if net not in destinations:
                    del self._place(net).block[key]
                    self._tidy(net)

    def flush(self) -> None:
        """Brings the section up to date."""
        for net in self._dirty:
            place = self._places.get(net)
            known = place is not None and not (place.is_empty() if self._uses_blocks else place.is_only_block())
            route = self._route(net) if self._enabled and known and net not in _UNSET else None
            self.routes.put(str(net), route)
        self._dirty.clear()

    # Places

    def _place(self, net: Net) -> _Place:
        place = self._places.get(net)
        if place is None:
            place = self._places[net] = _Place()
            bisect.insort(self._order, net)
            length = net.version, net.length
            self._lengths[length] = self._lengths.get(length, 0) + 1
        return place

    def _tidy(self, net: Net) -> None:
        """Forgets a place about which nothing is known."""
        place = self._places.get(net)
        if place is None or not place.is_empty():
            return
        del self._places[net]
        del self._order[bisect.bisect_left(self._order, net)]
        length = net.version, net.length
        self._lengths[length] -= 1
        if not self._lengths[length]:
            del self._lengths[length]

    def _touch_within(self, net: Net) -> None:
        """Marks everything within a network, and itself."""
        begin = bisect.bisect_left(self._order, net)
        self._dirty.update(self._order[begin : bisect.bisect_left(self._order, net.after(), begin)])
        self._dirty.add(net)

    def _own(self, net: Net, node: str, kind: int) -> None:
        owners = self._place(net).owners
        owner = _Owner(node, kind)
        owners[owner] = owners.get(owner, 0) + 1
        self._count(node, net, 1)
        self._dirty.add(net)

    def _disown(self, net: Net, node: str, kind: int) -> None:
        owners = self._place(net).owners
        owner = _Owner(node, kind)
        owners[owner] -= 1
        if not owners[owner]:
            del owners[owner]
        self._count(node, net, -1)
        self._dirty.add(net)
        self._tidy(net)

    def _count(self, node: str, net: Net, difference: int) -> None:
        counts = self._of_node.setdefault(node, {})
        count = counts.get(net, 0) + difference
        if count:
            counts[net] = count
            return
        del counts[net]
        if not counts:
            del self._of_node[node]

    # Routes

    def _around(self, net: Net) -> Iterator[tuple[Net, _Place]]:
        """The places that contain a network, from the widest to itself."""
        for version, length in sorted(self._lengths):
            if version == net.version and length <= net.length:
                wider = net.widened(length)
                place = self._places.get(wider)
                if place is not None:
                    yield wider, place

    def _route(self, net: Net) -> desired.Route:
        pool_type = desired.PoolType.NONE
        nat_outgoing = cross_subnet = borrowed = local_workload = is_host = False
        node, block_node = "", None
        types: set[desired.RouteType] = set()
        block_types: set[desired.RouteType] = set()
        tunnels: tuple[str, ...] = ()
        is_block = False
        for around, place in self._around(net):
            if place.pool is not None:
                pool_type = place.pool.type or pool_type
                nat_outgoing = nat_outgoing or place.pool.nat_outgoing
                cross_subnet = cross_subnet or place.pool.cross_subnet
            if place.block and self._uses_blocks:
                node = min(place.block.values())
                if block_node is not None and block_node != node:
                    borrowed = True
                else:
                    block_node = node
                is_block = is_block or around == net
                block_types.add(self._local_or_remote(node, "WORKLOAD"))
            if place.hosts:
                node = place.hosts[0]
                is_host = True
                types.add(self._local_or_remote(node, "HOST"))
            if place.owners:
                first = min(place.owners)
                node = first.node
                borrowed = borrowed or block_node not in (None, node)
                if first.kind == WORKLOAD:
                    types.add(self._local_or_remote(node, "WORKLOAD"))
                    local_workload = local_workload or node == self._node
                else:
                    types.add(self._local_or_remote(node, "TUNNEL"))
                    kinds = sorted(owner.kind for owner in place.owners if owner.node == node)
                    tunnels = tuple(sorted(_TUNNELS[kind] for kind in kinds if kind in _TUNNELS))
        # The address of a host or a tunnel is reached by other routes than its block, unless the block is the address.
        if not is_host and (is_block or not tunnels):
            types |= block_types
        info = self._nodes.get(node)
        address = None if info is None else info.address(net.version)
        return desired.Route(
            types=_in_order(types),
            pool_type=pool_type,
            node=node,
            node_address=address.host if address is not None else "",
            same_subnet=cross_subnet and self._is_in_our_subnet(net.version, address),
            nat_outgoing=nat_outgoing,
            local_workload=local_workload,
            borrowed=borrowed,
            tunnels=tunnels,
        )

    def _local_or_remote(self, node: str, what: str) -> desired.RouteType:
        return desired.RouteType(f"{'LOCAL' if node == self._node else 'REMOTE'}_{what}")

    def _is_in_our_subnet(self, version: int, address: Net | None) -> bool:
        ours = self._nodes.get(self._node)
        subnet = None if ours is None else ours.subnet(version)
        return address is not None and subnet is not None and subnet.contains(address)


_TYPE_ORDER = {
    desired.RouteType.REMOTE_WORKLOAD: 0,
    desired.RouteType.REMOTE_HOST: 1,
    desired.RouteType.LOCAL_WORKLOAD: 2,
    desired.RouteType.LOCAL_HOST: 3,
    desired.RouteType.REMOTE_TUNNEL: 4,
    desired.RouteType.LOCAL_TUNNEL: 5,
}


def _in_order(types: set[desired.RouteType]) -> tuple[desired.RouteType, ...]:
    return tuple(sorted(types, key=_TYPE_ORDER.__getitem__)) or (desired.RouteType.CIDR_INFO,)


def pool_info(pool: feed.Pool) -> PoolInfo:
    """What a pool says about its addresses. VXLAN wins over IP-in-IP."""
    if pool.allowed_uses == _LOAD_BALANCER:
        type = desired.PoolType.NONE
    elif pool.vxlan_mode:
        type = desired.PoolType.VXLAN
    elif pool.ipip_mode:
        type = desired.PoolType.IPIP
    else:
        type = desired.PoolType.NO_ENCAPSULATION
    return PoolInfo(type, pool.masquerade, _CROSS_SUBNET in (pool.vxlan_mode, pool.ipip_mode))


def block_destinations(block: feed.Block) -> dict[Net, str]:
    """The node of a block, and of each address in it that is another node's.

    Raises:
        ValueError: it contradicts itself.
    """
    net = parse_net(block.cidr)
    affinity = block.affinity or ""
    owner = next((affinity.removeprefix(prefix) for prefix in _AFFINITIES if affinity.startswith(prefix)), "")
    size = parse_address(block.cidr).length
    attributes = block.attributes or ()
    found = {}
    for ordinal, index in enumerate(block.allocations or ()):
        if index is None or not 0 <= index < len(attributes):
            continue
        if ordinal >= 1 << size - net.length:
            raise ValueError(f"block {block.cidr} has more allocations than addresses")
        node = (attributes[index].secondary or {}).get("node", "")
        if node and node != owner:
            found[Net(net.version, net.address + ordinal, size)] = node
    if owner:
        found[net] = owner
    return found
