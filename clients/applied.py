"""Internal: what a receiver has applied, and when to tell the server (docs/protocol.md, rules P1 to P6).

A receiver applies versions of its map: each batch with changes makes a new one. A server understands sequences of one
connection, so this keeps which sequence each version covers. A version that is applied covers all sequences up to the
next change, also those of a later connection.
"""

import asyncio
import math
from collections import deque
from collections.abc import Callable
from typing import NamedTuple, Protocol

SECONDS_BETWEEN = 1.0
"""The least time between two messages (rule P3)."""
_VERSIONS_MAX = 1024
"""Versions that are told apart. Of a receiver that is further behind, some are rounded down to an earlier one."""


class _Covered(NamedTuple):
    version: int
    sequence: int
    """The last one at which the map had this version."""


class Timer(Protocol):
    """What `call_later` returns."""

    def cancel(self) -> None:
        """Calls it off."""


class Timers(Protocol):
    """What is needed of an event loop."""

    def time(self) -> float:
        """Seconds."""

    def call_later(self, delay: float, callback: Callable[[], None], /) -> Timer:
        """Calls the callback after so many seconds."""


class Acknowledger:
    """One receiver, on one connection after another. `timers` is by default the running event loop."""

    def __init__(self, timers: Timers | None = None) -> None:
        self._timers = timers
        self.version = 0
        """Of the receiver's map."""
        self._applied_version = 0
        self._covered: deque[_Covered] = deque()
        """Versions of this connection that are not applied, and the newest that is; oldest first."""
        self._send: Callable[[int], None] | None = None
        self._applied_sequence = self._sent_sequence = 0
        self._sent_at = -math.inf
        self._timer: Timer | None = None

    def connected(self, send: Callable[[int], None]) -> None:
        """A server wants to know; nothing counts as applied there yet."""
        self.disconnected()
        self._send = send

    def disconnected(self) -> None:
        """The connection has ended, and its sequences mean nothing any more."""
        self._covered.clear()
        self._applied_sequence = self._sent_sequence = 0
        self._sent_at = -math.inf
        self._send = None
        self._stop_timer()

    def received(self, sequence: int, *, has_changed: bool) -> None:
        """The receiver's map has reached a sequence, which may have changed it."""
        self.version += has_changed
        covered = self._covered
        if covered and covered[-1].version == self.version:
            sequence = max(sequence, covered.pop().sequence)
        covered.append(_Covered(self.version, sequence))
        if len(covered) > _VERSIONS_MAX:
            self._covered = deque(one for place, one in enumerate(covered) if place % 2 == 0 or one is covered[-1])
        self._settle()

    def restored(self) -> None:
        """The receiver begins with a map. Nothing of it has taken effect by that."""
        self.version += 1

    def applied(self, version: int | None = None) -> None:
        """The receiver has applied everything up to a version of its map; by default, all that it has been given.

        Raises:
            ValueError: there has been no such version yet.
        """
        version = self.version if version is None else version
        if not 0 <= version <= self.version:
            raise ValueError(f"there is no version {version} yet")
        self._applied_version = max(self._applied_version, version)
        self._settle()

    def _settle(self) -> None:
        covered = self._covered
        while covered and covered[0].version <= self._applied_version:
            self._applied_sequence = max(self._applied_sequence, covered[0].sequence)
            if covered[0].version == self.version:
                break  # no change has come since: what follows without one is applied, too
            covered.popleft()
        self._tell()

    def _tell(self) -> None:
        if self._send is None or self._timer is not None or self._applied_sequence <= self._sent_sequence:
            return
        timers: Timers = self._timers or asyncio.get_running_loop()
        wait_seconds = self._sent_at + SECONDS_BETWEEN - timers.time()
        if wait_seconds > 0:
            self._timer = timers.call_later(wait_seconds, self._tell_later)
            return
        self._sent_sequence, self._sent_at = self._applied_sequence, timers.time()
        self._send(self._applied_sequence)

    def _tell_later(self) -> None:
        self._timer = None
        self._tell()

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
