"""Agents of both protocols that stop reading for a while, through `typha serve` and the client library."""

import asyncio
import contextlib
import functools
import pathlib
import random
import time
from collections.abc import AsyncIterator, Iterable

import pytest

import clients
from loadtest.apiserver import resources as simulated
from protocol import messages
from tests.harness import served, worker_stand

FEED = "felix"
SETS = simulated.Resource("projectcalico.org", "v3", "globalnetworksets", "GlobalNetworkSet", False, custom=True)
NETS = 6_000
"""Members of a large set: about 100 kB that hardly compress."""
IN_SYNC, CATCHING_UP = messages.SyncStatus.IN_SYNC, messages.SyncStatus.CATCHING_UP


class Agent:
    """A client that reads only while it is allowed to."""

    def __init__(self, address: str, protocol: clients.Protocol) -> None:
        self.map: dict[str, bytes] = {}
        self.statuses: list[messages.SyncStatus] = []
        self.deleted: list[str] = []
        self.connections = 0
        self.snapshots = 0
        self.may_read = asyncio.Event()
        self.may_read.set()
        self._events = clients.follow(address, feed=FEED, agent="slow", protocol=protocol)

    async def run(self) -> None:
        """Read until cancelled."""
        async with contextlib.aclosing(self._events) as events:
            async for event in events:
                self._take(event)
                await self.may_read.wait()

    def _take(self, event: clients.Event) -> None:
        match event:
            case clients.Connected():
                self.connections += 1
            case clients.StatusChanged(status):
                self.statuses.append(status)
            case clients.Batch():
                self.snapshots += event.from_snapshot
                for update in event.updates:
                    if update.value is None:
                        self.deleted.append(update.key.rpartition("/")[2])
                        del self.map[update.key]
                    else:
                        self.map[update.key] = update.value


@contextlib.asynccontextmanager
async def following(address: str) -> AsyncIterator[dict[clients.Protocol, Agent]]:
    """One agent of each protocol."""
    agents = {protocol: Agent(address, protocol) for protocol in clients.Protocol}
    tasks = [asyncio.create_task(agent.run(), name=f"agent {protocol}") for protocol, agent in agents.items()]
    try:
        yield agents
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)


def change(cluster: served.Cluster, name: str, seed: int, *, nets: int) -> bytes:
    """Give a set new members, and return one of them."""
    store = cluster.simulator.store
    numbers = random.Random(seed)
    members = sorted(
        {f"10.{numbers.randrange(1 << 8)}.{numbers.randrange(1 << 8)}.{seed % 256}/32" for _ in range(nets)}
    )
    write = store.replace if name in store.objects(SETS) else store.create
    write(SETS, {"metadata": {"name": name}, "spec": {"nets": members}})
    return members[0].encode()


def have(agents: Iterable[Agent], member: bytes) -> bool:
    """Return whether all agents have a set with this member."""
    return all(any(member in value for value in agent.map.values()) for agent in agents)


def agree(agents: Iterable[Agent], *, keys: int) -> bool:
    """Return whether all agents have the same map, with this number of sets."""
    first, *others = agents
    sets = [key for key in first.map if "quiet" in key or "busy" in key or "new" in key]
    return len(sets) == keys and all(agent.map == first.map for agent in others)


@pytest.mark.slow
async def test_agents_that_stop_reading_catch_up_without_reconnecting(tmp_path: pathlib.Path) -> None:
    limits = {"TYPHA_LOGBUDGETBYTES": str(2 << 20), "TYPHA_SEGMENTBYTES": str(256 << 10), "TYPHA_CALICOFEEDS": "true"}
    cluster = served.Cluster(tmp_path)
    cluster.simulator.store.install(SETS)
    async with cluster, served.serving(cluster, "--workers", "2", **limits) as service:
        for number in range(100):
            change(cluster, f"quiet-{number}", number, nets=2)
        address = await service.address()
        async with following(address) as agents, following(address) as others:
            native, typha = agents[clients.Protocol.NATIVE], agents[clients.Protocol.TYPHA]
            all_agents = [*others.values(), native, typha]
            await worker_stand.eventually(lambda: agree(all_agents, keys=100), seconds=served.TIMEOUT_SECONDS)
            await worker_stand.eventually(lambda: all(agent.statuses == [IN_SYNC] for agent in all_agents))
            for agent in (native, typha):
                agent.may_read.clear()
            deadline = time.monotonic() + 180
            version = 0
            while await service.metric("typha_client_catch_ups_total") < 2:
                assert time.monotonic() < deadline, "the kernel takes it all"
                for _ in range(5):
                    version += 1
                    member = change(cluster, f"busy-{version % 4}", version, nets=NETS)
                # The others keep up, however busy the machine is: only the two catch up.
                await worker_stand.eventually(functools.partial(have, others.values(), member))
            for number in range(30):
                cluster.simulator.store.delete(SETS, "", f"quiet-{number}")
            change(cluster, "new", 1, nets=2)
            for agent in (native, typha):
                agent.may_read.set()
            await worker_stand.eventually(lambda: agree(all_agents, keys=75), seconds=served.TIMEOUT_SECONDS)
            await worker_stand.eventually(lambda: native.statuses == [IN_SYNC, CATCHING_UP, IN_SYNC])
            assert typha.statuses == [IN_SYNC]
            for agent in (native, typha):
                assert len(agent.deleted) == 30
                assert (agent.connections, agent.snapshots) == (1, 1)
            # Workers report once a second, and the page is made once a second.
            await service.metric_becomes("typha_catch_up_blocks_total", lambda seen: seen > 0, "rises")
            assert await service.metric('typha_disconnects_total{reason="fell-behind"}') == 0
