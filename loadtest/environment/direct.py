"""Agents that list and watch the API server for themselves, in one process: the Go program in tools/direct."""

import asyncio
import json
from collections.abc import Callable
from pathlib import Path
from typing import Final

import msgspec

from cache.feeds.calico import syncers
from loadtest import WRITTEN_AT
from loadtest.environment import child, control_plane
from loadtest.swarm import histogram

_REPORT_BYTES_MAX: Final = 1 << 20
_BUILT_IN_GROUPS: Final = frozenset({"", "discovery.k8s.io", "networking.k8s.io"})
"""Their kinds are read in protobuf; custom resources have JSON alone."""
_ABSENT_GROUP: Final = "kubevirt.io"
"""Felix watches its kind only where it is installed."""


class DirectTotals(msgspec.Struct, frozen=True):
    """What all agents have seen since the start."""

    watching: int = 0
    """Agents that watch all kinds now."""
    watches: int = 0
    lists: int = 0
    events: int = 0
    """Without bookmarks."""
    refused: int = 0
    """Answers with 429."""
    ended: int = 0
    """Watches that ended."""
    failures: int = 0
    last_error: str = ""
    latency: list[tuple[int, int]] = msgspec.field(default_factory=list)
    """From write to read: buckets of `loadtest.swarm.histogram`, with counts."""


_decode = msgspec.json.Decoder(DirectTotals).decode


def kinds() -> list[syncers.Source]:
    """The kinds that Felix watches without Typha, in a cluster of Calico's newest release."""
    [felix] = [spec for spec in syncers.specs(syncers.Group.V3) if spec.name == syncers.FELIX]
    return [source for source in felix.sources if not source.is_older and source.type.group != _ABSENT_GROUP]


class DirectAgents(child.Child):
    """`agents` agents, each with a connection of its own."""

    log: Path

    def __init__(self, folder: Path, plane: control_plane.ControlPlane, *, agents: int) -> None:
        super().__init__("direct agents", folder / "direct.log")
        self._plan = {
            "server": plane.url,
            "authority": str(plane.certificate_authority),
            "token": control_plane.ADMIN_TOKEN,
            "agents": agents,
            "kinds": [
                {"path": source.type.list_path, "protobuf": source.type.group in _BUILT_IN_GROUPS} for source in kinds()
            ],
            "written_at_key": WRITTEN_AT,
        }
        self.agents = agents
        self.totals = DirectTotals()
        self._reading: asyncio.Task[None] | None = None
        self._changed = asyncio.Event()

    async def start(self) -> None:
        """Start all agents at once. Raises ProcessError."""
        program = await child.build_go_program("direct")
        pipe = asyncio.subprocess.PIPE
        await self._spawn([program], stdin=pipe, stdout=pipe, limit=_REPORT_BYTES_MAX)
        await self.write(json.dumps(self._plan).encode() + b"\n")
        self._reading = asyncio.create_task(self._read(), name="reports of direct agents")

    async def stop(self) -> None:
        """End it."""
        await super().stop()
        if self._reading is not None:
            await asyncio.wait([self._reading])

    async def wait_for(self, condition: Callable[[DirectTotals], bool], *, timeout_seconds: float) -> None:
        """Wait for a report that fulfils a condition. Raises ProcessError, TimeoutError."""
        async with asyncio.timeout(timeout_seconds):
            while not condition(self.totals):
                self.check()
                self._changed.clear()
                await self._changed.wait()

    async def wait_watching(self, *, timeout_seconds: float) -> None:
        """Wait until every agent watches all kinds. Raises ProcessError, TimeoutError."""
        await self.wait_for(lambda totals: totals.watching == self.agents, timeout_seconds=timeout_seconds)

    @property
    def latency(self) -> histogram.Histogram:
        """From write to read, since the start."""
        return histogram.Histogram(self.totals.latency)

    async def _read(self) -> None:
        assert self.process.stdout is not None
        reports = self.process.stdout
        while line := await reports.readline():
            self.totals = _decode(line)
            self._changed.set()
        self._changed.set()
