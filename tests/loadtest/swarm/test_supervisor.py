"""Tests of the swarm's processes and their supervisor, on a server with real sockets."""

import asyncio
import os
import signal
import ssl
import time
from pathlib import Path

import pytest

from clients import testing
from loadtest.environment import certificates
from loadtest.swarm import control, supervisor
from protocol import digest
from tests.harness.swarm_peers import value

pytestmark = pytest.mark.slow


def population(count: int) -> dict[str, bytes]:
    return {f"/core/v1/pods/default/p{number}": value(f"uid-{number}") for number in range(count)}


def address(server: testing.Server) -> tuple[str, int]:
    host, _, port = server.address.rpartition(":")
    return host, int(port)


async def wait_for_digest(swarm: supervisor.Swarm, expected: int) -> list[control.Digests]:
    async with asyncio.timeout(180):
        while True:
            proofs = await swarm.digests()
            if all(one.digest == expected and one.in_sync for part in proofs for one in part.agents):
                return proofs
            await asyncio.sleep(0.05)


async def test_a_swarm_follows_changes_reconnects_and_proves_its_maps() -> None:
    content = population(50)
    async with (
        testing.Server(feeds={"workloads": content}) as server,
        supervisor.Swarm(
            [address(server)], supervisor.SwarmPlan(feed="workloads", agents=12, public_agents=2)
        ) as swarm,
    ):
        await swarm.wait_in_sync(timeout_seconds=180)
        content["new"] = value("n", written_at_ns=time.time_ns())
        server.put("workloads", "new", content["new"])
        server.delete("workloads", "/core/v1/pods/default/p7")
        del content["/core/v1/pods/default/p7"]
        proofs = await wait_for_digest(swarm, digest.state_digest(content.items()))
        assert sum(len(part.agents) for part in proofs) == 12
        assert {one.name.partition("-")[0] for part in proofs for one in part.agents} == {"agent", "public"}
        for part in proofs:
            assert [(one.key, one.uid) for one in part.deletions] == [("/core/v1/pods/default/p7", "uid-7")]
            assert all((one.keys, one.deletions) == (50, 1) for one in part.agents)

        await swarm.capture()
        server.put("workloads", "later", b"{}")
        await wait_for_digest(swarm, digest.state_digest({**content, "later": b"{}"}.items()))
        del content["new"]
        for part in await swarm.digests(captured=True, without=["new", "later", "unknown"]):
            assert {(one.digest, one.keys) for one in part.agents} == {(digest.state_digest(content.items()), 49)}

        server.disconnect_all()
        server.replace("workloads", population(3))
        await wait_for_digest(swarm, digest.state_digest(population(3).items()))
        await swarm.wait_for(lambda totals: totals.connects >= 20, timeout_seconds=180)
        totals = swarm.totals()
        assert totals.protocol_errors == []
        assert totals.disconnects.get("eof", 0) + totals.disconnects.get("ECONNRESET", 0) >= 10
        assert swarm.latency.total == 10
        assert swarm.latency.since(swarm.latency.copy()).total == 0


async def test_impaired_agents_fall_behind_and_come_back() -> None:
    async with (
        testing.Server(feeds={"workloads": population(5)}) as server,
        supervisor.Swarm(
            [address(server)], supervisor.SwarmPlan(feed="workloads", agents=4, processes=1, small_buffers=2)
        ) as swarm,
    ):
        await swarm.wait_in_sync(timeout_seconds=180)
        before = digest.state_digest(population(5).items())
        await swarm.impair(2, bytes_per_second=0, seconds=600.0)
        await swarm.digests()  # commands are obeyed in order, so the agents have stopped reading
        server.put("workloads", "k", b"{}")
        after = digest.state_digest({**population(5), "k": b"{}"}.items())
        async with asyncio.timeout(180):
            while True:
                [part] = await swarm.digests()
                if [one.digest for one in part.agents] == [after, after, before, before]:
                    break
        await swarm.impair(2, bytes_per_second=0, seconds=0.0)
        await wait_for_digest(swarm, after)


async def test_background_agents_are_impaired_and_do_not_count_with_the_others() -> None:
    async with (
        testing.Server(feeds={"workloads": population(5)}) as server,
        supervisor.Swarm(
            [address(server)],
            supervisor.SwarmPlan(feed="workloads", agents=6, processes=1, small_buffers=2, background=True),
        ) as swarm,
    ):
        await swarm.wait_in_sync(timeout_seconds=180)
        assert [process.order.agents for process in swarm.processes] == [3, 3]
        assert [os.sched_getscheduler(process.pid) for process in swarm.processes] == [os.SCHED_IDLE, os.SCHED_OTHER]
        before = digest.state_digest(population(5).items())
        await swarm.impair(2, bytes_per_second=0, seconds=600.0)
        await swarm.digests()
        new = value("k", written_at_ns=time.time_ns())
        server.put("workloads", "k", new)
        after = digest.state_digest({**population(5), "k": new}.items())
        async with asyncio.timeout(180):
            while True:
                found = [one.digest for part in await swarm.digests() for one in part.agents]
                if found == [after, before, before, after, after, after]:
                    break
        await swarm.wait_for(
            lambda now: now.impaired_lag_seconds > 0 and now.behaving_updates >= 3, timeout_seconds=180
        )
        await swarm.impair(2, bytes_per_second=0, seconds=0.0)
        await wait_for_digest(swarm, after)
        await swarm.wait_for(lambda now: now.updates >= 6, timeout_seconds=180)
        assert swarm.totals().behaving_updates == 3
        assert swarm.latency.total == 3


async def test_reconnect_is_a_storm() -> None:
    async with (
        testing.Server(feeds={"workloads": population(5)}) as server,
        supervisor.Swarm([address(server)], supervisor.SwarmPlan(feed="workloads", agents=6, processes=1)) as swarm,
    ):
        await swarm.wait_in_sync(timeout_seconds=180)
        await swarm.reconnect()
        await server.wait_hellos(12)
        await swarm.wait_in_sync(timeout_seconds=180)
        await wait_for_digest(swarm, digest.state_digest(population(5).items()))
        await swarm.wait_for(lambda totals: totals.disconnects == {"dropped": 6}, timeout_seconds=180)


async def test_agents_come_over_tls(tmp_path: Path) -> None:
    made = certificates.make(tmp_path, host="127.0.0.1")
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH, cafile=made.environment["TYPHA_CAFILE"])
    context.verify_mode = ssl.CERT_REQUIRED
    context.load_cert_chain(made.environment["TYPHA_SERVERCERTFILE"], made.environment["TYPHA_SERVERKEYFILE"])
    content = population(300)
    async with (
        testing.Server(feeds={"workloads": content}, tls=context) as server,
        supervisor.Swarm(
            [address(server)],
            supervisor.SwarmPlan(feed="workloads", agents=6, public_agents=1, processes=1, tls=made.agents),
        ) as swarm,
    ):
        await swarm.wait_in_sync(timeout_seconds=180)
        server.put("workloads", "new", b"{}")
        await wait_for_digest(swarm, digest.state_digest({**content, "new": b"{}"}.items()))
        await swarm.reconnect()
        await swarm.wait_for(lambda totals: totals.connects >= 10, timeout_seconds=180)
        await wait_for_digest(swarm, digest.state_digest({**content, "new": b"{}"}.items()))
        assert swarm.totals().protocol_errors == []


async def test_waits_for_a_server_that_comes_later(free_port: int) -> None:
    async with supervisor.Swarm(
        [("127.0.0.1", free_port)], supervisor.SwarmPlan(feed="workloads", agents=2, processes=1)
    ) as swarm:
        await swarm.wait_for(lambda totals: "connect ECONNREFUSED" in totals.disconnects, timeout_seconds=180)
        assert swarm.totals().in_sync == 0


async def test_a_process_that_dies_is_an_error() -> None:
    async with (
        testing.Server(feeds={"workloads": population(5)}) as server,
        supervisor.Swarm([address(server)], supervisor.SwarmPlan(feed="workloads", agents=2, processes=2)) as swarm,
    ):
        await swarm.wait_in_sync(timeout_seconds=180)
        os.kill(swarm.processes[0].pid, signal.SIGKILL)
        with pytest.raises(supervisor.SwarmError, match="it has ended"):
            await swarm.wait_for(lambda totals: False, timeout_seconds=180)
        with pytest.raises(supervisor.SwarmError):
            await swarm.digests()
