"""How far a worker has got with what it was told: one number in memory that it shares with the hub.

The hub reads it when it wants to know, and nobody is woken for it.
"""

import mmap
import os

from cache.state import memfile

_SIZE_BYTES = 8


class SharedCounter:
    """One side's view of the number; `create` makes the first, `attach` the other from its descriptor."""

    def __init__(self, mapping: mmap.mmap) -> None:
        self._mapping = mapping
        self._number = memoryview(mapping).cast("Q")

    @classmethod
    def create(cls) -> tuple["SharedCounter", int]:
        """The number, 0 yet, and the descriptor for the other process, which is the caller's to close."""
        descriptor, mapping = memfile.create_shared("progress", _SIZE_BYTES)
        return cls(mapping), descriptor

    @classmethod
    def attach(cls, descriptor: int) -> "SharedCounter":
        """The other process's view; takes the descriptor."""
        try:
            return cls(mmap.mmap(descriptor, _SIZE_BYTES))
        finally:
            os.close(descriptor)

    @property
    def value(self) -> int:
        """What was written last, by either side."""
        return self._number[0]

    @value.setter
    def value(self, value: int) -> None:
        self._number[0] = value

    def close(self) -> None:
        """Lets go of the memory."""
        self._number.release()
        self._mapping.close()
