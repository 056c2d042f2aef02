"""Virtual time: a queue of events whose order depends only on the seed.

All events are in one heap. Where reality promises no order (of processes, of timers with the same time, of ready
sockets), a random number decides. Different seeds see different orders, and one seed always sees the same order.
"""

import heapq
import random
from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tests.simulation import process

BEGIN_SECONDS = 1000.0
"""Monotonic time at the start. Not zero, because zero means "never" in the service."""
UNIX_NANOSECONDS = 1_700_000_000 * 10**9
_HISTORY_LINES = 400
_ASK_SECONDS = 0.05
_LACKS_PROBABILITY = 0.8


class Violation(AssertionError):
    """An invariant does not hold."""


class World:
    """The clock, the future events, and the history so far."""

    def __init__(self, seed: int, *, tell: Callable[[str], None] | None = None) -> None:
        self.seed = seed
        self.random = random.Random(seed)
        self.now = BEGIN_SECONDS
        self.current: process.Process | None = None
        self.history: deque[str] = deque(maxlen=_HISTORY_LINES)
        self.events = 0
        self.short_until = 0.0
        """Until then the machine lacks descriptors and memory, most of the time."""
        self.is_calm = False
        """The phase of faults is over."""
        self.fingerprint = 0
        """Hash of the whole history. Two runs of a seed have the same fingerprint."""
        self.after_turn: Callable[[process.Process], None] = lambda _: None
        """Called after every turn of a process."""
        self._heap: list[tuple[float, float, int, Callable[[], None]]] = []
        self._count = 0
        self._tell = tell

    @property
    def time(self) -> float:
        """Monotonic time of the running process. It runs ahead of the world while the process works."""
        return self.now if self.current is None else self.current.local

    def lacks(self) -> bool:
        """Whether the machine cannot make a file, map it or pass it on at this moment."""
        return self.now < self.short_until and self.chance(_LACKS_PROBABILITY)

    def monotonic(self) -> float:
        """Read the clock as the running process does. Reading takes time."""
        return self.now if self.current is None else self.current.read_clock()

    def unix_nanoseconds(self) -> int:
        """Wall clock time, at a constant distance from the monotonic time until the clock of a process jumps."""
        ahead_seconds = 0.0 if self.current is None else self.current.wall_clock_ahead_seconds
        return UNIX_NANOSECONDS + int((self.time + ahead_seconds) * 1e9)

    def note(self, who: str, what: str) -> None:
        """Add a line to the history."""
        line = f"{self.time - BEGIN_SECONDS:10.4f} {who}: {what}"
        self.events += 1
        self.fingerprint = hash_line(self.fingerprint, line)
        self.history.append(line)
        if self._tell is not None:
            self._tell(line)

    def at(self, when: float, action: Callable[[], None]) -> None:
        """Run an action at a time, or now if that time has passed."""
        self._count += 1
        heapq.heappush(self._heap, (max(when, self.now), self.random.random(), self._count, action))

    def after(self, seconds: float, action: Callable[[], None]) -> None:
        """Run an action after a delay."""
        self.at(self.time + seconds, action)

    def run_until(self, when: float, *, condition: Callable[[], bool] | None = None) -> bool:
        """Run events until the condition holds or the time has come. Returns whether the condition holds."""
        heap = self._heap
        ask_at = self.now
        while heap and heap[0][0] <= when:
            if condition is not None and self.now >= ask_at:
                if condition():
                    return True
                ask_at = self.now + _ASK_SECONDS
            self.now, _, _, action = heapq.heappop(heap)
            action()
        self.now = max(self.now, when)
        return condition is not None and condition()

    def forget(self) -> None:
        """Drop all future events."""
        self._heap.clear()
        self.after_turn = lambda _: None

    def chance(self, probability: float) -> bool:
        """True with this probability."""
        return self.random.random() < probability


def hash_line(fingerprint: int, line: str) -> int:
    """A hash that is the same in every process, unlike `hash`."""
    for part in (line[start : start + 8] for start in range(0, len(line), 8)):
        fingerprint = (fingerprint * 1_000_003 ^ int.from_bytes(part.encode()[:24], "little")) & 0xFFFFFFFFFFFFFFFF
    return fingerprint
