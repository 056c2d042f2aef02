"""The cluster on the underlay: API server, nodes, pods; what a kubelet and an administrator would do."""

import contextlib
import http
import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from loadtest.crash_course import namespaces, topology
from loadtest.crash_course.api import Api, ApiFailed, JsonObject
from loadtest.crash_course.namespaces import Namespaces
from loadtest.crash_course.topology import Node
from loadtest.environment import calico_crds

NETWORK: Final = "k8s-pod-network"
CALICO_PATH: Final = f"/apis/{calico_crds.V1}"
READY_TIMEOUT_SECONDS: Final = 60.0
POLL_SECONDS: Final = 0.05
SERVICE_PORT: Final = 5473
HEALTH_PORT: Final = 9098
TYPHA: Final = Path(sys.executable).with_name("typha")
NODES_AS_NUMBER: Final = 64512
"""Calico's default."""
RACK_AS_NUMBER: Final = 64513


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

    def __init__(self, spaces: Namespaces, folder: Path, *, nodes: int) -> None:
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
        self._write_kubeconfig()
        self.start_api_server()
        subprocess.run(
            [sys.executable, "-m", "clients.agents.cni", "install", "--bin-dir", str(self.folder / "bin")],
            check=True,
            capture_output=True,
        )
        self.api.create("/api/v1/namespaces", {"metadata": {"name": "default"}})
        self.api.create(
            f"{CALICO_PATH}/clusterinformations",
            {"metadata": {"name": "default"}, "spec": {"clusterType": "k8s", "datastoreReady": True}},
        )
        for node in self.nodes:
            self.api.create("/api/v1/nodes", node_object(node))

    def start_api_server(self) -> None:
        """Start the simulated API server."""
        self.start_process(
            "api-server",
            topology.ROUTER,
            [sys.executable, "-m", "loadtest.crash_course.apiserver", topology.API_ADDRESS, str(topology.API_PORT)],
        )
        self.wait(lambda: self._answers("/readyz"), "the API server answers")

    def start_service(self) -> None:
        """Start the service, which serves Calico's feeds to the agents."""
        own = {name: value for name, value in os.environ.items() if not name.startswith(("TYPHA_", "KUBERNETES_"))}
        settings = {
            "KUBECONFIG": str(self.kubeconfig),
            "TYPHA_SERVERHOST": topology.API_ADDRESS,
            "TYPHA_SERVERPORT": str(SERVICE_PORT),
            "TYPHA_HEALTHENABLED": "true",
            "TYPHA_HEALTHHOST": topology.API_ADDRESS,
            "TYPHA_HEALTHPORT": str(HEALTH_PORT),
            "TYPHA_LOGFILEPATH": "none",
            "TYPHA_LOGSEVERITYSCREEN": "info",
        }
        self.start_process("typha", topology.ROUTER, [str(TYPHA), "serve"], environment={**own, **settings})
        health = Api(topology.API_ADDRESS, HEALTH_PORT, within=self._within_router)

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
                *("--server", f"{topology.API_ADDRESS}:{SERVICE_PORT}", "--folder", str(self.bird_folder(node.name))),
            ],
        )

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

    def create_pod(self, name: str, node: Node, *, labels: Mapping[str, str] | None = None) -> Pod:
        """A pod that the scheduler has put on a node; no sandbox yet."""
        pod = Pod(name, node)
        self.api.create(
            f"/api/v1/namespaces/{pod.namespace}/pods",
            {
                "metadata": {"name": name, "namespace": pod.namespace, "labels": dict(labels or {})},
                "spec": {"nodeName": node.name, "serviceAccountName": "default", "containers": [{"name": "main"}]},
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
            f"/api/v1/namespaces/{pod.namespace}/pods/{pod.name}",
            {"status": {"phase": "Running", "podIP": pod.address, "podIPs": [{"ip": pod.address}]}},
        )
        return result

    def run_pod(self, name: str, node: Node, *, labels: Mapping[str, str] | None = None) -> Pod:
        """Create and attach a pod."""
        pod = self.create_pod(name, node, labels=labels)
        self.attach(pod)
        return pod

    def delete_pod(self, pod: Pod) -> None:
        """What the kubelet does for a deleted pod."""
        self.cni("DEL", pod)
        self.spaces.remove(pod.sandbox)
        with contextlib.suppress(ApiFailed):
            self.api.delete(f"/api/v1/namespaces/{pod.namespace}/pods/{pod.name}")
        del self.pods[pod.name]

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
