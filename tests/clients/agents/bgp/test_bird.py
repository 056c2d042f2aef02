"""BIRD as a child process, in a network namespace of its own."""

import asyncio
import os
import signal
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from clients.agents.bgp import bird
from clients.agents.bgp.bird import BadConfiguration, Bird
from loadtest.crash_course.namespaces import Namespaces

pytestmark = [pytest.mark.namespaces, pytest.mark.slow]

CONFIGURATION = "router id 10.0.0.1; protocol device { }\n"
PATIENCE_SECONDS = 180.0


@pytest.fixture(scope="module")
def spaces() -> Iterator[Namespaces]:
    with Namespaces("cn-bird") as spaces:
        spaces.add("one")
        yield spaces


@pytest.fixture
async def running(spaces: Namespaces, tmp_path: Path) -> AsyncIterator[Bird]:
    """A BIRD that is supervised; it starts with its first configuration."""
    program = tmp_path / "in-namespace"
    program.write_text(f'#!/bin/sh\nexec nsenter --net={spaces.path("one")} bird "$@"\n')
    program.chmod(0o755)
    process = Bird(tmp_path, program=str(program))
    task = asyncio.create_task(process.run(), name="supervision")
    yield process
    task.cancel()
    await asyncio.wait([task])
    assert not (tmp_path / "bird.pid").exists()


async def pid(process: Bird, *, other_than: int = 0) -> int:
    """The identifier of BIRD's process, once it answers."""
    async with asyncio.timeout(PATIENCE_SECONDS):
        while True:
            try:
                number = int((process.folder / "bird.pid").read_text())
            except (OSError, ValueError):
                number = 0
            if number not in (0, other_than) and process.socket.exists():
                return number
            await asyncio.sleep(0.02)


async def in_use(process: Bird) -> None:
    """Waits until BIRD uses its configuration."""
    async with asyncio.timeout(PATIENCE_SECONDS):
        while True:
            if await process.use():
                return
            await asyncio.sleep(0.02)


async def test_a_configuration_is_used_once_and_only_if_it_is_valid(running: Bird) -> None:
    assert await running.apply(CONFIGURATION)
    assert not await running.apply(CONFIGURATION)
    number = await pid(running)
    with pytest.raises(BadConfiguration, match="syntax error"):
        await running.apply("protocol nonsense;\n")
    assert (running.folder / "bird.conf").read_text() == CONFIGURATION
    assert await running.apply(CONFIGURATION + "protocol static later { ipv4; }\n")
    assert await pid(running) == number
    code, output = await running._run("birdc", "-s", "bird.ctl", "show", "protocols")
    assert code == 0
    assert "later" in output
    assert (running.applied, running.rejected, running.restarts) == (2, 1, 0)


async def test_a_configuration_is_in_use_when_bird_says_so(running: Bird, monkeypatch: pytest.MonkeyPatch) -> None:
    assert not await running.use()  # there is none yet
    await running.apply(CONFIGURATION)
    first = await pid(running)
    await in_use(running)
    monkeypatch.setattr(running, "_control", "false")
    assert await running.use()  # it is known
    await running.apply(CONFIGURATION + "protocol static later { ipv4; }\n")
    assert not await running.use()
    monkeypatch.setattr(running, "_control", "birdc")
    assert await running.use()
    _, output = await running._run("birdc", "-s", "bird.ctl", "show", "protocols")
    assert "later" in output
    os.kill(first, signal.SIGKILL)
    await pid(running, other_than=first)
    await in_use(running)


async def test_a_bird_that_ends_is_started_again(running: Bird, monkeypatch: pytest.MonkeyPatch) -> None:
    await running.apply(CONFIGURATION)
    first = await pid(running)
    os.kill(first, signal.SIGKILL)
    second = await pid(running, other_than=first)
    assert running.restarts == 1
    assert second != first


async def test_the_bird_of_a_killed_agent_is_ended(spaces: Namespaces, tmp_path: Path) -> None:
    (tmp_path / "bird.conf").write_text(CONFIGURATION)
    with open(tmp_path / "log", "wb") as output:
        command = ["-f", "-c", "bird.conf", "-s", "bird.ctl", "-P", "bird.pid"]
        leftover = spaces.start("one", "sh", "-c", f"cd {tmp_path} && exec bird {' '.join(command)}", output=output)
    number = await pid(Bird(tmp_path))
    assert number == leftover.pid
    reaped = asyncio.create_task(asyncio.to_thread(leftover.wait))  # else it would stay a zombie
    await asyncio.to_thread(bird._end_leftover, tmp_path)
    assert await reaped == -signal.SIGKILL
