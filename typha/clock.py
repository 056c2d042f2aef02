"""The clocks of the hub and the workers. A simulation replaces them with its virtual time."""

import contextlib
import time
from collections.abc import Callable, Iterator

_monotonic: Callable[[], float] = time.monotonic
_time_ns: Callable[[], int] = time.time_ns
_cpu_seconds: Callable[[], float] = time.thread_time


def monotonic() -> float:
    """Seconds since an arbitrary start. Never decreases."""
    return _monotonic()


def time_ns() -> int:
    """Nanoseconds since 1970 (Unix time)."""
    return _time_ns()


def cpu_seconds() -> float:
    """CPU time of this thread since an arbitrary start, in seconds. In virtual time nothing costs any."""
    return _cpu_seconds()


@contextlib.contextmanager
def replaced(
    *, monotonic: Callable[[], float], time_ns: Callable[[], int], cpu_seconds: Callable[[], float] = lambda: 0.0
) -> Iterator[None]:
    """Replace the clocks while the context is open."""
    global _monotonic, _time_ns, _cpu_seconds
    before = _monotonic, _time_ns, _cpu_seconds
    _monotonic, _time_ns, _cpu_seconds = monotonic, time_ns, cpu_seconds
    try:
        yield
    finally:
        _monotonic, _time_ns, _cpu_seconds = before
