"""A transport that seals records as OpenSSL does, and takes them at random times: nothing is lost."""

import asyncio
import collections
import contextlib
import os
import random

import msgspec
import pytest

from tests.harness.worker_stand import FAST, HUB_LIMITS, Peer, WorkerStand, eventually, pod
from tests.typha.conftest import OpenStage
from typha.worker import transport

pytestmark = pytest.mark.slow

RECORD_BYTES = 500
"""Small, so that most messages take many records."""
LIMITS = msgspec.structs.replace(FAST, ping_interval_seconds=0.1, send_bytes=4_000, snapshot_send_bytes=4_000)


class SealingTransport:
    """Plain sockets with OpenSSL's rules, which refuse at random. It lists every call that breaks the rules.

    A record that was not sent whole is kept, as OpenSSL keeps it. The next bytes offered must begin with the same
    bytes; they are not sealed again.
    """

    acked_bytes = staticmethod(transport.kernel_acked_bytes)
    window_bytes = staticmethod(transport.kernel_window_bytes)
    receive = staticmethod(transport.PlainTransport.receive)

    def __init__(self, seed: int, *, refusing: float) -> None:
        self.random = random.Random(seed)
        self.refusing = refusing
        self.broken_rules: list[str] = []
        self.sealed: dict[int, tuple[bytes, bytes]] = {}
        """By descriptor: the record, and those of its bytes that the kernel has not taken."""
        self.refused: collections.Counter[str] = collections.Counter()

    def _send(self, descriptor: int, data: bytes, kind: str) -> int:
        record, left = self.sealed.pop(descriptor, (b"", b""))
        if record and data[: len(record)] != record:
            self.broken_rules.append(
                f"{kind}: {data[:40]!r} ({len(data)}) where {record[:40]!r} ({len(record)}) is due"
            )
        if not record:
            record = left = data[:RECORD_BYTES]
        room = len(left)
        if self.random.random() < self.refusing:
            room = self.random.choice([0, 0, 1, len(left) - 1]) if self.refusing < 1 else 0
        taken = 0
        with contextlib.suppress(BlockingIOError):
            taken = os.write(descriptor, left[:room])
        if taken < len(left):
            self.sealed[descriptor] = record, left[taken:]
            self.refused[kind] += 1
            raise BlockingIOError
        return len(record)

    def _send_records(self, descriptor: int, data: bytes, kind: str) -> int:
        sent = 0
        while sent < len(data):
            try:
                sent += self._send(descriptor, data[sent:], kind)
            except BlockingIOError:
                if not sent:
                    raise
                break
        return sent

    def write(self, descriptor: int, data: bytes | memoryview, /) -> int:
        """Seals and sends, as OpenSSL does."""
        return self._send_records(descriptor, bytes(data), "control" if isinstance(data, bytes) else "view")

    def write_ahead(self, connection: transport.Connection, data: bytes, /) -> int:
        """Sends the bytes like all others."""
        return self.write(connection.fileno(), data)

    def send_file(self, descriptor: int, file_descriptor: int, position: int, count: int, /) -> int:
        """Seals and sends a file's bytes."""
        return self._send_records(descriptor, os.pread(file_descriptor, count, position), "file")

    def owed(self, descriptor: int, /) -> int:
        """Length of the record that is kept."""
        return len(self.sealed.get(descriptor, (b"",))[0])

    def release(self, descriptor: int, /) -> bool:
        """Forgets the record."""
        self.sealed.pop(descriptor, None)
        return True


async def churn(stage: WorkerStand, source: random.Random, batches: int) -> None:
    """Changes objects, small and large."""
    for number in range(batches):
        size = source.choice([10, 300, 2_000, 30_000])
        stage.put(pod(f"p{source.randrange(12)}", str(number).rjust(size, "x"), version=number + 2))
        await asyncio.sleep(source.choice([0.0, 0.0, 0.002]))


async def read_slowly(peers: list[Peer], source: random.Random) -> None:
    """Reads a little from random connections, never from the last one."""
    while True:
        source.choice(peers[:-1]).read(source.choice([100, 5_000, 100_000]))
        await asyncio.sleep(0)


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("refusing", [0.05, 0.5])
async def test_every_client_has_the_map_in_the_end(open_stage: OpenStage, seed: int, refusing: float) -> None:
    source = random.Random(seed)
    through = SealingTransport(seed, refusing=0.0)
    hub_limits = msgspec.structs.replace(HUB_LIMITS, log_budget_bytes=400_000, segment_bytes=60_000)
    stage = await open_stage(LIMITS, bytes_through=through, hub_limits=hub_limits)
    stage.put(*(pod(f"p{number}", "x" * 100 * number) for number in range(12)))
    stage.in_sync()
    peers = [await stage.subscribe(receive_buffer_bytes=4096) for number in range(6)]
    await stage.converged(*peers)
    through.refusing = refusing
    reading = asyncio.create_task(read_slowly(peers, source))
    await churn(stage, source, 150)
    reading.cancel()
    await asyncio.wait([reading])
    await stage.converged(*peers)
    assert through.broken_rules == []
    assert stage.disconnects == {}
    assert stage.server.stats.counts.catch_ups > 0
    assert through.refused["view"] > 0
    assert through.refused["file"] > 0


async def test_a_ping_that_is_sealed_goes_before_everything_else(open_stage: OpenStage) -> None:
    through = SealingTransport(1, refusing=0.0)
    stage = await open_stage(LIMITS, bytes_through=through)
    stage.in_sync()
    peer = await stage.subscribe()
    await stage.converged(peer)
    server_end = await stage.client_of(peer)
    for version in range(20):
        through.refusing = 1.0
        through.refused.clear()
        await eventually(lambda: through.refused["control"])
        stage.put(pod("a", str(version), version=version + 2))
        assert not server_end.at_frame_end(through)
        through.refusing = 0.3
        await stage.converged(peer)
    assert peer.pings >= 20
    assert through.broken_rules == []
    assert stage.disconnects == {}
