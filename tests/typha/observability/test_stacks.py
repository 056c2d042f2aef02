"""Stacks as text: where tasks and threads stand, and no values."""

import asyncio
import threading

from typha.observability import stacks


async def test_tasks_and_threads_without_values() -> None:
    secret = "S3cretMark"
    done = threading.Event()

    def stand_in_a_thread(_argument: str) -> None:
        done.wait()

    async def stand_in_a_task(_argument: str) -> None:
        await asyncio.Event().wait()

    thread = threading.Thread(target=stand_in_a_thread, args=(secret,), name="a thread")
    thread.start()
    task = asyncio.create_task(stand_in_a_task(secret), name="a task")
    await asyncio.sleep(0)
    text = stacks.text()
    assert "Thread a thread:" in text
    assert "in stand_in_a_thread" in text
    assert "Task a task:" in text
    assert "stand_in_a_task" in text
    assert secret not in text
    assert len(text) <= stacks.TEXT_CHARS_MAX
    done.set()
    thread.join()
    task.cancel()
    await asyncio.wait([task])
