"""Notes what could not be made for lack of a resource: descriptors, memory, space.

A shortage is an outage of this machine or container, and not a defect. So it ends nothing, and what failed is tried
again. A shortage is counted, and logged when it begins, once a minute while it lasts, and when it is over.
"""

import enum
import mmap
from collections.abc import Callable

import structlog

from typha import clock

_log = structlog.get_logger("typha.hub")

ERRORS = (OSError, MemoryError)
"""What the kernel and the interpreter raise for lack of something."""
_LINE_SECONDS = 60.0


class Lacking(enum.StrEnum):
    """What could not be made or sent, as a label of the metric."""

    COMMIT = "commit"
    """Memory to write what has come to the store: it waits in the hub."""
    CONVERSION = "conversion"
    """Memory to convert a large object."""
    LOG = "log"
    """A segment of a log: updates wait in the hub."""
    SNAPSHOT = "snapshot"
    """Newcomers wait for it, or get an older one."""
    BLOCK = "catch-up-block"
    """Clients that have fallen out of the log wait for it."""
    WORKER = "worker"
    """A worker process, or what the hub shares with it."""
    LINK = "worker-link"
    """A message between hub and worker; all later ones wait behind it."""


def check_memory(size_bytes: int) -> None:
    """Checks that this much memory could be had. What must not stop half-way asks before it begins.

    Raises:
        OSError, MemoryError: it could not.
    """
    mmap.mmap(-1, size_bytes).close()  # takes addresses, and no memory


class Shortages:
    """Counts failures by what they prevented."""

    def __init__(self, now: Callable[[], float] = clock.monotonic) -> None:
        self._now = now
        self.counts: dict[Lacking, int] = {}
        self._said_at: dict[Lacking, float] = {}
        self._lasting: set[Lacking] = set()
        """Those whose end has not been logged."""

    def __repr__(self) -> str:
        return f"<Shortages {self.counts}>"

    def note(self, lacking: Lacking, error: BaseException, **fields: object) -> None:
        """It could not be made, and is tried again."""
        self.counts[lacking] = self.counts.get(lacking, 0) + 1
        now = self._now()
        if now - self._said_at.get(lacking, -_LINE_SECONDS) >= _LINE_SECONDS:
            self._said_at[lacking] = now
            self._lasting.add(lacking)
            reason = str(error) or type(error).__name__
            _log.error("Out of a resource, trying again", lacking=lacking.value, error=reason, **fields)

    def over(self, lacking: Lacking) -> None:
        """It could be made."""
        if lacking in self._lasting:
            self._lasting.remove(lacking)
            _log.warning("The resource is there again", lacking=lacking.value, failures=self.counts[lacking])
