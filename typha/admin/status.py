"""The pages `/v1/status` and `/v1/clients`: the service, its feeds and kinds, and who is connected."""

import collections
import heapq
import importlib.metadata
import socket
from collections.abc import Callable

import msgspec

from cache.feeds import feed
from typha import clock
from typha.admin import answers, server
from typha.hub import client_lists, collector, hub, supervisor
from typha.ipc import messages

_monotonic = clock.monotonic
Connected = client_lists.Connected

CLIENTS_MAX = 10_000
"""Clients of one answer."""
_LABEL_CHARS = 200
"""Of a subscription: it may name 192 texts."""
_SLOWEST_SHOWN = 10
_VERSIONS_MAX = 20
"""An agent may name any version; more than a few are no overview."""
_SORT_KEYS: dict[str, Callable[[messages.ConnectedClient], tuple[str | float, ...]]] = {
    "node": lambda client: (client.node, client.address),
    "lag": lambda client: (-client.lag_seconds, -client.lag_bytes, client.node),
    "lag-bytes": lambda client: (-client.lag_bytes, client.node),
    "applied": lambda client: (client.applied < 0, client.applied, client.feed, client.node),
    "bytes": lambda client: (-client.bytes_sent, client.node),
    "age": lambda client: (-client.age_seconds, client.node),
    "version": lambda client: (client.version, client.node),
    "feed": lambda client: (client.feed, client.node),
    "state": lambda client: (client.state.value, client.node),
}
SORTS = tuple(_SORT_KEYS)


class StatusPages:
    """Reads the parts; keeps nothing."""

    def __init__(
        self,
        the_hub: hub.Hub,
        the_supervisor: supervisor.Supervisor,
        collected: collector.Collector,
        *,
        port: int,
        is_draining: Callable[[], bool],
    ) -> None:
        self._hub = the_hub
        self._supervisor = the_supervisor
        self._collected = collected
        self._started_at = _monotonic()
        self._port = port
        self._is_draining = is_draining

    @property
    def pages(self) -> dict[str, server.Page]:
        """Both, by path."""
        return {"/v1/status": self.status, "/v1/clients": self.clients}

    async def status(self, _query: server.Query) -> server.Answer:
        """The service, its feeds, and the kinds that it watches."""
        return server.Answer(msgspec.json.encode(self.described()))

    def described(self) -> answers.Status:
        """The same as a value."""
        feeds = [self._feed(source) for source in self._hub.feeds.values()]
        return answers.Status(service=self._service(), feeds=feeds, kinds=self._kinds())

    def _service(self) -> answers.Service:
        workers = sorted(self._hub.workers.items())
        return answers.Service(
            version=importlib.metadata.version("typha"),
            pod=socket.gethostname(),
            incarnation=self._supervisor.incarnation,
            started_at=unix_seconds(self._started_at),
            now=clock.time_ns() / 1e9,
            is_draining=self._is_draining(),
            workers=[
                answers.Worker(worker=number, ready=worker.ready, connections=worker.report.active)
                for number, worker in workers
            ],
            workers_wanted=max(1, self._supervisor.wanted),
            port=self._port,
            open_connections=sum(worker.report.active + worker.report.closing for _, worker in workers),
            freshness=self._collected.peers.stance.value if self._collected.peers is not None else "",
            stale_seconds=round(self._collected.peers.stale_seconds, 1) if self._collected.peers is not None else 0.0,
            source=self._collected.source_text,
        )

    def _feed(self, source: feed.Feed) -> answers.Feed:
        channels = [channel for channel in self._hub.channels.values() if channel.feed.name == source.name]
        found = [report for channel in channels for report in self._hub.workers.channel_reports(channel)]
        reports = [report for report in found if report is not None]
        times = self._hub.publisher.commit_times[source.name]
        changed = times.newest
        reported = self._hub.convergence.reported(source.name, times, _monotonic())
        store = source.store
        return answers.Feed(
            feed=source.name,
            status=store.status.label,
            keys=len(store),
            value_bytes=store.value_bytes,
            digest=f"{store.digest:016x}",
            sequence=store.sequence,
            clients=sum(report.clients for report in reports),
            held=sum(report.held for report in reports),
            lag_seconds=max((report.lag_seconds for report in reports), default=0.0),
            subscriptions=sorted({one.subscription.label[:_LABEL_CHARS] for one in channels if one.subscription}),
            reporting=reported.reporting,
            applied=reported.applied,
            applied_lag_seconds=round(reported.lag_seconds, 3),
            formats=list(dict.fromkeys(channel.encoder.name for channel in channels)),
            snapshot_bytes=sum(channel.snapshot.length for channel in channels if channel.snapshot),
            log_bytes=sum(channel.log.used_bytes for channel in channels),
            changed_at=None if changed is None else unix_seconds(changed),
        )

    def _kinds(self) -> list[answers.Kind]:
        now = _monotonic()
        found = []
        for one in self._collected.watchers:
            confirmed = one.counters.last_confirmed
            found.append(
                answers.Kind(
                    type=str(one.type),
                    state=one.status.label,
                    objects=one.object_count,
                    confirmed_seconds=None if confirmed is None else now - confirmed,
                    feeds=[name for name, source in self._hub.feeds.items() if one.type in source.types],
                )
            )
        return found

    async def clients(self, query: server.Query) -> server.Answer:
        """The connections: `sort`, `limit`, and `feed`, `node`, `state` to choose some."""
        unknown = query.keys() - {"sort", "limit", "feed", "node", "state"}
        if unknown:
            raise server.BadQuery(f"unknown parameter {min(unknown)!r}")
        sort = query.get("sort", "node")
        if sort not in _SORT_KEYS:
            raise server.BadQuery(f"sort is one of {', '.join(SORTS)}")
        limit = number(query, "limit", default=CLIENTS_MAX, most=CLIENTS_MAX)
        listed = await self._hub.client_lists.newest()
        key = _SORT_KEYS[sort]
        chosen = sorted(
            (one for one in listed.clients if _is_chosen(one.client, query)), key=lambda one: key(one.client)
        )
        answer = answers.Clients(
            clients=[self._client(one) for one in chosen[:limit]],
            total=len(chosen),
            complete=not listed.missing,
            missing_workers=listed.missing,
            versions=dict(collections.Counter(one.client.version for one in chosen).most_common(_VERSIONS_MAX)),
            states=dict(collections.Counter(one.client.state.value for one in chosen)),
            slowest_to_apply=self._slowest_to_apply(chosen),
        )
        return server.Answer(msgspec.json.encode(answer))

    def _slowest_to_apply(self, chosen: list[Connected]) -> list[answers.Client]:
        """Of each feed the lowest sequences, and of those the oldest."""
        by_feed: dict[str, list[Connected]] = {}
        for one in chosen:
            if one.client.applied >= 0:
                by_feed.setdefault(one.client.feed, []).append(one)
        lowest = [
            self._client(one)
            for found in by_feed.values()
            for one in heapq.nsmallest(_SLOWEST_SHOWN, found, key=lambda one: one.client.applied)
        ]
        late = [one for one in lowest if one.applied_lag_seconds]
        return heapq.nlargest(_SLOWEST_SHOWN, late, key=lambda one: one.applied_lag_seconds)

    def _client(self, connected: Connected) -> answers.Client:
        """As `client_answer`, and how old what it has not applied is."""
        answer, times = client_answer(connected), self._hub.publisher.commit_times.get(connected.client.feed)
        if answer.applied is None or times is None:
            return answer
        lag_seconds = round(times.age_of_next(answer.applied, _monotonic()), 3)
        applied = min(answer.applied, times.newest_sequence)  # of a subscription there may be nothing left to apply
        return msgspec.structs.replace(answer, applied=applied, applied_lag_seconds=lag_seconds)


def unix_seconds(monotonic_seconds: float) -> float:
    """A moment of the monotonic clock, as seconds since 1970."""
    return clock.time_ns() / 1e9 - (_monotonic() - monotonic_seconds)


def number(query: server.Query, name: str, *, default: int, most: int) -> int:
    """A parameter that is a number from 0 to `most`. Raises BadQuery."""
    text = query.get(name, str(default))
    if not text.isascii() or not text.isdigit() or len(text) > len(str(most)) or int(text) > most:
        raise server.BadQuery(f"{name} is a number up to {most}")
    return int(text)


def client_answer(connected: Connected) -> answers.Client:
    """A connection as the pages show it."""
    one = connected.client
    return answers.Client(
        node=one.node,
        address=one.address,
        version=one.version,
        info=one.info,
        release=one.release,
        feed=one.feed,
        format=one.wire_format,
        state=one.state.value,
        lag_seconds=round(one.lag_seconds, 3),
        lag_bytes=one.lag_bytes,
        sequence=one.sequence,
        applied=None if one.applied < 0 else one.applied,
        bytes_sent=one.bytes_sent,
        age_seconds=round(one.age_seconds, 3),
        worker=connected.worker,
        tls_name=one.tls_name,
        number=one.number,
        subscription=one.subscription,
    )


def _is_chosen(client: messages.ConnectedClient, query: server.Query) -> bool:
    return (
        query.get("feed", client.feed) == client.feed
        and query.get("node", client.node) == client.node
        and query.get("state", client.state.value) == client.state.value
    )
