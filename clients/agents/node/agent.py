"""The agent's run: follows the feed, calculates, programs the kernel, verifies it.

Two tasks. One reads the feed and hands every change to the calculation at once. The other one brings what has come
together into the kernel, at most every `BATCH_SECONDS`, and verifies the kernel in between. So programming never delays
reading, and the server never has a slow consumer.
"""

import asyncio
import contextlib
import logging
import ssl
import time
from collections.abc import Sequence

import clients
from clients.agents.node import calculation, report
from clients.agents.node.dataplane import link_events, programmer

LOG = logging.getLogger("typha.node")

FEED = "felix"
NAME = "typha-node"

BATCH_SECONDS = 0.1
"""The kernel is programmed at most this often: a transaction costs milliseconds, however small it is."""

VERIFY_RULES_SECONDS = 1.0
"""Asking the kernel for the generation of its rules costs microseconds. Foreign changes are repaired within 3 s."""

VERIFY_ROUTES_SECONDS = 30.0
"""Routes and neighbours are read completely. Losses are repaired within 90 s, even if two attempts fail."""

RETRY_MAX_SECONDS = 30.0
"""Pause after repeated failures to program, which take CPU and fill the log."""

REFUSALS_PER_MINUTE = 20
"""Lines about values of the feed that do not decode. All of them are counted."""


class Agent:
    """The agent of one node."""

    def __init__(
        self,
        servers: str | Sequence[str],
        *,
        node: str,
        programmer: programmer.Programmer,
        status: report.StatusFile,
        tls: ssl.SSLContext | None = None,
        server_name: str | None = None,
    ) -> None:
        self._follower = clients.Follower(
            servers, feed=FEED, agent=NAME, node=node, tls=tls, server_name=server_name, reports_applied=True
        )
        self._calculation = calculation.Calculation(node)
        self._programmer = programmer
        self._status = status
        self._wake = asyncio.Event()
        self._changed = False
        """Whether the calculation has something new."""
        self._version_taken: int | None = None
        """The version of the feed's map that the data plane has and the kernel lacks; None: there is none."""
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
        async with contextlib.aclosing(self._follower.events()) as events:
            async for event in events:
                match event:
                    case clients.Batch():
                        for update in event.updates:
                            self._refused(self._calculation.update(update.key, update.value))
                        self.facts.updates += len(event.updates)
                        self._changed = True
                    case clients.StatusChanged():
                        self.facts.in_sync = event.status is clients.SyncStatus.IN_SYNC
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
            if self._programmer.state.settings.ready:
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
        """Takes what has been calculated, if the feed's map is one that the server had."""
        if not self._changed or not self.facts.in_sync:
            return
        self._changed = False
        self._version_taken = self._follower.version
        update, refusals = self._calculation.take()
        for refusal in refusals:
            self._refused(refusal)
        if update:
            self._programmer.update(update)

    def _applied(self, version: int) -> None:
        """The kernel has everything that this version of the map asks for."""
        self._version_taken = None
        self._follower.applied(version)
        self.facts.programmed_at = time.time()
        unsupported = report.unsupported(self._programmer.state)
        for text in sorted(unsupported - self.facts.unsupported):
            LOG.warning("Not supported: %s", text)
        self.facts.unsupported = unsupported

    def _write_status(self) -> None:
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
