"""The cost of a decoder: calls and bytes, which do not depend on the machine, and CPU time for searches by hand."""

import sys
import time
import tracemalloc
from collections.abc import Callable
from types import FrameType


def calls(run: Callable[[], object]) -> int:
    """Number of calls, of Python and C functions, that `run` makes. A loop of Python cannot do much without one."""
    count = 0

    def profile(frame: FrameType, event: str, argument: object) -> None:
        nonlocal count
        count += event in ("call", "c_call")

    before = sys.getprofile()
    sys.setprofile(profile)
    try:
        run()
    finally:
        sys.setprofile(before)
    return count


def peak_bytes(run: Callable[[], object]) -> int:
    """The most memory that `run` held at any time, beyond what was held before."""
    was_tracing = tracemalloc.is_tracing()
    if not was_tracing:
        tracemalloc.start()
    try:
        before, _ = tracemalloc.get_traced_memory()
        tracemalloc.reset_peak()
        run()
        return tracemalloc.get_traced_memory()[1] - before
    finally:
        if not was_tracing:
            tracemalloc.stop()


def cpu_milliseconds(run: Callable[[], object], *, times: int = 1) -> float:
    """CPU time of `run`: the best of several runs, because other work on the machine makes a run longer only."""
    best = float("inf")
    for _ in range(times):
        began = time.thread_time_ns()
        run()
        best = min(best, (time.thread_time_ns() - began) / 1e6)
    return best
