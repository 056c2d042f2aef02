"""Whom a replica follows: single decisions, and fleets of replicas that choose at the same time, in virtual time."""

import dataclasses
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from typha.peers import freshness
from typha.upstream import choice
from typha.upstream.choice import Mode

OWN, ROOT, OTHER = b"own", b"root", b"other"
POLICY = choice.Policy(fallback_after_seconds=10.0, return_after_seconds=30.0, roots_only=False)
NOW = 1000.0


def made(policy: choice.Policy = POLICY) -> choice.Choice:
    return choice.Choice(policy, OWN, NOW, random.Random(1))


def answer(
    asked_at: float,
    incarnation: bytes = ROOT,
    upstreams: tuple[bytes, ...] | None = None,
    *,
    age: float | None = 1.0,
    knows_tiers: bool = True,
) -> freshness.Answer:
    return freshness.Answer(
        asked_at, None if age is None else asked_at - age, incarnation, upstreams, knows_tiers=knows_tiers
    )


def facts(
    *answers: freshness.Answer,
    confirmed_at: float | None = None,
    has_contact: bool = True,
    is_stale: bool = False,
    must_watch: bool = False,
    api_answers_since: float | None = None,
) -> choice.Facts:
    named = {one.incarnation.decode(): one for one in answers}
    return choice.Facts(named, confirmed_at, has_contact, is_stale, must_watch, api_answers_since)


def following() -> tuple[choice.Choice, float]:
    """A replica that follows the root."""
    one, now = made(), NOW + 5
    assert one.look(now, facts(answer(now))).mode is Mode.FOLLOWING
    one.look(now, facts(answer(now)))
    return one, now


@pytest.mark.parametrize(
    ("said", "objection"),
    [
        (answer(NOW), ""),
        (answer(NOW, knows_tiers=False), "cannot feed"),
        (answer(NOW - 16), "does not answer any more"),
        (answer(NOW, age=None), "does not confirm"),
        (answer(NOW, age=91), "does not confirm"),
        (answer(NOW, OTHER), "has given no data"),
        (answer(NOW, OWN), "itself"),
        (answer(NOW, upstreams=()), "no upstream now"),
        (answer(NOW, upstreams=(b"a",)), ""),
        (answer(NOW, upstreams=(b"a", OWN)), "fed by this replica"),
        (answer(NOW, upstreams=(b"a", b"b", b"c")), "too many others"),
    ],
)
def test_why_a_candidate_is_not_followed(said: freshness.Answer, objection: str) -> None:
    one = made()
    one.avoid(NOW, OTHER)
    found = one.objection(NOW, said)
    assert objection in found
    assert bool(objection) == bool(found)


def test_an_elected_fleet_follows_only_replicas_that_watch() -> None:
    said = answer(NOW, upstreams=(b"a",))
    assert "another replica" in made(POLICY._replace(roots_only=True)).objection(NOW, said)


def test_a_good_candidate_is_followed_once_this_replica_has_said_that_it_has_no_upstream() -> None:
    one = made()
    assert one.look(NOW + 1, facts(answer(NOW + 1))).mode is Mode.SEARCHING
    decision = one.look(NOW + 2, facts(answer(NOW + 2)))
    assert decision.mode is Mode.FOLLOWING
    assert decision.upstream == choice.Upstream("root", ROOT)
    assert decision.upstreams == (ROOT,)
    assert one.distance == 1


@pytest.mark.parametrize(
    "bad",
    [
        answer(NOW + 5, age=None),  # stale, or not complete
        answer(NOW + 5, age=freshness.CONFIRMED_SECONDS_MAX + 1),
        answer(NOW + 5, knows_tiers=False),
        answer(NOW + 5, OWN),
        answer(NOW + 5, OTHER, (OWN, ROOT)),
        answer(NOW + 5, OTHER, ()),
        answer(NOW + 5, OTHER, (b"a", b"b", b"c")),
        answer(NOW + 5, OTHER, (ROOT, ROOT)),
        answer(NOW + 5 - freshness.ANSWER_SECONDS_MAX - 1),
    ],
)
def test_who_is_not_followed(bad: freshness.Answer) -> None:
    assert made().look(NOW + 5, facts(bad)).mode is Mode.SEARCHING


def test_in_an_elected_fleet_only_replicas_that_watch_are_followed() -> None:
    elected = made(POLICY._replace(roots_only=True))
    assert elected.look(NOW + 5, facts(answer(NOW + 5, OTHER, (ROOT,)))).mode is Mode.SEARCHING
    assert elected.look(NOW + 6, facts(answer(NOW + 6))).mode is Mode.FOLLOWING


def test_the_nearest_to_the_api_server_is_followed_and_of_those_the_freshest() -> None:
    now = NOW + 5
    near, fresh = answer(now, b"near", age=9.0), answer(now, b"fresh", age=2.0)
    far = answer(now, OTHER, (ROOT,), age=0.0)
    decision = made().look(now, facts(near, far, fresh))
    assert decision.upstream == choice.Upstream("fresh", b"fresh")


def test_one_that_may_be_behind_is_followed_only_if_there_is_no_other_one() -> None:
    one, now = made(), NOW + 5
    behind = facts(answer(now, age=20.0), confirmed_at=now - 2.0)
    assert one.look(now, behind).mode is Mode.SEARCHING
    late = NOW + choice.BEHIND_WAIT_SECONDS
    decision = one.look(late, facts(answer(late, age=20.0), confirmed_at=late - 2.0))
    assert decision.mode is Mode.FOLLOWING
    assert decision.behind_seconds == pytest.approx(18.0)


def test_without_an_upstream_the_api_server_is_watched_once_it_has_answered_for_long_enough() -> None:
    one = made()
    assert one.look(NOW + 100, facts()).mode is Mode.SEARCHING
    assert one.look(NOW + 101, facts(api_answers_since=NOW + 95)).mode is Mode.SEARCHING
    decision = one.look(NOW + 105, facts(api_answers_since=NOW + 95))
    assert decision.mode is Mode.WATCHING
    assert decision.upstreams is None
    assert one.distance == 0


def test_a_stale_upstream_is_kept_while_there_is_no_other_one() -> None:
    one, now = following()
    assert one.look(now + 1, facts(answer(now + 1, age=None))).mode is Mode.FOLLOWING
    decision = one.look(now + 2, facts(answer(now + 2, age=None), answer(now + 2, OTHER)))
    assert decision.mode is Mode.SEARCHING
    assert one.look(now + 4, facts(answer(now + 4, OTHER))).upstream == choice.Upstream("other", OTHER)


def test_an_upstream_that_is_fed_by_this_replica_is_left_at_once() -> None:
    one, now = following()
    decision = one.look(now + 1, facts(answer(now + 1, ROOT, (OTHER, OWN))))
    assert decision.mode is Mode.SEARCHING
    assert decision.upstreams == ()


def test_what_this_replica_says_follows_what_its_upstream_says() -> None:
    one, now = following()
    assert one.look(now + 1, facts(answer(now + 1, ROOT, (OTHER,)))).upstreams == (ROOT, OTHER)


def test_an_upstream_without_data_is_avoided_and_the_api_server_is_not_out_of_reach() -> None:
    one, now = following()
    at = now
    modes = [Mode.FOLLOWING]
    while at < now + 40:
        at += 1
        mode = one.look(at, facts(answer(at), has_contact=False, api_answers_since=now + 5)).mode
        modes += [mode] if mode is not modes[-1] else []
    assert modes == [Mode.FOLLOWING, Mode.SEARCHING, Mode.WATCHING]


def test_one_that_watches_and_ends_follows_as_soon_as_another_one_watches() -> None:
    one = made()
    now = NOW + 5
    assert one.look(now, facts(must_watch=True)).mode is Mode.WATCHING
    one.hurry()
    assert one.look(now + 1, facts()).mode is Mode.WATCHING
    assert one.look(now + 2, facts(answer(now + 2), confirmed_at=now + 2)).upstreams == ()
    assert one.look(now + 3, facts(answer(now + 3), confirmed_at=now + 3)).mode is Mode.WATCHING
    decision = one.look(now + 4, facts(answer(now + 4), confirmed_at=now + 4))
    assert (decision.mode, decision.upstreams) == (Mode.FOLLOWING, (ROOT,))


def test_one_that_ends_hurries_also_if_it_was_about_to_follow_later() -> None:
    one = made()
    one.look(NOW + 5, facts(must_watch=True))
    for second in range(6, 9):
        assert one.look(NOW + second, facts(answer(NOW + second))).upstreams is None
    one.hurry()
    for second in range(9, 12):
        decision = one.look(NOW + second, facts(answer(NOW + second)))
    assert decision.mode is Mode.FOLLOWING


def test_an_elected_replica_watches_at_once_and_one_that_is_no_more_follows_in_time() -> None:
    one, now = following()
    assert one.look(now + 1, facts(answer(now + 1), must_watch=True)).mode is Mode.WATCHING
    at = now + 1
    while one.look(at, facts(answer(at, OTHER))).mode is Mode.WATCHING:
        at += 1
        assert at < now + 100
    assert at > now + POLICY.return_after_seconds


@dataclasses.dataclass
class Replica:
    """One replica of the model."""

    number: int
    choice: choice.Choice
    reaches_api: bool = True
    is_up: bool = True
    said: list[tuple[float, tuple[bytes, ...] | None]] = dataclasses.field(default_factory=list)
    """What it says in its hellos, and from when on."""
    answers: dict[str, freshness.Answer] = dataclasses.field(default_factory=dict)
    asks_at: float = 0.0
    api_since: float | None = None

    @property
    def incarnation(self) -> bytes:
        return b"%d" % self.number


class Fleet:
    """Replicas that all name each other, and take what they say to their workers with a delay."""

    def __init__(self, count: int, rng: random.Random) -> None:
        self.rng = rng
        self.now = NOW
        self.replicas = [
            Replica(number, choice.Choice(POLICY, b"%d" % number, NOW, random.Random(rng.random())))
            for number in range(count)
        ]
        for one in self.replicas:
            one.said.append((NOW, ()))

    def upstream(self, one: Replica) -> Replica | None:
        followed = one.choice.upstream
        return None if followed is None else self.replicas[int(followed.address)]

    def root(self, one: Replica) -> Replica | None:
        """The replica at the end of the chain, if it watches; None in a ring or without one."""
        seen = set()
        at: Replica | None = one
        while at is not None and at.is_up and at.number not in seen:
            if at.choice.mode is Mode.WATCHING:
                return at
            seen.add(at.number)
            at = self.upstream(at)
        return None

    def ring(self, one: Replica) -> int:
        """The length of the ring that a replica is in; 0 if it is in none."""
        at, steps = self.upstream(one), 1
        while at is not None and at is not one and steps <= len(self.replicas):
            at, steps = self.upstream(at), steps + 1
        return steps if at is one else 0

    def confirmed(self, one: Replica) -> bool:
        root = self.root(one)
        return root is not None and root.reaches_api

    def ask(self, asker: Replica) -> None:
        for other in self.replicas:
            if other is asker or not other.is_up:
                continue
            upstreams = [said for at, said in other.said if at <= self.now][-1]
            asker.answers[str(other.number)] = freshness.Answer(
                self.now, self.now - 0.5 if self.confirmed(other) else None, other.incarnation, upstreams, True
            )

    def step(self) -> None:
        self.now += 0.25
        for one in self.rng.sample(self.replicas, len(self.replicas)):
            if not one.is_up:
                continue
            if self.now >= one.asks_at:
                self.ask(one)
                one.asks_at = self.now + self.rng.uniform(0.8, 1.2) * (1.0 if one.choice.wants_api else 5.0)
            one.api_since = (one.api_since or self.now) if one.reaches_api else None
            followed = self.upstream(one)
            decision = one.choice.look(
                self.now,
                choice.Facts(
                    answers=one.answers,
                    confirmed_at=None,
                    has_contact=followed is not None and followed.is_up,
                    is_stale=not one.reaches_api,
                    must_watch=False,
                    api_answers_since=one.api_since if one.choice.wants_api else None,
                ),
            )
            if decision.upstreams != one.said[-1][1]:
                one.said = [*one.said[-3:], (self.now + self.rng.uniform(0.0, 1.0), decision.upstreams)]

    def run(self, seconds: float) -> float:
        """Returns for how long the oldest ring has lasted."""
        longest, began = 0.0, None
        end = self.now + seconds
        while self.now < end:
            self.step()
            rings = [self.ring(one) for one in self.replicas]
            assert 2 not in rings, [one.choice.upstream for one in self.replicas]
            began = (self.now if began is None else began) if any(rings) else None
            longest = max(longest, 0.0 if began is None else self.now - began)
        return longest


@settings(max_examples=25, deadline=None)
@given(st.integers(2, 7), st.integers(0, 2**32))
def test_fleets_find_one_replica_that_watches_and_no_ring_lasts(count: int, seed: int) -> None:
    rng = random.Random(seed)
    fleet = Fleet(count, rng)
    longest = fleet.run(60.0)
    for _ in range(6):
        one = rng.choice(fleet.replicas)
        match rng.randrange(3):
            case 0:
                one.reaches_api = not one.reaches_api
            case 1:
                one.is_up = not one.is_up
            case _:
                for other in rng.sample(fleet.replicas, count // 2):
                    other.reaches_api = rng.random() < 0.5
        longest = max(longest, fleet.run(rng.uniform(1.0, 60.0)))
    for one in fleet.replicas:
        one.reaches_api = one.is_up = True
    longest = max(longest, fleet.run(600.0))
    assert longest <= 4 * 6.0  # each replica asks its upstream every six seconds at the most
    assert all(fleet.confirmed(one) for one in fleet.replicas)
    assert all(one.choice.distance <= choice.UPSTREAMS_MAX for one in fleet.replicas)
    assert sum(one.choice.mode is Mode.WATCHING for one in fleet.replicas) == 1
