"""What the node agent's calculation costs in a large cluster: CPU of the start and of each kind of update, memory.

    python tools/measure_node_calculation.py [--pods 20000] [--policies 2000] [--local-pods 100]

The feed is made up, without a server: pods of 10 kinds in 200 namespaces, policies that select one kind of pods each,
and 20 policies for all namespaces. Figures are CPU time of the calculation alone.
"""

import argparse
import gc
import json
import pathlib
import sys
import time
from collections.abc import Callable, Iterator

from clients.agents.node.calculation import Calculation

Feed = Iterator[tuple[str, bytes | None]]
NODE = "n0"
NAMESPACES = 200
KINDS = 10
PODS_ON_A_NODE = 100
BLOCK_ADDRESSES = 64
GLOBAL_POLICIES = 20
REPETITIONS = 300
RESOURCES = "/calico/resources/v3/projectcalico.org"
ALLOW_ALL = b'{"inbound_rules":[{"action":"allow"}],"outbound_rules":[{"action":"allow"}]}'


def encode(value: object) -> bytes:
    return json.dumps(value, separators=(",", ":")).encode()


class Cluster:
    """A made-up cluster as the feed has it."""

    def __init__(self, local_pods: int, remote_pods: int, policies: int) -> None:
        self.local_pods = local_pods
        self.pods = local_pods + remote_pods
        self.nodes = 1 + -(-remote_pods // PODS_ON_A_NODE)
        self.policies = policies

    def feed(self) -> Feed:
        yield "/calico/v1/Ready", b"true"
        yield "/calico/v1/policy/tier/default/metadata", b'{"order":1000000,"defaultAction":"Deny"}'
        yield "/calico/v1/ipam/v4/pool/10.0.0.0-8", encode({"cidr": "10.0.0.0/8", "vxlan_mode": "always"})
        for number in range(NAMESPACES):
            yield self.namespace(number, number % 10)
            yield f"/calico/v1/policy/profile/kns.ns{number}/rules", ALLOW_ALL
            yield f"/calico/v1/policy/profile/ksa.ns{number}.default/rules", b"{}"
        for number in range(self.nodes):
            yield from self.node(number)
        for number in range(self.pods):
            yield self.pod(number)
        for number in range(self.policies):
            yield self.policy(number)
        for number in range(GLOBAL_POLICIES):
            yield self.global_policy(number, f"pcns.team == 't{number % 10}' && role == 'r{number % 3}'")

    def namespace(self, number: int, team: int) -> tuple[str, bytes]:
        labels = {"pcns.projectcalico.org/name": f"ns{number}", "pcns.team": f"t{team}"}
        return f"{RESOURCES}/profiles/kns.ns{number}", encode({"spec": {"labelsToApply": labels}})

    def node(self, number: int) -> Feed:
        address = f"172.16.{number // 250}.{number % 250 + 1}/16"
        spec = {"bgp": {"ipv4Address": address}, "ipv4VXLANTunnelAddr": f"10.{number}.0.0"}
        yield f"{RESOURCES}/nodes/n{number}", encode({"metadata": {"name": f"n{number}"}, "spec": spec})
        yield f"/calico/v1/host/n{number}/config/IPv4VXLANTunnelAddr", f"10.{number}.0.0".encode()
        for block in range(2):
            cidr = f"10.{number}.{block}.0/26"
            attributes = [{"handle_id": "x", "secondary": {"node": f"n{number}"}}]
            allocations = [0] * 50 + [None] * 14
            value = {"cidr": cidr, "affinity": f"host:n{number}", "allocations": allocations, "attributes": attributes}
            yield f"/calico/ipam/v2/assignment/ipv4/block/{cidr.replace('/', '-')}", encode(value)

    def pod(self, number: int, *, index: int | None = None, version: str = "") -> tuple[str, bytes]:
        remote = number - self.local_pods
        node = 0 if remote < 0 else 1 + remote // PODS_ON_A_NODE
        if index is None:
            index = number if remote < 0 else remote % PODS_ON_A_NODE
        namespace, kind = f"ns{number % NAMESPACES}", f"app{number // NAMESPACES % KINDS}"
        labels = {
            "app": kind,
            "role": f"r{number % 3}",
            "pod-template-hash": f"{kind}-{namespace}",
            "projectcalico.org/namespace": namespace,
            "projectcalico.org/orchestrator": "k8s",
            "projectcalico.org/serviceaccount": "default",
        }
        if number % 10 == 0:
            labels["statefulset.kubernetes.io/pod-name"] = f"{kind}-{number}"
        if version:
            labels["version"] = version
        value = {
            "name": f"cali{number:011x}",
            "profile_ids": [f"kns.{namespace}", f"ksa.{namespace}.default"],
            "ipv4_nets": [f"10.{node}.{index // BLOCK_ADDRESSES}.{index % BLOCK_ADDRESSES}/32"],
            "labels": labels,
            "ports": [{"name": "http", "protocol": "tcp", "port": 8080}],
        }
        return f"/calico/v1/host/n{node}/workload/k8s/{namespace}%2f{kind}-{number}/endpoint/eth0", encode(value)

    def policy(self, number: int, port: int = 5432) -> tuple[str, bytes]:
        namespace, kind = f"ns{number % NAMESPACES}", number // NAMESPACES
        here, pods = f"projectcalico.org/namespace == '{namespace}'", "projectcalico.org/orchestrator == 'k8s'"
        inbound = [
            {
                "action": "allow",
                "protocol": "tcp",
                "src_selector": f"({here}) && ({pods} && app == 'app{(kind + 1) % KINDS}')",
                "dst_ports": [port, "http"],
            },
            {"action": "allow", "protocol": "tcp", "src_selector": f"pcns.team == 't{number % 7}' && ({pods})"},
        ]
        outbound = [
            {"action": "allow", "protocol": "udp", "dst_ports": [53]},
            {"action": "allow", "dst_selector": f"({here}) && ({pods})"},
        ]
        value = {
            "namespace": namespace,
            "tier": "default",
            "order": 1000,
            "selector": f"({pods} && app == 'app{kind}') && {here}",
            "types": ["ingress", "egress"],
            "inbound_rules": inbound,
            "outbound_rules": outbound,
        }
        return f"/calico/v1/policy/KubernetesNetworkPolicy/{namespace}/p{number}", encode(value)

    def global_policy(self, number: int, source: str) -> tuple[str, bytes]:
        inbound = [{"action": "allow", "protocol": "tcp", "src_selector": source, "dst_ports": [80, 443]}]
        selector = "all()" if number < 5 else f"pcns.team == 't{number % 10}'"
        value = {"order": number, "selector": selector, "types": ["ingress"], "inbound_rules": inbound}
        return f"/calico/v1/policy/GlobalNetworkPolicy//g{number}", encode(value)


def resident_megabytes() -> float:
    pages = int(pathlib.Path("/proc/self/statm").read_text().split()[1])
    return pages * 4096 / 1e6


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pods", type=int, default=20_000, help="pods of other nodes")
    parser.add_argument("--local-pods", type=int, default=100)
    parser.add_argument("--policies", type=int, default=2_000)
    arguments = parser.parse_args()
    cluster = Cluster(arguments.local_pods, arguments.pods, arguments.policies)
    gc.collect()
    before = resident_megabytes()
    calculation = Calculation(NODE)
    keys, cpu = 0, 0.0
    for key, value in cluster.feed():  # made as it is read: the values are not part of the memory
        started = time.process_time()
        calculation.update(key, value)
        cpu += time.process_time() - started
        keys += 1
    started = time.process_time()
    update, _ = calculation.take()
    cpu += time.process_time() - started
    members = sum(len(found.members) for found in update.sets.set.values())
    counts = {
        "endpoints": len(update.endpoints.set),
        "policies": len(update.policies.set),
        "sets": len(update.sets.set),
        "members": members,
        "routes": len(update.routes.set),
    }
    active = [int(key.rpartition("/p")[2]) for key in update.policies.set if key.startswith("Kubernetes")]
    del update
    gc.collect()
    sys.stdout.write(f"{keys} keys: {', '.join(f'{count} {name}' for name, count in counts.items())}\n")
    sys.stdout.write(f"start: {cpu:.2f} s of CPU, {resident_megabytes() - before:.0f} MB on top of {before:.0f} MB\n")

    def measure(name: str, change: Callable[[int], tuple[str, bytes | None]]) -> None:
        total = worst = 0.0
        for number in range(REPETITIONS):
            key, value = change(number)
            started = time.process_time()
            calculation.update(key, value)
            calculation.take()
            took = time.process_time() - started
            total, worst = total + took, max(worst, took)
        sys.stdout.write(f"{name}: {total / REPETITIONS * 1e3:.3f} ms, at most {worst * 1e3:.2f} ms\n")

    some = arguments.local_pods + arguments.pods // 4
    measure("a remote pod is sent again", lambda number: cluster.pod(some + number))
    measure("a remote pod's address changes", lambda number: cluster.pod(some + number, index=99 - number % 100))
    measure("a remote pod's labels change", lambda number: cluster.pod(some + number, version=f"v{number}"))
    measure("a remote pod goes", lambda number: (cluster.pod(some + number)[0], None))
    measure("a remote pod comes", lambda number: cluster.pod(some + number))
    inactive = [number for number in range(arguments.policies) if number not in set(active)]
    measure("a policy of other nodes changes", lambda number: cluster.policy(inactive[number % len(inactive)], number))
    measure("a policy of this node changes", lambda number: cluster.policy(active[number % len(active)], number))
    sources = [f"app == 'app{number}'" for number in range(KINDS)]
    measure("a rule selects 2,000 other pods", lambda number: cluster.global_policy(0, sources[number % KINDS]))
    measure("a namespace's labels change", lambda n: cluster.namespace(n % NAMESPACES, (n + n // NAMESPACES + 1) % 10))


if __name__ == "__main__":
    main()
