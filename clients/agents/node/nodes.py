"""What is known about nodes: addresses, subnets, tunnels. Pure."""

import hashlib
import re
from typing import NamedTuple

from clients.agents.node import desired, feed
from clients.agents.node.nets import Net, parse_address, parse_net

_IPV4_SETTING, _MAC_SETTING = "ipv4vxlantunneladdr", "vxlantunnelmacaddr"
_IPV6_SETTING, _MAC_V6_SETTING = "ipv6vxlantunneladdr", "vxlantunnelmacaddrv6"
VXLAN_SETTINGS = frozenset({_IPV4_SETTING, _MAC_SETTING, _IPV6_SETTING, _MAC_V6_SETTING})
"""Names, in lower case, of the settings of every node that say where its VXLAN tunnel ends."""
_NODE_ADDRESS_TYPES = ("InternalIP", "ExternalIP")
_NO_BGP = feed.NodeBgp()
WORKLOAD, WIREGUARD, IPIP, VXLAN = range(4)
"""What has an address, in the order in which they count where several have one."""
_MAC_BYTES = 5
_MAC = re.compile(r"(?:[0-9A-Fa-f]{2}:){5}[0-9A-Fa-f]{2}")


class NodeInfo(NamedTuple):
    """What routes need to know about a node."""

    ipv4: Net | None
    ipv6: Net | None
    ipv4_subnet: Net | None
    ipv6_subnet: Net | None
    addresses: frozenset[Net]
    """All addresses of the node itself."""
    tunnels: tuple[tuple[int, Net], ...]
    """Kinds and addresses of its tunnels."""

    def address(self, version: int) -> Net | None:
        """The address that other nodes reach it by."""
        return self.ipv4 if version == desired.IPV4 else self.ipv6

    def subnet(self, version: int) -> Net | None:
        """The subnet of that address."""
        return self.ipv4_subnet if version == desired.IPV4 else self.ipv6_subnet


def node_info(node: feed.Node) -> NodeInfo | None:
    """What routes need to know about a node. None if it has no address.

    Raises:
        ValueError: an address does not parse.
    """
    spec = node.spec
    bgp = spec.bgp or _NO_BGP
    texts = (bgp.ipv4_address, bgp.ipv6_address)
    if not any(texts):
        texts = (_node_address(spec, desired.IPV4), _node_address(spec, desired.IPV6))
    if not any(texts):
        return None
    ipv4, ipv6 = (parse_address(text) if text else None for text in texts)
    wireguard = spec.wireguard or feed.NodeWireguard()
    tunnels = (
        (WIREGUARD, wireguard.ipv4_address),
        (WIREGUARD, wireguard.ipv6_address),
        (IPIP, bgp.ipip_address),
        (VXLAN, spec.vxlan_ipv4_address),
        (VXLAN, spec.vxlan_ipv6_address),
    )
    others = [address for entry in spec.addresses or () if (address := _parsed(entry.address)) is not None]
    return NodeInfo(
        ipv4,
        ipv6,
        parse_net(texts[0]) if texts[0] else None,
        parse_net(texts[1]) if texts[1] else None,
        frozenset(address for address in (ipv4, ipv6, *others) if address is not None),
        tuple((kind, parse_address(text)) for kind, text in tunnels if text),
    )


def node_nets(node: feed.Node) -> desired.Node | None:
    """The addresses of a node with the masks of their subnets. None if its part about BGP is there and empty.

    Raises:
        ValueError: an address does not parse.
    """
    if node.spec.bgp == _NO_BGP:
        return None
    bgp = node.spec.bgp or _NO_BGP
    return desired.Node(
        _normal(bgp.ipv4_address if "/" in bgp.ipv4_address else _node_address(node.spec, desired.IPV4)),
        _normal(bgp.ipv6_address if "/" in bgp.ipv6_address else _node_address(node.spec, desired.IPV6)),
    )


def vtep(name: str, bgp: feed.NodeBgp, settings: dict[str, str]) -> desired.Vtep | None:
    """The end of a node's VXLAN tunnel, from its BGP addresses and its settings (names in lower case).

    A setting that is no address of its kind counts as not set.
    """
    fields: dict[str, str] = {}
    ipv4 = _parsed(settings.get(_IPV4_SETTING, ""))
    ipv6 = _parsed(settings.get(_IPV6_SETTING, ""))
    if bgp.ipv4_address and ipv4 is not None and ipv4.version == desired.IPV4:
        fields.update(
            ipv4_address=ipv4.host,
            mac=_mac(settings.get(_MAC_SETTING, ""), name),
            parent_ipv4_address=parse_address(bgp.ipv4_address).host,
        )
    if bgp.ipv6_address and ipv6 is not None and ipv6.version == desired.IPV6:
        fields.update(
            ipv6_address=ipv6.host,
            mac_v6=_mac(settings.get(_MAC_V6_SETTING, ""), f"{name}-v6"),
            parent_ipv6_address=parse_address(bgp.ipv6_address).host,
        )
    return desired.Vtep(**fields) if fields else None


def _mac(text: str, name: str) -> str:
    return text if _MAC.fullmatch(text) else _made_up_mac(name)


def _made_up_mac(name: str) -> str:
    """The address that every node derives in the same way from a node's name."""
    digest = hashlib.sha1(name.encode(), usedforsecurity=False).digest()
    return (b"f" + digest[:_MAC_BYTES]).hex(":")


def _node_address(spec: feed.NodeSpec, version: int) -> str:
    """The first internal address of an IP version, or else the first external one."""
    for type in _NODE_ADDRESS_TYPES:
        for entry in spec.addresses or ():
            parsed = _parsed(entry.address) if entry.type == type else None
            if parsed is not None and parsed.version == version:
                return entry.address
    return ""


def _parsed(text: str) -> Net | None:
    try:
        return parse_address(text)
    except ValueError:
        return None


def _normal(text: str) -> str:
    if not text:
        return ""
    return f"{parse_address(text).host}/{parse_net(text).length}"
