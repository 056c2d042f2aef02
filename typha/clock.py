"""The clocks of the hub and the workers. A simulation replaces them with its virtual time."""

import contextlib
import time
from collections.abc import Callable, Iterator

_monotonic: Callable[[], float] = time.monotonic
_time_ns: Callable[[], int] = time.time_ns


def monotonic() -> float:
    """Seconds since an arbitrary start. Never decreases."""
    return _monotonic()


def time_ns() -> int:
    """Nanoseconds since 1970 (Unix time)."""
    return _time_ns()


@contextlib.contextmanager
def replaced(*, monotonic: Callable[[], float], time_ns: Callable[[], int]) -> Iterator[None]:
    """Replace both clocks while the context is open."""
    global _monotonic, _time_ns
    before = _monotonic, _time_ns
    _monotonic, _time_ns = monotonic, time_ns
    try:
        yield
    finally:
        _monotonic, _time_ns = before
