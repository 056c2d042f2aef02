"""The chapters, in the order of the text that this project began from, with its own manifests."""

import functools
import json
import subprocess
import time
from typing import Final

from loadtest.crash_course import topology
from loadtest.crash_course.cluster import ALL_SESSIONS, CALICO_PATH, METRICS_PORT, Cluster, CniFailed, Pod
from loadtest.crash_course.course import Course

POLICIES_PATH: Final = "/apis/crd.projectcalico.org/v1/namespaces/default/networkpolicies"
POOL: Final = "default-pool"
POOL_CIDR: Final = "192.168.0.0/16"
"""That of the text."""
NEIGHBOR: Final = "neighbor"
"""A pod on the third node, which is in the subnet of the first one."""
PROBE_SECONDS: Final = 1
HTTPS: Final = 443
BACKEND_PORT: Final = 8080
PING_INTERVAL_SECONDS: Final = 0.05
POLICY: Final = {
    "selector": "role == 'frontend'",
    "types": ["Ingress", "Egress"],
    "ingress": [
        {
            "action": "Allow",
            "protocol": "TCP",
            "source": {"selector": "app == 'ingress-controller'"},
            "destination": {"ports": [HTTPS]},
        }
    ],
    "egress": [
        {
            "action": "Allow",
            "protocol": "TCP",
            "destination": {"selector": "role == 'backend'", "ports": [BACKEND_PORT]},
        }
    ],
}
"""The text's frontend-policy."""


def run(course: Course) -> None:
    """All chapters."""
    components(course)
    pods(course)
    addresses(course)
    routes(course)
    encapsulation(course)
    policy(course)
    discovery(course)
    troubleshooting(course)


def start(course: Course) -> None:
    """Only what a prompt needs: everything runs, and the nodes have let their pods talk."""
    components(course)
    run_pods(course.cluster)
    for name in ("ingress-controller", "backend", "client"):
        _ping(course, f"Ping to {name}", course.cluster.pods["frontend"], course.cluster.pods[name])


def components(course: Course) -> None:
    """Everything is started."""
    cluster = course.cluster
    course.chapter(
        "1. Core components",
        "Nodes are network namespaces. Each runs BIRD, the BGP agent (confd's role) and the node agent (Felix's role). "
        "The service (Typha) watches the API server once and feeds all agents.",
    )
    course.correct("The text lets confd run on control nodes. It runs on every node, beside BIRD.")
    cluster.create_pool(POOL, POOL_CIDR, natOutgoing=True)
    cluster.create_rack_peers()
    cluster.start_rack()
    cluster.start_service()
    for node in cluster.nodes:
        cluster.start_bgp(node)
        cluster.start_node_agent(node)
    agents = 2 * len(cluster.nodes)
    course.step(
        "Who is connected to the service",
        topology.ROUTER,
        cluster.typha("status"),
        shows=lambda text: all(text.count(f"{node.name} ") == 2 for node in cluster.nodes),
        checked=f"{agents} agents are connected",
    )


def pods(course: Course) -> None:
    """Pods on one node."""
    cluster = course.cluster
    course.chapter(
        "2. Pods on one node",
        "The CNI plugin gives a pod a /32 address and a veth pair; the default route leads to 169.254.1.1, which the "
        "node answers by proxy ARP.",
    )
    course.correct("The text draws a Linux bridge between the pods of a node. There is none: the node routes.")
    frontend = cluster.create_pod("frontend", cluster.nodes[0], labels={"role": "frontend"})
    course.act(
        "CNI ADD, as the kubelet calls it",
        "node-1# CNI_COMMAND=ADD CNI_NETNS=... calico < 10-calico.conf",
        lambda: json.dumps(cluster.attach(frontend), indent=1),
        shows=lambda text: '"address"' in text,
        checked="the plugin answers with an address",
    )
    run_pods(cluster)
    course.step(
        "The pod's only interface and routes",
        frontend.sandbox,
        "ip -br address show eth0; ip route",
        shows=lambda text: f"{frontend.address}/32" in text and "169.254.1.1" in text,
        checked="a /32 address, and a default route through 169.254.1.1",
    )
    _ping(course, "Ping on one node", frontend, cluster.pods["ingress-controller"])


def run_pods(cluster: Cluster) -> None:
    """The pods of the course that do not run yet, and what runs in them."""
    first, second = cluster.nodes[:2]
    wanted = (
        ("frontend", first, {"role": "frontend"}),
        ("ingress-controller", first, {"app": "ingress-controller"}),
        ("backend", second, {"role": "backend"}),
        ("client", second, {"app": "client"}),
        *((NEIGHBOR, node, {"app": NEIGHBOR}) for node in cluster.nodes[2:3]),
    )
    for name, node, labels in wanted:
        if name not in cluster.pods:
            cluster.run_pod(name, node, labels=labels)
        cluster.start_web(cluster.pods[name], HTTPS, BACKEND_PORT)


def addresses(course: Course) -> None:
    """IPAM."""
    cluster = course.cluster
    course.chapter(
        "3. IP address management",
        "A node claims a block of 64 addresses from the pool and gives its pods addresses of it: one route for all.",
    )
    course.correct("The text's IPPool has `ipMode: CrossSubnet`. The fields are vxlanMode and ipipMode.")
    course.step(
        "Pools and blocks",
        topology.ROUTER,
        cluster.cni_command("ipam", "show"),
        shows=lambda text: text.count("block ") >= len(cluster.nodes[:2]),
        checked="each node with pods has a block",
    )
    course.step(
        "Nothing leaks",
        topology.ROUTER,
        cluster.cni_command("ipam", "check"),
        shows=lambda text: text.strip() == "",
        checked="every used address belongs to a pod",
    )


def routes(course: Course) -> None:
    """BGP across nodes."""
    cluster = course.cluster
    course.chapter(
        "4. Pods across nodes: BGP",
        "BIRD tells the other nodes which blocks are here. The router between the subnets is a BGP neighbor, too: "
        "without encapsulation it must know the pods.",
    )
    node = cluster.nodes[0]
    sessions = len(cluster.nodes)
    course.step(
        "BGP sessions (the text's `birdcl show protocols`)",
        node.name,
        cluster.birdc_command(node.name, "show protocols"),
        shows=lambda text: text.count("Established") == sessions,
        checked=f"{sessions} sessions are established: the mesh and the router",
    )
    course.step(
        "Routes (the text's `ip route show | grep calico`)",
        node.name,
        "ip route show proto bird",
        shows=lambda text: text.count("via 172.30.") >= 1 and "blackhole" in text,
        checked="the other node's block is behind the router, the rest of the own block goes nowhere",
    )
    _ping(course, "Ping across nodes", cluster.pods["frontend"], cluster.pods["backend"])


def encapsulation(course: Course) -> None:
    """VXLAN and back, with a ping meanwhile."""
    cluster = course.cluster
    course.chapter(
        "5. Overlay networks",
        "With encapsulation the network between the nodes need not know the pods. The mode changes while a ping runs.",
    )
    if cluster.has_ipip():
        course.tell("This kernel has IP-in-IP, but the agents do not support it.")
    else:
        course.step(
            "IP-in-IP, as in the text (ipipMode: Always)",
            "node-1",
            "ip link add tunl-test type ipip remote 172.30.2.12",
            shows=bool,
            checked="this kernel has no IP-in-IP, so the course goes on with VXLAN",
            wait_seconds=0,
            wanted_failure=True,
        )
    source, target = cluster.pods["frontend"], cluster.pods["backend"]
    for node in cluster.nodes:
        cluster.spaces.run("router", "sh", "-c", cluster.cni_command("tunnel-address", "--node", node.name))
    via_router = "via 172.30.1.1 dev eth0 proto bird"
    for mode, wanted, title in (
        ("Always", "vxlan.calico", "BGP to VXLAN"),
        ("Never", via_router, "VXLAN to BGP"),
        ("CrossSubnet", "vxlan.calico", "BGP to CrossSubnet"),
        ("Never", via_router, "CrossSubnet to BGP"),
    ):
        with cluster.pinging(source, target, interval_seconds=PING_INTERVAL_SECONDS) as pinging:
            time.sleep(0.5)
            cluster.api.patch(f"{CALICO_PATH}/ippools/{POOL}", {"spec": {"vxlanMode": mode}})
            course.step(
                f"{title}: the route to {target.name}",
                "node-1",
                f"ip route get {target.address} from {source.address} iif {cluster.host_interface(source)}; "
                f"ip route show | grep {target.address.rpartition('.')[0]}",
                shows=functools.partial(agree, wanted, wanted.partition(" proto")[0]),
                checked=f"the route is now: {wanted}",
            )
            if mode == "CrossSubnet" and NEIGHBOR in cluster.pods:
                neighbor = cluster.pods[NEIGHBOR]
                straight = f"via {neighbor.node.address} dev eth0 proto 80"
                course.step(
                    f"{title}: the route to {NEIGHBOR}, on a node in the same subnet",
                    "node-1",
                    f"ip route show | grep {neighbor.address.rpartition('.')[0]}",
                    shows=straight,
                    checked="it needs no encapsulation: the node agent's route leads straight to the node",
                )
            time.sleep(1.0)
        course.act(
            f"{title}: the ping meanwhile",
            f"{source.name}# ping -i {PING_INTERVAL_SECONDS} {target.address}",
            pinging.summary,
            shows=lambda text: "received" in text and not text.endswith("100% packet loss"),
            checked="the ping goes on",
        )


def agree(route: str, way: str, text: str) -> bool:
    """Whether the table of routes has the route, and the kernel's answer for a packet, before it, the way."""
    answer, _, table = text.partition("\n")
    return route in table and way in answer


def policy(course: Course) -> None:
    """The text's frontend-policy."""
    cluster = course.cluster
    course.chapter("6. Network policies", "The text's frontend-policy, and what it does to connections.")
    course.correct("`ports:[443]` needs a space to be YAML, and a NetworkPolicy needs a namespace.")
    _matrix(course, "before the policy", dict.fromkeys(_pairs(), True))
    course.act(
        "Create it",
        "router# kubectl apply -f frontend-policy.yaml",
        lambda: json.dumps(
            cluster.api.create(
                POLICIES_PATH,
                {"metadata": {"name": "default.frontend-policy", "namespace": "default"}, "spec": POLICY},
            )["spec"],
            indent=1,
        ),
        shows=lambda text: "frontend" in text,
        checked="the API server has it",
    )
    nodes = len(cluster.nodes)
    course.step(
        "On how many nodes is it in force?",
        topology.ROUTER,
        cluster.typha("explain networkpolicy default.frontend-policy"),
        shows=f"applied by {nodes} of the {nodes} that report it",
        checked="every node's kernel has it: the agents report what they have programmed",
    )
    course.step(
        "How far are the agents?",
        topology.ROUTER,
        cluster.typha("status") + " | grep 'clients have'",
        shows=lambda text: f"felix: {nodes} of {nodes} clients have applied everything" in text,
        checked="all agents have applied everything that is older than 2 s",
    )
    course.step(
        "How long did it take?",
        topology.ROUTER,
        f"curl -s http://{topology.API_ADDRESS}:{METRICS_PORT}/metrics | grep -E 'applied_everywhere_.*(sum|count)'",
        shows=lambda text: "felix" in text,
        checked="from the publication of a change to the last node that has applied it",
    )
    allowed = {("ingress-controller", "frontend:443"), ("frontend", "backend:8080")}
    closed = {"frontend"}
    expected = {
        (source, target): (source, target) in allowed or not ({source, target.partition(":")[0]} & closed)
        for source, target in _pairs()
    }
    _matrix(course, "after the policy", expected)
    _matrix_by_vxlan(course, expected)
    for source, target, port, verdict in (
        ("ingress-controller", "frontend", HTTPS, "allow"),
        ("client", "frontend", HTTPS, "den"),
    ):
        course.step(
            f"Why: {source} to {target}",
            topology.ROUTER,
            cluster.explain_command(source, target, port) + " || true",
            shows=verdict,
            checked=f"the decision is: {verdict}{'y' if verdict == 'den' else ''}",
        )


def _matrix_by_vxlan(course: Course, expected: dict[tuple[str, str], bool]) -> None:
    """The same policy decides about packets that were encapsulated."""
    cluster = course.cluster
    path = f"{CALICO_PATH}/ippools/{POOL}"
    source, target = cluster.pods["frontend"], cluster.pods["backend"]
    for mode, device in (("Always", "vxlan.calico"), ("Never", "eth0")):
        cluster.api.patch(path, {"spec": {"vxlanMode": mode}})
        course.step(
            f"The pool changes to vxlanMode {mode}",
            "node-1",
            f"ip route get {target.address} from {source.address} iif {cluster.host_interface(source)}",
            shows=f"dev {device}",
            checked=f"packets to {target.name} leave through {device}",
        )
        if mode == "Always":
            _matrix(course, "after the policy, by VXLAN", expected)


def discovery(course: Course) -> None:
    """What is configured."""
    cluster = course.cluster
    course.chapter("7. Configuration discovery", "What the text asks calicoctl for, the service knows.")
    course.correct("`calicoctl get serviceGraph` does not exist.")
    for what, shows in (
        ("clusterinformation -o yaml", "clusterGUID"),
        ("ippools", POOL_CIDR),
        ("nodes", "node-2"),
        ("networkpolicies -A", "frontend-policy"),
    ):
        course.step(
            f"get {what}",
            topology.ROUTER,
            cluster.typha(f"get {what}"),
            shows=shows,
            checked=f"it shows {shows}",
        )


def troubleshooting(course: Course) -> None:
    """Faults that are caused, shown, diagnosed and healed."""
    cluster = course.cluster
    source, target = cluster.pods["client"], cluster.pods["ingress-controller"]
    course.chapter("8. Troubleshooting", "Each fault is caused, shown, diagnosed and healed.")

    course.step(
        "Peer down: cause",
        "node-1",
        cluster.birdc_command("node-1", f"disable '{ALL_SESSIONS}'"),
        shows="disabled",
        checked="the sessions of node-1 are off",
    )
    course.step(
        "Peer down: show",
        source.sandbox,
        f"ping -c 1 -W 1 {target.address}",
        shows=lambda text: "100% packet loss" in text,
        checked="pods do not reach each other across nodes",
        wanted_failure=True,
    )
    course.step(
        "Peer down: diagnose",
        "node-1",
        cluster.birdc_command("node-1", "show protocols"),
        shows=lambda text: any("mesh_" in line and " down " in line for line in text.splitlines()),
        checked="birdc shows which sessions are down",
    )
    cluster.birdc("node-1", "enable", ALL_SESSIONS)
    _ping(course, "Peer down: healed by `birdc enable`", source, target)

    _policy_order(course, source, target)
    _exhausted(course)
    _dead_agent(course, source, target)


def _policy_order(course: Course, source: Pod, target: Pod) -> None:
    """A policy that has no effect because another one is before it."""
    cluster = course.cluster
    path = POLICIES_PATH
    selector = "app == 'ingress-controller'"
    for name, order, action in (("deny-first", 10, "Deny"), ("allow-later", 20, "Allow")):
        spec = {"selector": selector, "order": order, "types": ["Ingress"], "ingress": [{"action": action}]}
        cluster.api.create(path, {"metadata": {"name": f"default.{name}", "namespace": "default"}, "spec": spec})
    course.step(
        "Policy order: show",
        source.sandbox,
        f"curl -s --connect-timeout {PROBE_SECONDS} http://{target.address}:{HTTPS} || echo no connection",
        shows=lambda text: "no connection" in text,
        checked="allow-later allows, and yet there is no connection",
    )
    course.step(
        "Policy order: diagnose",
        topology.ROUTER,
        cluster.explain_command(source.name, target.name, HTTPS) + " || true",
        shows=lambda text: "deny-first" in text,
        checked="explain names deny-first, whose order is lower",
    )
    cluster.api.patch(f"{path}/default.allow-later", {"spec": {"order": 5}})
    course.step(
        "Policy order: healed by order 5",
        source.sandbox,
        f"curl -s --connect-timeout {PROBE_SECONDS} http://{target.address}:{HTTPS}",
        shows=lambda text: target.name in text,
        checked="the connection is allowed",
    )
    for name in ("deny-first", "allow-later"):
        cluster.api.delete(f"{path}/default.{name}")


def _exhausted(course: Course) -> None:
    """A pool without free addresses, because of addresses that leak."""
    cluster = course.cluster
    node = cluster.nodes[0]
    cluster.create_pool("tiny-pool", "10.99.0.0/30", blockSize=30, assignmentMode="Manual")
    annotations = {"cni.projectcalico.org/ipv4pools": '["tiny-pool"]'}
    lost = [cluster.run_pod(f"lost-{number}", node, annotations=annotations) for number in range(4)]
    for pod in lost:  # the node lost them without a CNI DEL, and the API server does not have them any more
        cluster.forget_pod(pod, seconds_ago=3600)
    late = cluster.create_pod("late", node, annotations=annotations)

    def fails() -> str:
        try:
            cluster.attach(late)
        except CniFailed as error:
            return str(error)
        return "an address"

    course.act(
        "IPAM exhausted: show",
        "node-1# CNI_COMMAND=ADD ... calico",
        fails,
        shows=lambda text: text.startswith("101:"),
        checked="the plugin says that no address is free",
    )
    course.step(
        "IPAM exhausted: diagnose",
        topology.ROUTER,
        cluster.cni_command("ipam", "check") + " || true",
        shows=lambda text: text.count("does not exist") == len(lost),
        checked="the addresses belong to pods that do not exist",
    )
    course.correct("`calicoctl ipam release` wants a report by `--from-report`; it has no `--from`.")
    course.step(
        "IPAM exhausted: heal",
        topology.ROUTER,
        cluster.cni_command("ipam", "check", "--release"),
        shows=lambda text: "released: 4" in text,
        checked="the leaked addresses are released",
    )
    course.act(
        "IPAM exhausted: healed",
        "node-1# CNI_COMMAND=ADD ... calico",
        lambda: json.dumps(cluster.attach(late)["ips"]),
        shows=lambda text: "10.99.0." in text,
        checked="the pod has an address",
    )
    cluster.delete_pod(late)


def _dead_agent(course: Course, source: Pod, target: Pod) -> None:
    """Without the node agent what is programmed stays, and what is new stays closed."""
    cluster = course.cluster
    node = cluster.nodes[0]
    cluster.kill_process(f"node-agent-{node.name}")
    _ping(course, "Agent dead: what is programmed stays", source, target)
    new = cluster.run_pod("newcomer", node)
    course.step(
        "Agent dead: show",
        new.sandbox,
        f"ping -c 1 -W 1 {target.address}",
        shows=lambda text: "100% packet loss" in text,
        checked="a new pod has no connection: workloads without a program are closed",
        wait_seconds=0,
        wanted_failure=True,
    )
    cluster.start_node_agent(node)
    _ping(course, "Agent dead: healed by its restart", new, target)
    cluster.delete_pod(new)


def _ping(course: Course, title: str, source: Pod, target: Pod) -> None:
    course.step(
        title,
        source.sandbox,
        f"ping -c 3 -i 0.2 -W 1 {target.address}",
        shows=lambda text: " 0% packet loss" in text,
        checked=f"{source.name} reaches {target.name}",
    )


def _pairs() -> list[tuple[str, str]]:
    names = ("frontend", "ingress-controller", "backend", "client")
    targets = (f"frontend:{HTTPS}", f"backend:{BACKEND_PORT}", f"client:{BACKEND_PORT}", f"ingress-controller:{HTTPS}")
    return [(name, target) for name in names for target in targets if name != target.partition(":")[0]]


def _matrix(course: Course, when: str, expected: dict[tuple[str, str], bool]) -> None:
    """Try all connections, at once, until they are as expected."""
    cluster = course.cluster

    def probe() -> dict[tuple[str, str], bool]:
        running = {}
        for source, target in expected:
            name, _, port = target.partition(":")
            url = f"http://{cluster.pods[name].address}:{port}"
            command = ["curl", "-s", "-o", "/dev/null", "--connect-timeout", str(PROBE_SECONDS), url]
            running[source, target] = subprocess.Popen(
                cluster.spaces.command(cluster.pods[source].sandbox, command), stdin=subprocess.DEVNULL
            )
        return {pair: process.wait() == 0 for pair, process in running.items()}

    deadline = time.monotonic() + 20.0
    found = probe()
    while found != expected and time.monotonic() < deadline:
        found = probe()
    course.matrices[when] = found

    def shown() -> str:
        targets = sorted({target for _, target in expected})
        lines = [f"{'from / to':<20}" + "".join(f"{target:<25}" for target in targets)]
        for source in sorted({source for source, _ in expected}):
            words = {True: "allowed", False: "denied", None: "-"}
            lines.append(f"{source:<20}" + "".join(f"{words[found.get((source, target))]:<25}" for target in targets))
        return "\n".join(lines)

    course.act(
        f"Connections {when}",
        f"each pod# curl --connect-timeout {PROBE_SECONDS} http://ADDRESS:PORT",
        shown,
        shows=lambda _: found == expected,
        checked=f"{sum(expected.values())} of {len(expected)} connections are allowed",
    )
