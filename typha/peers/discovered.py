"""Where the other replicas are: the addresses of the Service's endpoints, ready or not, or those of a setting. Pure."""

import ipaddress
from collections.abc import Iterable

from cache.kube import endpoints
from typha import networks

PEERS_MAX = 100
"""More replicas than a cluster has. A stale replica asks all of them."""
_PORTS = range(1, 65536)


def addresses(listed: Iterable[endpoints.Endpoint], *, port_name: str) -> list[str]:
    """The addresses of the port as HOST:PORT, this replica's included. What is no IP address is left out."""
    found = {
        networks.with_port(address, one.ports[port_name])
        for one in listed
        if one.ports.get(port_name) in _PORTS
        for address in one.addresses
        if _is_address(address)
    }
    return sorted(found)[:PEERS_MAX]


def _is_address(text: str) -> bool:
    try:
        ipaddress.ip_address(text)
    except ValueError:
        return False
    return True


def listed(text: str) -> list[str]:
    """The addresses of the setting PeerAddresses."""
    return [one.strip() for one in text.split(",") if one.strip()][:PEERS_MAX]
