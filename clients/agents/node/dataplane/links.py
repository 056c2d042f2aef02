"""Makes the kernel's routes, tunnel device and neighbours equal to `routing.Network`.

Only what is the agent's is changed: routes with its protocol number, routes to workloads' interfaces, and the VXLAN
device with its neighbours. What cannot be set now, such as a route to an interface that does not exist yet, is returned
and tried again.
"""

import pathlib
from types import TracebackType
from typing import Any, NamedTuple, Self

from pyroute2 import AsyncIPRoute
from pyroute2.netlink.exceptions import NetlinkError

from clients.agents.node.dataplane.routing import OVERHEAD_BYTES, VXLAN_DEVICE, Network, Path, PathKind, Peer, Tunnel

ROUTE_PROTOCOL = 80
"""Number of the routes that the agent makes, as Calico's own agent marks its routes."""

_MAIN_TABLE = 254
_IPV4 = 2
_UNICAST, _BLACKHOLE = 1, 6
_ON_LINK = 4
_PERMANENT = 0x80
_BRIDGE = 7
_SCOPE_LINK = 253
_ANY_SCOPE = 255
_NO_MAC = "00:00:00:00:00:00"


class _Link(NamedTuple):
    number: int
    """The kernel's index of it."""
    up: bool
    mtu: int
    mac: str
    vxlan: tuple[int | None, int | None, str | None] | None
    """Identifier, port and local address."""


class Links:
    """Routes and devices of one network namespace."""

    def __init__(self, namespace: str | None = None) -> None:
        """`namespace` None is the namespace of this process."""
        self._ip = AsyncIPRoute(netns=namespace)
        self.changes = 0
        """How many routes, devices and neighbours were set or removed."""

    async def __aenter__(self) -> Self:
        await self._ip.__aenter__()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self._ip.__aexit__(kind, error, traceback)

    async def make(self, wanted: Network) -> dict[str, str]:
        """Makes the kernel equal. Returns what could not be set, with the reason.

        Raises:
            OSError: the kernel cannot be read.
        """
        failures: dict[str, str] = {}
        try:
            links = await self._read_links()
            links = await self._make_tunnel(wanted, links, failures)
            await self._make_routes(wanted, links, failures)
        except NetlinkError as error:
            raise OSError(error.code, str(error)) from error
        return failures

    async def _read_links(self) -> dict[str, _Link]:
        links = {}
        async for message in await self._ip.link("dump"):
            vxlan = None
            if message.get(("linkinfo", "kind")) == "vxlan":
                data = message.get(("linkinfo", "data"))
                vxlan = tuple(data.get(name) for name in ("vxlan_id", "vxlan_port", "vxlan_local"))
            links[message.get("ifname")] = _Link(
                message["index"], message.get("state") == "up", message.get("mtu"), message.get("address") or "", vxlan
            )
        return links

    # The tunnel

    async def _make_tunnel(
        self, wanted: Network, links: dict[str, _Link], failures: dict[str, str]
    ) -> dict[str, _Link]:
        tunnel, found = wanted.tunnel, links.get(VXLAN_DEVICE)
        if tunnel is None:
            if found is not None:
                await self._try(VXLAN_DEVICE, failures, self._ip.link("del", index=found.number))
                links.pop(VXLAN_DEVICE)
            return links
        mtu = tunnel.mtu or await self._room(tunnel.local, links)
        properties = (tunnel.vni, tunnel.port, tunnel.local)
        if found is not None and found.vxlan != properties:
            await self._try(VXLAN_DEVICE, failures, self._ip.link("del", index=found.number))
            found = None
        if found is None:
            await self._try(
                VXLAN_DEVICE,
                failures,
                self._ip.link(
                    "add",
                    ifname=VXLAN_DEVICE,
                    kind="vxlan",
                    vxlan_id=tunnel.vni,
                    vxlan_port=tunnel.port,
                    vxlan_local=tunnel.local,
                    vxlan_learning=False,
                    address=tunnel.mac,
                ),
            )
            links = await self._read_links()
            found = links.get(VXLAN_DEVICE)
        if found is None:
            return links
        if (found.up, found.mtu, found.mac) != (True, mtu, tunnel.mac):
            change = self._ip.link("set", index=found.number, mtu=mtu, address=tunnel.mac, state="up")
            await self._try(VXLAN_DEVICE, failures, change)
            links = await self._read_links()
        await self._make_tunnel_address(tunnel, found.number, failures)
        await self._make_peers(wanted.peers, found.number, failures)
        return links

    async def _room(self, local: str, links: dict[str, _Link]) -> int:
        """The MTU that the interface with the node's address leaves."""
        by_index = {link.number: link for link in links.values()}
        async for message in await self._ip.addr("dump", family=_IPV4):
            if message.get("address") == local and by_index[message["index"]].mac != _NO_MAC:
                return by_index[message["index"]].mtu - OVERHEAD_BYTES
        return DEFAULT_MTU

    async def _make_tunnel_address(self, tunnel: Tunnel, index: int, failures: dict[str, str]) -> None:
        found = [message.get("address") async for message in await self._ip.addr("dump", family=_IPV4, index=index)]
        for address in found:
            if address != tunnel.address:
                await self._try(address, failures, self._ip.addr("del", index=index, address=address, prefixlen=32))
        if tunnel.address not in found:
            change = self._ip.addr("add", index=index, address=tunnel.address, prefixlen=32)
            await self._try(tunnel.address, failures, change)

    async def _make_peers(self, peers: frozenset[Peer], index: int, failures: dict[str, str]) -> None:
        """One entry of the neighbour table and one of the forwarding database for each other node."""
        addresses = {(peer.address, peer.mac) for peer in peers}
        ends = {(peer.mac, peer.parent) for peer in peers}
        found_addresses = {
            (message.get("dst"), message.get("lladdr"))
            async for message in await self._ip.neigh("dump", ifindex=index, family=_IPV4)
            if message["state"] & _PERMANENT
        }
        found_ends = {
            (message.get("lladdr"), message.get("dst"))
            async for message in await self._ip.fdb("dump", ifindex=index)
            if message["ifindex"] == index and message.get("dst")
        }
        for address, mac in found_addresses - addresses:
            await self._try(address, failures, self._ip.neigh("del", ifindex=index, dst=address, lladdr=mac))
        for address, mac in addresses - found_addresses:
            change = self._ip.neigh("replace", ifindex=index, dst=address, lladdr=mac, state="permanent")
            await self._try(address, failures, change)
        for mac, parent in found_ends - ends:
            await self._try(mac, failures, self._ip.fdb("del", ifindex=index, lladdr=mac, dst=parent))
        for mac, parent in ends - found_ends:
            await self._try(mac, failures, self._ip.fdb("append", ifindex=index, lladdr=mac, dst=parent))

    # Routes

    async def _make_routes(self, wanted: Network, links: dict[str, _Link], failures: dict[str, str]) -> None:
        found = await self._read_routes(links)
        for destination in found.keys() - wanted.routes.keys():
            await self._try(destination, failures, self._route("del", destination, found[destination], links))
        for destination, path in wanted.routes.items():
            if found.get(destination) == path:
                continue
            interface = {PathKind.LINK: path.to, PathKind.TUNNEL: VXLAN_DEVICE}.get(path.kind)
            if interface is not None and interface not in links:
                failures[destination] = f"no interface {interface}"
                continue
            # A route of another program stays, unless it leads to a workload: those interfaces are the agent's.
            verb = "replace" if destination in found or path.kind is PathKind.LINK else "add"
            await self._try(destination, failures, self._route(verb, destination, path, links))

    async def _read_routes(self, links: dict[str, _Link]) -> dict[str, Path]:
        names = {link.number: name for name, link in links.items()}
        routes = {}
        async for message in await self._ip.route("dump", family=_IPV4, proto=ROUTE_PROTOCOL):
            if message.get("table") == _MAIN_TABLE and message["proto"] == ROUTE_PROTOCOL:
                destination = f"{message.get('dst') or '0.0.0.0'}/{message['dst_len']}"
                routes[destination] = _read_path(message, names)
        return routes

    def _route(self, verb: str, destination: str, path: Path, links: dict[str, _Link]) -> Any:
        extra: dict[str, object]
        if verb == "del":
            extra = {"scope": _ANY_SCOPE, "type": _BLACKHOLE if path.kind is PathKind.NOWHERE else _UNICAST}
        elif path.kind is PathKind.NOWHERE:
            extra = {"type": "blackhole"}
        elif path.kind is PathKind.LINK:
            extra = {"oif": links[path.to].number, "scope": _SCOPE_LINK}
        elif path.kind is PathKind.VIA:
            extra = {"gateway": path.to}
        else:
            extra = {"gateway": path.to, "oif": links[VXLAN_DEVICE].number, "flags": _ON_LINK}
        return self._ip.route(verb, dst=destination, proto=ROUTE_PROTOCOL, **extra)

    async def _try(self, subject: str, failures: dict[str, str], change: Any) -> None:
        try:
            await change
            self.changes += 1
        except NetlinkError as error:
            failures[subject] = str(error)


DEFAULT_MTU = 1450
"""The tunnel's MTU if no interface has the node's address: that of Ethernet, less the headers."""


def _read_path(message: Any, names: dict[int, str]) -> Path:
    gateway, interface = message.get("gateway"), names.get(message.get("oif"), "")
    if message["type"] == _BLACKHOLE:
        return Path(PathKind.NOWHERE)
    if gateway is None:
        return Path(PathKind.LINK, interface)
    return Path(PathKind.TUNNEL if interface == VXLAN_DEVICE else PathKind.VIA, gateway)


def prepare_interface(name: str) -> str | None:
    """Lets an interface of a workload answer for its gateway at once, and forward. Returns what failed."""
    try:
        for setting, value in (("conf/{}/forwarding", 1), ("conf/{}/proxy_arp", 1), ("neigh/{}/proxy_delay", 0)):
            path = pathlib.Path("/proc/sys/net/ipv4", setting.format(name))
            text = str(value)
            if path.read_text().strip() != text:
                path.write_text(text)
    except OSError as error:
        return str(error)
    return None
