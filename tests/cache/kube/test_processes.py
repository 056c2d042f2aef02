"""A process whose start is cancelled does not survive."""

import asyncio
import os
import pathlib
import sys
from collections.abc import Callable
from typing import Any

import pytest
import uvloop

from cache.kube import processes
from tests.harness import scripted_server

COMMAND = (sys.executable, "-c", "import time; time.sleep(60)")


def children() -> set[str]:
    """Return the child processes that have not been waited for."""
    return set(pathlib.Path(f"/proc/self/task/{os.getpid()}/children").read_text().split())


@pytest.mark.parametrize("is_cancelled_again", [False, True])
@pytest.mark.parametrize("loop", [uvloop.new_event_loop, asyncio.new_event_loop])
def test_a_cancelled_start_leaves_no_process(
    loop: Callable[[], asyncio.AbstractEventLoop], is_cancelled_again: bool
) -> None:
    before = children()  # of other tests: a control plane runs as long as all of them

    async def start_and_cancel(turns: int) -> None:
        task = asyncio.create_task(processes.start(*COMMAND), name="starter")
        for _ in range(turns):
            await asyncio.sleep(0)
        task.cancel()
        while is_cancelled_again and not task.done():
            await asyncio.sleep(0)
            task.cancel()
        await asyncio.wait([task])
        if not task.cancelled():  # the start finished before: the process belongs to the caller
            process = task.result()
            process.kill()
            await process.wait()
        assert children() <= before

    for turns in range(8):
        with asyncio.Runner(loop_factory=loop) as runner:
            runner.run(start_and_cancel(turns))


def is_gone(process: int) -> bool:
    """Whether a process has ended; nobody need have waited for it."""
    try:
        return ") Z " in pathlib.Path(f"/proc/{process}/stat").read_text()
    except OSError:
        return True


async def test_a_cancelled_start_leaves_no_process_of_its_session(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A busy loop hears late that the process runs, which has started another one by then."""
    started = tmp_path / "started"
    create = asyncio.create_subprocess_exec

    async def create_late(*command: str, **options: Any) -> asyncio.subprocess.Process:
        process = await create(*command, **options)
        await scripted_server.eventually(started.exists)
        return process

    monkeypatch.setattr(asyncio, "create_subprocess_exec", create_late)
    script = f"sleep 600 & echo $! > {started}.new; mv {started}.new {started}; wait"
    task = asyncio.create_task(processes.start("sh", "-c", script, start_new_session=True), name="starter")
    await asyncio.sleep(0)
    task.cancel()
    await asyncio.wait([task])
    assert task.cancelled()
    other = int(started.read_text())
    await scripted_server.eventually(lambda: is_gone(other))


async def test_a_started_process_is_the_callers() -> None:
    process = await processes.start(sys.executable, "-c", "print(5)", stdout=asyncio.subprocess.PIPE)
    output, _ = await process.communicate()
    assert (output, process.returncode) == (b"5\n", 0)


async def test_a_command_that_does_not_exist() -> None:
    with pytest.raises(FileNotFoundError):
        await processes.start("/nowhere/command")
    task = asyncio.create_task(processes.start("/nowhere/command"), name="starter")
    await asyncio.sleep(0)
    task.cancel()
    await asyncio.wait([task])
    assert task.cancelled() or isinstance(task.exception(), FileNotFoundError)
