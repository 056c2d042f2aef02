"""Gives memory back that the C library keeps after many connections have come and gone."""

import ctypes


def trim() -> None:
    """Takes some milliseconds, without the interpreter's lock. A C library without this function needs it not."""
    malloc_trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if malloc_trim is not None:
        malloc_trim(0)
