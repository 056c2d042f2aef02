"""The agent as a process: follows a server, programs a kernel, survives its own end."""

import asyncio
import contextlib
import json
import pathlib
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from clients import testing
from clients.agents import servers
from clients.agents.node import agent as agents
from clients.agents.node import report
from clients.agents.node.dataplane import conntrack, links, nft, programmer
from tests.harness import felix_feeds, packet_lab, worker_stand
from tests.harness.repository import ROOT

pytestmark = [packet_lab.needed, pytest.mark.slow]

WEB = "10.65.0.1"
OUTSIDE = "203.0.113.7"
TCP80 = packet_lab.flow("tcp/80")
OPEN = felix_feeds.cluster(felix_feeds.pod("web", WEB))
CLOSED = felix_feeds.cluster(
    felix_feeds.pod("web", WEB), felix_feeds.policy("none", {"podSelector": {}, "policyTypes": ["Ingress"]})
)
INTERFACE = next(json.loads(value)["name"] for key, value in OPEN.items() if "/endpoint/" in key)
LIMIT_SECONDS = 180.0
"""Only a failure takes so long."""


@pytest.fixture
def testbed() -> Iterator[packet_lab.Lab]:
    with packet_lab.Lab() as opened:
        opened.set_workloads([packet_lab.Workload(INTERFACE, (WEB,))])
        yield opened


@contextlib.contextmanager
def agent(
    testbed: packet_lab.Lab, address: str, status_file: pathlib.Path, *options: str
) -> Iterator["subprocess.Popen[bytes]"]:
    """A running agent, killed at the end."""
    status_file.unlink(missing_ok=True)
    command = [sys.executable, "-m", "clients.agents.node", "run", "--server", address, "--node", felix_feeds.NODE]
    process = subprocess.Popen(
        ["ip", "netns", "exec", testbed.node, *command, "--status-file", str(status_file), *options], cwd=ROOT
    )
    try:
        yield process
    finally:
        process.kill()
        process.wait()


def wait_until(holds: Callable[[], bool]) -> None:
    deadline = time.monotonic() + LIMIT_SECONDS
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def read(status_file: pathlib.Path) -> dict[str, Any]:
    status: dict[str, Any] = json.loads(status_file.read_text()) if status_file.exists() else {}
    return status


def is_open(testbed: packet_lab.Lab) -> bool:
    return testbed.probe([packet_lab.Probe(packet_lab.UPLINK, OUTSIDE, WEB, TCP80)]) == [INTERFACE]


def test_an_agent_enforces_the_feed_and_leaves_it_in_force_when_it_ends(
    testbed: packet_lab.Lab, tmp_path: pathlib.Path
) -> None:
    status_file = tmp_path / "status.json"
    with packet_lab.FeedServer(testbed.node, OPEN) as server:
        with agent(testbed, server.address, status_file) as process:
            wait_until(lambda: bool(read(status_file).get("programmed_at")))
            assert is_open(testbed)
            for key, value in felix_feeds.changes(OPEN, CLOSED):
                assert value is not None
                server.put(key, value)
            wait_until(lambda: not is_open(testbed))
            wait_until(lambda: server.call(_has_applied_everything))
            packet_lab.run("ip", "netns", "exec", testbed.node, "nft", "flush", "ruleset")
            wait_until(lambda: not is_open(testbed))
            testbed.ip("link set uplink mtu 1400", f"route del {WEB}/32")
            process.send_signal(signal.SIGTERM)
            assert process.wait(LIMIT_SECONDS) == 0
        assert not is_open(testbed)
        testbed.ip(f"route replace {WEB}/32 dev {INTERFACE} scope link proto 80")
        generation = testbed.nft.generation()
        with agent(testbed, server.address, status_file):
            wait_until(lambda: bool(read(status_file).get("programmed_at")))
        status = read(status_file)
        assert status["transactions"] == 0
        assert status["in_sync"]
        assert status["pending"] == {}
        assert testbed.nft.generation() == generation
        for key, value in felix_feeds.changes(CLOSED, OPEN):
            assert value is None
            server.delete(key)
        assert not is_open(testbed)  # no agent runs
        with agent(testbed, server.address, status_file):
            wait_until(lambda: is_open(testbed))


def test_a_stream_loses_nothing_while_the_agent_is_killed_and_restarted(
    testbed: packet_lab.Lab, tmp_path: pathlib.Path
) -> None:
    status_file = tmp_path / "status.json"
    with packet_lab.FeedServer(testbed.node, OPEN) as server:
        with agent(testbed, server.address, status_file):
            wait_until(lambda: bool(read(status_file).get("programmed_at")))
        stream = packet_lab.Stream(testbed, packet_lab.Probe(packet_lab.UPLINK, OUTSIDE, WEB, TCP80))
        with stream, agent(testbed, server.address, status_file) as process:
            wait_until(lambda: bool(read(status_file).get("programmed_at")))
            process.send_signal(signal.SIGTERM)
            process.wait(LIMIT_SECONDS)
    assert stream.sent > 100
    assert stream.lost == 0


def test_an_interface_that_comes_later_gets_its_route(testbed: packet_lab.Lab, tmp_path: pathlib.Path) -> None:
    testbed.set_workloads([])
    status_file = tmp_path / "status.json"
    with packet_lab.FeedServer(testbed.node, OPEN) as server, agent(testbed, server.address, status_file):
        wait_until(lambda: f"{WEB}/32" in read(status_file).get("pending", {}))
        testbed.set_workloads([packet_lab.Workload(INTERFACE, ())])
        testbed.ip(f"neigh replace {WEB} lladdr 02:00:00:00:00:01 dev {INTERFACE} nud permanent")
        wait_until(lambda: is_open(testbed))
        wait_until(lambda: _proxies(testbed))


def _has_applied_everything(server: testing.Server) -> bool:
    return server.applied("felix") == [server.feeds["felix"].sequence]


def _proxies(testbed: packet_lab.Lab) -> bool:
    path = pathlib.Path("/proc/sys/net/ipv4/conf", INTERFACE, "proxy_arp")
    return testbed.in_node(path.read_text).strip() == "1"


def test_while_the_datastore_is_not_ready_nothing_changes(testbed: packet_lab.Lab, tmp_path: pathlib.Path) -> None:
    status_file = tmp_path / "status.json"
    ready = next(key for key in OPEN if key.endswith("/Ready"))
    content = {**OPEN, ready: b"false"}
    with packet_lab.FeedServer(testbed.node, content) as server, agent(testbed, server.address, status_file):
        wait_until(lambda: bool(read(status_file).get("in_sync")))
        assert not is_open(testbed)
        server.put(ready, b"true")
        wait_until(lambda: is_open(testbed))


@pytest.fixture
def with_file(tmp_path: pathlib.Path) -> tuple[str, str]:
    return "--state-file", str(tmp_path / "felix")


def fill(testbed: packet_lab.Lab, content: dict[str, bytes], status_file: pathlib.Path, option: tuple[str, str]) -> str:
    """Runs an agent until its state file has the content; returns the address of a server that is gone."""
    with packet_lab.FeedServer(testbed.node, content) as server:
        with agent(testbed, server.address, status_file, *option) as process:
            wait_until(lambda: bool(read(status_file).get("programmed_at")))
            process.send_signal(signal.SIGTERM)
            process.wait(LIMIT_SECONDS)
        return server.address


def test_a_restarted_agent_resumes_and_takes_only_what_it_needs(
    testbed: packet_lab.Lab, tmp_path: pathlib.Path, with_file: tuple[str, str]
) -> None:
    status_file = tmp_path / "status.json"
    fill(testbed, OPEN, status_file, with_file)
    with packet_lab.FeedServer(testbed.node, OPEN) as server, agent(testbed, server.address, status_file, *with_file):
        wait_until(lambda: bool(read(status_file).get("programmed_at")))
        wait_until(lambda: server.call(_has_applied_everything))
        [hello] = server.call(lambda one: one.hellos)
    assert hello.chunk_digests is not None
    assert hello.subscription is not None
    assert hello.subscription.prefixes is not None
    status = read(status_file)
    assert (status["transactions"], status["stale"]) == (0, False)


def test_without_a_server_an_agent_programs_what_its_file_has_into_an_empty_kernel(
    testbed: packet_lab.Lab, tmp_path: pathlib.Path, with_file: tuple[str, str]
) -> None:
    status_file = tmp_path / "status.json"
    nowhere = fill(testbed, OPEN, status_file, with_file)
    packet_lab.run("ip", "netns", "exec", testbed.node, "nft", "flush", "ruleset")
    with agent(testbed, nowhere, status_file, *with_file):
        wait_until(lambda: bool(read(status_file).get("node")))
        assert not is_open(testbed)  # until it is sure that there is no server
        wait_until(lambda: is_open(testbed))
        assert (read(status_file)["stale"], read(status_file)["in_sync"]) == (True, False)
        testbed.run_in_node("nft", "delete", "table", "inet", "typha-node")
        wait_until(lambda: "typha-node" in testbed.run_in_node("nft", "list", "tables"))


def test_without_a_server_the_program_of_an_earlier_run_stays_unless_others_change_it(
    testbed: packet_lab.Lab, tmp_path: pathlib.Path, with_file: tuple[str, str]
) -> None:
    status_file = tmp_path / "status.json"
    nowhere = fill(testbed, OPEN, status_file, with_file)
    with packet_lab.FeedServer(testbed.node, CLOSED) as server, agent(testbed, server.address, status_file):
        wait_until(lambda: bool(read(status_file).get("programmed_at")))
    generation = testbed.nft.generation()
    with agent(testbed, nowhere, status_file, *with_file) as process:
        wait_until(lambda: read(status_file).get("programmed", {}).get("endpoints") == 1)  # of the file
        taken_at = read(status_file)["written_at"]
        wait_until(lambda: read(status_file)["written_at"] > taken_at + 2)  # the program has had several turns
        assert testbed.nft.generation() == generation
        assert not is_open(testbed)
        testbed.run_in_node("nft", "delete", "table", "inet", "typha-node")
        wait_until(lambda: "typha-node" in testbed.run_in_node("nft", "list", "tables"))
        assert read(status_file)["stale"]
        process.send_signal(signal.SIGTERM)
        assert process.wait(LIMIT_SECONDS) == 0
    with packet_lab.FeedServer(testbed.node, CLOSED) as server, agent(testbed, server.address, status_file, *with_file):
        wait_until(lambda: read(status_file).get("in_sync") is True and not read(status_file)["stale"])
        wait_until(lambda: not is_open(testbed))


class Unready(programmer.Programmer):
    """A data plane whose kernel takes nothing until it is told to."""

    is_complete = False
    attempts = 0

    async def start(self) -> None:
        """Touches no kernel."""

    async def program(self) -> bool:
        """Counts the attempts."""
        self.attempts += 1
        return self.is_complete

    async def verify_rules(self) -> None:
        """Touches no kernel."""

    async def program_routes(self) -> None:
        """Touches no kernel."""


async def test_a_change_is_reported_once_the_kernel_has_all_of_it() -> None:
    kernel = nft.Nft()
    programs = Unready(felix_feeds.NODE, nft=kernel, links=links.Links(), conntrack=conntrack.Conntrack())
    async with testing.Server(feeds={"felix": OPEN}) as server:
        running = agents.Agent(
            servers.Servers((server.address,)),
            node=felix_feeds.NODE,
            programmer=programs,
            status=report.StatusFile(None),
        )
        task = asyncio.create_task(running.run())
        await worker_stand.eventually(lambda: programs.attempts >= 2)
        assert server.applied("felix") == [0]
        programs.is_complete = True
        await server.wait_applied("felix", timeout_seconds=LIMIT_SECONDS)
        task.cancel()
        await asyncio.wait([task])
    kernel.close()


def test_people_can_read_the_status(tmp_path: pathlib.Path) -> None:
    status_file = tmp_path / "status.json"
    status_file.write_text(json.dumps({"node": "n1", "pending": {"10.0.0.1/32": "no interface"}, "cut_off": []}))
    command = [sys.executable, "-m", "clients.agents.node", "status", "--status-file", str(status_file)]
    printed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert printed.splitlines() == ["node     n1", "pending  10.0.0.1/32: no interface", "cut off  none"]
