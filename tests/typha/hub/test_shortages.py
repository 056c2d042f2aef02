"""Resources that are missing for a while: everything is said, tried again and delivered, and no client is cut."""

import asyncio
import contextlib
import errno
import functools
import itertools
import mmap
import os
import pathlib
import resource
import socket
import time
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any
from unittest import mock

import pytest
import structlog.testing

from cache.state import memfile
from protocol import messages
from protocol.native import encoder
from tests.harness import worker_stand
from tests.harness.hub_stand import KIBIBYTE, HubStand, Worker
from tests.harness.served import TIMEOUT_SECONDS, Cluster, converged, mirrors, serving
from typha.hub import policy, shortages
from typha.ipc import link
from typha.ipc import messages as ipc

LIMITS = policy.HubPolicy(
    log_budget_bytes=256 * 1024, segment_bytes=24 * 1024, snapshot_log_bytes_min=16 * 1024, retry_seconds=0.01
)
KEYS = 6
VALUE_BYTES = 4000


class Failing:
    """Makes calls fail: those with the numbers `first` and later, `count` of them."""

    def __init__(self, error: BaseException, *, first: int, count: int) -> None:
        self._error = error
        self._failing = range(first, first + count)
        self._numbers = itertools.count()
        self.failed = 0

    @property
    def is_over(self) -> bool:
        """Whether no call fails any more."""
        return self.failed == len(self._failing)

    def __call__(self, real: Callable[..., Any]) -> Callable[..., Any]:
        """The same function, but for those calls."""

        def called(*arguments: Any, **named: Any) -> Any:
            if next(self._numbers) in self._failing:
                self.failed += 1
                raise type(self._error)(*self._error.args)
            return real(*arguments, **named)

        return called


_NO_DESCRIPTOR_IN_THE_WORKER = "no descriptor for a message"
PLACES: dict[str, tuple[object, str, BaseException]] = {
    "no descriptor for a file": (os, "memfd_create", OSError(errno.EMFILE, "Too many open files")),
    "no memory for a mapping": (mmap, "mmap", OSError(errno.ENOMEM, "Cannot allocate memory")),
    "no address space for a mapping": (mmap, "mmap", MemoryError()),
    "no space for a snapshot or block": (memfile, "write_all", OSError(errno.ENOSPC, "No space left on device")),
    "no memory to encode updates": (encoder.NativeEncoder, "updates", MemoryError()),
    "no memory to encode a snapshot": (encoder.NativeEncoder, "snapshot_chunk", MemoryError()),
    "too many descriptors in flight": (socket, "send_fds", OSError(errno.ETOOMANYREFS, "Too many references")),
    _NO_DESCRIPTOR_IN_THE_WORKER: (socket.socket, "recvmsg", link.Starved("no descriptors are left")),
}


@contextlib.asynccontextmanager
async def opened() -> AsyncIterator[worker_stand.WorkerStand]:
    """A hub that builds by itself, and a worker, with a few objects."""
    stand = worker_stand.WorkerStand(worker_stand.FAST, hub_limits=LIMITS)
    stand.holds_snapshots = stand.holds_blocks = True
    async with stand.running():
        jobs = [
            asyncio.create_task(job)
            for job in (stand.hub.run_snapshots(), stand.hub.catch_ups.run(), stand.hub.run_coalescing())
        ]
        for number in range(KEYS):
            stand.put(worker_stand.pod(f"p{number}", "x" * VALUE_BYTES))
        stand.in_sync()
        try:
            yield stand
            assert not any(job.done() for job in jobs)
        finally:
            for job in jobs:
                job.cancel()
            await asyncio.wait(jobs)


async def churn(stand: worker_stand.WorkerStand, peers: list[worker_stand.Peer], count: int) -> None:
    """Changes objects, one batch each, while the peers read and the hub looks after its channels."""
    for number in range(count):
        name = f"p{number % KEYS}"
        if number % 7 == 6:
            stand.hub.delete(worker_stand.pod(name))
        else:
            stand.hub.apply(worker_stand.pod(name, f"{number}".rjust(VALUE_BYTES, "x"), version=number + 2))
        stand.hub.batch_end()
        stand.hub.look_after_channels()
        stand.handle.flush()
        for _ in range(3):
            for peer in peers:
                peer.read()
            await asyncio.sleep(0)


def is_current(peer: worker_stand.Peer, stand: worker_stand.WorkerStand) -> bool:
    """Whether the peer has been told that it has the map, and has it."""
    return peer.status is not None and peer.entries == stand.content


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("first", [0, 1, 2, 3, 5, 8])
async def test_what_fails_at_any_call_is_made_later_and_nobody_is_cut(place: str, first: int) -> None:
    before = worker_stand.descriptors_before()
    async with opened() as stand:
        peers = [await stand.subscribe() for _ in range(2)]
        for peer in peers:
            await peer.read_until(functools.partial(is_current, peer, stand))
        where, name, error = PLACES[place]
        failing = Failing(error, first=first, count=4)
        with mock.patch.object(where, name, failing(getattr(where, name))):
            await churn(stand, peers, 40)
            while place == _NO_DESCRIPTOR_IN_THE_WORKER and not failing.is_over:
                await churn(stand, peers, 1)  # a connection that has said nothing yet has to give way there
            late = await stand.subscribe()
            await churn(stand, [*peers, late], 20)
            stand.hub.look_after_channels()
            stand.handle.flush()
        assert failing.failed
        for peer in [*peers, late]:
            await peer.read_until(functools.partial(is_current, peer, stand))
        assert stand.disconnects == {}
        assert stand.broken == []
        assert not stand.task.done()
        seen = sum(stand.hub.shortages.counts.values()) + stand.server.stats.counts.shortages
        assert seen or place == "too many descriptors in flight"
    assert worker_stand.open_descriptors() == before


@contextlib.contextmanager
def no_files() -> Iterator[None]:
    """No file in memory can be made."""
    with mock.patch.object(memfile, "create_empty", side_effect=OSError(errno.EMFILE, "Too many open files")):
        yield


def test_while_a_log_lacks_a_batch_nothing_of_its_channel_is_cut(bench: HubStand) -> None:
    worker = bench.add_worker()
    channel = bench.open()
    bench.put("a")
    worker.hear()
    end = channel.log.end
    with no_files():
        bench.put("b", size=70 * KIBIBYTE)
        bench.put("c")
    assert (len(channel.feed.store), channel.log.end) == (2, end)  # "c" waits in the feed
    bench.hub.snapshots.request(channel)
    worker.say(ipc.WantBlock(channel.number, 0, 0))
    assert bench.hub.snapshots.take() is None
    assert list(bench.hub.catch_ups.steps()) == []
    assert worker.hear() == []
    bench.hub.look_after_channels()
    assert len(channel.feed.store) == 3
    assert worker.kinds() == [ipc.AddSegment, ipc.AddSegment, ipc.Publish]
    assert bench.hub.snapshots.take() is channel
    assert len(list(bench.hub.catch_ups.steps())) > 0
    assert {ipc.SendBlock, ipc.RefuseBlock} & set(worker.kinds())


def test_a_worker_that_starts_meanwhile_learns_the_status_that_is_in_the_log(bench: HubStand) -> None:
    channel = bench.open()
    bench.put("a")
    with no_files():
        bench.hub.apply(worker_stand.pod("b", "x" * 70 * KIBIBYTE))
        bench.hub.status(worker_stand.PODS, messages.SyncStatus.RESYNC)
        bench.hub.batch_end()
        bench.hub.status(worker_stand.PODS, messages.SyncStatus.IN_SYNC)
    new = bench.add_worker(2)
    assert channel.log.status_offset == 0
    bench.hub.look_after_channels()
    told = [message for message in new.hear() if isinstance(message, ipc.NoteStatus)]
    assert [message.status for message in told] == [messages.SyncStatus.RESYNC, messages.SyncStatus.IN_SYNC]
    with no_files():
        bench.hub.apply(worker_stand.pod("c", "x" * 70 * KIBIBYTE))
        bench.hub.status(worker_stand.PODS, messages.SyncStatus.RESYNC)
        bench.hub.batch_end()
        newest = Worker(3)
        bench.workers.append(newest)
        with contextlib.suppress(OSError):  # its counter
            newest.attach(bench.hub)
        bench.hub.workers[3].open_channel(channel)
    told = [message for message in newest.hear() if isinstance(message, ipc.NoteStatus)]
    assert {message.status for message in told} == {messages.SyncStatus.IN_SYNC}


async def test_without_memory_for_a_commit_the_store_stays_as_it_is_and_watchers_wait(bench: HubStand) -> None:
    worker = bench.add_worker()
    channel = bench.open()
    bench.put("a")
    worker.hear()
    with mock.patch.object(mmap, "mmap", side_effect=MemoryError):
        for number in range(2000):
            bench.hub.apply(worker_stand.pod(f"p{number}"))
        waiting = asyncio.create_task(bench.hub.room(), name="room")
        for _ in range(3):
            await asyncio.sleep(0)
            bench.hub.batch_end()
            bench.hub.look_after_channels()
    assert (len(channel.feed.store), waiting.done(), worker.hear()) == (1, False, [])
    bench.hub.look_after_channels()
    await waiting
    assert len(channel.feed.store) == 2001
    assert ipc.Publish in worker.kinds()
    assert bench.hub.shortages.counts[shortages.Lacking.COMMIT] == 7


def test_one_feed_does_not_wait_for_another(bench: HubStand) -> None:
    both = HubStand(worker_stand.raw_feed("one"), worker_stand.raw_feed("two", worker_stand.NODES))
    both.sync(worker_stand.PODS, worker_stand.NODES)
    both.hub.want_channel("one", "native")
    both.hub.want_channel("two", "native")
    one, two = both.hub.channels.values()
    both.hub.apply(worker_stand.pod("n", type=worker_stand.NODES))
    both.hub.batch_end()
    with no_files():
        both.put("a")
        end = two.log.end
        both.hub.apply(worker_stand.pod("m", type=worker_stand.NODES))
        both.hub.batch_end()
    assert one.log.end == 0
    assert two.log.end > end
    both.hub.look_after_channels()
    assert one.log.end > 0
    both.hub.close()


def test_a_shortage_is_logged_once_a_minute_and_when_it_is_over() -> None:
    now = [0.0]
    lacking = shortages.Shortages(lambda: now[0])
    with structlog.testing.capture_logs() as lines:
        for _ in range(100):
            lacking.note(shortages.Lacking.LOG, OSError(errno.EMFILE, "Too many open files"), feed="web")
            lacking.over(shortages.Lacking.BLOCK)
            now[0] += 1.0
        lacking.note(shortages.Lacking.SNAPSHOT, MemoryError())
        for _ in range(3):
            lacking.over(shortages.Lacking.LOG)
    assert [(line["log_level"], line["lacking"]) for line in lines] == [
        ("error", "log"),
        ("error", "log"),
        ("error", "snapshot"),
        ("warning", "log"),
    ]
    assert lines[0]["error"] == "[Errno 24] Too many open files"
    assert lines[2]["error"] == "MemoryError"
    assert lacking.counts == {shortages.Lacking.LOG: 100, shortages.Lacking.SNAPSHOT: 1}


def limit_open_files(pid: int, *, more: int | None) -> None:
    """Limits a process to so many more descriptors than it has; None takes the limit away."""
    _, hard = resource.prlimit(pid, resource.RLIMIT_NOFILE)
    used = max(int(name) for name in os.listdir(f"/proc/{pid}/fd")) + 1
    resource.prlimit(pid, resource.RLIMIT_NOFILE, (hard if more is None else used + more, hard))


@pytest.mark.slow
@pytest.mark.parametrize("workers", [0, 1])
async def test_a_process_without_descriptors_goes_on_when_it_has_some(tmp_path: pathlib.Path, workers: int) -> None:
    async with (
        Cluster(tmp_path) as cluster,
        serving(cluster, "--workers", str(workers), "--segment-bytes", "1048576") as running,
        mirrors(await running.address(), 4) as clients,
    ):
        await converged(cluster, clients)
        processes = [running.process.pid, *running.workers()]
        for pid, line in zip(processes, ("Out of a resource", "Cannot take the hub's messages"), strict=False):
            limit_open_files(pid, more=0)
            deadline = time.monotonic() + TIMEOUT_SECONDS
            while line not in running.text:
                assert time.monotonic() < deadline
                cluster.put(*(f"large{number}" for number in range(10)), padding=os.urandom(4000).hex())
                await asyncio.sleep(0.02)
            limit_open_files(pid, more=None)
            await converged(cluster, clients)
        assert all(client.last_disconnect is None for client in clients)
        assert running.workers() == processes[1:]
        await running.metric_is("typha_worker_restarts_total", 0)
        assert await running.metric('typha_shortages_total{lacking="log"}') > 0
