"""Gives memory back that the C library keeps after many connections have come and gone."""

import contextlib
import ctypes
import math
import threading
from collections.abc import Callable

_SECONDS = 10.0
"""The least time between two times: connections end, and slow clients take what waited for them, all the time."""


def trim() -> None:
    """Takes some milliseconds, without the interpreter's lock. A C library without this function needs it not."""
    malloc_trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if malloc_trim is not None:
        malloc_trim(0)


def in_thread(work: Callable[[], None]) -> None:
    """Does not wait for it. Without a thread, the memory stays, and so do the clients."""
    with contextlib.suppress(RuntimeError):
        threading.Thread(target=work, name="trim", daemon=True).start()


class Trimmer:
    """Gives memory back whenever enough has been freed, by a count that only grows."""

    def __init__(self, after: int, run: Callable[[Callable[[], None]], object] = in_thread) -> None:
        """`after` is how many are enough; `run` takes a function and does not wait for it."""
        self._after = after
        self._run = run
        self._freed_at_trim = 0
        self._trimmed_at = -math.inf

    def note(self, freed: int, now: float) -> None:
        """Takes how many have been freed since the start."""
        if freed - self._freed_at_trim >= self._after and now - self._trimmed_at > _SECONDS:
            self._freed_at_trim, self._trimmed_at = freed, now
            self._run(trim)
