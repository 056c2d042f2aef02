"""The recordings of the original in tests/golden/corpus: objects, events and the data sent for them; and replays."""

import functools
import pathlib
from collections.abc import Iterable, Iterator
from typing import NamedTuple

import msgspec

from cache import objects, resources
from cache.feeds import feed as feeds
from cache.feeds.calico import feed, releases, syncers
from protocol import messages
from tests.harness import repository

DIRECTORY = repository.GOLDEN_CORPUS
NAMES = sorted(path.stem for path in DIRECTORY.glob("*.json"))
MAX_VALUE_BYTES = 4 << 20

_BASELINES = {syncers.Group.V1: "baseline", syncers.Group.V3: "v3-baseline"}


class Item(NamedTuple):
    """An update as a client received it. An empty value counts as no value."""

    key: str
    value: str | None
    revision: str
    v3_resource_version: str
    update_type: int


class _RecordedItem(msgspec.Struct):
    key: str
    value_raw: str | None
    revision: str
    v3_resource_version: str
    update_type: int
    ttl: int

    def item(self) -> Item:
        assert self.ttl == 0
        return Item(self.key, self.value_raw, self.revision, self.v3_resource_version, self.update_type)


class _Expected(msgspec.Struct):
    snapshot: list[_RecordedItem]
    sync_status: int | None = None
    """The last one, if the feed did not get in sync."""


class WatchEvent(msgspec.Struct):
    """A watch event as the API server sent it."""

    type: str
    object: msgspec.Raw


class Scenario(msgspec.Struct):
    """One recording."""

    name: str
    api_group: str
    objects_after: list[msgspec.Raw]
    expect: dict[str, _Expected]
    deltas: dict[str, list[list[_RecordedItem]]]
    events: list[list[WatchEvent]]
    release: str = ""
    """Whose Typha was recorded; empty for the newest."""

    @property
    def group(self) -> syncers.Group:
        return syncers.Group(self.api_group)

    def snapshot(self, syncer: str) -> dict[str, Item]:
        """Return the data of a fresh server, without the baseline."""
        return {recorded.key: recorded.item() for recorded in self.expect[syncer].snapshot}

    def delta(self, syncer: str, step: int) -> list[Item]:
        """Return what a client received in a step."""
        return [recorded.item() for recorded in self.deltas[syncer][step]]


class _ObjectMeta(msgspec.Struct):
    name: str
    resourceVersion: str = ""  # noqa: N815
    namespace: str = ""


class _Object(msgspec.Struct):
    apiVersion: str  # noqa: N815
    kind: str
    metadata: _ObjectMeta


@functools.cache
def load(name: str, directory: pathlib.Path = DIRECTORY) -> Scenario:
    """Load the recording with this name."""
    return msgspec.json.decode((directory / f"{name}.json").read_bytes(), type=Scenario)


def baseline(scenario: Scenario) -> Scenario:
    """Load the objects that existed before the first step of the scenario."""
    return load(_BASELINES[scenario.group])


def event_of(
    raw: bytes, types: dict[tuple[str, str], resources.ResourceType], origin: objects.Origin
) -> objects.ObjectEvent | None:
    """Return the object as a watcher passes it. None if it has another type."""
    found = msgspec.json.decode(raw, type=_Object)
    type = types.get((found.apiVersion, found.kind))
    if type is None:
        return None
    return objects.ObjectEvent(
        type,
        found.metadata.namespace,
        found.metadata.name,
        found.metadata.resourceVersion,
        msgspec.json.format(raw, indent=-1),
        found.apiVersion,
        found.kind,
        origin,
    )


class Replay:
    """The four feeds and projections of felix, and methods that pass objects to them."""

    def __init__(self, group: syncers.Group, *, use_pod_cidr: bool = False) -> None:
        specs = syncers.specs(group, use_pod_cidr=use_pod_cidr)
        self._sources = [feed.CalicoFeed(spec, max_value_bytes=MAX_VALUE_BYTES) for spec in specs]
        self.feeds = {source.name: source for source in self._sources}
        self.rejections: list[tuple[str, str, str]] = []
        self._types = {
            (f"{source.type.group}/{source.type.version}".lstrip("/"), source.kind): source.type
            for spec in specs
            for source in spec.sources
        }

    def apply(self, raw: bytes, origin: objects.Origin) -> None:
        """Pass a new or changed object."""
        event = event_of(raw, self._types, origin)
        for source in self._taking(event):
            if event is not None:
                rejection = source.apply(event)
                if rejection is not None:
                    assert rejection.reason != feed.DEFECT, rejection
                    self.rejections.append((rejection.feed, event.name, rejection.reason))

    def delete(self, raw: bytes) -> None:
        """Pass the deletion of an object."""
        event = event_of(raw, self._types, objects.Origin.EVENT)
        for source in self._taking(event):
            if event is not None:
                source.delete(event)

    def _taking(self, event: objects.ObjectEvent | None) -> list[feed.CalicoFeed]:
        return [
            source
            for source in self._sources
            if event is not None and event.type in (*source.types, *source.older_types)
        ]

    def open(self, release: releases.Release) -> Iterator[list[feeds.Rejection]]:
        """Begin a projection of felix. It has everything once the steps are at their end."""
        projection = feed.Projection(self.feeds[syncers.FELIX], release)
        self.feeds[projection.name] = projection
        return projection.seed()

    def play(self, watch_event: WatchEvent) -> None:
        """Pass a watch event."""
        if watch_event.type == "DELETED":
            self.delete(bytes(watch_event.object))
        else:
            self.apply(bytes(watch_event.object), objects.Origin.EVENT)

    def apply_list(self, raws: Iterable[bytes]) -> None:
        """Pass a list of objects."""
        for raw in raws:
            self.apply(bytes(raw), objects.Origin.LIST)

    def take(self, syncer: str) -> list[Item]:
        """Return the updates for a client of the feed since the last call."""
        batch = self.feeds[syncer].take()
        return [] if batch is None else [_item(update) for update in batch.updates]

    def snapshot(self, syncer: str) -> dict[str, Item]:
        """Return the data for a new client of the feed, without built-in items."""
        self.feeds[syncer].take()
        entries = [_item(entry.as_update()) for entry in self.feeds[syncer].store]
        return {item.key: item for item in entries}


def _item(update: messages.Update) -> Item:
    value = update.value.decode() if update.value else None
    return Item(update.key, value, update.revision, update.v3_resource_version, int(update.update_type))
