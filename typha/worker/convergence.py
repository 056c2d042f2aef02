"""What clients have applied, by their own words (docs/protocol.md, rules P1 to P6). Pure; times are monotonic seconds.

A message of a client costs the same however many clients there are. A change costs nothing, except one that the hub
asks about: then the clients are counted that have not applied it.
"""

from collections import deque
from collections.abc import Iterable, Mapping
from typing import NamedTuple, Protocol

from protocol import errors
from typha.ipc import messages

MESSAGES_PER_SECOND = 2.0
"""Twice what a client may send: its clock may run fast, and packets bunch."""
MESSAGES_AT_ONCE = 120.0
"""What a good client has sent in a minute, if a network holds that back and delivers it together: a connection without
an answer is closed after as long."""
_UP_TO_NOW_SECONDS = 2.0
"""A client that has applied what is older has applied everything up to now: it may wait a second with its message, and
a worker a second with its report."""


EVERYTHING = (1 << 63) - 1
"""Stands for any sequence: nothing is left that a client could apply."""


class Progress(Protocol):
    """Up to where a client that gets only a part of its feed has applied everything that it gets."""

    def __call__(self, sequence: int) -> int:
        """The sequence, for a client that says it has applied this one; perhaps `EVERYTHING`."""

    def forget(self, before_offset: int, last: int) -> None:
        """The log before an offset goes; `last` is the sequence of the last frame there that the client gets."""


class Position:
    """What one client has applied, and how many more messages it may send."""

    __slots__ = ("_left", "_progress", "_refilled_at", "sequence")

    def __init__(self, now: float, progress: Progress | None = None) -> None:
        self.sequence = 0
        """The client's own word; 0 before its first message."""
        self._progress = progress
        self._left = MESSAGES_AT_ONCE
        self._refilled_at = now

    def up_to(self) -> int:
        """Up to where nothing is left that it could apply. A client with a subscription is sent nothing of much."""
        return self.sequence if self._progress is None else self._progress(self.sequence)

    def forget(self, before_offset: int, last: int) -> None:
        """The log before an offset goes; `last` is the sequence of the last frame there that the client gets."""
        if self._progress is not None:
            self._progress.forget(before_offset, last)

    def spend(self, now: float) -> None:
        """The client has sent a message.

        Raises:
            RemoteProtocolError: it sends too many.
        """
        refill = (now - self._refilled_at) * MESSAGES_PER_SECOND
        self._left = min(MESSAGES_AT_ONCE, self._left + max(0.0, refill)) - 1
        self._refilled_at = now
        if self._left < 0:
            raise errors.RemoteProtocolError("too many positions")


class Reporter(Protocol):
    """What is needed of a client, which is a `client.Client`."""

    applied: Position | None
    """None if it does not report positions."""


class _Expected(NamedTuple):
    sequence: int
    clients: set[Reporter]
    """Those that have not applied it."""


class _Feed:
    """One feed's clients that report positions."""

    __slots__ = ("clients", "expected", "newest", "reached", "reached_at")

    def __init__(self) -> None:
        self.clients: dict[Reporter, Position] = {}
        self.expected: _Expected | None = None
        self.reached = 0
        self.reached_at = 0.0
        self.newest: deque[tuple[float, int]] = deque()
        """The feed's newest sequences at the last reports, oldest first."""

    def settle(self, now: float) -> None:
        """Settles what is expected if no client is waited for any more."""
        if self.expected is not None and not self.expected.clients:
            self.reached, self.reached_at = self.expected.sequence, now
            self.expected = None

    def old_sequence(self, newest: int, now: float) -> int:
        """The sequence that was the newest one some seconds ago, and may be expected of all clients."""
        self.newest.append((now, newest))
        while len(self.newest) > 1 and now - self.newest[1][0] >= _UP_TO_NOW_SECONDS:
            self.newest.popleft()
        noted_at, sequence = self.newest[0]
        return sequence if now - noted_at >= _UP_TO_NOW_SECONDS else 0


class Convergence:
    """All feeds of a worker."""

    def __init__(self) -> None:
        self._feeds: dict[str, _Feed] = {}

    def add(self, newcomer: Reporter, feed: str, now: float, progress: Progress | None = None) -> None:
        """The client is going to report positions.

        Args:
            progress: for a client with a subscription.
        """
        newcomer.applied = Position(now, progress)
        self._feeds.setdefault(feed, _Feed()).clients[newcomer] = newcomer.applied

    def remove(self, current: Reporter, feed: str, now: float) -> None:
        """The client is gone; nobody waits for it any more."""
        if current.applied is None:
            return
        found = self._feeds[feed]
        found.clients.pop(current, None)
        if found.expected is not None:
            found.expected.clients.discard(current)
            found.settle(now)

    def note(self, current: Reporter, feed: str, sequence: int, *, newest: int, now: float) -> None:
        """The client has applied everything up to `sequence`. A lower one than before is ignored.

        Raises:
            RemoteProtocolError: it names more than the newest sequence of the feed, or sends too many messages.
        """
        position = current.applied
        if position is None:
            raise errors.RemoteProtocolError("applied, but positions are not in force")
        position.spend(now)
        if sequence > newest:
            raise errors.RemoteProtocolError(f"applied {sequence}, and the feed has only reached {newest}")
        if sequence <= position.sequence:
            return
        position.sequence = sequence
        found = self._feeds[feed]
        expected = found.expected
        if expected is not None and current in expected.clients and position.up_to() >= expected.sequence:
            expected.clients.discard(current)
            found.settle(now)

    def expect(self, feed: str, sequence: int, now: float) -> None:
        """The hub asks when the clients that are connected now have applied this sequence."""
        found = self._feeds.setdefault(feed, _Feed())
        waited_for = {one for one, position in found.clients.items() if position.up_to() < sequence}
        found.expected = _Expected(sequence, waited_for)
        if not waited_for:  # nobody could have applied it so soon: there is nobody to wait for
            found.reached, found.reached_at, found.expected = sequence, 0.0, None

    def reports(self, newest: Mapping[str, int], now: float) -> Iterable[messages.ReportApplied]:
        """For the hub: one report of each feed that has, or had, clients that report positions.

        Args:
            newest: each feed's newest sequence.
        """
        for name, feed in self._feeds.items():
            old = feed.old_sequence(newest.get(name, 0), now)
            sequences = [position.up_to() for position in feed.clients.values()]
            yield messages.ReportApplied(
                name,
                reporting=len(sequences),
                applied=sum(sequence >= old for sequence in sequences),
                lowest=min([EVERYTHING, *sequences]),
                reached=feed.reached,
                reached_at=feed.reached_at,
            )
