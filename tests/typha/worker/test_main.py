"""A worker process alone, and the ways in which it ends."""

import asyncio
import contextlib
import signal
import socket
import subprocess
import sys
from collections.abc import AsyncIterator

import msgspec
import pytest

from tests.harness import worker_stand
from typha import settings
from typha.ipc import link, messages
from typha.worker import __main__

pytestmark = pytest.mark.slow


class Running:
    """A worker, and the hub's end of its link."""

    def __init__(self, process: asyncio.subprocess.Process, hub_link: link.Link[messages.ToHub], port: int) -> None:
        self.process = process
        self.link = hub_link
        self.port = port
        self.heard: list[messages.ToHub] = []

    def hears(self, kind: type[messages.ToHub]) -> bool:
        """Whether a message of this type has arrived."""
        self.heard += [message for message, _ in self.link.receive()]
        return any(isinstance(message, kind) for message in self.heard)

    async def ends(self) -> int:
        """Waits for its end; returns the exit code."""
        return await asyncio.wait_for(self.process.wait(), 180)


@pytest.fixture
async def running() -> AsyncIterator[Running]:
    """A worker that is ready."""
    configured = settings.Settings(log_file_path="", log_severity_sys="")
    config = messages.WorkerConfig(
        number=4, feeds=("web",), incarnation="00" * 16, settings=settings.to_dict(configured)
    )
    with socket.create_server(("127.0.0.1", 0)) as listener:
        ours, theirs = link.pair()
        with theirs:
            descriptors = (listener.fileno(), theirs.fileno())
            process = await asyncio.create_subprocess_exec(
                *(sys.executable, "-m", "typha.worker", *map(str, descriptors)),
                stdin=asyncio.subprocess.PIPE,
                stderr=asyncio.subprocess.DEVNULL,
                pass_fds=descriptors,
            )
        one = Running(process, link.Link(ours, messages.FOR_HUB), listener.getsockname()[1])
    assert process.stdin is not None
    process.stdin.write(msgspec.json.encode(config))
    process.stdin.close()
    try:
        await worker_stand.eventually(lambda: one.hears(messages.Ready))
        yield one
    finally:
        one.link.close()
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        await process.wait()


def test_without_a_configuration_a_worker_ends_without_a_word() -> None:
    ours, theirs = link.pair()
    with socket.create_server(("127.0.0.1", 0)) as listener, ours, theirs:
        descriptors = (listener.fileno(), theirs.fileno())
        ended = subprocess.run(
            [sys.executable, "-m", "typha.worker", *map(str, descriptors)],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            pass_fds=descriptors,
            check=False,
        )
    assert (ended.returncode, ended.stdout + ended.stderr) == (__main__.EXIT_HUB_GONE, b"")


async def test_without_its_hub_a_worker_ends(running: Running) -> None:
    running.link.close()
    assert await running.ends() == __main__.EXIT_HUB_GONE


async def test_a_worker_that_gets_an_unknown_message_ends(running: Running) -> None:
    running.link.send(["nonsense"])
    assert await running.ends() == __main__.EXIT_DEFECT


async def test_a_drained_worker_ends_well_and_takes_no_connections(running: Running) -> None:
    with socket.create_connection(("127.0.0.1", running.port)) as waiting:
        running.link.send(messages.Drain(1.0, 0.1))
        assert await running.ends() == 0
        with contextlib.suppress(ConnectionResetError):
            assert waiting.recv(1) == b""
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", running.port))


async def test_signals_are_left_to_the_hub(running: Running) -> None:
    for number in (signal.SIGTERM, signal.SIGINT):
        running.process.send_signal(number)
    running.heard.clear()
    await worker_stand.eventually(lambda: running.hears(messages.Report))
    assert running.process.returncode is None
