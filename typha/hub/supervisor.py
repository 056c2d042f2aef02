"""Starting, watching and replacing workers.

A worker that dies is replaced, after a back-off if it dies young; one that says nothing for ten seconds is killed
first. The listening socket is the hub's, so connections that nobody has accepted wait for the replacement.
"""

import asyncio
import collections
import contextlib
import os
import secrets
import socket
import sys
from collections.abc import Callable, Iterator
from typing import Any

import msgspec
import structlog

from cache.kube import processes
from protocol.reasons import DisconnectReason
from typha import clock, settings
from typha.hub import hub, worker_link
from typha.ipc.link import Link, LinkBroken, pair
from typha.worker import policy, server, tls

_log = structlog.get_logger("typha.workers")
_monotonic = clock.monotonic

SILENCE_SECONDS_MAX = 10.0
"""A worker reports each second; one that has not for so long is stuck, and its clients with it."""
_CHECK_SECONDS = 1.0
_STOPPED_SECONDS = 3.0
_YOUNG_SECONDS = 10.0
_BACKOFF_SECONDS_MIN = 0.1
_BACKOFF_SECONDS_MAX = 5.0
_FAIR_SHARE_SLACK = 32
"""Connections that a worker may have beyond its fair share: a storm must not wait for numbers to go round."""


class WorkerTotals:
    """Counters of workers that have died, so that the sum never goes back."""

    def __init__(self) -> None:
        self.counters: collections.Counter[str] = collections.Counter()
        self.disconnects: collections.Counter[str] = collections.Counter()
        self.feeds: dict[str, collections.Counter[str]] = {}
        self.pause_seconds_worst = 0.0

    def add(self, report: dict[str, Any]) -> None:
        """Adds a report's counters."""
        for name in ("accepted", "pings_sent", "pongs_received", "catch_ups", "accept_failures", "tls_reload_failures"):
            self.counters[name] += int(report.get(name, 0))
        self.disconnects.update(report.get("disconnects", {}))
        self.pause_seconds_worst = max(self.pause_seconds_worst, report.get("pause_seconds_worst", 0.0))
        for feed, counters in report.get("feeds", {}).items():
            self.feeds.setdefault(feed, collections.Counter()).update(counters)


class Supervisor:
    """All workers of a hub, by number."""

    def __init__(self, the_hub: hub.Hub, configured: settings.Settings, listener: socket.socket) -> None:
        self._hub = the_hub
        self._settings = configured
        self._listener = listener
        self._incarnation = secrets.token_hex(16)
        self._drain: tuple[float, float] | None = None
        self.restarts = 0
        self.dead = WorkerTotals()
        self.wanted = configured.workers if configured.workers >= 0 else max(1, (os.cpu_count() or 1) - 1)

    def __repr__(self) -> str:
        return f"<Supervisor wanted={self.wanted} alive={len(self._hub.workers)} restarts={self.restarts}>"

    def totals(self) -> WorkerTotals:
        """The counters of all workers there are and were."""
        totals = WorkerTotals()
        totals.counters.update(self.dead.counters)
        totals.disconnects.update(self.dead.disconnects)
        totals.pause_seconds_worst = self.dead.pause_seconds_worst
        for feed, counters in self.dead.feeds.items():
            totals.feeds[feed] = collections.Counter(counters)
        for worker in self._hub.workers.values():
            totals.add(worker.report)
        return totals

    @property
    def all_ready(self) -> bool:
        """Whether as many workers as wanted have said that they serve."""
        ready = sum(worker.ready for worker in self._hub.workers.values())
        return ready >= max(1, self.wanted)

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
        """Tells all workers to take leave of their clients within `seconds`, and ends them."""
        self._drain = seconds, interval_seconds_max
        for worker in self._hub.workers.values():
            worker.tell(["drain", *self._drain])
            worker.flush()

    async def _share_out(self) -> None:
        """Tells each worker how many connections are its share, so that a storm spreads evenly."""
        while True:
            await asyncio.sleep(_CHECK_SECONDS / 4)
            workers = [worker for worker in self._hub.workers.values() if worker.ready]
            if len(workers) > 1:
                share = sum(worker.active for worker in workers) // len(workers) * 9 // 8 + _FAIR_SHARE_SLACK
                for worker in workers:
                    worker.tell(["share", share])

    def _config(self, number: int) -> policy.WorkerConfig:
        return policy.WorkerConfig(
            number=number,
            feeds=tuple(self._hub.names),
            incarnation=self._incarnation,
            settings=settings.to_dict(self._settings),
            client_tls=tls.from_settings(self._settings, os.environ),
        )

    async def _keep(self, number: int) -> None:
        """One worker's place: a process, and its successors."""
        backoff_seconds = _BACKOFF_SECONDS_MIN
        while not self._is_draining():
            begun = _monotonic()
            try:
                code = await self._run_process(number)
            except OSError as error:  # no process, memory or descriptor for one
                _log.error("Cannot start a worker", worker=number, error=str(error))
                code = -1
            if self._is_draining():
                return
            self.restarts += 1
            lived_seconds = _monotonic() - begun
            if lived_seconds > _YOUNG_SECONDS:
                backoff_seconds = _BACKOFF_SECONDS_MIN
            _log.error(
                "Worker ended, starting another", worker=number, code=code, lived_seconds=round(lived_seconds, 1)
            )
            await asyncio.sleep(backoff_seconds)
            backoff_seconds = min(_BACKOFF_SECONDS_MAX, backoff_seconds * 2)

    async def _run_process(self, number: int) -> int:
        """Runs a worker to its end; its exit code. Raises OSError if none can be started."""
        ours, theirs = pair()
        with ours:
            with theirs:
                process = await processes.start(
                    sys.executable,
                    "-m",
                    "typha.worker",
                    str(self._listener.fileno()),
                    str(theirs.fileno()),
                    stdin=asyncio.subprocess.PIPE,
                    pass_fds=(self._listener.fileno(), theirs.fileno()),
                )
            _log.info("Worker started", worker=number, pid=process.pid)
            ended = asyncio.create_task(process.wait(), name=f"worker {number} exit")
            try:
                if process.stdin is not None:
                    process.stdin.write(msgspec.json.encode(self._config(number)))
                    process.stdin.close()
                with self._attached(number, ours) as broken:
                    await self._watch(number, ended, broken)
            finally:
                if not ended.done():
                    with contextlib.suppress(ProcessLookupError):
                        process.kill()
                await ended
        return ended.result()

    @contextlib.contextmanager
    def _attached(
        self, number: int, end: socket.socket, *, given_up: Callable[[], None] = lambda: None
    ) -> Iterator[list[Exception]]:
        """The hub talks to the worker for as long as this lasts, or until the link breaks.

        What broke it is in the list. From then on the link is not looked at any more: an end that is closed is readable
        and writable for ever, and the worker's exit may take a while. `given_up` is called at that moment.
        """
        broken: list[Exception] = []
        link = Link(end)
        loop = asyncio.get_running_loop()

        def watch_write(active: bool) -> None:
            if active and not broken:
                loop.add_writer(link.fileno(), handle.flush)
            else:
                loop.remove_writer(link.fileno())

        def note_broken(error: Exception) -> None:
            broken.append(error)
            if len(broken) == 1:
                loop.remove_reader(link.fileno())
                loop.remove_writer(link.fileno())
                given_up()

        handle = worker_link.WorkerLink(number, link, self._hub, note_broken, watch_write)
        loop.add_reader(link.fileno(), handle.hear)
        try:
            self._hub.add_worker(handle)
            if self._drain is not None:  # it was being started when the others were told
                handle.tell(["drain", *self._drain])
            yield broken
        finally:
            loop.remove_reader(link.fileno())
            handle.hear()  # what it has still said before its end
            self._bury(number)
            loop.remove_writer(link.fileno())
            link.close()

    async def _watch(self, number: int, ended: asyncio.Task[int], broken: list[Exception]) -> None:
        """Returns when the process has ended or must be ended."""
        handle = self._hub.workers[number]
        while not ended.done():
            looked_at = _monotonic()
            await asyncio.wait([ended], timeout=_CHECK_SECONDS)
            handle.flush()
            if _monotonic() - looked_at > _STOPPED_SECONDS:
                handle.heard_at = _monotonic()  # it was the hub that stood still: nobody could be heard
            silent_seconds = _monotonic() - handle.heard_at
            if broken and not ended.done():
                await asyncio.wait([ended], timeout=_CHECK_SECONDS)  # its end breaks the link a moment before
                if not ended.done():
                    _log.error("Killing a worker whose link is broken", worker=number, error=str(broken[0]))
                return
            if silent_seconds > SILENCE_SECONDS_MAX:
                _log.error("Killing a silent worker", worker=number, silent_seconds=round(silent_seconds, 1))
                return

    def _bury(self, number: int) -> None:
        """Keeps a dead worker's counts; the connections it last reported died with it."""
        handle = self._hub.workers.get(number)
        if handle is None:
            return
        self._hub.remove_worker(number)
        self.dead.add(handle.report)
        if handle.active and not self._is_draining():
            self.dead.disconnects[DisconnectReason.WORKER_DIED.value] += handle.active

    async def _run_embedded(self) -> None:
        """The fan-out inside the hub's own loop: a defect of it ends the service, and so does a broken link."""
        ours, theirs = pair()

        def hang_up() -> None:
            ours.shutdown(socket.SHUT_RDWR)

        with ours, theirs, self._attached(0, ours, given_up=hang_up) as broken:
            try:
                await server.Server(self._config(0), self._listener, Link(theirs)).run()
            except LinkBroken as error:
                raise (broken[0] if broken else error) from error
