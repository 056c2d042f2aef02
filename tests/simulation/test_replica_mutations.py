"""Mutation tests of the simulation with several replicas: it finds each of these defects within a bounded number of
seeds."""

import contextlib
from collections.abc import Iterable
from typing import Any
from unittest import mock

import pytest

from cache.feeds import feed, followed
from cache.state import files, resume
from clients import differ
from protocol import messages
from tests.simulation import replicas, simulation
from typha.peers import freshness, inquiry
from typha.upstream import choice, election

SEEDS_MAX = 40

lose = followed.FollowedFeed.lose
ask = inquiry.ask
pieces = resume.pieces
holds = election.Election.holds


def with_all_keys(self: followed.FollowedFeed) -> None:
    lose(self)
    self.receive(messages.Update(one.key, None, one.revision, messages.UpdateType.DELETED) for one in self.store)


def to_itself_only(self: choice.Choice, answer: freshness.Answer) -> str:
    return "itself" if answer.incarnation == self._incarnation else ""


async def confirmed_now(*arguments: Any, **named: Any) -> freshness.Answer | None:
    answer = await ask(*arguments, **named)
    if answer is None or answer.confirmed_at is None:
        return answer
    return answer._replace(confirmed_at=answer.asked_at)


def all_kept(file: files.SnapshotFile, digests: Any, encode: Any) -> files.Pieces | None:
    return pieces(file, file.index.digests, encode)


def of_nothing(self: differ.Differ, known: Iterable[tuple[str, int, str]], *, chunks: int) -> None:
    return None


def and_goes_on(self: election.Election, now: float) -> bool:
    """A holder counts on the Lease for ever."""
    if holds(self, now):
        self.__dict__["has_held"] = True
    return "has_held" in self.__dict__


MUTATIONS: dict[str, list[tuple[object, str, object]]] = {
    "a follower that loses its upstream clears its store": [(followed.FollowedFeed, "lose", with_all_keys)],
    "followers may make rings": [(choice.Choice, "_objection_to_path", to_itself_only)],
    "ages are passed on as times": [(inquiry, "ask", confirmed_now)],
    "digests are not compared after a resumption": [
        (resume, "pieces", all_kept),
        (differ._Snapshot, "verify_end", lambda *_: None),
    ],
    "from the upstream to the API server, deletions are forgotten": [
        (feed.RawFeed, "_delete_what_no_object_has", lambda self: self._held.clear())
    ],
    "from the upstream to the API server, what is not listed yet is deleted": [
        (feed.RawFeed, "_is_complete", property(lambda _: True))
    ],
    "from one upstream to another, deletions are forgotten": [(differ.Differ, "restore_known", of_nothing)],
    "a Lease is counted on for ever": [(election.Election, "holds", and_goes_on)],
}


@pytest.mark.slow
@pytest.mark.parametrize("name", MUTATIONS)
def test_the_simulation_of_replicas_finds_a_defect(name: str) -> None:
    with contextlib.ExitStack() as stack:
        for place, attribute, mutant in MUTATIONS[name]:
            stack.enter_context(mock.patch.object(place, attribute, mutant))
        assert simulation.first_to_fail(replicas.run, range(SEEDS_MAX)) is not None
