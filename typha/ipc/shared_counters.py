"""A number in memory that hub and worker share: how many of the hub's `Publish` messages the worker has finished.

The hub reads it when it wants to know, so no process is woken to report it.
"""

import mmap
import os

from cache.state import memfile

_SIZE_BYTES = 8


class SharedCounter:
    """One side's view of the number. `create` makes the first view, `attach` the other from its descriptor."""

    def __init__(self, mapping: mmap.mmap) -> None:
        self._mapping = mapping
        self._number = memoryview(mapping).cast("Q")

    @classmethod
    def create(cls) -> tuple["SharedCounter", int]:
        """The number, 0 at first, and the descriptor for the other process, which the caller closes.

        Raises:
            OSError: it cannot be created.
        """
        descriptor, mapping = memfile.create_shared("progress", _SIZE_BYTES)
        return cls(mapping), descriptor

    @classmethod
    def attach(cls, descriptor: int) -> "SharedCounter":
        """The other process's view; takes the descriptor.

        Raises:
            OSError: the memory cannot be mapped; the descriptor is still the caller's.
        """
        attached = cls(mmap.mmap(descriptor, _SIZE_BYTES))
        os.close(descriptor)
        return attached

    @property
    def value(self) -> int:
        """What either side wrote last."""
        return self._number[0]

    @value.setter
    def value(self, value: int) -> None:
        self._number[0] = value

    def close(self) -> None:
        """Lets go of the memory."""
        self._number.release()
        self._mapping.close()
