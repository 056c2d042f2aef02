"""The Go client as a process, its output so far, and agents that start it again and again."""

import asyncio
import base64
import contextlib
import json
import os
from collections.abc import AsyncIterator
from typing import Any

from tests.harness.repository import ROOT

TIMEOUT_SECONDS = 500.0
RECONNECT_SECONDS = 0.2
IN_SYNC = 2


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
        self.deleted: list[str] = []
        """Every key that an update has deleted."""
        self.keys_in_sync: list[frozenset[str]] = []
        """The keys at each message that says in-sync."""

    async def follow(self) -> None:
        """Process the output until it ends."""
        assert self.process.stdout is not None
        async for data in self.process.stdout:
            if not data.endswith(b"\n"):
                return  # it was killed in the middle of a line
            line = json.loads(data)
            self.seen.append(line.get("msg", "error"))
            if self.seen[-1] == "SyncStatus":
                self.statuses.append(line["status"])
                if line["status"] == IN_SYNC:
                    self.keys_in_sync.append(frozenset(self.entries))
            for update in line.get("updates") or []:
                if update["value"] is None:
                    self.deleted.append(update["key"])
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


class Agent:
    """An agent like Felix: it ends with its connection, and starts again without any state."""

    def __init__(self, syncer: str, *flags: str, release: str = "") -> None:
        self.syncer = syncer
        self.release = release
        """Such as v3.31.7; empty for the newest."""
        self.flags = (*flags, f"-release={release}") if release else flags
        self.clients: list[GoClient] = []
        """One for each connection, in order."""

    async def live(self, gobpeer: str, address: str) -> None:
        """Run the agent until the task is cancelled."""
        while True:
            async with following(gobpeer, address, self.syncer, *self.flags) as client:
                self.clients.append(client)
                await client.process.wait()
            await asyncio.sleep(RECONNECT_SECONDS)

    @property
    def map(self) -> dict[str, tuple[str | None, str, str]] | None:
        """(value, revision, V3ResourceVersion) by key while the agent is in sync, else None."""
        client = self.clients[-1] if self.clients else None
        if client is None or client.statuses[-1:] != [IN_SYNC] or client.seen[-1:] == ["error"]:
            return None
        return {key: (value.decode(), *client.versions[key]) for key, value in client.entries.items()}


@contextlib.asynccontextmanager
async def living(gobpeer: str, address: str, *agents: Agent) -> AsyncIterator[None]:
    """Run agents until the end of the block."""
    tasks = [
        asyncio.create_task(agent.live(gobpeer, address), name=f"agent {agent.syncer} {agent.release}")
        for agent in agents
    ]
    try:
        yield
    finally:
        for task in tasks:
            task.cancel()
        results = await asyncio.gather(*tasks, return_exceptions=True)
    assert all(isinstance(result, asyncio.CancelledError) for result in results), results
