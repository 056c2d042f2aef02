"""The clocks of the hub and the workers, in one place, so that a simulation can run them by its own."""

import contextlib
import time
from collections.abc import Callable, Iterator

_monotonic: Callable[[], float] = time.monotonic
_time_ns: Callable[[], int] = time.time_ns


def monotonic() -> float:
    """Seconds from an arbitrary start; never goes back."""
    return _monotonic()


def time_ns() -> int:
    """Nanoseconds since 1970."""
    return _time_ns()


@contextlib.contextmanager
def replaced(*, monotonic: Callable[[], float], time_ns: Callable[[], int]) -> Iterator[None]:
    """Other clocks for as long as the context is open."""
    global _monotonic, _time_ns
    before = _monotonic, _time_ns
    _monotonic, _time_ns = monotonic, time_ns
    try:
        yield
    finally:
        _monotonic, _time_ns = before
