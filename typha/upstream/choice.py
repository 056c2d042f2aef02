"""Where a replica takes its data from: the API server, or another replica, its upstream. Pure; times are monotonic.

Every replica says in its hello by which replicas it is fed, nearest first. The last of them, the root, watches the API
server. A replica follows another one only if it is not among these itself, and there are few. It reads the hello of its
upstream again every few seconds, so a ring that arises, because several replicas change their upstreams at one moment,
finds itself: within a few questions a replica sees itself, or too many, and leaves.

Two replicas that watch the API server cannot even begin to follow each other: before a replica follows, it says that it
has no upstream, and only then asks. Of any two, the second to ask hears that.
"""

import enum
import random
from collections.abc import Mapping
from typing import NamedTuple

from typha.peers import freshness

UPSTREAMS_MAX = 3
"""Replicas between a replica and the API server. Two serve a thousand followers of a thousand clients each; every
further one adds its delay and one more process that may fail."""
SETTLE_SECONDS = 1.5
"""How long it takes until all workers of a replica say that it has no upstream: a message to each, and a busy turn of
the worker."""
BEHIND_SECONDS_MAX = 5.0
"""An upstream that the API server has confirmed so much earlier than what this replica has may lack what this replica
has. Confirmations of healthy replicas differ by less: some bookmark arrives every few seconds."""
BEHIND_WAIT_SECONDS = 15.0
"""How long to look for a better one. Old data is better than none that changes."""
CONTACT_SECONDS_MAX = 10.0
"""How long an upstream that answers questions may give no data for a feed."""
AVOID_SECONDS = 60.0
"""How long an upstream is avoided that gives no data, or data that contradicts itself."""
LEAVE_SECONDS = 20.0
"""How long a replica that watches, and wants to follow, looks for an upstream before it says again that it watches."""


class Mode(enum.StrEnum):
    """Where the data comes from."""

    SEARCHING = "searching"
    """From nowhere, or from an upstream that has been lost. What there is, is served."""
    FOLLOWING = "following"
    """From another replica."""
    WATCHING = "watching"
    """From the API server."""


class Policy(NamedTuple):
    """From the settings."""

    fallback_after_seconds: float
    """How long there must have been no upstream, while the API server answers, before the replica watches it."""
    return_after_seconds: float
    """How long an upstream must have been there before a replica that watches follows it again."""
    roots_only: bool
    """Follow only replicas that watch the API server."""


class Facts(NamedTuple):
    """What is known now."""

    answers: Mapping[str, freshness.Answer]
    """What candidates have last said, by address."""
    confirmed_at: float | None
    """When the API server last confirmed what this replica has; None if it has nothing."""
    has_contact: bool
    """Following: the upstream gives data for each feed, or a status that explains why not."""
    is_stale: bool
    """Watching: the API server cannot confirm the data."""
    must_watch: bool
    """The replica is elected to watch."""
    api_answers_since: float | None
    """Since when the API server answers; None if it does not, or has not been asked."""


class Upstream(NamedTuple):
    """The replica that is followed."""

    address: str
    incarnation: bytes


class Decision(NamedTuple):
    """What follows."""

    mode: Mode
    upstream: Upstream | None
    upstreams: tuple[bytes, ...] | None
    """What this replica says in its hellos."""
    why: str = ""
    """For the log, if the mode or the upstream has changed."""
    behind_seconds: float = 0.0
    """How much earlier the new upstream was confirmed than what this replica has."""


class Choice:
    """The state of one replica. `look` is to be called every second."""

    def __init__(self, policy: Policy, incarnation: bytes, now: float, rng: random.Random) -> None:
        self._policy = policy
        self._incarnation = incarnation
        self._random = rng
        self._avoided: dict[bytes, float] = {}
        """Until when, by incarnation."""
        self.mode = Mode.SEARCHING
        self.upstream: Upstream | None = None
        self._path: tuple[bytes, ...] = ()
        self._none_since: float | None = now
        """Since when no candidate can be followed, while the replica does not watch."""
        self._some_since: float | None = None
        """Since when one can be followed, while the replica watches."""
        self._return_after_seconds = 0.0
        self._lost_since: float | None = None
        """Since when an upstream that answers has not given data for each feed."""
        self._announced_at: float | None = now
        """When the replica has begun to say that it has no upstream; None if it says something else."""

    @property
    def upstreams(self) -> tuple[bytes, ...] | None:
        """What this replica says in its hellos."""
        if self._announced_at is not None:
            return ()
        return None if self.mode is Mode.WATCHING else self._path

    @property
    def distance(self) -> int:
        """Replicas between this one and the API server, as far as it is fed at all."""
        return len(self._path)

    @property
    def wants_api(self) -> bool:
        """Whether it matters that the API server answers: nobody else can be asked."""
        return self.mode is not Mode.WATCHING and self._none_since is not None

    def avoid(self, now: float, incarnation: bytes) -> None:
        """A replica has sent data that contradicts itself."""
        self._avoided = {one: until for one, until in self._avoided.items() if until > now}
        self._avoided[incarnation] = now + AVOID_SECONDS

    def hurry(self) -> None:
        """The service ends: it is to follow the replica that watches in its place as soon as there is one."""
        self._policy, self._some_since = self._policy._replace(return_after_seconds=0.0), None

    def look(self, now: float, facts: Facts) -> Decision:
        """What to do now."""
        usable = {address: one for address, one in facts.answers.items() if not self.objection(now, one)}
        before = self.mode, self.upstream
        if self.mode is Mode.WATCHING:
            why, behind = self._look_while_watching(now, facts, usable)
        else:
            why, behind = self._look_without_watching(now, facts, usable)
        changed = (self.mode, self.upstream) != before
        return Decision(self.mode, self.upstream, self.upstreams, why if changed else "", behind if changed else 0.0)

    def objection(self, now: float, answer: freshness.Answer) -> str:
        """Why a replica that has answered cannot be followed, for people; empty if it can."""
        if not answer.knows_tiers:
            return "it cannot feed replicas"
        if now - answer.asked_at > freshness.ANSWER_SECONDS_MAX:
            return "it does not answer any more"
        confirmed_at = answer.confirmed_at
        if confirmed_at is None or answer.asked_at - confirmed_at > freshness.CONFIRMED_SECONDS_MAX:
            return "the API server does not confirm its data"
        if self._avoided.get(answer.incarnation, now) > now:
            return "it has given no data, or data that cannot be used"
        return self._objection_to_path(answer)

    def _objection_to_path(self, answer: freshness.Answer) -> str:
        """Empty if this makes no ring and no long chain."""
        if answer.incarnation == self._incarnation:
            return "this is the replica itself"
        if answer.upstreams is None:
            return ""
        if not answer.upstreams:
            return "it has no upstream now"
        if self._policy.roots_only:
            return "it is fed by another replica"
        path = (answer.incarnation, *answer.upstreams)
        if self._incarnation in path or len(path) > UPSTREAMS_MAX or len(set(path)) < len(path):
            return "it is fed by this replica, or through too many others"
        return ""

    def _look_while_watching(
        self, now: float, facts: Facts, usable: Mapping[str, freshness.Answer]
    ) -> tuple[str, float]:
        if facts.must_watch or not usable:
            self._some_since = None
            if self._announced_at is not None and (facts.must_watch or now - self._announced_at > LEAVE_SECONDS):
                self._announced_at = None
            return "", 0.0
        if self._some_since is None:
            self._some_since = now
            self._return_after_seconds = self._policy.return_after_seconds * self._random.uniform(1.0, 2.0)
        if not facts.is_stale and now - self._some_since < self._return_after_seconds:
            return "", 0.0
        if self._announced_at is None:
            self._announced_at = now
            return "", 0.0
        return self._follow_best(now, facts, usable, "an upstream is there again")

    def _look_without_watching(
        self, now: float, facts: Facts, usable: Mapping[str, freshness.Answer]
    ) -> tuple[str, float]:
        if facts.must_watch:
            return self._watch("elected"), 0.0
        current = self._answer_of_upstream(facts)
        if current is not None and self._objection_to_path(current):
            self._search(now)
            return "the upstream is fed by this replica, or through too many others", 0.0
        is_usable = current is not None and not self.objection(now, current)
        if is_usable and current is not None and facts.has_contact:
            self._none_since = self._lost_since = None
            self._path = (current.incarnation, *(current.upstreams or ()))
            return "", 0.0
        if self._none_since is None:
            self._none_since = now
        if self.upstream is None:
            if usable:
                why, behind = self._follow_best(now, facts, usable, "an upstream is there")
                if why:
                    return why, behind
        elif is_usable:
            self._lost_since = now if self._lost_since is None else self._lost_since
            if now - self._lost_since < CONTACT_SECONDS_MAX:
                return "", 0.0
            self.avoid(now, self.upstream.incarnation)
            self._search(now)
            return "the upstream gives no data", 0.0
        elif any(one.incarnation != self.upstream.incarnation for one in usable.values()):
            self._search(now)
            return "the upstream is silent or stale, and there is another one", 0.0
        since = facts.api_answers_since
        if since is not None and now - max(since, self._none_since) >= self._policy.fallback_after_seconds:
            return self._watch("no upstream can be followed"), 0.0
        return "", 0.0

    def _answer_of_upstream(self, facts: Facts) -> freshness.Answer | None:
        if self.upstream is None:
            return None
        return next((one for one in facts.answers.values() if one.incarnation == self.upstream.incarnation), None)

    def _follow_best(
        self, now: float, facts: Facts, usable: Mapping[str, freshness.Answer], why: str
    ) -> tuple[str, float]:
        """Follow the candidate that is nearest to the API server, of these the freshest.

        One that may be behind this replica comes only if there is no other one for a while.
        """
        announced_at = now if self._announced_at is None else self._announced_at
        asked = {one: answer for one, answer in usable.items() if answer.asked_at >= announced_at + SETTLE_SECONDS}
        if not asked:
            return "", 0.0
        have = facts.confirmed_at
        current = {
            one: answer
            for one, answer in asked.items()
            if have is None or (answer.confirmed_at or 0.0) >= have - BEHIND_SECONDS_MAX
        }
        if not current and now - announced_at < BEHIND_WAIT_SECONDS:
            return "", 0.0
        address, chosen = min(
            (current or asked).items(),
            key=lambda item: (len(item[1].upstreams or ()), -(item[1].confirmed_at or 0.0), item[0]),
        )
        self.mode, self.upstream = Mode.FOLLOWING, Upstream(address, chosen.incarnation)
        self._path = (chosen.incarnation, *(chosen.upstreams or ()))
        self._announced_at = self._some_since = self._lost_since = None
        return why, 0.0 if have is None else max(0.0, have - (chosen.confirmed_at or 0.0))

    def _watch(self, why: str) -> str:
        self.mode, self.upstream, self._path = Mode.WATCHING, None, ()
        self._announced_at = self._none_since = self._some_since = self._lost_since = None
        return why

    def _search(self, now: float) -> None:
        self.mode, self.upstream, self._path = Mode.SEARCHING, None, ()
        self._announced_at, self._lost_since = now, None
        self._none_since = now if self._none_since is None else self._none_since
