"""A feed of Calico's data model: takes Kubernetes objects, and gives Calico's keys and values. Pure.

The update types are the original's. NEW and UPDATED say whether an object had the key before, even with an invalid
value. An invalid value is sent as absent, but with type and revision. A deletion has neither value nor revision. A
change that leaves the value as it is causes no update, and the stored revision stays that of the value.
"""

from collections.abc import Sequence
from typing import NamedTuple

from cache import objects
from cache.feeds import feed, raw
from cache.feeds.calico import claims, model, syncers
from protocol import messages
from protocol.native import codec

DEFECT = "defect"
"""The reason if a converter fails unexpectedly."""
_DETAIL_CHARS_MAX = 1000
"""Details quote objects, which may be large."""


class _Change(NamedTuple):
    """A change that the next batch makes to a key."""

    update_type: messages.UpdateType
    item: model.Item


class _Failure(NamedTuple):
    """The object has no items."""

    reason: str
    detail: str


class _Kind:
    """One resource type of the feed, and the keys of each of its objects in the order in which they are sent."""

    __slots__ = ("keys", "last_items", "last_wins", "rank", "source")

    def __init__(self, rank: int, source: syncers.Source) -> None:
        self.rank = rank
        self.source = source
        self.last_wins = source.last_wins
        self.keys: dict[str, tuple[str, ...]] = {}
        self.last_items: dict[str, Sequence[model.Item]] = {}
        """The last items of objects for which the converter may return the identical items again."""


class CalicoFeed(feed.Feed):
    """One of the four feeds. `syncers.specs` defines their contents."""

    def __init__(self, spec: syncers.FeedSpec, *, max_value_bytes: int) -> None:
        super().__init__(spec.name, [source.type for source in spec.sources])
        self._kinds = {source.type: _Kind(rank, source) for rank, source in enumerate(spec.sources)}
        self._claims = claims.Claims()
        self._max_value_bytes = max_value_bytes
        self._changes.extend(_Change(messages.UpdateType.NEW, item) for item in spec.built_in)

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
            self._forget(kind, name)
            return self._rejection(event, outcome.reason, outcome.detail)
        items = outcome
        if items and items is kind.last_items.get(name):
            self.skipped += len(items)
            return None
        rejection = None
        held: list[str] = []
        known = kind.keys.get(name, ())
        if known:
            self._release_unmentioned(kind, name, {item.key for item in items})
        for item in items:
            if not self._is_plain(item):
                item, rejection = self._examine(event, item, rejection)
            if item.value is not None or item.invalid:
                held.append(item.key)
                self._claim(kind, name, item)
            elif item.key in known:
                self._release(kind, name, item.key)
        if held:
            kind.keys[name] = tuple(held)
        else:
            kind.keys.pop(name, None)
        if kind.source.is_memoised and rejection is None:
            kind.last_items[name] = items
        else:
            kind.last_items.pop(name, None)
        return rejection

    def delete(self, event: objects.ObjectEvent) -> None:
        """Process the deletion of an object."""
        self._forget(self._kinds[event.type], _object_name(event))

    def _is_plain(self, item: model.Item) -> bool:
        return (
            not item.invalid
            and not item.warning
            and (item.value is None or len(item.value) <= self._max_value_bytes)
            and len(item.key) <= codec.MAX_KEY_CHARS
        )

    def _examine(
        self, event: objects.ObjectEvent, item: model.Item, rejection: feed.Rejection | None
    ) -> tuple[model.Item, feed.Rejection | None]:
        """Check an item that may not be sent as it is. Return the item to send, and the object's first rejection."""
        if item.invalid:
            return item, rejection or self._rejection(event, "invalid", item.invalid)
        if item.value is not None and len(item.value) > self._max_value_bytes:
            detail = f"{len(item.value)} bytes, limit {self._max_value_bytes}"
            return _without_value(item), rejection or self._rejection(event, "value-too-large", detail)
        if len(item.key) > codec.MAX_KEY_CHARS:
            detail = f"{len(item.key)} characters, limit {codec.MAX_KEY_CHARS}"
            return _without_value(item), rejection or self._rejection(event, "key-too-long", detail)
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
        for key in kind.keys.pop(name, ()):
            self._release(kind, name, key)

    def _release_unmentioned(self, kind: _Kind, name: str, mentioned: set[str]) -> None:
        for key in kind.keys[name]:
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
        if update is None or update.update_type == update_type:
            return update
        return update._replace(update_type=update_type)


def _object_name(event: objects.ObjectEvent) -> str:
    return f"{event.namespace}/{event.name}" if event.namespace else event.name


def _without_value(item: model.Item) -> model.Item:
    return model.Item(item.key, None, item.revision)
