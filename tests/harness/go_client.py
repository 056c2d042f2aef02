"""The client in Go as a process, and what it has printed so far."""

import asyncio
import base64
import contextlib
import json
import os
from collections.abc import AsyncIterator
from typing import Any

from tests.harness.repository import ROOT

TIMEOUT_SECONDS = 200.0


@contextlib.asynccontextmanager
async def running(*command: str) -> AsyncIterator[asyncio.subprocess.Process]:
    """A process, killed at the end of the block."""
    process = await asyncio.create_subprocess_exec(
        *command,
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        limit=1 << 24,
    )
    try:
        async with asyncio.timeout(TIMEOUT_SECONDS):
            yield process
    finally:
        if process.returncode is None:
            process.kill()
        await process.communicate()


async def read_line(process: asyncio.subprocess.Process) -> dict[str, Any]:
    """The next line of a process that prints JSON."""
    assert process.stdout is not None
    line: dict[str, Any] = json.loads(await process.stdout.readline())
    return line


class GoClient:
    """What a Go client prints, taken as it comes."""

    def __init__(self, process: asyncio.subprocess.Process, syncer: str) -> None:
        self.process = process
        self.syncer = syncer
        self.entries: dict[str, bytes] = {}
        self.versions: dict[str, tuple[str, str]] = {}
        """Of the same keys: revision and V3ResourceVersion."""
        self.seen: list[str] = []
        """Names of all messages; "error" last, if it ended by itself."""
        self.statuses: list[int] = []

    async def follow(self) -> None:
        """To the end of the output."""
        assert self.process.stdout is not None
        async for data in self.process.stdout:
            line = json.loads(data)
            self.seen.append(line.get("msg", "error"))
            if self.seen[-1] == "SyncStatus":
                self.statuses.append(line["status"])
            for update in line.get("updates") or []:
                if update["value"] is None:
                    self.entries.pop(update["key"], None)
                    self.versions.pop(update["key"], None)
                else:
                    self.entries[update["key"]] = base64.b64decode(update["value"])
                    self.versions[update["key"]] = update["revision"], update["v3ResourceVersion"]


@contextlib.asynccontextmanager
async def following(gobpeer: str, address: str, syncer: str, *flags: str) -> AsyncIterator[GoClient]:
    """A Go client that follows until the end of the block."""
    async with running(gobpeer, "client", address, syncer, *flags) as process:
        client = GoClient(process, syncer)
        task = asyncio.create_task(client.follow(), name="go client's output")
        try:
            yield client
        finally:
            with contextlib.suppress(ProcessLookupError):  # it may have ended by itself
                process.kill()
            await task
