"""The cluster on the underlay: API server, nodes, pods; what a kubelet and an administrator would do."""

import contextlib
import functools
import hashlib
import http
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from loadtest.crash_course import namespaces, topology
from loadtest.crash_course.api import Api, ApiFailed, JsonObject
from loadtest.crash_course.namespaces import Namespaces
from loadtest.crash_course.topology import Node
from loadtest.environment import calico_crds, control_plane

NETWORK: Final = "k8s-pod-network"
CALICO_PATH: Final = f"/apis/{calico_crds.V1}"
READY_TIMEOUT_SECONDS: Final = 60.0
POLL_SECONDS: Final = 0.05
SERVICE_PORT: Final = 5473
HEALTH_PORT: Final = 9098
METRICS_PORT: Final = 9093
"""Of the first replica of the service; the others have the next ports."""
TYPHA: Final = Path(sys.executable).with_name("typha")
NODES_AS_NUMBER: Final = 64512
"""Calico's default."""
RACK_AS_NUMBER: Final = 64513


ALL_SESSIONS: Final = '"*_172_30_*"'
"""For birdc: the BGP sessions, whose names have the neighbor's address."""


class CniFailed(Exception):
    """The plugin answers with an error."""

    def __init__(self, answer: JsonObject) -> None:
        super().__init__(f"{answer.get('code')}: {answer.get('msg')} {answer.get('details', '')}".strip())
        self.code = answer.get("code")


class Pod:
    """A pod that runs: its namespace has its name."""

    def __init__(self, name: str, node: Node, *, namespace: str = "default") -> None:
        self.name = name
        self.node = node
        self.namespace = namespace
        self.address = ""

    @property
    def sandbox(self) -> str:
        """The name of its network namespace, without the run's prefix."""
        return f"pod-{self.namespace}-{self.name}"

    @property
    def container(self) -> str:
        """The identifier of its container."""
        return f"{self.namespace}-{self.name}-sandbox"


class Cluster:
    """A cluster in the namespaces of one run, with its files in `folder`."""

    def __init__(
        self, spaces: Namespaces, folder: Path, *, nodes: int, is_real: bool = False, replicas: int = 1
    ) -> None:
        """`is_real`: with kube-apiserver and etcd (make control-plane) instead of the simulated API server.

        `replicas`: how many services there are; the agents know all of them.
        """
        self.replicas = replicas
        self.is_real = is_real
        self._plane: control_plane.ControlPlane | None = None
        self.spaces = spaces
        self.folder = folder
        self.nodes = topology.nodes(nodes)
        self.pods: dict[str, Pod] = {}
        self.kubeconfig = folder / "kubeconfig"
        self.processes: dict[str, subprocess.Popen[bytes]] = {}
        self.api = Api(
            topology.API_ADDRESS,
            topology.API_PORT,
            within=self._within_router,
        )

    def start(self) -> None:
        """Build the underlay, start the API server, register the nodes, install the plugin. Raises CommandFailed."""
        topology.build(self.spaces, self.nodes)
        if self.is_real:
            self._start_control_plane()
        else:
            self._write_kubeconfig()
            self.start_api_server()
        subprocess.run(
            [sys.executable, "-m", "clients.agents.cni", "install", "--bin-dir", str(self.folder / "bin")],
            check=True,
            capture_output=True,
        )
        with contextlib.suppress(ApiFailed):  # a real API server creates it by itself
            self.api.create("/api/v1/namespaces", {"metadata": {"name": "default"}})
        self.api.create(
            f"{CALICO_PATH}/clusterinformations",
            {"metadata": {"name": "default"}, "spec": {"clusterType": "k8s", "datastoreReady": True}},
        )
        for node in self.nodes:
            self.api.create("/api/v1/nodes", node_object(node))

    def close(self) -> None:
        """End the control plane, if it is a real one. Everything else ends with the namespaces."""
        if self._plane is not None:
            self._plane.stop()

    def start_api_server(self) -> None:
        """Start the simulated API server."""
        self.start_process(
            "api-server",
            topology.ROUTER,
            [sys.executable, "-m", "loadtest.crash_course.apiserver", topology.API_ADDRESS, str(topology.API_PORT)],
        )
        self.wait(lambda: self._answers("/readyz"), "the API server answers")

    @contextlib.contextmanager
    def without_api_server(self) -> Iterator[None]:
        """A time in which nobody reaches the API server: connections are refused, and those there are end.

        It keeps its objects. Later requests of this process are refused, too.
        """
        port = self.api.port
        refused = "reject with tcp reset"
        table = f"table ip away {{ chain input {{ type filter hook input priority 0; tcp dport {port} {refused}; }}; }}"
        self.spaces.run(topology.ROUTER, "nft", table)
        try:
            yield
        finally:
            self.spaces.run(topology.ROUTER, "nft", "delete", "table", "ip", "away")

    def start_service(self, number: int = 0) -> None:
        """Start a replica of the service, which serves Calico's feeds to the agents."""
        own = {name: value for name, value in os.environ.items() if not name.startswith(("TYPHA_", "KUBERNETES_"))}
        settings = {
            "KUBECONFIG": str(self.kubeconfig),
            "TYPHA_SERVERHOST": topology.API_ADDRESS,
            "TYPHA_SERVERPORT": str(SERVICE_PORT + number),
            "TYPHA_HEALTHENABLED": "true",
            "TYPHA_HEALTHHOST": topology.API_ADDRESS,
            "TYPHA_HEALTHPORT": str(HEALTH_PORT + number),
            "TYPHA_PROMETHEUSMETRICSENABLED": "true",
            "TYPHA_PROMETHEUSMETRICSHOST": topology.API_ADDRESS,
            "TYPHA_PROMETHEUSMETRICSPORT": str(METRICS_PORT + number),
            "TYPHA_ADMINSOCKET": str(self.admin_socket_of(number)),
            "TYPHA_LOGFILEPATH": "none",
            "TYPHA_LOGSEVERITYSCREEN": "info",
        }
        self.start_process(
            service_name(number), topology.ROUTER, [str(TYPHA), "serve"], environment={**own, **settings}
        )
        health = Api(topology.API_ADDRESS, HEALTH_PORT + number, within=self._within_router)

        def is_ready() -> bool:
            try:
                return health.status("/readiness") == http.HTTPStatus.OK
            except OSError:
                return False

        self.wait(is_ready, "the service is ready")

    def start_bgp(self, node: Node) -> None:
        """Start the BGP agent of a node, which starts BIRD."""
        self.start_process(
            f"bgp-{node.name}",
            node.name,
            [
                *(sys.executable, "-m", "clients.agents.bgp", "run", "--node", node.name),
                *self._server_options(),
                *("--folder", str(self.bird_folder(node.name))),
                *("--state-file", str(self.folder / f"{node.name}.bgp-feed")),
            ],
        )

    def start_node_agent(self, node: Node) -> None:
        """Start the node agent, which programs routes and policies."""
        self.start_process(
            f"node-agent-{node.name}",
            node.name,
            [
                *(sys.executable, "-m", "clients.agents.node", "run", "--node", node.name),
                *self._server_options(),
                *("--status-file", str(self.status_file(node))),
                *("--state-file", str(self.folder / f"{node.name}.felix-feed")),
            ],
        )

    def status_file(self, node: Node) -> Path:
        """What the node agent says of itself."""
        return self.folder / f"{node.name}.status.json"

    def agent_status(self, node: Node) -> JsonObject:
        """What the node agent says of itself; empty before its first word."""
        try:
            status: JsonObject = json.loads(self.status_file(node).read_text())
        except (OSError, ValueError):
            return {}
        return status

    def wait_node_agent(self, node: Node, *, not_pid: int = 0) -> JsonObject:
        """Wait until a node's agent, another one than `not_pid`, has programmed everything; returns its status."""

        def is_ready() -> bool:
            status = self.agent_status(node)
            return status.get("pid") != not_pid and bool(status.get("programmed_at")) and bool(status.get("in_sync"))

        self.wait(is_ready, f"the agent of {node.name} is in sync")
        return self.agent_status(node)

    def kill_process(self, name: str) -> None:
        """Kill a process, as a fault does."""
        process = self.processes.pop(name)
        process.kill()
        process.wait()

    def start_web(self, pod: Pod, *ports: int) -> None:
        """Start what a pod is for: a server that answers with the pod's name."""
        command = [sys.executable, "-m", "loadtest.crash_course.web", pod.name, *map(str, ports)]
        self.start_process(f"web-{pod.name}", pod.sandbox, command)

    def typha(self, arguments: str, *, number: int = 0) -> str:
        """A command of the service's command line, which asks one of the replicas, for a shell."""
        command, _, rest = arguments.partition(" ")
        return f"{TYPHA} {command} --server {self.admin_socket_of(number)} {rest}".rstrip()

    def cni_command(self, *arguments: str) -> str:
        """A command of the CNI plugin's package, for a shell."""
        return f"{sys.executable} -m clients.agents.cni {' '.join(arguments)} --kubeconfig {self.kubeconfig}"

    def birdc_command(self, name: str, arguments: str) -> str:
        """A command of birdc, for a shell."""
        return f"birdc -s {self.bird_folder(name) / 'bird.ctl'} {arguments}"

    def explain_command(self, source: str, target: str, port: int) -> str:
        """The question which policy decides about a connection of two pods, for a shell."""
        return (
            f"{sys.executable} -m clients.agents.node explain --from default/{source} --to default/{target} "
            f"--port tcp/{port} --server {topology.API_ADDRESS}:{SERVICE_PORT}"
        )

    def _server_options(self) -> list[str]:
        ports = range(SERVICE_PORT, SERVICE_PORT + self.replicas)
        return [word for port in ports for word in ("--server", f"{topology.API_ADDRESS}:{port}")]

    def admin_socket_of(self, number: int) -> Path:
        """Where a replica of the service answers questions."""
        return self.folder / f"{service_name(number)}.sock"

    def has_ipip(self) -> bool:
        """Whether this kernel has IP-in-IP."""
        try:
            self.spaces.ip(topology.ROUTER, "link add ipip-test type ipip remote 172.30.2.12")
        except namespaces.CommandFailed:
            return False
        self.spaces.ip(topology.ROUTER, "link delete ipip-test")
        return True

    def host_interface(self, pod: Pod) -> str:
        """The name of the node's end of a pod's veth pair."""
        text = f"{pod.namespace}.{pod.name}"
        return "cali" + hashlib.sha1(text.encode(), usedforsecurity=False).hexdigest()[:11]

    @contextlib.contextmanager
    def pinging(self, source: Pod, target: Pod, *, interval_seconds: float) -> Iterator["Ping"]:
        """A ping that runs meanwhile; afterwards it has a summary."""
        path = self.folder / f"ping-{time.monotonic_ns()}.txt"
        with open(path, "wb") as output:
            command = ["ping", "-i", str(interval_seconds), target.address]
            process = self.spaces.start(source.sandbox, *command, output=output)
        try:
            yield Ping(path)
        finally:
            process.send_signal(signal.SIGINT)  # it then prints its summary
            process.wait(READY_TIMEOUT_SECONDS)

    def start_rack(self) -> None:
        """Start the router's BIRD, as the network's own staff would: each node is a neighbor in another AS."""
        folder = self.bird_folder(topology.ROUTER)
        folder.mkdir(parents=True)
        (folder / "bird.conf").write_text(rack_configuration(self.nodes))
        command = ["bird", "-f", "-c", str(folder / "bird.conf"), "-s", str(folder / "bird.ctl")]
        self.start_process("bird-router", topology.ROUTER, [*command, "-P", str(folder / "bird.pid")])

    def bird_folder(self, name: str) -> Path:
        """The folder of BIRD's files on a node or the router."""
        return self.folder / "bird" / name

    def birdc(self, name: str, *arguments: str) -> str:
        """What birdc prints on a node or the router. Raises CommandFailed."""
        return self.spaces.run(name, "birdc", "-s", str(self.bird_folder(name) / "bird.ctl"), *arguments)

    def established(self, name: str) -> list[str]:
        """The BGP sessions of a node that are up."""
        try:
            lines = self.birdc(name, "show", "protocols").splitlines()
        except namespaces.CommandFailed:
            return []
        return [line.split()[0] for line in lines if " BGP " in line and "Established" in line]

    def start_process(
        self, name: str, namespace: str, command: Sequence[str], *, environment: dict[str, str] | None = None
    ) -> None:
        """Start a process whose output goes to a file of its name."""
        with open(self.folder / f"{name}.log", "ab") as output:
            self.processes[name] = self.spaces.start(namespace, *command, output=output, environment=environment)

    def stop_process(self, name: str) -> None:
        """End a process."""
        namespaces.stop(self.processes.pop(name))

    def wait(self, is_so: Callable[[], bool], what: str, *, timeout_seconds: float = READY_TIMEOUT_SECONDS) -> float:
        """Wait until something holds; returns the seconds. Raises TimeoutError, with the end of the logs."""
        begin = time.monotonic()
        while not is_so():
            if time.monotonic() - begin > timeout_seconds:
                raise TimeoutError(f"not within {timeout_seconds:.0f} s: {what}\n{self.log_tails()}")
            time.sleep(POLL_SECONDS)
        return time.monotonic() - begin

    def log_tails(self) -> str:
        """The end of each log."""
        tails = []
        for path in sorted(self.folder.glob("*.log")):
            lines = path.read_text(errors="replace").splitlines()[-6:]
            tails.append("\n".join([f"--- {path.name}", *lines]))
        return "\n".join(tails)

    def create_pool(self, name: str, cidr: str, **spec: Any) -> JsonObject:
        """An IPPool."""
        return self.api.create(
            f"{CALICO_PATH}/ippools",
            {"metadata": {"name": name}, "spec": {"cidr": cidr, "ipipMode": "Never", "vxlanMode": "Never", **spec}},
        )

    def create_peer(self, name: str, **spec: Any) -> JsonObject:
        """A BGPPeer."""
        return self.api.create(f"{CALICO_PATH}/bgppeers", {"metadata": {"name": name}, "spec": spec})

    def create_rack_peers(self) -> None:
        """Let the nodes of each subnet talk BGP with the router: without it the router does not know the pods."""
        for subnet in (1, 2):
            name = f"rack-{subnet}"
            self.create_peer(
                name, nodeSelector=f"rack == '{name}'", peerIP=f"172.30.{subnet}.1", asNumber=RACK_AS_NUMBER
            )

    def create_pod(
        self,
        name: str,
        node: Node,
        *,
        labels: Mapping[str, str] | None = None,
        annotations: Mapping[str, str] | None = None,
    ) -> Pod:
        """A pod that the scheduler has put on a node; no sandbox yet."""
        pod = Pod(name, node)
        self.api.create(
            f"/api/v1/namespaces/{pod.namespace}/pods",
            {
                "metadata": {
                    "name": name,
                    "namespace": pod.namespace,
                    "labels": dict(labels or {}),
                    "annotations": dict(annotations or {}),
                },
                "spec": {
                    "nodeName": node.name,
                    "serviceAccountName": "default",
                    "containers": [{"name": "main", "image": "none"}],
                },
                "status": {"phase": "Pending"},
            },
        )
        self.pods[name] = pod
        return pod

    def attach(self, pod: Pod) -> JsonObject:
        """What the kubelet does for a new pod: a sandbox, CNI ADD, and the pod's status. Raises CniFailed."""
        self.spaces.add(pod.sandbox)
        try:
            result = self.cni("ADD", pod)
        except CniFailed:
            self.spaces.remove(pod.sandbox)
            raise
        pod.address = result["ips"][0]["address"].partition("/")[0]
        self.api.patch(
            f"/api/v1/namespaces/{pod.namespace}/pods/{pod.name}/status",
            {"status": {"phase": "Running", "podIP": pod.address, "podIPs": [{"ip": pod.address}]}},
        )
        return result

    def run_pod(
        self,
        name: str,
        node: Node,
        *,
        labels: Mapping[str, str] | None = None,
        annotations: Mapping[str, str] | None = None,
    ) -> Pod:
        """Create and attach a pod."""
        pod = self.create_pod(name, node, labels=labels, annotations=annotations)
        self.attach(pod)
        return pod

    def delete_pod(self, pod: Pod) -> None:
        """What the kubelet does for a deleted pod."""
        self.cni("DEL", pod)
        self.spaces.remove(pod.sandbox)
        with contextlib.suppress(ApiFailed):
            self.api.delete(f"/api/v1/namespaces/{pod.namespace}/pods/{pod.name}")
        del self.pods[pod.name]

    def forget_pod(self, pod: Pod, *, seconds_ago: float) -> None:
        """Let a pod vanish as if its node had lost it some time ago: no CNI DEL, and no object."""
        self.spaces.remove(pod.sandbox)
        self.api.delete(f"/api/v1/namespaces/{pod.namespace}/pods/{pod.name}")
        del self.pods[pod.name]
        stamp = time.strftime("%Y-%m-%d %H:%M:%S +0000 UTC", time.gmtime(time.time() - seconds_ago))
        for block in self.blocks():
            for one in block["spec"]["attributes"]:
                if one.get("secondary", {}).get("pod") == pod.name:
                    one["secondary"]["timestamp"] = stamp
                    self.api.request("PUT", f"{CALICO_PATH}/ipamblocks/{block['metadata']['name']}", block)

    def cni(self, command: str, pod: Pod, **configuration: Any) -> JsonObject:
        """Call the plugin for a pod on its node; returns its answer. Raises CniFailed."""
        return self.call_plugin(
            pod.node,
            {
                "CNI_COMMAND": command,
                "CNI_CONTAINERID": pod.container,
                "CNI_NETNS": self.spaces.path(pod.sandbox),
                "CNI_IFNAME": "eth0",
                "CNI_ARGS": f"IgnoreUnknown=1;K8S_POD_NAMESPACE={pod.namespace};K8S_POD_NAME={pod.name}",
            },
            **configuration,
        )

    def call_plugin(self, node: Node, variables: Mapping[str, str], **configuration: Any) -> JsonObject:
        """Call the plugin on a node. Raises CniFailed."""
        done = subprocess.run(
            self.spaces.command(node.name, [str(self.folder / "bin" / "calico")]),
            check=False,
            capture_output=True,
            text=True,
            input=json.dumps({**self.network(node), **configuration}),
            env={**os.environ, **variables},
            timeout=READY_TIMEOUT_SECONDS,
        )
        try:
            answer: JsonObject = json.loads(done.stdout or "{}")
        except ValueError:
            answer = {"code": 999, "msg": done.stdout + done.stderr}
        if done.returncode:
            raise CniFailed(answer or {"code": 999, "msg": done.stderr})
        return answer

    def network(self, node: Node) -> JsonObject:
        """The network's configuration on a node. Each has a lock file of its own, as if it had a disk of its own."""
        return {
            "cniVersion": "1.1.0",
            "name": NETWORK,
            "type": "calico",
            "nodename": node.name,
            "kubernetes": {"kubeconfig": str(self.kubeconfig)},
            "ipam": {"type": "calico-ipam", "ipam_lock_file": str(self.folder / f"{node.name}.lock")},
        }

    def blocks(self) -> list[JsonObject]:
        """The IPAMBlocks."""
        return self.api.items(f"{CALICO_PATH}/ipamblocks")

    def _start_control_plane(self) -> None:
        """Start kube-apiserver and etcd on the router, and install Calico's kinds."""
        plane = self._plane = control_plane.ControlPlane(self.folder / "control-plane", host=topology.API_ADDRESS)
        self.spaces.within(topology.ROUTER, plane.start)  # its processes are then in the router's namespace
        self.kubeconfig = plane.kubeconfig
        port = int(plane.url.rpartition(":")[2])
        self.api = Api(
            topology.API_ADDRESS,
            port,
            within=self._within_router,
            tls=plane.tls_context(),
            token=control_plane.ADMIN_TOKEN,
        )
        for definition in calico_crds.definitions(calico_crds.V1):
            self.api.create("/apis/apiextensions.k8s.io/v1/customresourcedefinitions", definition)
            plural = definition["spec"]["names"]["plural"]
            self.wait(functools.partial(self._answers, f"{CALICO_PATH}/{plural}"), f"{plural} are served")

    def _within_router(self, connect: Callable[[], socket.socket]) -> socket.socket:
        return self.spaces.within(topology.ROUTER, connect)

    def _answers(self, path: str) -> bool:
        try:
            return self.api.status(path) == http.HTTPStatus.OK
        except OSError:
            return False

    def _write_kubeconfig(self) -> None:
        server = f"http://{topology.API_ADDRESS}:{topology.API_PORT}"
        document = {
            "apiVersion": "v1",
            "kind": "Config",
            "clusters": [{"name": "course", "cluster": {"server": server}}],
            "contexts": [{"name": "course", "context": {"cluster": "course", "user": "course"}}],
            "users": [{"name": "course", "user": {"token": "course"}}],
            "current-context": "course",
        }
        self.kubeconfig.write_text(json.dumps(document))


def service_name(number: int) -> str:
    """The name of the process of a replica of the service."""
    return f"typha-{number + 1}" if number else "typha"


class Ping:
    """What a ping has printed."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def summary(self) -> str:
        """Its last lines."""
        return "\n".join(self._path.read_text().strip().splitlines()[-2:])


def rack_configuration(nodes: Sequence[Node]) -> str:
    """BIRD's configuration of the router. It tells the nodes nothing, as its own subnets are their default route."""
    sessions = "".join(
        f"""
protocol bgp {node.name.replace("-", "_")} {{
  local {node.gateway} as {RACK_AS_NUMBER};
  neighbor {node.address} as {NODES_AS_NUMBER};
  connect delay time 1;
  connect retry time 2;
  error wait time 1, 10;
  ipv4 {{ import all; export none; }};
}}
"""
        for node in nodes
    )
    return f"""log stderr all;
router id {topology.API_ADDRESS};
protocol device {{ }}
protocol direct {{ ipv4; }}
protocol kernel {{ ipv4 {{ import none; export where source = RTS_BGP; }}; }}
{sessions}"""


def node_object(node: Node) -> JsonObject:
    """A Node as calico-node leaves it."""
    return {
        "metadata": {
            "name": node.name,
            "labels": {"kubernetes.io/hostname": node.name, "rack": f"rack-{node.subnet}"},
            "annotations": {"projectcalico.org/IPv4Address": f"{node.address}/24"},
        },
        "spec": {},
        "status": {"addresses": [{"type": "InternalIP", "address": node.address}]},
    }
