"""When a replica that has lost the API server hands its clients over to others. Pure; times are monotonic seconds.

Old data is better than none, and another replica is better only if it has what this one lacks. So clients are moved if,
and only if, another replica has just said that the API server confirmed its data after this one had lost contact. If
all are stale, or nobody can be asked, every replica keeps its clients, and says that its data may be old.
"""

import enum
import random
from collections.abc import Mapping
from typing import NamedTuple

ANSWER_SECONDS_MAX = 15.0
"""An older answer says nothing about now: three questions, five seconds apart."""
FRESHER_SECONDS_MIN = 5.0
"""How long after this replica's loss of contact the API server must have confirmed the other's data. Both may have lost
contact together, and the other may not have noticed yet."""

CONFIRMED_SECONDS_MAX = 90.0
"""A replica that was not confirmed for so long may have lost the API server in silence, which it notices after 150 s. A
bookmark comes about once a minute, and more often if a feed has several types."""


class HandOverPolicy(NamedTuple):
    """From the settings."""

    after_seconds: float
    """How long the replica must have been stale: an API server that restarts is away for some seconds."""
    spread_seconds: float
    """Time over which the clients are moved."""
    again_seconds: float
    """Between the beginnings of two rounds. Clients that came since the last one, or came back, are moved by the next
    one."""


class Answer(NamedTuple):
    """What a replica has said of a feed."""

    asked_at: float
    confirmed_at: float | None
    """When the API server last confirmed the feed there, by the clock of this replica; None if the replica is stale."""
    incarnation: bytes = b""
    upstreams: tuple[bytes, ...] | None = None
    """The incarnations of the replicas that feed it, nearest first; None if it watches the API server."""
    knows_tiers: bool = False
    """Whether it can feed a replica."""


class Stance(enum.StrEnum):
    """What a replica does, and why."""

    FRESH = "fresh"
    """The API server confirms its data."""
    WAITING = "waiting"
    """It is stale, but not for long enough to ask or to move anybody."""
    ALONE = "alone"
    """It is stale, and has no peers, or none that answers: it keeps its clients."""
    ALL_STALE = "all-stale"
    """It is stale, and so are the replicas that answer: it keeps its clients."""
    HANDING_OVER = "handing-over"
    """It is stale, and another one is not: its clients are moved."""


class Decision(NamedTuple):
    """What follows from what is known now."""

    stance: Stance
    fresh: tuple[str, ...] = ()
    """Addresses of the replicas that are fresh, if clients are to be moved."""
    begins_round: bool = False
    """The clients that are connected now are to be moved, over the policy's time."""


class Freshness:
    """One replica's view. `look` is to be called every second."""

    def __init__(self, policy: HandOverPolicy) -> None:
        self._policy = policy
        self._answers: dict[str, Answer] = {}
        self._stale_since: float | None = None
        self._round_at: float | None = None
        self.stance = Stance.FRESH

    @property
    def stale_since(self) -> float | None:
        """Since when the data cannot be confirmed; None while it is fresh."""
        return self._stale_since

    def wants_answers(self, now: float) -> bool:
        """Whether the peers are to be asked: the replica is stale for long enough."""
        since = self._stale_since
        return since is not None and now - since >= self._policy.after_seconds

    def note_answers(self, answers: Mapping[str, Answer]) -> None:
        """What the peers have said, by address. Peers that have gone are forgotten."""
        self._answers = dict(answers)

    def look(self, now: float, *, is_stale: bool) -> Decision:
        """What to do now.

        Args:
            is_stale: whether the API server cannot confirm a feed of this replica.
        """
        decision = self._decide(now, is_stale=is_stale)
        self.stance = decision.stance
        return decision

    def _decide(self, now: float, *, is_stale: bool) -> Decision:
        if not is_stale:
            self._stale_since = self._round_at = None
            self._answers.clear()
            return Decision(Stance.FRESH)
        if self._stale_since is None:
            self._stale_since = now
        since = self._stale_since
        if now - since < self._policy.after_seconds:
            return Decision(Stance.WAITING)
        heard = {one: answer for one, answer in self._answers.items() if now - answer.asked_at <= ANSWER_SECONDS_MAX}
        fresh = [
            one
            for one, answer in heard.items()
            if answer.confirmed_at is not None
            and answer.confirmed_at >= since + FRESHER_SECONDS_MIN
            and answer.asked_at - answer.confirmed_at <= CONFIRMED_SECONDS_MAX
        ]
        if not fresh:
            return Decision(Stance.ALL_STALE if heard else Stance.ALONE)
        begins_round = self._round_at is None or now - self._round_at >= self._policy.again_seconds
        if begins_round:
            self._round_at = now
        return Decision(Stance.HANDING_OVER, tuple(sorted(fresh)), begins_round)


def jittered(seconds: float) -> float:
    """The pause before the next question: replicas that lost the API server together must not ask together."""
    return seconds * random.uniform(0.8, 1.2)
