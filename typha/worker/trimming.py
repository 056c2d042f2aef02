"""Gives memory back that the C library keeps after many connections have come and gone."""

import contextlib
import ctypes
import threading


def trim() -> None:
    """Takes some milliseconds, without the interpreter's lock. A C library without this function needs it not."""
    malloc_trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if malloc_trim is not None:
        malloc_trim(0)


def trim_in_thread() -> None:
    """Does not wait for it. Without a thread, the memory stays, and so do the clients."""
    with contextlib.suppress(RuntimeError):
        threading.Thread(target=trim, name="trim", daemon=True).start()
