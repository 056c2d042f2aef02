"""One replica of several: a service that watches the API server or follows another replica, by the real choice.

It has the real parts that `typha.service` puts together for it: the source of the data with its links and questions,
the election, and what hands clients over while this replica is stale. Connections and the Lease are simulated.
"""

import asyncio
from collections.abc import Coroutine
from typing import Any, Protocol, cast

from cache.kube import api
from protocol import messages
from tests.simulation import apiserver, expected_state, plans, process, replica_plans, service, sockets, truth
from tests.simulation import world as worlds
from typha import settings
from typha.hub import hub
from typha.ipc import messages as ipc
from typha.peers import freshness
from typha.peers import watch as peers_watch
from typha.upstream import choice, lease
from typha.upstream import source as upstream_source

PORT = 5473
GOING_BACK_SECONDS = freshness.CONFIRMED_SECONDS_MAX + freshness.ANSWER_SECONDS_MAX
"""How old a value may be that takes the place of a newer one at a change of upstream (docs/decisions/tiers.md)."""
_GONE_BACK_SECONDS = 90.0
"""For how long followers and clients may come to a key that has gone back at the replica that feeds them."""
_PROBE_SECONDS = 3.0
_HAND_OVER_AFTER_SECONDS = 10.0
_HAND_OVER_SPREAD_SECONDS = 5.0


def address_of(place: int) -> str:
    """The address of a replica, the same for all its lives."""
    return f"10.0.0.{place + 1}:{PORT}"


class Fleet(Protocol):
    """What a replica knows of the others."""

    world: worlds.World
    replica_plan: replica_plans.ReplicaPlan
    server: apiserver.ApiServer
    truth: truth.Truth
    newest_confirmation: float

    def by_incarnation(self, incarnation: bytes) -> "Replica | None":
        """The replica with this incarnation, dead or alive."""
        ...


class Replica(service.Service):
    """One life of a replica."""

    def __init__(self, fleet: Fleet, place: int, number: int, base: plans.Plan) -> None:
        self.fleet = fleet
        self.place = place
        self.address = address_of(place)
        self.route = apiserver.Route()
        self.chosen: upstream_source.Source | None = None
        self.candidate: lease.Candidate | None = None
        self.peers: peers_watch.Peers | None = None
        self._floors: dict[str, int] = {}
        """The place of each key's value in the history of the API server: the first one that is possible."""
        self.went_back: dict[str, float] = {}
        """When a key last got an older value."""
        self._settled: choice.Upstream | None = None
        """The upstream whose data the store has."""
        super().__init__(fleet.world, number, base, sockets.Backlog(fleet.world), fleet.server)
        self.expected.on_update = self._note_update

    def __repr__(self) -> str:
        return f"<Replica {self.place}.{self.number}>"

    @property
    def incarnation(self) -> bytes:
        """What others know it by."""
        return self.number.to_bytes(16)

    def make_process(self, name: str) -> process.Process:
        """See Service."""
        return super().make_process(f"replica {self.place} {name}")

    # What feeds it.

    def _upstreams(self) -> str:
        plan = self.fleet.replica_plan
        others = [place for place in range(plan.replicas) if place != self.place]
        match plan.topology:
            case replica_plans.Topology.ELECTED:
                return upstream_source.ELECTED
            case replica_plans.Topology.STAR:
                places = [0] if self.place else []
            case replica_plans.Topology.CHAIN:
                places = [place for place in others if self.place - 2 <= place < self.place]
            case replica_plans.Topology.MUTUAL:
                places = others
            case _:
                places = []
        return ",".join(address_of(place) for place in places)

    def sources(self, the_hub: hub.Hub) -> list[Coroutine[Any, Any, None]]:
        """See Service. Put together as in `typha.service`."""
        plan = self.fleet.replica_plan
        everybody = [address_of(place) for place in range(plan.replicas)]
        configured = settings.Settings(
            upstream=self._upstreams(),
            upstream_fallback_after_seconds=plan.fallback_seconds,
            peer_addresses=",".join(everybody),
            stale_hand_over_after_seconds=_HAND_OVER_AFTER_SECONDS,
            stale_hand_over_spread_seconds=_HAND_OVER_SPREAD_SECONDS,
        )
        self.peers = peers_watch.Peers(
            configured,
            peers_watch.Actions(
                stale_feeds=lambda: the_hub.stale_feeds,
                hand_over=lambda seconds, servers: the_hub.workers.send(ipc.HandOver(seconds, servers)),
                keep=lambda: the_hub.workers.send(ipc.KeepClients()),
            ),
            incarnation=self.incarnation,
        )
        if not configured.upstream:
            return [*self._watchers(the_hub), self.peers.run()]
        jobs = [self.peers.run()]
        candidates = configured.upstream.split(",")
        if configured.upstream == upstream_source.ELECTED:
            candidates = everybody
            self.candidate = lease.Candidate(
                identity=f"{self.place}_{self.number}", namespace="calico-system", service="calico-typha"
            )
            jobs.append(self.candidate.run(cast("api.KubeApi", self)))  # `exchange` knows what it is
        self.chosen = upstream_source.Source(
            configured,
            the_hub,
            incarnation=self.incarnation,
            max_value_bytes=service.MAX_VALUE_BYTES,
            candidates=lambda: candidates,
            watch=lambda: self._watch_instead(the_hub),
            api_answers=self._api_answers,
            must_watch=lambda: self.candidate is not None and self.candidate.holds,
        )
        self.chosen.choice._random = self.world.random
        the_hub.follow()
        return [*jobs, self.chosen.run()]

    def _watchers(self, the_hub: hub.Hub) -> list[Coroutine[Any, Any, None]]:
        self.watchers = [apiserver.Watcher(self.server, type, the_hub, route=self.route) for type in service.TYPES]
        return [watcher.run() for watcher in self.watchers]

    async def _watch_instead(self, the_hub: hub.Hub) -> None:
        try:
            the_hub.unfollow([self.make_feed()])
            async with asyncio.TaskGroup() as tasks:
                for job in self._watchers(the_hub):
                    tasks.create_task(job)
        finally:
            self.watchers.clear()

    async def _api_answers(self) -> bool:
        await asyncio.sleep(_PROBE_SECONDS if self.route.is_silent else 2 * self.server.latency_seconds)
        return self.reaches_api

    @property
    def reaches_api(self) -> bool:
        """Whether a request would be answered."""
        return not (self.route.is_cut or self.route.is_silent or self.world.now < self.server.down_until)

    def confirmed_at(self, watcher: apiserver.Watcher) -> float | None:
        """See Service."""
        at = watcher.last_confirmed
        self.fleet.newest_confirmation = max(self.fleet.newest_confirmation, at or 0.0)
        return at

    def leave(self) -> None:
        """See Service."""
        if self.candidate is not None:
            self.candidate.release()

    # What it has.

    @property
    def upstream(self) -> choice.Upstream | None:
        """The replica that it follows."""
        return None if self.chosen is None else self.chosen.choice.upstream

    @property
    def is_watching(self) -> bool:
        """Whether the API server feeds it."""
        return self.process.is_alive and bool(self.watchers)

    def _note_update(self, update: messages.Update) -> None:
        """Check an update of the store against the history of the API server."""
        key, history = update.key, self.fleet.truth
        now = expected_state.digest_of(update)
        if now == expected_state.ABSENT and is_permanent(key):
            raise worlds.Violation(f"{self!r} deletes {key}, which lives")
        place = history.place(key, now, not_before=self._floors.get(key, 0))
        if place is None:
            self._check_going_back(key, now)
            self.went_back[key] = self.world.now
            place = history.place(key, now, not_before=0)
        if place is None:
            raise worlds.Violation(f"{self!r} gives {key} a value that it never had")
        self._floors[key] = place

    def _check_going_back(self, key: str, now: int) -> None:
        """A key may go back only at a change of upstream, and not by long; or because the upstream has done so."""
        followed_now = None if self.chosen is None else self.chosen._followed
        if followed_now is not None and followed_now != self._settled:
            seconds = self.world.now - self.fleet.truth.last_true_at(key, now)
            if seconds > GOING_BACK_SECONDS:
                raise worlds.Violation(f"{self!r}: at a change of upstream, {key} goes back by {seconds:.1f} s")
            return
        above = None if followed_now is None else self.fleet.by_incarnation(followed_now.incarnation)
        if above is None or self.world.now - above.went_back.get(key, -1e9) > _GONE_BACK_SECONDS:
            raise worlds.Violation(f"{self!r}: {key} goes back in time without a change of upstream")

    def settled(self) -> None:
        """The store has all that the upstream had when it said that it was in sync."""
        self._settled = None if self.chosen is None else self.chosen._followed


def is_permanent(key: str) -> bool:
    """Whether an object of this key is never deleted."""
    return key.rpartition("/")[2].startswith("p")
