"""When the first agent of a process reached each sequence, which gives the lag of all others. Pure."""

import bisect
from typing import Final

MAX_SEQUENCES: Final = 50_000
MAX_INCARNATIONS: Final = 8


class Timeline:
    """The time at which each sequence was first reached, by incarnation of the server."""

    __slots__ = ("_incarnations",)

    def __init__(self) -> None:
        self._incarnations: dict[bytes, tuple[list[int], list[int]]] = {}

    def reached(self, incarnation: bytes, sequence: int, now_ns: int) -> None:
        """An agent has reached this sequence; only the first agent counts."""
        known = self._incarnations.get(incarnation)
        if known is None:
            while len(self._incarnations) >= MAX_INCARNATIONS:
                del self._incarnations[next(iter(self._incarnations))]
            known = self._incarnations[incarnation] = ([], [])
        sequences, times = known
        if sequences and sequence <= sequences[-1]:
            return
        if len(sequences) >= MAX_SEQUENCES:
            del sequences[: MAX_SEQUENCES // 2], times[: MAX_SEQUENCES // 2]
        sequences.append(sequence)
        times.append(now_ns)

    def lag_seconds(self, incarnation: bytes, sequence: int, now_ns: int) -> float:
        """Age of the first sequence that an agent at `sequence` lacks and another has; 0 without one."""
        sequences, times = self._incarnations.get(incarnation, ([], []))
        index = bisect.bisect_right(sequences, sequence)
        return 0.0 if index == len(sequences) else max(0, now_ns - times[index]) / 1e9
