"""Several replicas on one screen: what each says, and whether they agree. Pure.

A sequence counts within one start of a service, so sequences of two replicas cannot be compared. Their contents can:
equal contents have equal digests.
"""

from collections.abc import Iterable, Sequence
from typing import Annotated

import msgspec

from typha.admin import answers

IN_SYNC = "in-sync"
STALE_SECONDS = 180.0
"""The API server confirms a type about once a minute, or more often. A type is named after this time without that."""
_UNEVEN_CLIENTS_MIN = 20
_UNEVEN_RATIO = 2.0
"""A replica with more than twice the mean of all is named: it has the work of the others."""


_STANCES = {
    "waiting": "it keeps its clients for the moment",
    "alone": "it keeps its clients, because no other replica answers",
    "all-stale": "it keeps its clients, because the other replicas have lost it, too",
    "handing-over": "it hands its clients over to replicas that have not lost it",
}


class Replica(msgspec.Struct, frozen=True, kw_only=True):
    """The answers of one service, or why there are none."""

    server: answers.Name
    error: Annotated[str, msgspec.Meta(max_length=10_000)] = ""
    status: answers.Status | None = None
    clients: answers.Clients | None = None


class Fleet(msgspec.Struct, frozen=True, kw_only=True):
    """What `typha status --json` prints."""

    replicas: list[Replica]
    findings: list[str] = []
    """What is not as it should be."""


def may_differ(replicas: Sequence[Replica]) -> bool:
    """Whether feeds of two replicas have different digests. Another look shows whether they only change."""
    return any(len({feed.digest for _, feed in found}) > 1 for found in _feeds(replicas).values())


def compare(replicas: Sequence[Replica], *, before: Sequence[Replica] = ()) -> list[str]:
    """One sentence for each thing that is not as it should be. `before` are the same replicas, a moment ago."""
    found = [
        f"{one.server}: no answer: {one.error.removeprefix(f'{one.server}: ')}"
        for one in replicas
        if one.status is None
    ]
    for one in replicas:
        found += _of_one(one)
    found += _of_all(replicas, _digests(before))
    return found


def _of_one(replica: Replica) -> Iterable[str]:
    status = replica.status
    if status is None:
        return
    if replica.clients is not None and not replica.clients.complete:
        numbers = ", ".join(map(str, replica.clients.missing_workers)) or "?"
        yield f"{replica.server}: worker {numbers} has not listed all clients in time: some are missing here"
    if status.service.is_draining:
        yield f"{replica.server}: is draining"
    if status.service.stale_seconds:
        what = _STANCES.get(status.service.freshness, status.service.freshness)
        yield f"{replica.server}: has lost the API server {status.service.stale_seconds:.0f} s ago: {what}"
    ready = sum(worker.ready for worker in status.service.workers)
    if ready < status.service.workers_wanted:
        yield f"{replica.server}: {ready} of {status.service.workers_wanted} workers are ready"
    for feed in status.feeds:
        if feed.status != IN_SYNC:
            yield f"{replica.server}: feed {feed.feed} is {feed.status}"
    for kind in status.kinds:
        if kind.confirmed_seconds is None or kind.confirmed_seconds > STALE_SECONDS:
            since = "never" if kind.confirmed_seconds is None else f"{kind.confirmed_seconds:.0f} s ago"
            yield f"{replica.server}: {kind.type} was last confirmed by the API server {since}"


def _of_all(replicas: Sequence[Replica], before: dict[tuple[str, str], str]) -> Iterable[str]:
    known = [one for one in replicas if one.status is not None]
    versions = {one.status.service.version for one in known if one.status is not None}
    if len(versions) > 1:
        yield f"replicas have different versions: {', '.join(sorted(versions))}"
    for name, found in _feeds(replicas).items():
        if len({feed.digest for _, feed in found}) < 2 or any(feed.status != IN_SYNC for _, feed in found):
            continue
        if all(before.get((server, name)) == feed.digest for server, feed in found):
            each = ", ".join(f"{server} {feed.keys} keys ({feed.digest})" for server, feed in found)
            yield f"feed {name} has different contents: {each}"
    clients = {one.server: sum(feed.clients for feed in one.status.feeds) for one in known if one.status is not None}
    mean = sum(clients.values()) / max(1, len(clients))
    for server, count in clients.items():
        if len(clients) > 1 and count >= _UNEVEN_CLIENTS_MIN and count > _UNEVEN_RATIO * mean:
            yield f"{server}: has {count} clients, and the mean is {mean:.0f}"


def _feeds(replicas: Iterable[Replica]) -> dict[str, list[tuple[str, answers.Feed]]]:
    """Each feed, with those that have it."""
    found: dict[str, list[tuple[str, answers.Feed]]] = {}
    for one in replicas:
        for feed in one.status.feeds if one.status is not None else ():
            found.setdefault(feed.feed, []).append((one.server, feed))
    return found


def _digests(replicas: Iterable[Replica]) -> dict[tuple[str, str], str]:
    return {(server, name): feed.digest for name, found in _feeds(replicas).items() for server, feed in found}
