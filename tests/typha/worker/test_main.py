"""A worker process by itself: how it ends."""

import asyncio
import contextlib
import signal
import socket
import sys
from collections.abc import AsyncIterator

import msgspec
import pytest

from tests.harness import support
from typha import settings
from typha.ipc.link import Link, pair
from typha.worker import __main__, policy

pytestmark = pytest.mark.slow


class Running:
    """A worker, and its hub's end of the link."""

    def __init__(self, process: asyncio.subprocess.Process, link: Link, port: int) -> None:
        self.process = process
        self.link = link
        self.port = port
        self.heard: list[list[object]] = []

    def hears(self, kind: str) -> bool:
        """Whether it has said something of the kind."""
        self.heard += [message for message, _ in self.link.receive()]
        return any(message[0] == kind for message in self.heard)

    async def ends(self) -> int:
        """Its exit code."""
        return await asyncio.wait_for(self.process.wait(), 20)


@pytest.fixture
async def running() -> AsyncIterator[Running]:
    """A worker that has said that it is ready."""
    configured = settings.Settings(log_file_path="", log_severity_sys="")
    config = policy.WorkerConfig(number=4, feeds=("web",), incarnation="00" * 16, settings=settings.to_dict(configured))
    with socket.create_server(("127.0.0.1", 0)) as listener:
        ours, theirs = pair()
        with theirs:
            descriptors = (listener.fileno(), theirs.fileno())
            process = await asyncio.create_subprocess_exec(
                *(sys.executable, "-m", "typha.worker", *map(str, descriptors)),
                stdin=asyncio.subprocess.PIPE,
                stderr=asyncio.subprocess.DEVNULL,
                pass_fds=descriptors,
            )
        one = Running(process, Link(ours), listener.getsockname()[1])
    assert process.stdin is not None
    process.stdin.write(msgspec.json.encode(config))
    process.stdin.close()
    try:
        await support.eventually(lambda: one.hears("ready"))
        yield one
    finally:
        one.link.close()
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        await process.wait()


async def test_without_its_hub_a_worker_ends(running: Running) -> None:
    running.link.close()
    assert await running.ends() == __main__.EXIT_HUB_GONE


async def test_a_worker_that_is_told_nonsense_ends(running: Running) -> None:
    running.link.send(["nonsense"])
    assert await running.ends() == __main__.EXIT_DEFECT


async def test_a_drained_worker_ends_well_and_takes_no_connections(running: Running) -> None:
    with socket.create_connection(("127.0.0.1", running.port)) as waiting:
        running.link.send(["drain", 1.0, 0.1])
        assert await running.ends() == 0
        with contextlib.suppress(ConnectionResetError):
            assert waiting.recv(1) == b""
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", running.port))


async def test_signals_are_the_hubs_business(running: Running) -> None:
    for number in (signal.SIGTERM, signal.SIGINT):
        running.process.send_signal(number)
    running.heard.clear()
    await support.eventually(lambda: running.hears("stats"))
    assert running.process.returncode is None
