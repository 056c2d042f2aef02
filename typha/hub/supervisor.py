"""Starts, watches and replaces workers.

A worker that dies is replaced, after a back-off if it died young. One that is silent for too long is killed first; the
time that it waited for a CPU does not count. The listening socket is the hub's, so connections that no worker has
accepted wait for the replacement.
"""

import asyncio
import contextlib
import math
import os
import secrets
import socket
import sys
from collections.abc import Awaitable, Callable, Iterator, Mapping
from typing import NamedTuple, TypeAlias

import msgspec
import structlog

from cache.kube import processes
from protocol.reasons import DisconnectReason
from typha import clock, settings, signals
from typha.hub import hub, policy, shortages, worker_link
from typha.ipc import link, messages
from typha.observability import quantiles

_log = structlog.get_logger("typha.workers")
_monotonic = clock.monotonic

_CHECK_SECONDS = 1.0
_STOPPED_SECONDS = 3.0
_YOUNG_SECONDS = 10.0
_BACKOFF_SECONDS_MIN = 0.1
_BACKOFF_SECONDS_MAX = 5.0
_FAIR_SHARE_SLACK = 32
"""Connections that a worker may have beyond its fair share: a storm must not wait for limits to be updated."""

_STARTS_DOUBLED_MAX = 3
"""After more failed starts in a row, the patience with the next one does not grow any more."""
_STANDSTILL_SECONDS = 1.25
"""Above a pause of one second, and below the two seconds within which readiness has to follow."""
_LOOK_SECONDS_MAX = 0.5
_WAITING_STATES = ("R", "D")
"""Ready to run, and waiting for the disk or for memory."""
_DRAIN_SHARE, _DRAIN_OVERTIME_SECONDS = 0.97, 1.0
"""Workers need 95 % of the time for the drain, and a moment. One that takes longer is killed before the kubelet kills
the service, whose grace may be as long as ShutdownTimeoutSecs."""
_BLOCKED_PATIENCE = 3
"""Times the patience with a silent worker: how long a worker that reports may leave messages of the hub unread. What
waits there keeps logs and snapshots in memory."""
WORKER_SETTINGS = frozenset(
    {
        *("server_key_file", "server_cert_file", "ca_file", "client_cn", "client_urisan", "tls_engine"),
        *("server_ping_interval_seconds", "server_pong_timeout_seconds", "server_handshake_timeout_seconds"),
        *("no_progress_timeout_seconds", "refusal_hold_seconds", "max_held_refusals", "max_frame_bytes"),
        "agent_releases",
        *("log_file_path", "log_severity_file", "log_severity_screen", "log_severity_sys", "log_format"),
        *("debug_disable_log_dropping", "log_budget_bytes", "segment_bytes"),
    }
)
"""What a worker is told: how to treat its clients, TLS for them, the log, and how many descriptors the hub's files will
take. All else is the hub's affair."""
_WORKER_VARIABLES = frozenset(
    {
        *("PATH", "HOME"),  # where Python and its packages are, if they are a user's
        *("LANG", "LANGUAGE", "TZ"),  # texts of the system's errors, as in the hub
        *("TLS_MIN_VERSION", "TLS_CIPHER_SUITES"),
        "GLIBC_TUNABLES",
    }
)
_WORKER_VARIABLE_PREFIXES = ("LC_", "PYTHON", "LD_", "MALLOC_", "OPENSSL_", "FAKETIME")
"""Settings of the interpreter, the loader, the allocator, OpenSSL and libfaketime are the operator's for all processes.
A library that is preloaded into hub and workers must behave the same in both: they compare their monotonic clocks."""

ServeEmbedded: TypeAlias = Callable[[messages.WorkerConfig, socket.socket, socket.socket], Awaitable[None]]
"""Runs a worker on the hub's own loop, from its configuration, the listening socket and its end of the link."""


def worker_environment(environment: Mapping[str, str]) -> dict[str, str]:
    """What a worker gets of the hub's environment. It faces the network, so it gets no token and no other secret."""
    return {
        name: value
        for name, value in environment.items()
        if name in _WORKER_VARIABLES or name.startswith(_WORKER_VARIABLE_PREFIXES)
    }


def run_queue_seconds(pid: int) -> float:
    """How long a process's main thread has been ready to run without getting a CPU; 0.0 if the kernel does not say."""
    try:
        with open(f"/proc/{pid}/schedstat", "rb") as file:
            return int(file.read().split()[1]) / 1e9
    except (OSError, ValueError, IndexError):
        return 0.0


class Silence:
    """For how long a worker has said nothing, without the time that it waited for a CPU.

    A stuck process runs or sleeps. One that waits for a CPU only needs more time, and a kill would make it longer.

    Args:
        waited_seconds: how long the process has waited since its start.
    """

    def __init__(self, waited_seconds: Callable[[], float]) -> None:
        self._waited_seconds = waited_seconds
        self._heard_at = -math.inf
        self._waited_before = 0.0

    def seconds(self, heard_at: float, now: float) -> float:
        """To be called every second or so with the times at which the worker was heard last, and now."""
        waited_seconds = self._waited_seconds()
        if heard_at != self._heard_at:
            self._heard_at, self._waited_before = heard_at, waited_seconds
        return now - heard_at - max(0.0, waited_seconds - self._waited_before)


class Activity(NamedTuple):
    """What the kernel says of a process's main thread."""

    cpu_nanoseconds: int
    state: str


def read_activity(pid: int) -> Activity | None:
    """The activity of a process; None if the kernel does not say."""
    try:
        with open(f"/proc/{pid}/schedstat", "rb") as file:
            cpu_nanoseconds = int(file.read().split()[0])
        with open(f"/proc/{pid}/stat", "rb") as file:
            return Activity(cpu_nanoseconds, file.read().rpartition(b")")[2].split()[0].decode())
    except (OSError, ValueError, IndexError):
        return None


class Standstill:
    """Whether a process makes no step at all: it is stopped, or sleeps and does not wake up.

    A worker wakes up four times a second. A busy one uses the CPU, and one that waits for a CPU or for memory is in a
    state that says so. Neither stands still, however long it takes: load is no standstill.
    """

    def __init__(self, read: Callable[[], Activity | None]) -> None:
        self._read = read
        self._cpu_nanoseconds = -1
        self._looked_at = math.inf
        self._still_seconds = 0.0

    def look(self, now: float) -> bool:
        """To be called four times a second. Time in which the hub itself stands still does not count."""
        seconds = max(0.0, min(now - self._looked_at, _LOOK_SECONDS_MAX))
        self._looked_at = now
        seen = self._read()
        if seen is None or seen.cpu_nanoseconds != self._cpu_nanoseconds or seen.state in _WAITING_STATES:
            self._still_seconds = 0.0
            self._cpu_nanoseconds = -1 if seen is None else seen.cpu_nanoseconds
        else:
            self._still_seconds += seconds
        return self._still_seconds >= _STANDSTILL_SECONDS


class Supervisor:
    """All workers of a hub.

    Args:
        serve_embedded: used where no worker processes are wanted.
    """

    def __init__(
        self,
        the_hub: hub.Hub,
        configured: settings.Settings,
        limits: policy.HubPolicy,
        listener: socket.socket,
        *,
        serve_embedded: ServeEmbedded,
    ) -> None:
        self._hub = the_hub
        self._settings = configured
        self._policy = limits
        self._listener = listener
        self._serve_embedded = serve_embedded
        self.incarnation = secrets.token_hex(16)
        """What native clients are told of this start of the service, which the sequences belong to."""
        self._drain: messages.Drain | None = None
        self._drained_by = math.inf
        self._standstills: dict[int, Standstill] = {}
        self._still: set[int] = set()
        self._pids: dict[int, int] = {}
        self.restarts = 0
        self._failed_starts: dict[int, int] = {}
        """For each worker, how many starts in a row ended before it was ready."""
        self._dead = messages.WorkerCounts()
        """Totals of workers that have died, so that sums never fall."""
        self._dead_longest_turn_seconds = 0.0
        self.dead_histograms: dict[tuple[str, str], quantiles.Histogram] = {}
        """Count and sum of dead workers' histograms, by metric and feed."""
        self.wanted = configured.workers if configured.workers >= 0 else 1
        self._deferral = signals.Deferral()
        self._is_debugging = False

    def __repr__(self) -> str:
        return f"<Supervisor wanted={self.wanted} alive={len(self._hub.workers)} restarts={self.restarts}>"

    def totals(self) -> messages.WorkerCounts:
        """The totals of all workers, those that have died included."""
        totals = messages.WorkerCounts()
        totals.add(self._dead)
        for worker in self._hub.workers.values():
            totals.add(worker.report.counts)
        return totals

    @property
    def active(self) -> int:
        """Open connections of all workers."""
        return sum(worker.report.active for worker in self._hub.workers.values())

    def send_away(self, clients: int) -> None:
        """Tells the worker with the most connections to send some clients to other replicas."""
        workers = self._hub.workers.values()
        max(workers, key=lambda worker: worker.report.active).send(messages.SendAway(clients))

    @property
    def longest_turn_seconds(self) -> float:
        """The longest turn of any worker, those that have died included."""
        alive = [worker.report.longest_turn_seconds_ever for worker in self._hub.workers.values()]
        return max([self._dead_longest_turn_seconds, *alive])

    @property
    def all_ready(self) -> bool:
        """Whether as many workers as wanted have reported that they serve."""
        ready = sum(worker.ready for worker in self._hub.workers.values())
        return ready >= max(1, self.wanted)

    @property
    def pids(self) -> list[int]:
        """The workers' processes."""
        return list(self._pids.values())

    @property
    def accepting(self) -> int:
        """How many workers accept connections, as of the last look."""
        return sum(worker.ready and number not in self._still for number, worker in self._hub.workers.items())

    def look(self) -> None:
        """Looks at what the workers do; to be called four times a second."""
        for number, standstill in self._standstills.items():
            is_still = standstill.look(_monotonic())
            if is_still and number not in self._still:
                self._still.add(number)
                _log.warning("Worker stands still and accepts no connections", worker=number)
            elif not is_still and number in self._still:
                self._still.remove(number)
                _log.info("Worker goes on", worker=number)

    def _is_draining(self) -> bool:
        return self._drain is not None

    async def run(self) -> None:
        """Keeps all workers running; returns when they have ended after `drain`."""
        async with asyncio.TaskGroup() as tasks:
            fairness = tasks.create_task(self._share_out(), name="worker shares") if self.wanted > 1 else None
            if self.wanted == 0:
                keepers = [tasks.create_task(self._run_embedded(), name="embedded worker")]
            else:
                keepers = [
                    tasks.create_task(self._keep(number), name=f"worker {number}")
                    for number in range(1, self.wanted + 1)
                ]
            await asyncio.wait(keepers)
            if fairness is not None:
                fairness.cancel()

    def drain(self, *, seconds: float, interval_seconds_max: float) -> None:
        """Tells all workers to say goodbye to their clients within `seconds`, and to end."""
        now = _monotonic()
        self._drained_by = now + seconds * _DRAIN_SHARE + _DRAIN_OVERTIME_SECONDS
        workers = list(self._hub.workers.values())
        connections = sum(worker.report.active for worker in workers)
        self._drain = messages.Drain(seconds, interval_seconds_max, connections, now)
        for place, worker in enumerate(workers):
            others = connections - worker.report.active
            worker.send(messages.Drain(seconds, interval_seconds_max, others, now, place / len(workers)))

    def control_log(self, message: messages.ControlLog) -> None:
        """Passes on what an operator asks of the log; workers to come have the same level."""
        if message.debug is not None:
            self._is_debugging = message.debug
        self._hub.workers.send(message)

    async def _share_out(self) -> None:
        """Tells each worker how many connections are its share, so that a storm spreads evenly."""
        while True:
            await asyncio.sleep(_CHECK_SECONDS / 4)
            workers = [worker for worker in self._hub.workers.values() if worker.ready]
            if len(workers) > 1:
                connections = sum(worker.report.active for worker in workers)
                share = connections // len(workers) * 9 // 8 + _FAIR_SHARE_SLACK
                for worker in workers:
                    worker.send(messages.LimitConnections(share))

    def _config(self, number: int) -> messages.WorkerConfig:
        return messages.WorkerConfig(
            number=number,
            feeds=tuple(self._hub.channel_names),
            incarnation=self.incarnation,
            settings={
                name: value for name, value in settings.to_dict(self._settings).items() if name in WORKER_SETTINGS
            },
        )

    async def _keep(self, number: int) -> None:
        """One worker: a process, and its successors."""
        backoff_seconds = _BACKOFF_SECONDS_MIN
        while not self._is_draining():
            begun = _monotonic()
            try:
                code = await self._run_process(number)
            except shortages.ERRORS as error:  # no process, memory or descriptor for one
                self._hub.shortages.note(shortages.Lacking.WORKER, error, worker=number)
                code = None
            if self._is_draining():
                return
            self.restarts += 1
            lived_seconds = _monotonic() - begun
            if lived_seconds > _YOUNG_SECONDS:
                backoff_seconds = _BACKOFF_SECONDS_MIN
            if code is not None:
                _log.error(
                    "Worker ended, starting another", worker=number, code=code, lived_seconds=round(lived_seconds, 1)
                )
            await asyncio.sleep(backoff_seconds)
            backoff_seconds = min(_BACKOFF_SECONDS_MAX, backoff_seconds * 2)

    async def _run_process(self, number: int) -> int:
        """Runs a worker to its end; returns its exit code. Raises OSError or MemoryError if it cannot be started."""
        ours, theirs = link.pair()
        with ours:
            with theirs:
                process = await self._start_process(theirs)
            _log.info("Worker started", worker=number, pid=process.pid)
            ended = asyncio.create_task(process.wait(), name=f"worker {number} exit")
            try:
                if process.stdin is not None:
                    process.stdin.write(msgspec.json.encode(self._config(number)))
                    process.stdin.close()
                self._pids[number] = process.pid
                self._standstills[number] = Standstill(lambda: read_activity(process.pid))
                with self._attached(number, ours) as broken:
                    await self._watch(number, ended, broken, lambda: run_queue_seconds(process.pid))
            finally:
                self._pids.pop(number, None)
                self._standstills.pop(number, None)
                self._still.discard(number)
                if not ended.done():
                    with contextlib.suppress(ProcessLookupError):
                        process.kill()
                await ended
        return ended.result()

    async def _start_process(self, link_end: socket.socket) -> asyncio.subprocess.Process:
        numbers = self._listener.fileno(), link_end.fileno()
        with self._deferral.active():
            return await processes.start(
                sys.executable,
                "-m",
                "typha.worker",
                *map(str, numbers),
                stdin=asyncio.subprocess.PIPE,
                pass_fds=numbers,
                env=worker_environment(os.environ),
            )

    @contextlib.contextmanager
    def _attached(
        self, number: int, end: socket.socket, *, given_up: Callable[[], None] = lambda: None
    ) -> Iterator[list[Exception]]:
        """The hub talks to the worker for as long as this lasts, or until the link breaks.

        The list has what broke it. From then on the link is not watched any more: an end that is closed is readable and
        writable forever, and the worker's exit may take a while. `given_up` is called at that moment.
        """
        broken: list[Exception] = []
        loop = asyncio.get_running_loop()

        def watch_write(active: bool) -> None:
            if active and not broken:
                loop.add_writer(end.fileno(), worker.flush)
            else:
                loop.remove_writer(end.fileno())

        def note_broken(error: Exception) -> None:
            broken.append(error)
            if len(broken) == 1:
                loop.remove_reader(end.fileno())
                loop.remove_writer(end.fileno())
                given_up()

        worker = worker_link.WorkerLink(number, end, note_broken, watch_write)
        loop.add_reader(end.fileno(), self._hub.hear, worker)
        try:
            self._hub.add_worker(worker)
            if self._is_debugging:
                worker.send(messages.ControlLog(debug=True))
            if self._drain is not None:  # it was being started when the others were told
                worker.send(self._drain)
            yield broken
        finally:
            loop.remove_reader(end.fileno())
            self._hub.hear(worker)  # what it sent before its end
            self._bury(worker)
            loop.remove_writer(end.fileno())
            worker.link.close()

    async def _watch(
        self,
        number: int,
        ended: asyncio.Task[int],
        broken: list[Exception],
        waited_seconds: Callable[[], float] = lambda: 0.0,
    ) -> None:
        """Returns when the process has ended or must be ended. `waited_seconds` is for `Silence`."""
        worker = self._hub.workers[number]
        silence = Silence(waited_seconds)
        while not ended.done():
            looked_at = _monotonic()
            await asyncio.wait([ended], timeout=_CHECK_SECONDS)
            worker.flush()
            self._look_for_shortages(worker)
            if _monotonic() - looked_at > _STOPPED_SECONDS:
                worker.heard_at = _monotonic()  # it was the hub that stood still, and heard no worker
            silent_seconds = silence.seconds(worker.heard_at, _monotonic())
            if broken and not ended.done():
                await asyncio.wait([ended], timeout=_CHECK_SECONDS)  # its end breaks the link a moment before
                if not ended.done():
                    _log.error("Killing a worker whose link is broken", worker=number, error=str(broken[0]))
                return
            if silent_seconds > self.patience_seconds(worker):
                _log.error("Killing a silent worker", worker=number, silent_seconds=round(silent_seconds, 1))
                return
            if _monotonic() > self._drained_by:
                _log.error("Killing a worker that has not drained in time", worker=number)
                return
            if worker.blocked_seconds > _BLOCKED_PATIENCE * self.patience_seconds(worker):
                _log.error("Killing a worker that does not take what it is sent", worker=number)
                return

    def patience_seconds(self, worker: worker_link.WorkerLink) -> float:
        """How long the worker may be silent. One that starts has no clients yet, and a new one starts no faster."""
        if worker.ready:
            return self._policy.worker_silence_seconds_max
        doubled = min(self._failed_starts.get(worker.number, 0), _STARTS_DOUBLED_MAX)
        return self._policy.worker_start_seconds_max * float(1 << doubled)

    def _look_for_shortages(self, worker: worker_link.WorkerLink) -> None:
        lacking = self._hub.shortages
        if worker.ready:
            lacking.over(shortages.Lacking.WORKER)
        if worker.link.shortage is not None:
            lacking.note(shortages.Lacking.LINK, worker.link.shortage, worker=worker.number)
        elif all(one.link.shortage is None for one in self._hub.workers.values()):
            lacking.over(shortages.Lacking.LINK)

    def _bury(self, worker: worker_link.WorkerLink) -> None:
        """Keeps a dead worker's totals; the connections that it last reported died with it."""
        self._hub.remove_worker(worker.number)
        self._failed_starts[worker.number] = 0 if worker.ready else self._failed_starts.get(worker.number, 0) + 1
        report = worker.report
        self._dead.add(report.counts)
        for feed, histograms in worker.histograms.items():
            for name, flat in histograms.items():
                self.dead_histograms.setdefault((name, feed), quantiles.Histogram()).add_totals(flat)
        self._dead_longest_turn_seconds = max(self._dead_longest_turn_seconds, report.longest_turn_seconds_ever)
        if report.active and not self._is_draining():
            died = DisconnectReason.WORKER_DIED
            self._dead.disconnects[died] = self._dead.disconnects.get(died, 0) + report.active

    async def _run_embedded(self) -> None:
        """The worker inside the hub's own loop: its defect ends the service, and so does a broken link."""
        ours, theirs = link.pair()

        def hang_up() -> None:
            ours.shutdown(socket.SHUT_RDWR)

        with ours, theirs, self._attached(0, ours, given_up=hang_up) as broken:
            try:
                await self._serve_embedded(self._config(0), self._listener, theirs)
            except link.LinkBroken as error:
                raise (broken[0] if broken else error) from error
