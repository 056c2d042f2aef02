"""The agent's run: follows the feed, calculates, programs the kernel, verifies it.

Two tasks. One reads the feed and hands every change to the calculation at once. The other one brings what has come
together into the kernel, at most every `BATCH_SECONDS`, and verifies the kernel in between. So programming never delays
reading, and the server never has a slow consumer.

With a state file the agent begins with the map that the last run had, and asks the server only for what has changed. If
no server is in reach, it acts on that map, with care: see `_take`.
"""

import asyncio
import contextlib
import functools
import logging
import pathlib
import time
from collections.abc import Callable

import clients
from clients.agents import servers as service
from clients.agents.node import calculation, feed, report
from clients.agents.node.dataplane import link_events, programmer

LOG = logging.getLogger("typha.node")

FEED = "felix"
NAME = "typha-node"
SUBSCRIPTION = clients.Subscription(prefixes=feed.PREFIXES)

BATCH_SECONDS = 0.1
"""The kernel is programmed at most this often: a transaction costs milliseconds, however small it is."""

VERIFY_RULES_SECONDS = 1.0
"""Asking the kernel for the generation of its rules costs microseconds. Foreign changes are repaired within 3 s."""

VERIFY_ROUTES_SECONDS = 30.0
"""Routes and neighbours are read completely. Losses are repaired within 90 s, even if two attempts fail."""

RETRY_MAX_SECONDS = 30.0
"""Pause after repeated failures to program, which take CPU and fill the log."""

SAVE_INTERVAL_SECONDS = 300.0
"""In a large, busy cluster the state file has 15 MB, and changes all the time: 4 GB a day for a node's disk. A run that
ends in order writes it once more."""

RESTORED_AFTER_SECONDS = 5.0
"""A server's map is newer than the file's. Only if none has come within this time, the agent acts on the file's."""

REFUSALS_PER_MINUTE = 20
"""Lines about values of the feed that do not decode. All of them are counted."""


class Agent:
    """The agent of one node."""

    def __init__(
        self,
        servers: service.Servers,
        *,
        node: str,
        programmer: programmer.Programmer,
        status: report.StatusFile,
        state_file: pathlib.Path | None = None,
    ) -> None:
        make: Callable[..., clients.Follower | clients.Mirror] = clients.Follower
        if state_file is not None:
            make = functools.partial(
                clients.Mirror,
                on_event=self._received,
                state_file=state_file,
                save_interval_seconds=SAVE_INTERVAL_SECONDS,
            )
        self._source = make(
            servers.addresses,
            feed=FEED,
            agent=NAME,
            node=node,
            tls=servers.tls,
            server_name=servers.server_name,
            subscription=SUBSCRIPTION,
            reports_applied=True,
        )
        """Only a mirror keeps the values, which take memory and which nothing but the file needs."""
        self._calculation = calculation.Calculation(node)
        self._programmer = programmer
        self._status = status
        self._wake = asyncio.Event()
        self._changed = False
        """Whether the calculation has something new."""
        self._may_take_restored_at: float | None = None
        """When the agent may act on the map of its file; None: it has none, or a server has sent data since."""
        self._keeps_kernel = False
        """Whether the program of an earlier run stays in force: the file's map may be older."""
        self._version_taken: int | None = None
        """The version of the feed's map that the data plane has and the kernel lacks; None: there is none."""
        self._state_file_error: Exception | None = None
        """The last one that was logged."""
        self._log_limit = report.LineLimit(REFUSALS_PER_MINUTE)
        self.facts = report.Facts(node)

    async def run(self) -> None:
        """Runs until it is cancelled. What is programmed stays."""
        await self._programmer.start()
        events = link_events.LinkEvents(self._link_changed)
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(self._read(), name="feed")
                group.create_task(self._program(), name="program")
        finally:
            events.close()

    async def _read(self) -> None:
        if isinstance(self._source, clients.Follower):
            async with contextlib.aclosing(self._source.events()) as events:
                async for event in events:
                    self._received(event)
            return
        async with self._source as mirror:
            if mirror.restored:
                for key, entry in mirror.items():
                    self._refused(self._calculation.update(key, entry.value))
                self._changed = self.facts.stale = True
                self._may_take_restored_at = time.monotonic() + RESTORED_AFTER_SECONDS
            await mirror.wait_ended()

    def _received(self, event: clients.Event) -> None:
        match event:
            case clients.Batch():
                for update in event.updates:
                    self._refused(self._calculation.update(update.key, update.value))
                self.facts.updates += len(event.updates)
                self._changed = True
                self._may_take_restored_at = None
            case clients.StatusChanged():
                self.facts.in_sync = event.status is clients.SyncStatus.IN_SYNC
                if self.facts.in_sync:
                    self._may_take_restored_at = None
                    self.facts.stale = self._keeps_kernel = False
            case clients.Connected():
                self.facts.server = event.address
                LOG.info("Connected to %s", event.address)
            case clients.Disconnected():
                self.facts.server = ""
                self.facts.disconnects += 1
                LOG.warning("%s. Next attempt in %.1f s.", event.error, event.retry_in_seconds)
        self._wake.set()

    async def _program(self) -> None:
        rules_verified = routes_verified = time.monotonic()
        retry_seconds = 0.0
        while True:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(VERIFY_RULES_SECONDS):
                    await self._wake.wait()
            self._wake.clear()
            started = time.monotonic()
            self._take()
            complete = True
            if self._keeps_kernel:
                await self._programmer.guard_rules()
            elif self._programmer.state.settings.ready:
                complete = await self._programmer.program()
                if complete and started - rules_verified >= VERIFY_RULES_SECONDS:
                    rules_verified = started
                    await self._programmer.verify_rules()
                if started - routes_verified >= VERIFY_ROUTES_SECONDS:
                    routes_verified = started
                    await self._programmer.program_routes()
                if complete and self._version_taken is not None:
                    self._applied(self._version_taken)
            self._write_status()
            retry_seconds = 0.0 if complete else min(max(2 * retry_seconds, VERIFY_RULES_SECONDS), RETRY_MAX_SECONDS)
            await asyncio.sleep(max(retry_seconds, BATCH_SECONDS - (time.monotonic() - started)))

    def _take(self) -> None:
        """Takes what has been calculated, if the feed's map is one that the server had.

        The map of the file may be minutes old. What an earlier run has programmed may be newer, and stricter. So where
        there is such a program it stays as it is until a server is in reach. Where there is none, as after a reboot,
        all workloads are cut off, and the file's map takes effect. The status in-sync ends either.
        """
        if not self._changed:
            return
        if not self.facts.in_sync:
            if self._may_take_restored_at is None or time.monotonic() < self._may_take_restored_at:
                return
            self._may_take_restored_at = None
            self._keeps_kernel = self._programmer.was_programmed
            LOG.warning(
                "No server is in reach. %s until one is.",
                "What is programmed stays" if self._keeps_kernel else "The state file's content is in force",
            )
        self._changed = False
        self._version_taken = self._source.version
        update, refusals = self._calculation.take()
        for refusal in refusals:
            self._refused(refusal)
        if update:
            self._programmer.update(update)

    def _applied(self, version: int) -> None:
        """The kernel has everything that this version of the map asks for."""
        self._version_taken = None
        self._source.applied(version)
        self.facts.programmed_at = time.time()
        unsupported = report.unsupported(self._programmer.state)
        for text in sorted(unsupported - self.facts.unsupported):
            LOG.warning("Not supported: %s", text)
        self.facts.unsupported = unsupported

    def _write_status(self) -> None:
        error = self._source.state_file_error if isinstance(self._source, clients.Mirror) else None
        if error is not self._state_file_error:
            self._state_file_error = error
            if error is not None:
                self._programmer.counters.failed("state file")
                LOG.warning("The state file cannot be used: %s", error)
        try:
            self._status.write(self.facts, self._programmer)
        except OSError as error:
            self._programmer.counters.failed("status")
            if self._log_limit.allows():
                LOG.warning("The status file cannot be written: %s", error)

    def _link_changed(self, name: str | None) -> None:
        if self._programmer.link_changed(name):
            self._wake.set()

    def _refused(self, reason: str | None) -> None:
        if reason is not None:
            self.facts.refused += 1
            if self._log_limit.allows():
                LOG.warning("Refused %s", reason)
