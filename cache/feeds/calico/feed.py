"""A feed of Calico's data model: takes Kubernetes objects, and gives Calico's keys and values. Pure.

The update types are the original's. NEW and UPDATED say whether an object had the key before, even with an invalid
value. An invalid value is sent as absent, but with type and revision. A deletion has neither value nor revision. A
change that leaves the value as it is causes no update, and the stored revision stays that of the value.
"""

from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

from cache import objects, resources
from cache.feeds import feed, raw
from cache.feeds.calico import claims, model, projections, releases, syncers
from protocol import messages
from protocol.native import codec

DEFECT = "defect"
"""The reason if a converter fails unexpectedly."""
_DETAIL_CHARS_MAX = 1000
"""Details quote objects, which may be large."""
_SEED_SLICE = 200
"""Objects that a projection takes over in one step: some 2 ms."""


class _Change(NamedTuple):
    """A change that the next batch makes to a key."""

    update_type: messages.UpdateType
    item: model.Item


class _Failure(NamedTuple):
    """The object has no items."""

    reason: str
    detail: str


class _Kind:
    """One resource type of the feed, and the items of each of its objects in the order in which they are sent."""

    __slots__ = ("items", "last_items", "last_wins", "rank", "source")

    def __init__(self, rank: int, source: syncers.Source) -> None:
        self.rank = rank
        self.source = source
        self.last_wins = source.last_wins
        self.items: dict[str, tuple[model.Item, ...]] = {}
        """Without absent ones."""
        self.last_items: dict[str, Sequence[model.Item]] = {}
        """The last items of objects for which the converter may return the identical items again."""


class CalicoFeed(feed.Feed):
    """One of the four feeds. `syncers.specs` defines their contents.

    It keeps every object's items for its projections, too: feeds of the same objects for agents of older releases.
    """

    _sends_older = False
    """Whether items for older releases are sent."""

    def __init__(self, spec: syncers.FeedSpec, *, max_value_bytes: int) -> None:
        super().__init__(spec.name, [source.type for source in spec.sources if not source.is_older])
        self.spec = spec
        self.max_value_bytes = max_value_bytes
        self.projections: list[Projection] = []
        """What follows this feed: whatever happens to an object or a status here happens there."""
        self._kinds = {source.type: _Kind(rank, source) for rank, source in enumerate(spec.sources)}
        self._older_statuses = {source.type: messages.SyncStatus.WAITING for source in spec.sources if source.is_older}
        self._claims = claims.Claims()
        self._changes.extend(_Change(messages.UpdateType.NEW, item) for item in spec.built_in)

    @property
    def older_types(self) -> list[resources.ResourceType]:
        """The types whose objects only agents of older releases get: they are watched once there are such agents."""
        return list(self._older_statuses)

    def may_take_long(self, event: objects.ObjectEvent) -> bool:
        """See `feed.Feed`. A converter that remembers its last results is for one thread only, and quick."""
        source = self._kinds[event.type].source
        return event.raw is not None and len(event.raw) > source.quick_bytes and not source.is_memoised

    def convert(self, event: objects.ObjectEvent) -> Sequence[model.Item] | _Failure:
        """See `feed.Feed`."""
        try:
            return self._kinds[event.type].source.convert(event)
        except model.ConversionError as error:
            return _Failure(error.reason, error.detail)
        except MemoryError:
            raise  # the object is good, and comes again
        except Exception as error:  # one object must not break the feed, even if it triggers a bug in a converter
            return _Failure(DEFECT, f"{type(error).__name__}: {error}")

    def adopt(self, event: objects.ObjectEvent, outcome: Sequence[model.Item] | _Failure) -> feed.Rejection | None:
        """See `feed.Feed`."""
        kind = self._kinds[event.type]
        name = _object_name(event)
        if isinstance(outcome, _Failure):
            self.delete(event)
            return self._rejection(event, outcome.reason, outcome.detail)
        items = outcome
        if items and items is kind.last_items.get(name):
            self.skipped += len(items)
            return None
        rejection = None
        checked: list[model.Item] = []
        for item in items:
            if not self._is_plain(item) and (self._sends_older or not item.is_older):
                item, rejection = self._examine(event, item, rejection)
            checked.append(item)
        held = tuple(item for item in checked if item.value is not None or item.invalid)
        known = self._sent_keys(kind, name)
        # If there is no memory in between, the object comes again. What it claims by then must be known.
        kind.items[name] = (*kind.items[name], *held) if known else held
        kind.last_items.pop(name, None)
        if known:
            self._release_unmentioned(kind, name, known, {item.key for item in items})
        for item in checked:
            if item.is_older and not self._sends_older:
                continue
            if item.value is not None or item.invalid:
                self._claim(kind, name, item)
            elif item.key in known:
                self._release(kind, name, item.key)
        if held:
            kind.items[name] = held
        else:
            del kind.items[name]
        for projection in self.projections:
            projected = projection.follow(event, items)
            rejection = rejection or projected
        if kind.source.is_memoised and rejection is None:
            kind.last_items[name] = items  # only now: what a projection lacked memory for must come again
        return rejection

    def delete(self, event: objects.ObjectEvent) -> None:
        """Process the deletion of an object."""
        self._forget(self._kinds[event.type], _object_name(event))
        for projection in self.projections:
            projection.delete(event)

    def set_status(self, type: resources.ResourceType, status: messages.SyncStatus) -> None:
        """See `feed.Feed`. The status of a type for older releases counts in their projections only."""
        if type in self._older_statuses:
            self._older_statuses[type] = status
        else:
            super().set_status(type, status)
        for projection in self.projections:
            projection.follow_status(type, status)

    def status_of(self, type: resources.ResourceType) -> messages.SyncStatus:
        """Return the status of one type."""
        return self._older_statuses[type] if type in self._older_statuses else self._statuses[type]

    def objects_of(self, type: resources.ResourceType) -> Sequence[tuple[str, Sequence[model.Item]]]:
        """Return the objects of a type as they are now: `namespace/name`, or a name, and the items."""
        return list(self._kinds[type].items.items())

    def holds(self, type: resources.ResourceType, name: str, items: Sequence[model.Item]) -> bool:
        """Return whether an object that `objects_of` returned is still the same."""
        return self._kinds[type].items.get(name) is items

    def held_items(self, type: resources.ResourceType, namespace: str, name: str) -> list[feed.HeldItem]:
        """See `feed.Feed`. Items for older releases are left out where they are not sent."""
        full_name = f"{namespace}/{name}" if namespace else name
        kind = self._kinds[type]
        found = []
        for item in kind.items.get(full_name, ()):
            if item.is_older and not self._sends_older:
                continue
            visible = next(self._claims.of(item.key), None)
            note = item.invalid or item.warning
            if visible is not None and visible.owner != (kind.rank, full_name):
                note = f"{self.spec.sources[visible.rank].kind} {visible.name} has the same key, and goes first"
            found.append(feed.HeldItem(item.key, note))
        return found

    def owner_of(self, key: str) -> tuple[str, str] | None:
        """See `feed.Feed`."""
        visible = next(self._claims.of(key), None)
        return None if visible is None else (self.spec.sources[visible.rank].kind, visible.name)

    def _is_plain(self, item: model.Item) -> bool:
        return (
            not item.invalid
            and not item.warning
            and (item.value is None or len(item.value) <= self.max_value_bytes)
            and len(item.key) <= codec.MAX_KEY_CHARS
        )

    def _examine(
        self, event: objects.ObjectEvent, item: model.Item, rejection: feed.Rejection | None
    ) -> tuple[model.Item, feed.Rejection | None]:
        """Check an item that may not be sent as it is. Return the item to send, and the object's first rejection."""
        if len(item.key) > codec.MAX_KEY_CHARS:
            detail = f"{len(item.key)} characters, limit {codec.MAX_KEY_CHARS}"
            return _without_value(item), rejection or self._rejection(event, "key-too-long", detail)
        if item.invalid:
            return item, rejection or self._rejection(event, "invalid", item.invalid)
        if item.value is not None and len(item.value) > self.max_value_bytes:
            detail = f"{len(item.value)} bytes, limit {self.max_value_bytes}"
            return _without_value(item), rejection or self._rejection(event, "value-too-large", detail)
        if item.warning:
            return item, rejection or self._rejection(event, "doubtful", item.warning, is_carried=True)
        return item, rejection

    def _rejection(
        self, event: objects.ObjectEvent, reason: str, detail: str, *, is_carried: bool = False
    ) -> feed.Rejection:
        self.rejected += 1
        key = raw.object_key(event.type, event.namespace, event.name)
        return feed.Rejection(self.name, key, reason, detail[:_DETAIL_CHARS_MAX], is_carried)

    def _forget(self, kind: _Kind, name: str) -> None:
        kind.last_items.pop(name, None)
        for key in self._sent_keys(kind, name):
            self._release(kind, name, key)
        kind.items.pop(name, None)

    def _sent_keys(self, kind: _Kind, name: str) -> dict[str, None]:
        """Return the keys that the object has in this feed, in order."""
        return {item.key: None for item in kind.items.get(name, ()) if self._sends_older or not item.is_older}

    def _release_unmentioned(self, kind: _Kind, name: str, known: Iterable[str], mentioned: set[str]) -> None:
        for key in known:
            if key not in mentioned:
                self._release(kind, name, key)

    def _claim(self, kind: _Kind, name: str, item: model.Item) -> None:
        known = item.key in self._claims
        if self._claims.put(claims.Claim(kind.rank, name, kind.last_wins, item)):
            self._changes.append(_Change(messages.UpdateType.UPDATED if known else messages.UpdateType.NEW, item))

    def _release(self, kind: _Kind, name: str, key: str) -> None:
        was_visible, successor = self._claims.drop(key, kind.rank, name)
        if successor is None:
            self._changes.append(_Change(messages.UpdateType.DELETED, model.Item(key, None, "")))
        elif was_visible:
            self._changes.append(_Change(messages.UpdateType.UPDATED, successor))

    def _write(self, change: _Change) -> messages.Update | None:
        update_type, item = change
        if item.value is None:
            if self.store.delete(item.key, item.revision) is None:
                self.store.sequence += 1  # the original sends an update for every invalid value, even for an absent key
            return messages.Update(item.key, None, item.revision, update_type)
        old = self.store.get(item.key)
        if old is not None and old.value == item.value:
            return None
        update = self.store.put(item.key, item.value, item.revision, v3_resource_version=item.v3_resource_version)
        if update is None or update.update_type == update_type or self._is_reconciling:
            return update  # while it reconciles, only the store knows whether clients have the key
        return update._replace(update_type=update_type)

    def _delete_what_no_object_has(self) -> None:
        built_in = {item.key for item in self.spec.built_in}
        self._changes.extend(
            _Change(messages.UpdateType.DELETED, model.Item(one.key, None, ""))
            for one in self.store
            if one.key not in self._claims and one.key not in built_in
        )


class Projection(CalicoFeed):
    """The felix feed of an older release: follows the newest one, whose objects it has to be given by `seed` first."""

    _sends_older = True

    def __init__(self, base: CalicoFeed, release: releases.Release) -> None:
        rewrites = {source: projections.rewrite_for(release, source) for source in base.spec.sources}
        sources = tuple(
            source._replace(is_memoised=False, is_older=False) for source in base.spec.sources if rewrites[source]
        )
        name = releases.feed_name(release)
        super().__init__(base.spec._replace(name=name, sources=sources), max_value_bytes=base.max_value_bytes)
        self.release = release
        self._rewrites = {source.type: rewrite for source, rewrite in rewrites.items() if rewrite is not None}
        self.base = base
        """The newest feed."""
        self._is_seeded = False
        base.projections.append(self)

    def close(self) -> None:
        """Stop following the newest feed."""
        self.base.projections.remove(self)

    def seed(self) -> Iterator[list[feed.Rejection]]:
        """Take over the newest feed's objects, then its statuses. It may change meanwhile.

        Each step takes a slice of the objects, and yields the rejections that only this feed has.
        """
        rejections: list[feed.Rejection] = []
        for type in self.types:
            for count, (name, items) in enumerate(self.base.objects_of(type), 1):
                # Of what has changed or gone since, `follow` and `delete` have told.
                if self.base.holds(type, name, items):
                    namespace, _, own_name = name.rpartition("/")
                    event = objects.ObjectEvent(type, namespace, own_name, "", None, "", "", objects.Origin.LIST)
                    rejection = self.follow(event, items)
                    if rejection is not None and not any(item.invalid or item.warning for item in items):
                        rejections.append(rejection)
                if count % _SEED_SLICE == 0:
                    yield rejections
                    rejections = []
            yield rejections
            rejections = []
        self._is_seeded = True
        for type in self.types:
            super().set_status(type, self.base.status_of(type))

    def follow(self, event: objects.ObjectEvent, items: Sequence[model.Item]) -> feed.Rejection | None:
        """Process an object's new items of the newest feed."""
        rewrite = self._rewrites.get(event.type)
        if rewrite is None:
            return None
        try:
            rewritten = rewrite(event, items)
        except MemoryError:
            raise
        except Exception as error:  # as in `convert`
            self.delete(event)
            return self._rejection(event, DEFECT, f"{type(error).__name__}: {error}")
        return self.adopt(event, rewritten)

    def delete(self, event: objects.ObjectEvent) -> None:
        """See `feed.Feed`. The release may not have the type."""
        if event.type in self._rewrites:
            super().delete(event)

    def follow_status(self, type: resources.ResourceType, status: messages.SyncStatus) -> None:
        """Process a status of the newest feed. Until everything is taken over, nothing is in sync here."""
        if self._is_seeded and type in self._rewrites:
            super().set_status(type, status)


def _object_name(event: objects.ObjectEvent) -> str:
    return f"{event.namespace}/{event.name}" if event.namespace else event.name


def _without_value(item: model.Item) -> model.Item:
    return model.Item(item.key, None, item.revision)
