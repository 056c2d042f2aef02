"""`python -m loadtest.crash_course.faults`: each fault while a stream of packets runs between pods on two nodes.

A row of the table is a fault: how many packets were sent and lost meanwhile, and what else had to hold.
"""

import concurrent.futures
import contextlib
import dataclasses
import functools
import json
import re
import socket
import sys
import time
from collections.abc import Callable, Iterator
from typing import Final

import click

from loadtest.crash_course import chapters, session, topology
from loadtest.crash_course.api import JsonObject
from loadtest.crash_course.cluster import CALICO_PATH, SERVICE_PORT, Cluster, CniFailed, Pod, service_name
from loadtest.crash_course.namespaces import CommandFailed
from loadtest.crash_course.stream import Stream
from loadtest.crash_course.topology import Node
from loadtest.reporting import measure

STREAM_PORT: Final = 9000
DOWN_SECONDS: Final = 1.0
"""How long a process is away before it is started again."""
RULES_HEALED_SECONDS: Final = 3.0
"""What the node agent promises, on a machine whose CPUs are not wanted by others at that time."""
FORGOTTEN_SECONDS: Final = 10.0
"""Within it the agent must end a gone pod's connections. The kernel itself forgets a ping only after 30 s."""
ROUTES_HEALED_SECONDS: Final = 90.0
TRY_AGAIN_LATER: Final = 11
"""The CNI specification's code for what may work later."""
PARALLEL_PODS: Final = 4
REUSED_POOL: Final = "reused-pool"
REUSED_CIDR: Final = "10.98.0.0/32"
"""One address: whoever comes next has it."""
_TABLE: Final = "inet typha-node"


@dataclasses.dataclass
class Row:
    """A fault and what was seen."""

    fault: str
    may_lose: bool = False
    sent: int = 0
    lost: int = 0
    longest_gap_seconds: float = 0.0
    facts: list[str] = dataclasses.field(default_factory=list)
    failures: list[str] = dataclasses.field(default_factory=list)

    def check(self, holds: bool, text: str) -> None:
        """Notes something that has to hold."""
        (self.facts if holds else self.failures).append(text)

    @property
    def is_passed(self) -> bool:
        """Whether everything held, and nothing was lost that had not to be."""
        return not self.failures and (self.may_lose or self.lost == 0)


class Faults:
    """The faults, on a cluster in which everything runs."""

    def __init__(self, cluster: Cluster, *, away_seconds: float, pods: int) -> None:
        self._cluster = cluster
        self._away_seconds = away_seconds
        self._pods = pods
        self.source, self.target = _stream_pods(cluster)
        self.rows: list[Row] = []

    def run(self, wanted: Callable[[str], bool]) -> None:
        """Runs the faults whose names are wanted, one after the other."""
        near, far = self.source.node, self.target.node
        faults: dict[str, Callable[[Row], None]] = {
            "none": lambda row: time.sleep(2.0),
            "node agent of the sender's node killed": functools.partial(self._kill_node_agent, near),
            "node agent of the receiver's node ended": functools.partial(self._end_node_agent, far),
            "all replicas of the service killed": self._kill_service,
            "replica changed: the agents' one is killed": self._change_replica,
            "BIRD of the sender's node killed": functools.partial(self._kill_bird, near),
            "BIRD of the receiver's node killed": functools.partial(self._kill_bird, far),
            "BGP agent of the receiver's node ended": functools.partial(self._end_bgp, far),
            "BGP agent of the sender's node killed": functools.partial(self._kill_bgp, near),
            f"API server away for {self._away_seconds:.0f} s": self._hide_api_server,
            "nftables of the receiver's node deleted": functools.partial(self._delete_rules, far),
            "route of the receiving pod deleted": self._delete_pod_route,
            "BGP route of the sender's node deleted": self._delete_bird_route,
            f"{self._pods} pods churned on the receiver's node": self._churn,
            "an address is used again": self._reuse,
        }
        for name, cause in faults.items():
            if wanted(name):
                self._run(Row(name, may_lose="route" in name), cause)

    def _run(self, row: Row, cause: Callable[[Row], None]) -> None:
        stream = Stream(self._cluster.spaces, self.source, self.target, port=STREAM_PORT)
        try:
            with stream:
                cause(row)
        except (TimeoutError, CommandFailed, CniFailed, OSError) as error:
            row.failures.append(f"{type(error).__name__}: {error}")
        row.sent, row.lost, row.longest_gap_seconds = stream.sent, stream.lost, stream.longest_gap_seconds
        self.rows.append(row)
        click.echo(text_of(row))

    def _restart_node_agent(self, node: Node, stop: Callable[[str], None], row: Row) -> None:
        before = self._cluster.agent_status(node)
        stop(f"node-agent-{node.name}")
        time.sleep(DOWN_SECONDS)
        self._cluster.start_node_agent(node)
        status = self._cluster.wait_node_agent(node, not_pid=before["pid"])
        row.check(status["transactions"] == 0, f"{status['transactions']} transactions")

    def _kill_node_agent(self, node: Node, row: Row) -> None:
        self._restart_node_agent(node, self._cluster.kill_process, row)

    def _end_node_agent(self, node: Node, row: Row) -> None:
        self._restart_node_agent(node, self._cluster.stop_process, row)

    def _wait_connected(self, number: int) -> None:
        """Waits until all node agents are in sync with a replica, or any if the number is negative."""

        def is_connected() -> bool:
            found = [self._cluster.agent_status(node) for node in self._cluster.nodes]
            suffix = f":{SERVICE_PORT + number}" if number >= 0 else ""
            return all(
                status.get("connected_to", "").endswith(suffix) and status.get("connected_to") and status["in_sync"]
                for status in found
            )

        self._cluster.wait(is_connected, "the node agents are connected")

    def _transactions(self) -> list[int]:
        return [self._cluster.agent_status(node).get("transactions", -1) for node in self._cluster.nodes]

    def _kill_service(self, row: Row) -> None:
        before = self._transactions()
        for number in range(self._cluster.replicas):
            self._cluster.kill_process(service_name(number))
        self._cluster.wait(
            lambda: not any(self._cluster.agent_status(node).get("connected_to") for node in self._cluster.nodes),
            "the agents see that no server is there",
        )
        time.sleep(DOWN_SECONDS)
        for number in range(self._cluster.replicas):
            self._cluster.start_service(number)
        self._wait_connected(-1)
        row.check(self._transactions() == before, "no transaction")

    def _change_replica(self, row: Row) -> None:
        before = self._transactions()
        address = self._cluster.agent_status(self.target.node)["connected_to"]
        number = int(address.rpartition(":")[2]) - SERVICE_PORT
        self._cluster.kill_process(service_name(number))
        other = 1 - number
        self._wait_connected(other)
        row.facts.append(f"from replica {number + 1} to {other + 1}")
        row.check(self._transactions() == before, "no transaction")
        self._cluster.start_service(number)

    def _bird_pid(self, node: Node) -> int:
        try:
            return int((self._cluster.bird_folder(node.name) / "bird.pid").read_text())
        except (OSError, ValueError):
            return 0

    def _wait_bird(self, node: Node, *, not_pid: int) -> None:
        sessions = len(self._cluster.nodes)
        self._cluster.wait(lambda: self._bird_pid(node) not in (0, not_pid), "BIRD is started again")
        self._cluster.wait(lambda: len(self._cluster.established(node.name)) == sessions, "the sessions are up")
        self._cluster.wait(
            lambda: "recovery in progress" not in self._cluster.birdc(node.name, "show", "status"),
            "the neighbors have the routes again",
        )

    def _kill_bird(self, node: Node, row: Row) -> None:
        pid = self._bird_pid(node)
        self._cluster.spaces.run(node.name, "kill", "-KILL", str(pid))
        self._wait_bird(node, not_pid=pid)

    def _restart_bgp(self, node: Node, stop: Callable[[str], None]) -> None:
        pid = self._bird_pid(node)
        stop(f"bgp-{node.name}")
        time.sleep(DOWN_SECONDS)
        self._cluster.start_bgp(node)
        self._wait_bird(node, not_pid=pid)

    def _end_bgp(self, node: Node, row: Row) -> None:
        self._restart_bgp(node, self._cluster.stop_process)

    def _kill_bgp(self, node: Node, row: Row) -> None:
        self._restart_bgp(node, self._cluster.kill_process)

    def _hide_api_server(self, row: Row) -> None:
        """Nobody reaches the API server, and what is connected is cut off. It keeps its objects meanwhile."""
        cluster = self._cluster
        begin = time.monotonic()
        before = self._traces(self.target.node)
        new = cluster.create_pod("during-outage", self.target.node)
        with cluster.without_api_server():
            try:
                cluster.attach(new)
                row.failures.append("ADD answers without an API server")
            except CniFailed as error:
                row.check(error.code == TRY_AGAIN_LATER, f"ADD answers {error.code}")
            time.sleep(max(0.0, self._away_seconds - (time.monotonic() - begin)))
        back = time.monotonic()
        cluster.attach(new)
        cluster.wait(functools.partial(_reaches, cluster, self.source, new), "the new pod is reached")
        row.facts.append(f"new pod reached {time.monotonic() - back:.1f} s after the return")
        cluster.delete_pod(new)
        # The next fault compares the node with what it has then.
        cluster.wait(lambda: self._traces(self.target.node) == before, "nothing of the pod is left")

    def _nft(self, node: Node, *words: str) -> str:
        try:
            return self._cluster.spaces.run(node.name, "nft", *words)
        except CommandFailed:
            return ""

    def _delete_rules(self, node: Node, row: Row) -> None:
        """The whole table, and then a chain's rules."""
        for what, command in (("table", "delete table"), ("rules", "flush table")):
            expected = self._shape(node)
            begin = measure.undisturbed_seconds()
            self._nft(node, *command.split(), *_TABLE.split())
            seconds = self._cluster.wait(functools.partial(self._has_shape, node, expected), "the rules are repaired")
            is_soon = measure.undisturbed_seconds() - begin <= RULES_HEALED_SECONDS
            row.check(is_soon, f"{what} repaired after {seconds:.1f} s")

    def _has_shape(self, node: Node, expected: tuple[int, ...]) -> bool:
        return self._shape(node) == expected

    def _shape(self, node: Node) -> tuple[int, ...]:
        """How many lines, chains and elements the node's table has."""
        text = self._nft(node, "list", "table", *_TABLE.split())
        return len(text.splitlines()), text.count("chain "), text.count(" : "), text.count(",")

    def _delete_route(self, node: Node, route: str, row: Row) -> None:
        def is_there() -> bool:
            return bool(self._cluster.spaces.run(node.name, "ip", "route", "show", "exact", route))

        begin = time.monotonic()
        self._cluster.spaces.ip(node.name, f"route delete {route}")
        self._cluster.wait(is_there, "the route is back", timeout_seconds=2 * ROUTES_HEALED_SECONDS)
        seconds = time.monotonic() - begin
        row.check(seconds <= ROUTES_HEALED_SECONDS, f"back after {seconds:.0f} s")

    def _delete_pod_route(self, row: Row) -> None:
        self._delete_route(self.target.node, f"{self.target.address}/32", row)

    def _delete_bird_route(self, row: Row) -> None:
        route = json.loads(
            self._cluster.spaces.run(self.source.node.name, "ip", "-json", "route", "get", self.target.address)
        )
        row.facts.append(f"via {route[0]['gateway']}")
        block = next(one["dst"] for one in _bird_routes(self._cluster, self.source.node) if one.get("gateway"))
        self._delete_route(self.source.node, block, row)

    def _traces(self, node: Node) -> dict[str, int]:
        """What pods leave on a node, and in the API server, counted."""
        cluster = self._cluster
        run = functools.partial(cluster.spaces.run, node.name)
        # The kernel makes and forgets entries for the pods that are there when it likes.
        there = {pod.address for pod in cluster.pods.values()}
        neighbors = [line.split()[0] for line in run("ip", "neigh", "show").splitlines() if " cali" in line]
        return {
            "interfaces": run("ip", "-o", "link", "show").count(" cali"),
            "routes": len(run("ip", "-4", "route", "show", "table", "all").splitlines()),
            "neighbors": sum(address not in there for address in neighbors),
            "lines of nftables": len(self._nft(node, "list", "table", *_TABLE.split()).splitlines()),
            "addresses in sets": len(re.findall(r"\b\d+\.\d+\.\d+\.\d+\b", self._nft(node, "list", "sets"))),
            "addresses of IPAM": sum(
                one is not None for block in cluster.blocks() for one in block["spec"]["allocations"]
            ),
            "handles of IPAM": len(cluster.api.items(f"{CALICO_PATH}/ipamhandles")),
        }

    def _churn(self, row: Row) -> None:
        """Pods that the plugin attaches, that send and receive something, and that go."""
        cluster, node = self._cluster, self.target.node
        before = self._traces(node)
        used: set[str] = set()
        begin = time.monotonic()
        with concurrent.futures.ThreadPoolExecutor(PARALLEL_PODS) as pool:
            for address in pool.map(self._live, range(self._pods)):
                used.add(address)
        row.facts.append(f"{self._pods} pods with {len(used)} addresses in {time.monotonic() - begin:.0f} s")
        try:
            cluster.wait(lambda: self._traces(node) == before, "nothing is left")
            row.facts.append("no interface, route, rule, element or address of IPAM is left")
        except TimeoutError:
            now = self._traces(node)
            left = {name: f"{before[name]} -> {now[name]}" for name in before if before[name] != now[name]}
            row.failures.append(f"left: {left}")
        with contextlib.suppress(TimeoutError):  # connections end after the rules hold
            cluster.wait(lambda: not self._tracked(node, used), "forgotten", timeout_seconds=FORGOTTEN_SECONDS)
        tracked = self._tracked(node, used)
        row.check(not tracked, f"connections of {len(tracked)} of those addresses are tracked")
        problems = cluster.spaces.run(topology.ROUTER, "sh", "-c", cluster.cni_command("ipam", "check"))
        row.check(not problems.strip(), f"ipam check: {problems.strip() or 'nothing'}")

    def _tracked(self, node: Node, addresses: set[str]) -> set[str]:
        """Those of the addresses that a node tracks connections of."""
        shown = self._cluster.spaces.run(node.name, "conntrack", "-L", "-f", "ipv4")
        return addresses & set(re.findall(r"(?:src|dst)=(\S+)", shown))

    def _live(self, number: int) -> str:
        cluster = self._cluster
        pod = cluster.run_pod(f"churn-{number}", self.target.node, labels={"app": "churn"})
        cluster.wait(functools.partial(_reaches, cluster, pod, self.target), f"{pod.name} reaches a pod")
        cluster.delete_pod(pod)
        return pod.address

    def _reuse(self, row: Row) -> None:
        """A pod that denies everything gets the address of one that had a connection."""
        cluster, node = self._cluster, self.target.node
        cluster.create_pool(REUSED_POOL, REUSED_CIDR, blockSize=32, assignmentMode="Manual")
        spec = {"selector": "app == 'closed'", "types": ["Ingress"]}
        path = chapters.POLICIES_PATH
        cluster.api.create(path, {"metadata": {"name": "default.closed", "namespace": "default"}, "spec": spec})
        annotations = {"cni.projectcalico.org/ipv4pools": f'["{REUSED_POOL}"]'}
        run_pod = functools.partial(cluster.run_pod, node=node, annotations=annotations)
        first = run_pod("first", labels={"app": "open"})
        client = cluster.spaces.within(self.source.sandbox, _udp_socket)
        server = cluster.spaces.within(first.sandbox, _udp_socket)
        server.bind(("", STREAM_PORT))
        cluster.wait(functools.partial(_talks, client, server, first.address), "the connection is established")
        server.close()
        cluster.delete_pod(first)
        for number in range(cluster.replicas):  # so that the agents are sent the policy before the pod that it is for
            cluster.wait(functools.partial(self._has_policy, number, "closed"), "the services have the policy")
        second = run_pod("second", labels={"app": "closed"})
        row.check(second.address == first.address, f"{second.address} is used again")
        listener = cluster.spaces.within(second.sandbox, _udp_socket)
        listener.bind(("", STREAM_PORT))
        cluster.wait(functools.partial(_reaches, cluster, second, self.target), "the second pod has a program")
        arrived = sum(_arrives(client, listener, second.address) for _ in range(20))
        row.check(arrived == 0, f"{arrived} of 20 packets of the old connection arrive")
        client.close()
        listener.close()
        cluster.delete_pod(second)
        cluster.api.delete(f"{path}/default.closed")
        cluster.api.delete(f"{CALICO_PATH}/ippools/{REUSED_POOL}")

    def _has_policy(self, number: int, name: str) -> bool:
        command = self._cluster.typha("get networkpolicies -A", number=number)
        return name in self._cluster.spaces.run(topology.ROUTER, "sh", "-c", command)


def _stream_pods(cluster: Cluster) -> tuple[Pod, Pod]:
    return cluster.pods["frontend"], cluster.pods["backend"]


def _reaches(cluster: Cluster, source: Pod, target: Pod) -> bool:
    try:
        cluster.spaces.run(source.sandbox, "ping", "-c", "1", "-W", "1", target.address)
    except CommandFailed:
        return False
    return True


def _udp_socket() -> socket.socket:
    opened = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    opened.settimeout(0.1)
    return opened


def _arrives(client: socket.socket, server: socket.socket, address: str) -> bool:
    with contextlib.suppress(OSError):
        client.sendto(b"?", (address, STREAM_PORT))
        server.recv(16)
        return True
    return False


def _talks(client: socket.socket, server: socket.socket, address: str) -> bool:
    """Whether a packet arrives, and its answer: then the connection counts as established."""
    with contextlib.suppress(OSError):
        client.sendto(b"?", (address, STREAM_PORT))
        _, peer = server.recvfrom(16)
        server.sendto(b"!", peer)
        client.recv(16)
        return True
    return False


def text_of(row: Row) -> str:
    """A row of the table."""
    gap = f"{1000 * row.longest_gap_seconds:.0f} ms"
    what = "; ".join([*row.facts, *(f"FAILED: {one}" for one in row.failures)]) or "-"
    return f"{'ok  ' if row.is_passed else 'FAIL'} {row.fault:<46} {row.sent:>7} {row.lost:>6} {gap:>9}  {what}"


@contextlib.contextmanager
def running(control_plane: str) -> Iterator[Cluster]:
    """A cluster in which two services, all agents and the pods of the course run."""
    with session.opened(nodes=2, control_plane=control_plane, replicas=2) as cluster:
        cluster.start()
        cluster.create_pool(chapters.POOL, chapters.POOL_CIDR, natOutgoing=True)
        cluster.create_rack_peers()
        cluster.start_rack()
        for number in range(cluster.replicas):
            cluster.start_service(number)
        for node in cluster.nodes:
            cluster.start_bgp(node)
            cluster.start_node_agent(node)
        chapters.run_pods(cluster)
        for node in cluster.nodes:
            cluster.wait_node_agent(node)
        cluster.wait(functools.partial(_is_settled, cluster), "the agents and BGP have everything")
        source, target = _stream_pods(cluster)
        cluster.wait(functools.partial(_reaches, cluster, source, target), "the stream has a way")
        yield cluster


def _is_settled(cluster: Cluster) -> bool:
    """Whether the agents have programmed all pods, and the nodes have the routes of all blocks and none of a pod."""
    blocks = {block["spec"]["cidr"] for block in cluster.blocks()}
    return all(
        cluster.agent_status(node)["programmed"]["endpoints"] == sum(pod.node == node for pod in cluster.pods.values())
        and blocks == {one["dst"] for one in _bird_routes(cluster, node)}
        for node in cluster.nodes
    )


def _bird_routes(cluster: Cluster, node: Node) -> list[JsonObject]:
    shown = cluster.spaces.run(node.name, "ip", "-json", "route", "show", "proto", "bird")
    routes: list[JsonObject] = json.loads(shown)
    return routes


@click.command()
@session.control_plane_option
@click.option("--away", "away_seconds", default=60.0, show_default=True, metavar="SECONDS", help="Of the API server.")
@click.option("--pods", default=500, show_default=True, type=click.IntRange(1), help="How many come and go.")
@click.option("--only", multiple=True, metavar="TEXT", help="Only faults whose name has it; may be repeated.")
def main(control_plane: str, away_seconds: float, pods: int, only: tuple[str, ...]) -> None:
    """Cause each fault while a stream of 1,000 packets a second runs between pods on two nodes, and print a table."""
    with running(control_plane) as cluster:
        faults = Faults(cluster, away_seconds=away_seconds, pods=pods)
        click.echo(f"     {'fault':<46} {'sent':>7} {'lost':>6} {'gap':>9}  what else was seen")
        faults.run(lambda name: not only or any(text in name for text in only))
        is_passed = bool(faults.rows) and all(row.is_passed for row in faults.rows)
        if not is_passed:
            click.echo(cluster.log_tails())
    sys.exit(0 if is_passed else 1)


if __name__ == "__main__":
    main()
