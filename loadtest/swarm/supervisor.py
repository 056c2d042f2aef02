"""The parent of a swarm's processes: starts them, sums up what they report, asks for the proofs."""

import asyncio
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from types import TracebackType
from typing import Final, Self

from loadtest.swarm import control, histogram

MAX_AGENTS_PER_PROCESS: Final = 2500
"""What one process serves with time to spare at 20 updates a second."""
ANSWER_TIMEOUT_SECONDS: Final = 60.0
STOP_TIMEOUT_SECONDS: Final = 10.0


class SwarmError(Exception):
    """A process of the swarm failed."""


@dataclass
class Totals:
    """The swarm as of the latest reports. Counts are since the start; the histograms since `take_latency`."""

    agents: int = 0
    at_seconds: float = 0.0
    """When the processes reported, on average, in seconds since 1970: what rates are to be computed with."""
    all_reported_at_seconds: float = 0.0
    """What is older than this is in the reports of all processes; 0 before all have reported."""
    connected: int = 0
    in_sync: int = 0
    connects: int = 0
    disconnects: dict[str, int] = field(default_factory=dict)
    unserved: dict[str, int] = field(default_factory=dict)
    """Connections that ended before they were in sync, and connects that failed; by what the agent saw."""
    lost: int = 0
    """Connections that ended when they had been in sync."""
    goodbyes: dict[str, int] = field(default_factory=dict)
    protocol_errors: list[str] = field(default_factory=list)
    updates: int = 0
    """Deliveries: an update that one agent received, counted for each agent."""
    deletions: int = 0
    snapshots: int = 0
    frames: int = 0
    bytes: int = 0
    behaving_updates: int = 0
    behaving_bytes: int = 0
    """Of the agents that never were impaired."""
    slowest_lag_seconds: float = 0.0
    impaired_lag_seconds: float = 0.0
    distinct_states: int = 0
    distinct_frames: int = 0
    cpu_seconds: float = 0.0


class Process:
    """One process of the swarm."""

    def __init__(self, module: str, start: control.Start) -> None:
        self.module = module
        self.start = start
        self.stats: control.Stats | None = None
        self.digests: asyncio.Future[control.Digests] | None = None
        self.failure: str | None = None
        self._process: asyncio.subprocess.Process | None = None
        self._reader: asyncio.Task[None] | None = None
        self._stopping = False

    @property
    def pid(self) -> int:
        """Its process id, once it runs."""
        assert self._process is not None
        return self._process.pid

    async def run(self, on_stats: "Swarm") -> None:
        """Starts the process and the task that reads its reports."""
        self._process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            self.module,
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            limit=control.MAX_LINE_BYTES,
        )
        self._reader = asyncio.create_task(self._read(on_stats), name=f"reports of {self.module}")
        await self.send(self.start)

    async def send(self, command: control.Command) -> None:
        """Gives the process an order. Raises SwarmError if it is gone."""
        assert self._process is not None
        assert self._process.stdin is not None
        if self.failure is not None:
            raise SwarmError(f"{self.module}: {self.failure}")
        try:
            self._process.stdin.write(control.encode(command) + b"\n")
            await self._process.stdin.drain()
        except ConnectionError as error:
            raise SwarmError(f"{self.module} has ended") from error

    async def ask_digests(self, question: control.AskDigests) -> control.Digests:
        """Every agent's proof. Raises SwarmError."""
        self.digests = asyncio.get_running_loop().create_future()
        await self.send(question)
        try:
            async with asyncio.timeout(ANSWER_TIMEOUT_SECONDS):
                return await self.digests
        except TimeoutError:
            raise SwarmError(f"{self.module} gives no digests") from None

    async def stop(self) -> None:
        """Ends the process."""
        self._stopping = True
        if self._process is None:
            return
        assert self._process.stdin is not None
        self._process.stdin.close()
        try:
            async with asyncio.timeout(STOP_TIMEOUT_SECONDS):
                await self._process.wait()
        except TimeoutError:
            self._process.kill()
            await self._process.wait()
        if self._reader is not None:
            await asyncio.wait([self._reader])

    async def _read(self, swarm: "Swarm") -> None:
        assert self._process is not None
        assert self._process.stdout is not None
        while line := await self._process.stdout.readline():
            match control.decode_report(line):
                case control.Stats() as stats:
                    self.stats = stats
                    swarm.received(stats, self.start.protocol)
                case control.Digests() as digests:
                    if self.digests is not None and not self.digests.done():
                        self.digests.set_result(digests)
                case control.Failed(text=text):
                    self.failure = text
        self.failure = self.failure or self._ended()
        if self.digests is not None and not self.digests.done():
            self.digests.set_exception(SwarmError(f"{self.module} has ended"))
        swarm.ended()

    def _ended(self) -> str | None:
        return None if self._stopping else "it has ended"


class Swarm:
    """All agents: those of the worker processes, and `public_agents` of the public client in a process of their own."""

    def __init__(
        self,
        addresses: Sequence[tuple[str, int]],
        *,
        feed: str,
        agents: int,
        public_agents: int = 0,
        processes: int = 2,
        protocols: Sequence[control.Protocol] = (control.Protocol.NATIVE,),
        agents_at_first: int | None = None,
        ramp_per_second: float = 1000.0,
        compressed: bool = True,
        tls: control.TlsFiles | None = None,
        small_buffers: int = 0,
        small_buffer_bytes: int = 1,
        apart: bool = False,
        seed: int = 0,
    ) -> None:
        """With `apart` the agents with small buffers, and one more of each protocol, are in processes of their own."""
        self.latency = histogram.Histogram()
        self.impaired_latency = histogram.Histogram()
        self.in_sync_after = histogram.Histogram()
        self.back_after = histogram.Histogram()
        """From the loss of a connection to in-sync again; since the start."""
        self.latency_of = {protocol: histogram.Histogram() for protocol in control.Protocol}
        """By protocol, since the start; of the behaving agents."""
        self.longest_silence_seconds = 0.0
        """In which the network brought a behaving agent nothing, since the last `take_silence`."""
        self.longest_read_gap_seconds = 0.0
        """Between two reads of a behaving agent, since the last `take_silence`."""
        self.agents = agents
        self._news = asyncio.Event()
        self.processes: list[Process] = []
        first = 0
        agents_apart = small_buffers + len(protocols) if apart else 0
        shares_apart = _shares(agents_apart, protocols=protocols, processes=1) if apart else []
        shares = _shares(agents - public_agents - agents_apart, protocols=protocols, processes=processes)
        shares = [*shares_apart, *shares]
        small_in = len(shares_apart) or len(shares)
        for number, (protocol, share) in enumerate(shares):
            start = control.Start(
                addresses=list(addresses),
                feed=feed,
                agents=share,
                agents_at_first=None if agents_at_first is None else _part(agents_at_first, len(shares), number),
                first_index=first,
                ramp_per_second=ramp_per_second / len(shares),
                protocol=protocol,
                compressed=compressed,
                tls=tls,
                small_buffers=_part(small_buffers, small_in, number) if number < small_in else 0,
                small_buffer_bytes=small_buffer_bytes,
                apart=number < len(shares_apart),
                seed=seed,
            )
            first += share
            self.processes.append(Process("loadtest.swarm.worker", start))
        if public_agents:
            start = control.Start(addresses=list(addresses), feed=feed, agents=public_agents, tls=tls)
            self.processes.append(Process("loadtest.swarm.public", start))

    async def __aenter__(self) -> Self:
        try:
            for process in self.processes:
                await process.run(self)
        except BaseException:
            await self.stop()
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.stop()

    async def stop(self) -> None:
        """Ends all processes."""
        for process in self.processes:
            await process.stop()

    def received(self, stats: control.Stats, protocol: control.Protocol) -> None:
        """A report has come: its histograms hold what is new since the last."""
        self.latency.merge(stats.behaving.latency)
        self.latency_of[protocol].merge(stats.behaving.latency)
        self.longest_silence_seconds = max(self.longest_silence_seconds, stats.behaving.silence_seconds)
        self.longest_read_gap_seconds = max(self.longest_read_gap_seconds, stats.behaving.read_gap_seconds)
        self.impaired_latency.merge(stats.impaired.latency)
        for group in (stats.behaving, stats.impaired):
            self.in_sync_after.merge(group.in_sync_after)
            self.back_after.merge(group.back_after)
        self._news.set()

    def ended(self) -> None:
        """A process has ended."""
        self._news.set()

    def take_latency(self) -> histogram.Histogram:
        """The latencies of the behaving agents since the last call."""
        taken, self.latency = self.latency, histogram.Histogram()
        return taken

    def take_in_sync_after(self) -> histogram.Histogram:
        """How long connections took to be in sync, since the last call."""
        taken, self.in_sync_after = self.in_sync_after, histogram.Histogram()
        return taken

    def take_silence(self) -> tuple[float, float]:
        """The longest time in which a behaving agent's connection got nothing, in seconds, since the last call.

        First as the kernel saw it, then between two reads of an agent.
        """
        taken = self.longest_silence_seconds, self.longest_read_gap_seconds
        self.longest_silence_seconds = self.longest_read_gap_seconds = 0.0
        return taken

    def totals(self, protocol: control.Protocol | None = None) -> Totals:
        """Everything summed up, or what is of one protocol. Raises SwarmError if a process failed."""
        chosen = [process for process in self.processes if protocol in (None, process.start.protocol)]
        totals = Totals(agents=sum(process.start.agents for process in chosen))
        for process in chosen:
            if process.failure is not None:
                raise SwarmError(f"{process.module}: {process.failure}")
            if process.stats is not None:
                _add(totals, process.stats)
        reported = [process.stats.at_ns for process in chosen if process.stats is not None]
        totals.at_seconds = sum(reported) / len(reported) / 1e9 if reported else 0.0
        totals.all_reported_at_seconds = min(reported) / 1e9 if len(reported) == len(chosen) else 0.0
        return totals

    async def impair(self, agents: int, *, bytes_per_second: int, seconds: float) -> None:
        """The last agents of each process, `agents` in all, read slowly or (0) not at all for a while.

        If there are processes with agents apart, those of them and no others.
        """
        workers = [process for process in self.processes if process.module.endswith("worker")]
        workers = [process for process in workers if process.start.apart] or workers
        for number, process in enumerate(workers):
            share = _part(agents, len(workers), number)
            await process.send(control.Impair(agents=share, bytes_per_second=bytes_per_second, seconds=seconds))

    async def reconnect(self, *, ramp_per_second: float = 0.0) -> None:
        """All agents but those of the public client drop their connections and connect again."""
        for process in self.processes:
            await process.send(control.Reconnect(ramp_per_second=ramp_per_second))

    async def capture(self) -> None:
        """All agents remember what they hold now."""
        for process in self.processes:
            await process.send(control.Capture())

    async def digests(self, *, captured: bool = False, without: Iterable[str] = ()) -> list[control.Digests]:
        """Every agent's proof, by process: of what it holds, or held at the last `capture`. Raises SwarmError."""
        question = control.AskDigests(captured=captured, without=list(without))
        return list(await asyncio.gather(*(process.ask_digests(question) for process in self.processes)))

    async def wait_for(self, condition: Callable[[Totals], bool], *, timeout_seconds: float) -> float:
        """Waits until the reports fulfil a condition; returns how long it took. Raises TimeoutError, SwarmError."""
        begin = time.monotonic()
        async with asyncio.timeout(timeout_seconds):
            while not condition(self.totals()):
                self._news.clear()
                await self._news.wait()
        return time.monotonic() - begin

    async def wait_in_sync(self, *, timeout_seconds: float, agents: int | None = None) -> float:
        """Waits until so many agents (default: all) are in sync; returns how long it took. Raises as `wait_for`."""
        wanted = self.agents if agents is None else agents
        return await self.wait_for(lambda totals: totals.in_sync >= wanted, timeout_seconds=timeout_seconds)


def _part(whole: int, parts: int, number: int) -> int:
    """The number-th of nearly equal parts."""
    return whole // parts + (number < whole % parts)


def _shares(
    agents: int, *, protocols: Sequence[control.Protocol], processes: int
) -> list[tuple[control.Protocol, int]]:
    """Protocol and number of agents of each process; the protocols have equal numbers, and processes of their own."""
    shares = []
    for index, protocol in enumerate(protocols):
        mine = _part(agents, len(protocols), index)
        count = max(1, min(processes // len(protocols), mine), -(-mine // MAX_AGENTS_PER_PROCESS))
        shares += [(protocol, _part(mine, count, number)) for number in range(count)]
    return shares


def _add(totals: Totals, stats: control.Stats) -> None:
    totals.connected += stats.connected
    totals.in_sync += stats.in_sync
    totals.connects += stats.connects
    totals.slowest_lag_seconds = max(totals.slowest_lag_seconds, stats.slowest_lag_seconds)
    totals.impaired_lag_seconds = max(totals.impaired_lag_seconds, stats.impaired_lag_seconds)
    totals.behaving_updates += stats.behaving.updates
    totals.behaving_bytes += stats.behaving.bytes
    totals.distinct_states += stats.distinct_states
    totals.distinct_frames += stats.distinct_frames
    totals.cpu_seconds += stats.cpu_seconds
    totals.protocol_errors += stats.protocol_errors
    totals.lost += stats.lost
    for counts, more in ((totals.disconnects, stats.disconnects), (totals.unserved, stats.unserved)):
        for reason, count in more.items():
            counts[reason] = counts.get(reason, 0) + count
    for group in (stats.behaving, stats.impaired):
        totals.updates += group.updates
        totals.deletions += group.deletions
        totals.snapshots += group.snapshots
        totals.frames += group.frames
        totals.bytes += group.bytes
        for reason, count in group.goodbyes.items():
            totals.goodbyes[reason] = totals.goodbyes.get(reason, 0) + count
