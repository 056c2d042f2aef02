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

SETTLED_SECONDS = 15.0
"""For how long another replica must have been fresh. Replicas that have lost the API server together find it again one
after the other, each of them within some seconds (their watches retry at random times). The first must not get the
clients of all others, which need only wait for their own turn."""


UNREADY_SECONDS = 30.0
"""Until the clients of the Service know that this replica is not ready: three probes, ten seconds apart. Some of those
that are moved earlier come back, and have a choice only after it."""


class HandOverPolicy(NamedTuple):
    """From the settings."""

    after_seconds: float
    """How long the replica must have been stale: an API server that restarts is away for some seconds. The questions
    begin earlier, so that by then another replica may have been fresh for long enough."""
    spread_seconds: float
    """Time over which the clients are moved."""
    again_seconds: float
    """Between the beginnings of two rounds, after the second. Clients that came since the last one, or came back, are
    moved by the next one."""

    @property
    def second_round_seconds(self) -> float:
        """Between the beginnings of the first round and the second."""
        return self.spread_seconds + UNREADY_SECONDS

    @property
    def settled_seconds(self) -> float:
        """For how long another replica must have been fresh."""
        return min(SETTLED_SECONDS, self.after_seconds)


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
    """It is stale, but it is too early to move anybody: not for long, or others are fresh, but not for long."""
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
        self._fresh_since: dict[str, float] = {}
        """When each replica that is fresh was first asked since it is."""
        self._stale_since: float | None = None
        self._rounds = 0
        self._next_round_at = 0.0
        self.stance = Stance.FRESH

    @property
    def stale_since(self) -> float | None:
        """Since when the data cannot be confirmed; None while it is fresh."""
        return self._stale_since

    def wants_answers(self, now: float) -> bool:
        """Whether the peers are to be asked: the replica is stale for long enough."""
        since, policy = self._stale_since, self._policy
        return since is not None and now - since >= policy.after_seconds - policy.settled_seconds

    def note_answers(self, now: float, answers: Mapping[str, Answer]) -> None:
        """What the peers have said, by address. If one says nothing this time, its last answer counts for a while."""
        self._answers = {
            peer: answer
            for peer, answer in {**self._answers, **answers}.items()
            if now - answer.asked_at <= ANSWER_SECONDS_MAX
        }
        self._fresh_since = {
            peer: self._fresh_since.get(peer, answer.asked_at)
            for peer, answer in self._answers.items()
            if self._is_fresh(answer)
        }

    def _is_fresh(self, answer: Answer) -> bool:
        since, confirmed_at = self._stale_since, answer.confirmed_at
        return (
            since is not None
            and confirmed_at is not None
            and confirmed_at >= since + FRESHER_SECONDS_MIN
            and answer.asked_at - confirmed_at <= CONFIRMED_SECONDS_MAX
        )

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
            self._stale_since, self._rounds, self._next_round_at = None, 0, 0.0
            self._answers.clear()
            self._fresh_since.clear()
            return Decision(Stance.FRESH)
        if self._stale_since is None:
            self._stale_since = now
        since = self._stale_since
        if now - since < self._policy.after_seconds:
            return Decision(Stance.WAITING)
        heard = {one for one, answer in self._answers.items() if now - answer.asked_at <= ANSWER_SECONDS_MAX}
        fresh_since = {one: fresh for one, fresh in self._fresh_since.items() if one in heard}
        if not fresh_since:
            return Decision(Stance.ALL_STALE if heard else Stance.ALONE)
        fresh = [one for one, began in fresh_since.items() if now - began >= self._policy.settled_seconds]
        if not fresh:
            return Decision(Stance.WAITING)
        begins_round = now >= self._next_round_at
        if begins_round:
            policy = self._policy
            self._next_round_at = now + (policy.again_seconds if self._rounds else policy.second_round_seconds)
            self._rounds += 1
        return Decision(Stance.HANDING_OVER, tuple(sorted(fresh)), begins_round)


def jittered(seconds: float) -> float:
    """The pause before the next question: replicas that lost the API server together must not ask together."""
    return seconds * random.uniform(0.8, 1.2)
