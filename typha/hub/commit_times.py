"""When a feed's sequences were published: some thousand pairs of sequence and time. Old times are kept roughly."""

import bisect
from collections import deque
from typing import NamedTuple

_FINE_SECONDS = 0.1
"""Commits within this time share an entry, so that a storm of commits does not push out the last minute."""
_FINE_MAX = 1024
_COARSE_SECONDS = 60.0
_COARSE_MAX = 1440
"""With `_COARSE_SECONDS`, a day. All times of a feed take 150 kB at most."""


class _Commit(NamedTuple):
    """The commits of a moment."""

    at: float
    """When the first of them was."""
    sequence: int
    """Of the last of them."""


class CommitTimes:
    """The times of one feed's commits, in monotonic seconds."""

    __slots__ = ("_coarse", "_fine", "_forgotten", "newest_at", "newest_sequence")

    def __init__(self) -> None:
        self._fine: deque[_Commit] = deque()
        self._coarse: deque[_Commit] = deque()
        self._forgotten = 0
        """The time of sequences up to this is not known."""
        self.newest_sequence = 0
        self.newest_at = 0.0
        """When exactly the last commit was; 0.0 before the first."""

    def note(self, sequence: int, now: float) -> None:
        """A commit has led to this sequence."""
        self.newest_sequence, self.newest_at = sequence, now
        fine = self._fine
        if fine and now - fine[-1].at < _FINE_SECONDS:
            fine[-1] = fine[-1]._replace(sequence=sequence)
            return
        fine.append(_Commit(now, sequence))
        if len(fine) > _FINE_MAX:
            self._keep_roughly(fine.popleft())

    def _keep_roughly(self, old: _Commit) -> None:
        coarse = self._coarse
        if coarse and old.at - coarse[-1].at < _COARSE_SECONDS:
            coarse[-1] = coarse[-1]._replace(sequence=old.sequence)
            return
        coarse.append(old)
        if len(coarse) > _COARSE_MAX:
            self._forgotten = coarse.popleft().sequence

    @property
    def newest(self) -> float | None:
        """When the last commit was; None before the first."""
        return self._fine[-1].at if self._fine else None

    def time_of(self, sequence: int) -> float | None:
        """When the sequence was published, to 0.1 s, or to a minute if it is old; None if that is forgotten."""
        if sequence <= self._forgotten:
            return None
        for commits in (self._coarse, self._fine):
            if commits and sequence <= commits[-1].sequence:
                place = bisect.bisect_left(commits, sequence, key=lambda commit: commit.sequence)
                return commits[place].at
        return None

    def age_of_next(self, sequence: int, now: float) -> float:
        """How long ago the first change after a sequence was published; 0.0 if there is none after it.

        If that is forgotten, it is at least as long as everything that is remembered.
        """
        if sequence >= self.newest_sequence:
            return 0.0
        published_at = self.time_of(sequence + 1)
        if published_at is None:
            published_at = (self._coarse or self._fine)[0].at
        return max(0.0, now - published_at)
