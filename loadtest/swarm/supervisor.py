"""The parent of a swarm's processes: starts them, sums up their reports, asks for proofs."""

import asyncio
import dataclasses
import os
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Final, Self, TypeVar

from loadtest.environment import child
from loadtest.swarm import control, histogram, tls

MAX_AGENTS_PER_PROCESS: Final = 2500
"""What one process serves with time to spare at 20 updates a second."""
ANSWER_TIMEOUT_SECONDS: Final = 60.0


T = TypeVar("T")


class SwarmError(Exception):
    """A process of the swarm failed."""


class SwarmPlan(control.Agents, frozen=True, kw_only=True):
    """The agents of a swarm."""

    public_agents: int = 0
    """Those of the agents that use the public client, in a separate process; at least one agent does not."""
    public_addresses: Sequence[tuple[str, int]] = ()
    """Where those connect, if it is elsewhere."""
    processes: int = 2
    protocols: Sequence[control.Protocol] = (control.Protocol.NATIVE,)
    """What the agents speak, in equal parts and in separate processes."""

    def orders(self, addresses: Sequence[tuple[str, int]]) -> list[tuple[str, control.Start]]:
        """Module and first message of each process."""
        public = min(self.public_agents, self.agents - 1)
        slow = self.small_buffers + len(self.protocols) if self.background else 0
        slow_shares = self._shares(slow, processes=1) if slow else []
        shares = [*slow_shares, *self._shares(self.agents - public - slow, processes=self.processes)]
        small_in = len(slow_shares) or len(shares)
        orders = []
        first = 0
        for number, (protocol, agents) in enumerate(shares):
            at_first = None if self.agents_at_first is None else _part(self.agents_at_first, len(shares), number)
            of_process = {
                "agents": agents,
                "agents_at_first": at_first,
                "ramp_per_second": self.ramp_per_second / len(shares),
                "small_buffers": _part(self.small_buffers, small_in, number) if number < small_in else 0,
                "background": number < len(slow_shares),
            }
            of_all = {name: getattr(self, name) for name in control.Agents.__struct_fields__}
            order = control.Start(
                **{**of_all, **of_process}, addresses=list(addresses), first_index=first, protocol=protocol
            )
            first += agents
            orders.append((control.WORKER_MODULE, order))
        if public:
            own = list(self.public_addresses or addresses)
            order = control.Start(addresses=own, feed=self.feed, agents=public, tls=self.tls)
            orders.append((control.PUBLIC_MODULE, order))
        return orders

    def _shares(self, agents: int, *, processes: int) -> list[tuple[control.Protocol, int]]:
        """Protocol and number of agents of each process."""
        shares = []
        for index, protocol in enumerate(self.protocols):
            of_protocol = _part(agents, len(self.protocols), index)
            at_most = min(processes // len(self.protocols), of_protocol)
            count = max(1, at_most, -(-of_protocol // MAX_AGENTS_PER_PROCESS))
            shares += [(protocol, _part(of_protocol, count, number)) for number in range(count)]
        return shares


@dataclasses.dataclass
class Totals:
    """The swarm according to the latest reports. Counts are since the start."""

    agents: int = 0
    at_seconds: float = 0.0
    """Average time of the reports, in seconds since 1970: compute rates with it."""
    all_reported_at_seconds: float = 0.0
    """Everything before this time is in the reports of all processes; 0 until all have reported."""
    connected: int = 0
    in_sync: int = 0
    told_stale: int = 0
    """Agents that were told that the data is not confirmed; without those of the public client."""
    connects: int = 0
    disconnects: dict[str, int] = dataclasses.field(default_factory=dict)
    unserved: dict[str, int] = dataclasses.field(default_factory=dict)
    """Failed connects and connections that ended before they were in sync, by what the agent saw."""
    lost: int = 0
    """Connections that ended after they had been in sync."""
    goodbyes: dict[str, int] = dataclasses.field(default_factory=dict)
    protocol_errors: list[str] = dataclasses.field(default_factory=list)
    updates: int = 0
    """Deliveries: one update that one agent received."""
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

    def add(self, stats: control.Stats) -> None:
        """Add the report of one process."""
        self.connected += stats.connected
        self.in_sync += stats.in_sync
        self.told_stale += stats.told_stale
        self.connects += stats.connects
        self.lost += stats.lost
        self.protocol_errors += stats.protocol_errors
        _add(self.disconnects, stats.disconnects)
        _add(self.unserved, stats.unserved)
        self.slowest_lag_seconds = max(self.slowest_lag_seconds, stats.slowest_lag_seconds)
        self.impaired_lag_seconds = max(self.impaired_lag_seconds, stats.impaired_lag_seconds)
        self.behaving_updates += stats.behaving.updates
        self.behaving_bytes += stats.behaving.bytes
        self.distinct_states += stats.distinct_states
        self.distinct_frames += stats.distinct_frames
        self.cpu_seconds += stats.cpu_seconds
        for group in (stats.behaving, stats.impaired):
            self.updates += group.updates
            self.deletions += group.deletions
            self.snapshots += group.snapshots
            self.frames += group.frames
            self.bytes += group.bytes
            _add(self.goodbyes, group.goodbyes)


class SwarmProcess(child.Child):
    """One process of the swarm."""

    def __init__(self, swarm: "Swarm", module: str, order: control.Start) -> None:
        super().__init__(module, None)
        self.module = module
        self.order = order
        self.stats: control.Stats | None = None
        self.failure: str | None = None
        self._swarm = swarm
        self._digests: asyncio.Future[control.Digests] | None = None
        self._paths: asyncio.Future[control.Paths] | None = None
        self._reader: asyncio.Task[None] | None = None
        self._stopping = False

    async def start(self) -> None:
        """Start the process and the task that reads its reports, and let its agents connect. Raises SwarmError."""
        pipe = asyncio.subprocess.PIPE
        command = [sys.executable, "-m", self.module]
        await self._spawn(
            command, stdin=pipe, stdout=pipe, limit=control.MAX_LINE_BYTES, env={**os.environ, **tls.ENVIRONMENT}
        )
        assert self.process.stdout is not None
        self._reader = asyncio.create_task(self._read(self.process.stdout), name=f"reports of {self.module}")
        await self.send(self.order)

    async def send(self, command: control.Command) -> None:
        """Send a command. Raises SwarmError if the process has ended or failed."""
        if self.failure is not None:
            raise SwarmError(f"{self.module}: {self.failure}")
        try:
            await self.write(control.encode(command) + b"\n")
        except ConnectionError as error:
            raise SwarmError(f"{self.module} has ended") from error

    async def ask_digests(self, question: control.AskDigests) -> control.Digests:
        """The proof of each of its agents. Raises SwarmError."""
        self._digests = asyncio.get_running_loop().create_future()
        return await self._answer(question, self._digests)

    async def ask_paths(self) -> control.Paths:
        """The path of each of its agents; the public client's have none. Raises SwarmError."""
        self._paths = asyncio.get_running_loop().create_future()
        return await self._answer(control.AskPaths(), self._paths)

    async def _answer(self, question: control.Command, answer: asyncio.Future[T]) -> T:
        await self.send(question)
        try:
            async with asyncio.timeout(ANSWER_TIMEOUT_SECONDS):
                return await answer
        except TimeoutError:
            raise SwarmError(f"{self.module} gives no answer to {type(question).__name__}") from None

    async def stop(self) -> None:
        """End the process."""
        self._stopping = True
        await super().stop()
        if self._reader is not None:
            await asyncio.wait([self._reader])

    async def _read(self, reports: asyncio.StreamReader) -> None:
        while line := await reports.readline():
            match control.decode_report(line):
                case control.Stats() as stats:
                    self.stats = stats
                    self._swarm.received(stats, self.order.protocol)
                case control.Digests() as digests:
                    if self._digests is not None and not self._digests.done():
                        self._digests.set_result(digests)
                case control.Paths() as paths:
                    if self._paths is not None and not self._paths.done():
                        self._paths.set_result(paths)
                case control.Failed(text=text):
                    self.failure = text
        if self.failure is None and not self._stopping:
            self.failure = "it has ended"
        for answer in (self._digests, self._paths):
            if answer is not None and not answer.done():
                answer.set_exception(SwarmError(f"{self.module} has ended"))
        self._swarm.wake()


class Swarm:
    """All agents of a plan; an async context manager.

    The histograms count since the start: `latency` and `latency_of` of the behaving agents, the others of all agents.
    """

    def __init__(self, addresses: Sequence[tuple[str, int]], plan: SwarmPlan) -> None:
        self.latency = histogram.Histogram()
        self.latency_of = {protocol: histogram.Histogram() for protocol in control.Protocol}
        self.in_sync_after = histogram.Histogram()
        """From connect to in-sync."""
        self.back_after = histogram.Histogram()
        """From the loss of a connection to in-sync again."""
        self.agents = plan.agents
        self.processes = [SwarmProcess(self, module, order) for module, order in plan.orders(addresses)]
        self._longest_silence_seconds = 0.0
        self._longest_read_gap_seconds = 0.0
        self._news = asyncio.Event()

    async def __aenter__(self) -> Self:
        try:
            for process in self.processes:
                await process.start()
        except BaseException:
            await self.__aexit__()
            raise
        return self

    async def __aexit__(self, *_: object) -> None:
        for process in self.processes:
            await process.stop()

    def received(self, stats: control.Stats, protocol: control.Protocol) -> None:
        """Take a report; its histograms count since the previous report."""
        self.latency.merge(stats.behaving.latency.sparse())
        self.latency_of[protocol].merge(stats.behaving.latency.sparse())
        self._longest_silence_seconds = max(self._longest_silence_seconds, stats.behaving.silence_ns / 1e9)
        self._longest_read_gap_seconds = max(self._longest_read_gap_seconds, stats.behaving.read_gap_ns / 1e9)
        for group in (stats.behaving, stats.impaired):
            self.in_sync_after.merge(group.in_sync_after.sparse())
            self.back_after.merge(group.back_after.sparse())
        self.wake()

    def wake(self) -> None:
        """Let `wait_for` check its condition again."""
        self._news.set()

    def take_silence(self) -> tuple[float, float]:
        """The longest silence of a behaving agent's connection since the last call, in seconds.

        First as the kernel saw it, then between two reads of the agent.
        """
        taken = self._longest_silence_seconds, self._longest_read_gap_seconds
        self._longest_silence_seconds = self._longest_read_gap_seconds = 0.0
        return taken

    def totals(self, protocol: control.Protocol | None = None) -> Totals:
        """The sum of all reports, or of those of one protocol. Raises SwarmError if a process failed."""
        chosen = [process for process in self.processes if protocol in (None, process.order.protocol)]
        totals = Totals(agents=sum(process.order.agents for process in chosen))
        reported = []
        for process in chosen:
            if process.failure is not None:
                raise SwarmError(f"{process.module}: {process.failure}")
            if process.stats is not None:
                totals.add(process.stats)
                reported.append(process.stats.at_ns)
        totals.at_seconds = sum(reported) / len(reported) / 1e9 if reported else 0.0
        totals.all_reported_at_seconds = min(reported) / 1e9 if len(reported) == len(chosen) else 0.0
        return totals

    async def impair(self, agents: int, *, bytes_per_second: int, seconds: float) -> None:
        """The last agents of each process, `agents` in all, read slowly or (0) not at all for a while.

        If there are background processes, only their agents.
        """
        workers = [process for process in self.processes if process.module == control.WORKER_MODULE]
        workers = [process for process in workers if process.order.background] or workers
        for number, process in enumerate(workers):
            share = _part(agents, len(workers), number)
            await process.send(control.Impair(agents=share, bytes_per_second=bytes_per_second, seconds=seconds))

    async def reconnect(self, *, ramp_per_second: float = 0.0) -> None:
        """All agents drop their connections and connect again, except those of the public client."""
        await self._send_all(control.Reconnect(ramp_per_second=ramp_per_second))

    async def storm(self, *, timeout_seconds: float) -> None:
        """All agents reconnect at once; wait until they are in sync again. Raises as `wait_for`."""
        connects = self.totals().connects
        clients = sum(process.order.agents for process in self.processes if process.module == control.WORKER_MODULE)
        await self.reconnect()
        await self.wait_for(
            lambda now: now.connects >= connects + clients and now.in_sync >= now.agents,
            timeout_seconds=timeout_seconds,
        )

    async def choose_from(self, addresses: Sequence[tuple[str, int]]) -> None:
        """From now on agents connect to one of these; those of the public client have addresses of their own."""
        await self._send_all(control.Addresses(list(addresses)))

    async def set_moved_apart(self) -> None:
        """From now on `latency` is that of agents that do not lose their connection after this."""
        await self._send_all(control.SetMovedApart())

    async def paths(self) -> list[control.AgentPath]:
        """The connections of every agent, except those of the public client. Raises SwarmError."""
        found = await asyncio.gather(*(process.ask_paths() for process in self.processes))
        return [one for paths in found for one in paths.agents]

    async def capture(self) -> None:
        """All agents remember their present maps."""
        await self._send_all(control.Capture())

    async def _send_all(self, command: control.Command) -> None:
        for process in self.processes:
            await process.send(command)

    async def digests(self, *, captured: bool = False, without: Iterable[str] = ()) -> list[control.Digests]:
        """Every agent's proof, by process: of its present map, or of the last `capture`. Raises SwarmError."""
        question = control.AskDigests(captured=captured, without=list(without))
        return list(await asyncio.gather(*(process.ask_digests(question) for process in self.processes)))

    async def wait_for(self, condition: Callable[[Totals], bool], *, timeout_seconds: float) -> float:
        """Wait until a condition holds; returns how long it took. Raises TimeoutError, SwarmError."""
        begin = time.monotonic()
        async with asyncio.timeout(timeout_seconds):
            while not condition(self.totals()):
                self._news.clear()
                await self._news.wait()
        return time.monotonic() - begin

    async def wait_in_sync(self, *, timeout_seconds: float, agents: int | None = None) -> float:
        """Wait until this many agents (default: all) are in sync; returns how long it took. Raises as `wait_for`."""
        wanted = self.agents if agents is None else agents
        return await self.wait_for(lambda totals: totals.in_sync >= wanted, timeout_seconds=timeout_seconds)


def _add(counts: dict[str, int], more: Mapping[str, int]) -> None:
    for name, count in more.items():
        counts[name] = counts.get(name, 0) + count


def _part(whole: int, parts: int, number: int) -> int:
    """The number-th of nearly equal parts."""
    return whole // parts + (number < whole % parts)
