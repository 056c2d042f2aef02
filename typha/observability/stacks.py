"""Where the tasks and threads of this process stand, as text. Without values of variables, so without secrets."""

import asyncio
import sys
import threading
import traceback
from collections.abc import Iterator

_TASKS_MAX = 200
_FRAMES_MAX = 30
TEXT_CHARS_MAX = 200_000


def text() -> str:
    """All threads, and the tasks of the running loop, up to some number of them."""
    return "\n".join(_lines())[:TEXT_CHARS_MAX]


def _lines() -> Iterator[str]:
    names = {thread.ident: thread.name for thread in threading.enumerate()}
    for number, frame in sys._current_frames().items():
        yield f"Thread {names.get(number, number)}:"
        yield "".join(traceback.format_stack(frame, limit=-_FRAMES_MAX))
    tasks = sorted(asyncio.all_tasks(), key=lambda task: task.get_name())
    yield f"{len(tasks)} tasks"
    for task in tasks[:_TASKS_MAX]:
        yield f"Task {task.get_name()}:"
        for frame in task.get_stack(limit=_FRAMES_MAX):
            yield f"  {frame.f_code.co_filename}:{frame.f_lineno} in {frame.f_code.co_qualname}"
