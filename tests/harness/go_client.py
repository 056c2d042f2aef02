"""The Go client as a process, and its output so far."""

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
    """Run a process, and kill it at the end of the block."""
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
    """The state of a Go client, from its output."""

    def __init__(self, process: asyncio.subprocess.Process, syncer: str) -> None:
        self.process = process
        self.syncer = syncer
        self.entries: dict[str, bytes] = {}
        self.versions: dict[str, tuple[str, str]] = {}
        """(revision, V3ResourceVersion) by key."""
        self.seen: list[str] = []
        """Names of all messages, and "error" at the end if the client has ended by itself."""
        self.statuses: list[int] = []

    async def follow(self) -> None:
        """Process the output until it ends."""
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
    """Run a Go client until the end of the block."""
    async with running(gobpeer, "client", address, syncer, *flags) as process:
        client = GoClient(process, syncer)
        task = asyncio.create_task(client.follow(), name="go client's output")
        try:
            yield client
        finally:
            with contextlib.suppress(ProcessLookupError):  # the client may have ended by itself
                process.kill()
            await task
