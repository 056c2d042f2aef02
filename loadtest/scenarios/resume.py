"""What a fleet costs that comes back: by its position, by digests, and with whole snapshots.

`python -m loadtest.scenarios.resume [--agents N] [--pods N] [--restarts-only]`. One client takes the map and keeps what
it would say in its next hello. Then all agents connect at once and say the same. They read to their first status that
is not catching-up, and leave. The service's CPU time is that of its processes between the two moments.
"""

import argparse
import asyncio
import contextlib
import functools
import select
import socket
import struct
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Final, NamedTuple

import msgspec

from clients import differ
from loadtest.environment import processes
from protocol import messages
from protocol.native import codec, connection, frames

FEED: Final = "felix"
FEATURES: Final = frozenset(
    {messages.Feature.ZSTD, messages.Feature.RESUME.value, messages.Feature.CHUNK_DIGESTS.value}
)
QUIET_SECONDS: Final = 3.0
"""After a burst: the service has published it, and has made a new snapshot."""
TIMEOUT_SECONDS: Final = 600.0
"""Other work may keep the machine busy: 2,000 whole snapshots are 3 GB."""
READ_BYTES: Final = 1 << 18
STATUS_START: Final = bytes([0x93, codec.MessageType.STATUS])
"""A status is a short frame, and so never compressed."""
STATUS_BYTES_MAX: Final = 32
HEADER_BYTES: Final = frames.HEADER.size
LENGTH_BYTES: Final = frames.LENGTH.size


class Cost(NamedTuple):
    """Of a fleet, for each client."""

    bytes: float
    cpu_seconds: float
    seconds: float
    """Until the last client was in sync."""


class Reader:
    """A connection that looks at the headers of frames only."""

    def __init__(self, address: tuple[str, int], hello: bytes) -> None:
        self.socket = socket.create_connection(address)
        self.socket.setblocking(False)
        self.socket.send(hello)
        self.received_bytes = 0
        self._head = b""
        self._skip = len(frames.PREFACE)

    def read(self) -> bool:
        """Takes what is there; whether the first status has come that says that the map is current.

        Raises:
            ConnectionError: the service has closed the connection.
        """
        while True:
            try:
                data = self.socket.recv(READ_BYTES)
            except BlockingIOError:
                return False
            if not data:
                raise ConnectionError("the service has closed a connection")
            self.received_bytes += len(data)
            if any(status != messages.SyncStatus.CATCHING_UP for status in self._statuses(data)):
                return True

    def _statuses(self, data: bytes) -> Iterator[int]:
        """The statuses in frames that are complete with this data."""
        skipped = min(self._skip, len(data))
        self._skip -= skipped
        view = self._head + data[skipped:]
        position = 0
        while position + LENGTH_BYTES <= len(view):
            (length,) = struct.unpack_from(">I", view, position)
            end = position + LENGTH_BYTES + length
            if end > len(view):
                if length > STATUS_BYTES_MAX:
                    self._skip, position = end - len(view), len(view)
                break
            if view[position + HEADER_BYTES : position + HEADER_BYTES + len(STATUS_START)] == STATUS_START:
                yield view[end - 1]
            position = end
        self._head = view[position:]


def run_fleet(address: tuple[str, int], hello: bytes, agents: int) -> tuple[float, float]:
    """Connects all agents; returns the bytes that each has received, and the seconds until the last was in sync.

    Raises:
        TimeoutError: some were not.
    """
    begun = time.monotonic()
    with contextlib.ExitStack() as stack:
        poll = stack.enter_context(contextlib.closing(select.epoll()))
        readers: dict[int, Reader] = {}
        for _ in range(agents):
            one = Reader(address, hello)
            stack.callback(one.socket.close)
            readers[one.socket.fileno()] = one
            poll.register(one.socket.fileno(), select.EPOLLIN)
        waiting = dict(readers)
        while waiting:
            for descriptor, _ in poll.poll(1.0):
                if descriptor in waiting and readers[descriptor].read():
                    del waiting[descriptor]
                    poll.unregister(descriptor)
            if time.monotonic() - begun > TIMEOUT_SECONDS:
                raise TimeoutError(f"{len(waiting)} of {agents} agents are not in sync")
        seconds = time.monotonic() - begun
        return sum(one.received_bytes for one in readers.values()) / agents, seconds


async def take_map(address: tuple[str, int]) -> differ.Differ:
    """A client that has the map of this moment."""
    reader, writer = await asyncio.open_connection(*address)
    known, wire = differ.Differ(), connection.Connection(connection.Role.CLIENT)
    wire.send(messages.ClientHello(FEED, "first", features=FEATURES))
    async with asyncio.timeout(TIMEOUT_SECONDS):
        while not known.is_trusted:
            writer.write(wire.data_to_send())
            wire.receive_data(await reader.read(READ_BYTES))
            while (message := wire.next_event()) is not None:
                known.receive(message)
    writer.close()
    return known


class Fleet:
    """Agents that have the map of an earlier moment."""

    def __init__(self, known: differ.Differ, agents: int) -> None:
        self._agents = agents
        nothing = messages.ClientHello(FEED, "agent", features=FEATURES)
        everything = known.resuming(nothing)
        self.hellos = {
            "whole snapshots": nothing,
            "digests": msgspec.structs.replace(everything, resume=None),
            "position": msgspec.structs.replace(everything, chunk_digests=None),
        }

    async def cost(self, service: processes.ServiceProcess, way: str) -> Cost:
        """All come back in one way."""
        hello = frames.PREFACE + frames.pack_frame(codec.encode(self.hellos[way]))
        before = sum(service.cpu())
        received, seconds = await asyncio.to_thread(run_fleet, service.address, hello, self._agents)
        await asyncio.sleep(1.0)  # the service notices that they have left
        return Cost(received, (sum(service.cpu()) - before) / self._agents, seconds)


async def compare(service: processes.ServiceProcess, fleet: Fleet, case: str, *ways: str) -> None:
    """Print what each way costs."""
    for way in ways:
        found = await fleet.cost(service, way)
        sent = len(codec.encode(fleet.hellos[way]))
        print(
            f"| {case} | {way} | {found.bytes / 1e3:,.1f} kB | {sent / 1e3:,.1f} kB | "
            f"{found.cpu_seconds * 1e3:.2f} ms | {found.seconds:.1f} s |",
            flush=True,
        )


async def measure(folder: Path, *, agents: int, pods: int, restarts_only: bool) -> None:
    """All cases, as rows of a table."""
    print("| Case | Way | Bytes to a client | Its hello | CPU of the service for a client | Last client in sync |")
    print("|---|---|---|---|---|---|")
    bursts = (20, 200, pods // 6)
    async with processes.SimulatorProcess(folder, pods=pods, calico=True) as simulator:
        make = functools.partial(processes.ServiceProcess, folder, kubeconfig=simulator.kubeconfig)
        async with make() as service:
            fleet = Fleet(await take_map(service.address), agents)
            if not restarts_only:
                await compare(service, fleet, "cut in the network", *fleet.hellos)
                for changes in bursts:
                    await simulator.burst(changes)
                    await asyncio.sleep(QUIET_SECONDS)
                    await compare(service, fleet, f"about {changes} more changes", *fleet.hellos)
                fleet = Fleet(await take_map(service.address), agents)
        for changes in (0, *bursts):
            if changes:
                await simulator.burst(changes)
            async with make() as service:
                await take_map(service.address)
                await asyncio.sleep(QUIET_SECONDS)
                case = f"another replica or a restart, {changes} more changes"
                await compare(service, fleet, case, "whole snapshots", "digests")


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--agents", type=int, default=2000)
    parser.add_argument("--pods", type=int, default=20_000)
    parser.add_argument("--restarts-only", action="store_true", help="leave out a service that goes on")
    chosen = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        asyncio.run(measure(Path(folder), agents=chosen.agents, pods=chosen.pods, restarts_only=chosen.restarts_only))


if __name__ == "__main__":
    main()
