"""`python -m loadtest.crash_course.latency`: how soon packets obey what somebody writes to the API server.

Three figures, each from the moment before the request: a policy until packets obey it, a new pod until its first
connection, another mode of the pool until the routes follow.
"""

import contextlib
import dataclasses
import functools
import math
import os
import socket
import statistics
import sys
import threading
import time
from collections.abc import Callable, Sequence
from typing import Final

import click

from loadtest.crash_course import chapters, faults, session, topology
from loadtest.crash_course.cluster import CALICO_PATH, Cluster, Pod
from loadtest.crash_course.stream import PACKETS_PER_SECOND, Stream

GOAL_SECONDS: Final = 0.5
"""From a written policy to packets that obey, for 99 of 100."""
LIMIT_SECONDS: Final = 30.0
"""Only a failure takes so long."""
QUIET_SECONDS: Final = 0.1
"""A stream that has been silent for so long, which is 100 packets, is cut off."""
SETTLE_SECONDS: Final = 0.3
"""Between two changes, so that each one is a batch of its own."""
ECHO_PORT: Final = 9001
STREAM_PORT: Final = 9002
POLL_SECONDS: Final = 0.002
_POLICY: Final = {"selector": "role == 'backend'", "types": ["Ingress"], "ingress": []}


@dataclasses.dataclass(frozen=True)
class Figure:
    """Times of one kind of change."""

    name: str
    seconds: Sequence[float]

    def percentile(self, share: float) -> float:
        """The time within which this share of the changes took effect."""
        ordered = sorted(self.seconds)
        return ordered[max(0, math.ceil(share * len(ordered)) - 1)]

    def __str__(self) -> str:
        p50, p99 = (1000 * self.percentile(share) for share in (0.5, 0.99))
        return f"{self.name:<52} {len(self.seconds):>5} {p50:>8.0f} {p99:>8.0f} {1000 * max(self.seconds):>8.0f}"


def policies(cluster: Cluster, count: int) -> list[Figure]:
    """A policy that denies is created and deleted, while packets arrive that it is about."""
    source, target = cluster.pods["frontend"], cluster.pods["backend"]
    path = chapters.POLICIES_PATH
    denied, allowed = [], []
    with Stream(cluster.spaces, source, target, port=STREAM_PORT) as stream:
        for _ in range(count):
            time.sleep(SETTLE_SECONDS)
            begin = time.monotonic()
            cluster.api.create(path, {"metadata": {"name": "default.closed", "namespace": "default"}, "spec": _POLICY})
            _wait(lambda: time.monotonic() - stream.last_arrival > QUIET_SECONDS, "packets are denied")
            denied.append(max(0.0, stream.last_arrival - begin))
            time.sleep(SETTLE_SECONDS)
            begin = time.monotonic()
            cluster.api.delete(f"{path}/default.closed")
            _wait(functools.partial(_has_arrived_since, stream, begin), "packets are allowed")
            allowed.append(stream.last_arrival - begin)
    return [
        Figure("policy created, to the last packet that gets through", denied),
        Figure("policy deleted, to the first packet", allowed),
    ]


def _has_arrived_since(stream: Stream, begin: float) -> bool:
    return stream.last_arrival > begin


def pods(cluster: Cluster, count: int) -> list[Figure]:
    """A pod is created and attached, and a pod on the other node tries to reach it all the time."""
    whole, after = [], []
    for number in range(count):
        begin = time.monotonic()
        pod = cluster.create_pod(f"new-{number}", cluster.nodes[1])
        cluster.attach(pod)
        attached = time.monotonic()
        _first_answer(cluster, cluster.pods["frontend"], pod)
        now = time.monotonic()
        whole.append(now - begin)
        after.append(now - attached)
        cluster.delete_pod(pod)
    return [
        Figure("pod created (ADD included), to its first answer", whole),
        Figure("CNI ADD has answered, to the pod's first answer", after),
    ]


def _first_answer(cluster: Cluster, source: Pod, target: Pod) -> None:
    """Sends packets until one is answered."""
    server = cluster.spaces.within(target.sandbox, _udp_socket)
    server.bind(("", ECHO_PORT))
    client = cluster.spaces.within(source.sandbox, _udp_socket)
    stop = threading.Event()
    answering = threading.Thread(target=_echo, args=(server, stop))
    answering.start()
    client.settimeout(POLL_SECONDS)

    def is_answered() -> bool:
        with contextlib.suppress(OSError):
            client.sendto(b"?", (target.address, ECHO_PORT))
            return bool(client.recv(16))
        return False

    try:
        _wait(is_answered, "the new pod answers")
    finally:
        stop.set()
        answering.join()
        client.close()
        server.close()


def _echo(server: socket.socket, stop: threading.Event) -> None:
    server.settimeout(POLL_SECONDS)
    while not stop.is_set():
        with contextlib.suppress(OSError):
            data, peer = server.recvfrom(16)
            server.sendto(data, peer)


def _udp_socket() -> socket.socket:
    return socket.socket(socket.AF_INET, socket.SOCK_DGRAM)


def pools(cluster: Cluster, count: int) -> list[Figure]:
    """The pool changes to VXLAN and back; the kernel is asked for the way to a pod on the other node."""
    source, target = cluster.pods["frontend"], cluster.pods["backend"]
    for node in cluster.nodes:
        cluster.spaces.run(topology.ROUTER, "sh", "-c", cluster.cni_command("tunnel-address", "--node", node.name))
    found: dict[str, list[float]] = {}
    for mode, device in (("Always", "vxlan.calico"), ("Never", "eth0")) * count:
        time.sleep(SETTLE_SECONDS)
        begin = time.monotonic()
        cluster.api.patch(f"{CALICO_PATH}/ippools/{chapters.POOL}", {"spec": {"vxlanMode": mode}})
        _wait(functools.partial(_leads_through, cluster, source, target, device), f"the route leads through {device}")
        found.setdefault(mode, []).append(time.monotonic() - begin)
    return [
        Figure("pool changed to VXLAN, to the new route", found["Always"]),
        Figure("pool changed back to BGP, to the new route", found["Never"]),
    ]


def _leads_through(cluster: Cluster, source: Pod, target: Pod, device: str) -> bool:
    return f"dev {device}" in cluster.spaces.run(source.node.name, "ip", "route", "get", target.address)


def _wait(is_so: Callable[[], bool], what: str) -> None:
    begin = time.monotonic()
    while not is_so():
        if time.monotonic() - begin > LIMIT_SECONDS:
            raise TimeoutError(f"not within {LIMIT_SECONDS:.0f} s: {what}")
        time.sleep(POLL_SECONDS)


@click.command()
@session.control_plane_option
@click.option("--policies", "policy_count", default=100, show_default=True, type=click.IntRange(1))
@click.option("--pods", "pod_count", default=20, show_default=True, type=click.IntRange(1))
@click.option("--pools", "pool_count", default=10, show_default=True, type=click.IntRange(1))
def main(control_plane: str, policy_count: int, pod_count: int, pool_count: int) -> None:
    """Measure how soon packets obey, on a cluster of two nodes, and print percentiles in milliseconds."""
    with faults.running(control_plane) as cluster:
        loads = [os.getloadavg()[0]]
        figures = [*policies(cluster, policy_count), *pods(cluster, pod_count), *pools(cluster, pool_count)]
        loads.append(os.getloadavg()[0])
    click.echo(f"{'from the request to the API server':<52} {'count':>5} {'p50 ms':>8} {'p99 ms':>8} {'max ms':>8}")
    for figure in figures:
        click.echo(str(figure))
    click.echo(
        f"{control_plane} API server, {os.cpu_count()} CPUs, load {statistics.mean(loads):.1f}, "
        f"{PACKETS_PER_SECOND} packets a second"
    )
    sys.exit(0 if all(figure.percentile(0.99) <= GOAL_SECONDS for figure in figures[:2]) else 1)


if __name__ == "__main__":
    main()
