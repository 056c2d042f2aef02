"""The underlay: two subnets, a router between them, and nodes that are namespaces. The API server is on the router's.

node-1  172.30.1.11 ┐                         ┌ 172.30.2.12  node-2
node-3  172.30.1.13 ┤ 172.30.1.1  router  172.30.2.1 ┤
                    └ API server and service ┘
"""

import dataclasses
from typing import Final

from loadtest.crash_course.namespaces import Namespaces

ROUTER: Final = "router"
API_ADDRESS: Final = "172.30.1.1"
API_PORT: Final = 6443
MAX_NODES: Final = 9
"""Their addresses end with 11 to 19."""
UNDERLAY_MTU: Final = 1500


@dataclasses.dataclass(frozen=True)
class Node:
    """A node; its namespace has the node's name."""

    number: int

    @property
    def name(self) -> str:
        """node-1 and so on."""
        return f"node-{self.number}"

    @property
    def subnet(self) -> int:
        """1 for odd numbers, 2 for even ones: so two nodes are enough to cross subnets."""
        return 2 - self.number % 2

    @property
    def address(self) -> str:
        """Its address in the underlay."""
        return f"172.30.{self.subnet}.{10 + self.number}"

    @property
    def gateway(self) -> str:
        """The router's address in its subnet."""
        return f"172.30.{self.subnet}.1"


def nodes(count: int) -> list[Node]:
    """The first nodes. Raises ValueError for too many."""
    if not 1 <= count <= MAX_NODES:
        raise ValueError(f"1 to {MAX_NODES} nodes, not {count}")
    return [Node(number) for number in range(1, count + 1)]


def build(namespaces: Namespaces, members: list[Node]) -> None:
    """Make the router and the nodes, and connect them. Raises CommandFailed."""
    namespaces.add(ROUTER, *(node.name for node in members))
    for subnet in (1, 2):
        namespaces.ip(
            ROUTER,
            f"link add subnet{subnet} mtu {UNDERLAY_MTU} type bridge",
            f"address add 172.30.{subnet}.1/24 dev subnet{subnet}",
            f"link set dev subnet{subnet} up",
        )
    namespaces.run(ROUTER, "sysctl", "-qw", "net.ipv4.ip_forward=1")
    for node in members:
        namespaces.ip(
            ROUTER,
            f"link add {node.name} type veth peer name eth0 netns {namespaces.path(node.name)}",
            f"link set dev {node.name} master subnet{node.subnet} up",
        )
        namespaces.ip(
            node.name,
            f"address add {node.address}/24 dev eth0",
            "link set dev eth0 up",
            f"route add default via {node.gateway}",
        )
        namespaces.run(node.name, "sysctl", "-qw", "net.ipv4.ip_forward=1", "net.ipv4.conf.all.rp_filter=0")
