"""The installed plugin in real network namespaces, started as a container runtime starts it."""

import concurrent.futures
import json
import os
import resource
import subprocess
from typing import Any

import pytest

from clients.agents.cni import network, plugin, specification
from loadtest.crash_course.cluster import CALICO_PATH, NETWORK, Cluster, CniFailed, Pod
from loadtest.crash_course.namespaces import CommandFailed

pytestmark = [pytest.mark.namespaces, pytest.mark.slow]

MAX_CPU_SECONDS = 0.15


def annotations(cluster: Cluster, pod: Pod) -> dict[str, str]:
    found: dict[str, str] = cluster.api.get(f"/api/v1/namespaces/default/pods/{pod.name}")["metadata"]["annotations"]
    return found


def held(cluster: Cluster) -> list[str]:
    """The handles of all used addresses."""
    return sorted(one["handle_id"] for block in cluster.blocks() for one in block["spec"]["attributes"])


def failure(cluster: Cluster, command: str, pod: Pod, **configuration: Any) -> int:
    with pytest.raises(CniFailed) as caught:
        cluster.cni(command, pod, **configuration)
    assert isinstance(caught.value.code, int)
    return caught.value.code


def test_a_pod_gets_an_address_that_its_node_reaches(cluster: Cluster) -> None:
    pod = cluster.create_pod("one", cluster.nodes[0])
    result = cluster.attach(pod)

    host = network.host_interface("default", "one")
    assert [one["name"] for one in result["interfaces"]] == [host, "eth0"]
    assert result["ips"] == [{"address": f"{pod.address}/32", "interface": 1}]
    assert annotations(cluster, pod) == {
        plugin.POD_IP: f"{pod.address}/32",
        plugin.POD_IPS: f"{pod.address}/32",
        plugin.CONTAINER_ID: pod.container,
    }
    cluster.spaces.run("node-1", "ping", "-c", "1", "-W", "2", pod.address)
    cluster.spaces.run(pod.sandbox, "ping", "-c", "1", "-W", "2", cluster.nodes[0].address)
    cluster.cni("CHECK", pod, prevResult=result)


def test_two_pods_of_a_node_reach_each_other(cluster: Cluster) -> None:
    one, two = (cluster.run_pod(name, cluster.nodes[0]) for name in ("one", "two"))
    cluster.spaces.run(one.sandbox, "ping", "-c", "1", "-W", "2", two.address)


def test_a_second_add_is_an_error_and_changes_nothing(cluster: Cluster) -> None:
    pod = cluster.run_pod("one", cluster.nodes[0])
    assert failure(cluster, "ADD", pod) == specification.ALREADY_ATTACHED
    assert held(cluster) == [f"{NETWORK}.{pod.container}"]
    cluster.spaces.run("node-1", "ping", "-c", "1", "-W", "2", pod.address)


def test_del_may_be_repeated_and_may_concern_what_never_was(cluster: Cluster) -> None:
    pod = cluster.run_pod("one", cluster.nodes[0])
    for _ in range(2):
        assert cluster.cni("DEL", pod) == {}
        assert annotations(cluster, pod)[plugin.POD_IP] == ""
        assert held(cluster) == []
    assert "eth0" not in cluster.spaces.run(pod.sandbox, "ip", "-brief", "link")
    assert cluster.cni("DEL", Pod("never", cluster.nodes[0])) == {}


def test_del_of_an_old_sandbox_leaves_the_new_one_alone(cluster: Cluster) -> None:
    pod = cluster.run_pod("one", cluster.nodes[0])
    variables = {
        "CNI_COMMAND": "DEL",
        "CNI_CONTAINERID": "an-older-sandbox",
        "CNI_NETNS": "/run/netns/gone",
        "CNI_IFNAME": "eth0",
        "CNI_ARGS": f"K8S_POD_NAMESPACE=default;K8S_POD_NAME={pod.name}",
    }
    cluster.call_plugin(pod.node, variables)
    assert annotations(cluster, pod)[plugin.POD_IP] == f"{pod.address}/32"
    cluster.spaces.run("node-1", "ping", "-c", "1", "-W", "2", pod.address)


def test_a_new_sandbox_replaces_what_a_lost_one_has_left(cluster: Cluster) -> None:
    pod = cluster.run_pod("one", cluster.nodes[0])
    cluster.spaces.add("second")
    variables = {
        "CNI_COMMAND": "ADD",
        "CNI_CONTAINERID": "a-newer-sandbox",
        "CNI_NETNS": cluster.spaces.path("second"),
        "CNI_IFNAME": "eth0",
        "CNI_ARGS": f"K8S_POD_NAMESPACE=default;K8S_POD_NAME={pod.name}",
    }
    address = cluster.call_plugin(pod.node, variables)["ips"][0]["address"].partition("/")[0]
    assert address != pod.address
    cluster.spaces.run("node-1", "ping", "-c", "1", "-W", "2", address)
    cluster.call_plugin(pod.node, {**variables, "CNI_COMMAND": "DEL"})
    cluster.spaces.remove("second")


def test_check_sees_what_is_missing(cluster: Cluster) -> None:
    pod = cluster.create_pod("one", cluster.nodes[0])
    result = cluster.attach(pod)
    broken = {
        "the route": ("ip", "route", "delete", "default"),
        "the address": ("ip", "address", "delete", f"{pod.address}/32", "dev", "eth0"),
        "the interface": ("ip", "link", "set", "dev", "eth0", "down"),
    }
    for command in broken.values():
        cluster.spaces.run(pod.sandbox, *command)
        assert failure(cluster, "CHECK", pod, prevResult=result) == specification.WRONG_STATE
    other = {**result, "ips": [{"address": "10.65.0.250/32"}]}
    assert failure(cluster, "CHECK", pod, prevResult=other) == specification.WRONG_STATE
    assert failure(cluster, "CHECK", pod) == specification.INVALID_CONFIGURATION


def test_without_the_api_server_the_runtime_is_to_try_again(cluster: Cluster) -> None:
    pod = cluster.run_pod("one", cluster.nodes[0])
    waiting = cluster.create_pod("two", cluster.nodes[0])
    cluster.spaces.ip("node-1", "route add unreachable 172.30.1.1")
    try:
        for command, one in (("DEL", pod), ("ADD", waiting)):
            assert failure(cluster, command, one) == specification.TRY_AGAIN_LATER
        assert failure(cluster, "STATUS", pod) == specification.NOT_AVAILABLE
    finally:
        cluster.spaces.ip("node-1", "route delete unreachable 172.30.1.1")
    cluster.cni("DEL", pod)
    assert held(cluster) == []


def test_a_failed_add_leaves_nothing(cluster: Cluster) -> None:
    pod = cluster.create_pod("one", cluster.nodes[0])
    assert failure(cluster, "ADD", pod) == specification.UNKNOWN_CONTAINER  # there is no sandbox
    assert held(cluster) == []
    assert cluster.api.items(f"{CALICO_PATH}/ipamhandles") == []


def test_status_needs_a_pool(cluster: Cluster) -> None:
    pod = Pod("any", cluster.nodes[0])
    assert cluster.cni("STATUS", pod) == {}
    ipam = {**cluster.network(pod.node)["ipam"], "ipv4_pools": ["no-such-pool"]}
    assert failure(cluster, "STATUS", pod, ipam=ipam) == specification.NOT_AVAILABLE


def test_gc_keeps_what_the_runtime_knows(cluster: Cluster) -> None:
    kept, lost = (cluster.run_pod(name, cluster.nodes[0]) for name in ("kept", "lost"))
    elsewhere = cluster.run_pod("elsewhere", cluster.nodes[1])
    assert failure(cluster, "GC", kept) == specification.INVALID_CONFIGURATION
    known = {"cni.dev/valid-attachments": [{"containerID": kept.container, "ifname": "eth0"}]}
    assert cluster.cni("GC", kept, **known) == {}
    assert held(cluster) == sorted(f"{NETWORK}.{pod.container}" for pod in (kept, elsewhere))
    assert lost.address


def test_parallel_calls_on_three_nodes_give_unique_addresses(cluster: Cluster) -> None:
    """And they all come back: 50 pods in 32 blocks of 8 addresses."""
    pods = [cluster.create_pod(f"p{number}", cluster.nodes[number % 3]) for number in range(50)]
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    with concurrent.futures.ThreadPoolExecutor(max_workers=12) as pool:
        list(pool.map(cluster.attach, pods))
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert len({pod.address for pod in pods}) == 50
    for block in cluster.blocks():
        owner = block["spec"]["affinity"].removeprefix("host:")
        assert {one["secondary"]["node"] for one in block["spec"]["attributes"]} <= {owner}
    # Each call is one process of Python and five of ip and nsenter; the namespaces' own are counted, too.
    used_seconds = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    assert used_seconds / 50 < 2 * MAX_CPU_SECONDS
    with concurrent.futures.ThreadPoolExecutor(max_workers=12) as pool:
        list(pool.map(cluster.delete_pod, pods))
    assert held(cluster) == []
    assert cluster.api.items(f"{CALICO_PATH}/ipamhandles") == []


@pytest.mark.go
def test_cnitool(cluster: Cluster, cnitool: str) -> None:
    """CNI's own program finds the plugin, checks versions and results, and keeps the result for CHECK and DEL."""
    pod = cluster.create_pod("one", cluster.nodes[0])
    cluster.spaces.add(pod.sandbox)
    folder = cluster.folder / "net.d"
    folder.mkdir(exist_ok=True)
    configuration = cluster.network(pod.node)
    listed = {
        "cniVersion": configuration.pop("cniVersion"),
        "name": configuration.pop("name"),
        "plugins": [configuration],
    }
    (folder / "10-calico.conflist").write_text(json.dumps(listed))
    environment = {
        "CNI_PATH": str(cluster.folder / "bin"),
        "NETCONFPATH": str(folder),
        "CNI_ARGS": f"IgnoreUnknown=1;K8S_POD_NAMESPACE=default;K8S_POD_NAME={pod.name}",
    }

    def call(verb: str) -> str:
        return cluster.spaces.run(
            "node-1", cnitool, verb, NETWORK, cluster.spaces.path(pod.sandbox), environment=environment
        )

    call("status")
    assert json.loads(call("add"))["ips"]
    call("check")
    with pytest.raises(CommandFailed, match="attached already"):
        call("add")
    with pytest.raises(CommandFailed, match="valid-attachments is missing"):
        call("gc")
    for _ in range(2):
        call("del")
    assert held(cluster) == []
    cluster.spaces.remove(pod.sandbox)
    cluster.pods.clear()


def call(cluster: Cluster, text: str, **variables: str) -> Any:
    """The plugin's answer to any input."""
    done = subprocess.run(
        [cluster.folder / "bin" / "calico"],
        check=False,
        input=text,
        text=True,
        capture_output=True,
        env={**os.environ, **variables},
    )
    return json.loads(done.stdout)


def test_version_needs_no_api_server(cluster: Cluster) -> None:
    answer = call(cluster, '{"cniVersion": "1.1.0"}', CNI_COMMAND="VERSION")
    assert answer == {"cniVersion": "1.1.0", "supportedVersions": ["0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0"]}


@pytest.mark.parametrize(
    ("text", "variables", "code"),
    [
        ("{}", {"CNI_COMMAND": "FLY"}, specification.INVALID_ENVIRONMENT),
        ("nonsense", {"CNI_COMMAND": "ADD"}, specification.UNDECODABLE),
        ('{"cniVersion": "9.0.0"}', {"CNI_COMMAND": "ADD"}, specification.INCOMPATIBLE_VERSION),
    ],
)
def test_errors_are_documents(cluster: Cluster, text: str, variables: dict[str, str], code: int) -> None:
    assert call(cluster, text, **variables)["code"] == code
