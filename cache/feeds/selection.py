"""A selection: the part of a feed that a subscription selects, with a store of its own. Pure.

It follows the feed's batches and keeps the feed's sequences. Its store refers to the same entries, so it costs some
200 bytes for each key that it selects, whatever the size of the values.

With `own_node`, keys that belong to a node are in a section for each node, and not in the store. A client gets what is
in the store and the section of its node. An object that moves to another node is a deletion for the clients of the old
node, and new for those of the new one.
"""

from collections.abc import Iterator
from typing import NamedTuple

from cache.feeds import feed
from cache.state import sections, store
from protocol import messages, subscriptions

_SEED_SLICE = 500
"""Entries that a selection takes over in one step: some 3 ms."""


class SelectedBatch(NamedTuple):
    """What a batch of the feed means to the clients of a selection, which are at `sequence` after it."""

    previous_sequence: int
    sequence: int
    parts: list[tuple[int, list[messages.Update]]]
    """By the tag of the node whose clients get the updates. What is common to all comes last."""
    status: messages.SyncStatus | None


class Selection:
    """Follows one feed. `seed` takes over what the feed has already; `follow` processes its batches from then on."""

    def __init__(self, base: feed.Feed, subscription: subscriptions.Subscription) -> None:
        self.base = base
        self.subscription = subscription
        self.store = store.Store(base.store.limits)
        """What is common to all clients; the store's sequence is the feed's."""
        self.sections = sections.Sections()
        self._is_by_node = bool(subscription.own_node)
        self._selects = subscriptions.Selector(subscription).selects
        self._missed: dict[str, None] | None = {}
        """Keys that have changed while the selection was being seeded; None once it is."""

    def __repr__(self) -> str:
        return f"<Selection of {self.name} {self.subscription} keys={len(self.store)} sections={len(self.sections)}>"

    @property
    def name(self) -> str:
        """The feed's name."""
        return self.base.name

    @property
    def is_by_node(self) -> bool:
        """Whether clients of different nodes get different keys."""
        return self._is_by_node

    @property
    def synced_once(self) -> bool:
        """Whether there is something to serve."""
        return self._missed is None and self.base.synced_once

    @property
    def confirmed_status(self) -> messages.SyncStatus:
        """The feed's."""
        return self.base.confirmed_status

    def __len__(self) -> int:
        return len(self.store) + len(self.sections)

    def seed(self) -> Iterator[None]:
        """Take over the feed's entries, in slices, oldest change first. The feed may change meanwhile.

        After the last step `follow` gives batches.
        """
        current = self.base.store
        entries = list(current)
        while len(entries) > _SEED_SLICE:
            for begin in range(0, len(entries), _SEED_SLICE):
                self._adopt_current(entries[begin : begin + _SEED_SLICE])
                yield
            entries = self._take_missed()
        self._adopt_current(entries)
        self._adopt_current(self._take_missed())
        self._missed = None
        self.store.sequence = self.store.tombstone_floor = current.sequence
        self.store.status = current.status

    def _take_missed(self) -> list[store.Entry]:
        """Drop the missed keys that are gone. Return the entries of the others, oldest change first."""
        missed, self._missed = self._missed or {}, {}
        entries = []
        for key in missed:
            entry = self.base.store.get(key)
            if entry is None:
                self._drop(key, "", self.base.store.sequence)
            else:
                entries.append(entry)
        return sorted(entries, key=_sequence_of)

    def _adopt_current(self, entries: list[store.Entry]) -> None:
        for entry in entries:
            if self._selects(entry.key) and self.base.store.get(entry.key) is entry:  # else it is a missed one
                self._adopt(entry)
        self.store.advance_split(_SEED_SLICE)

    def follow(self, batch: feed.Batch) -> SelectedBatch | None:
        """Process a batch that the feed's store has. Return None if clients see no change, or are not served yet."""
        if self._missed is not None:
            self._missed.update((update.key, None) for update in batch.updates if self._selects(update.key))
            return None
        parts: dict[int, list[messages.Update]] = {}
        tags: dict[str, int | None] = {}
        changed: dict[str, tuple[int, str]] = {}
        for sequence, update in enumerate(batch.updates, batch.previous_sequence + 1):
            if self._selects(update.key):
                changed.pop(update.key, None)
                changed[update.key] = sequence, update.revision
                self._sort_in(update, parts, tags)
        for key, (sequence, revision) in changed.items():
            entry = self.base.store.get(key)
            if entry is None:
                self._drop(key, revision, sequence)
            else:
                self._adopt(entry)
        self.store.advance_split(_SEED_SLICE)
        self.store.sequence, self.store.status = self.base.store.sequence, self.base.store.status
        if not parts and batch.status is None:
            return None
        common = parts.pop(subscriptions.COMMON, None)
        ordered = [*parts.items(), *([(subscriptions.COMMON, common)] if common else [])]
        return SelectedBatch(batch.previous_sequence, self.store.sequence, ordered, batch.status)

    def _tag_of(self, key: str, value: bytes) -> int | None:
        """Return the tag of the node whose clients get the key; None for nobody, because its node is not known."""
        node = subscriptions.node_of(key, value) if self._is_by_node else None
        if node is None:
            return subscriptions.COMMON
        return subscriptions.tag_of(node) if node else None

    def _sort_in(
        self, update: messages.Update, parts: dict[int, list[messages.Update]], tags: dict[str, int | None]
    ) -> None:
        """Add an update to the parts of those who get it. `tags` has the tags that keys got in the same batch."""
        key, value = update.key, update.value
        old = tags[key] if key in tags else self.sections.tag_of(key)
        tag = self._tag_of(key, b"" if value is None else value)
        tags[key] = None if value is None else tag
        if value is None:
            tag = tag if old is None else old
        elif old is not None and old != tag:
            gone = messages.Update(key, None, update.revision, messages.UpdateType.DELETED)
            parts.setdefault(old, []).append(gone)
            update = update._replace(update_type=int(messages.UpdateType.NEW))
        if tag is not None:
            parts.setdefault(tag, []).append(update)

    def _adopt(self, entry: store.Entry) -> None:
        tag = self._tag_of(entry.key, entry.value)
        if tag == subscriptions.COMMON:
            self.store.adopt(entry)
        else:
            self.sections.put(entry, tag)

    def _drop(self, key: str, revision: str, sequence: int) -> None:
        self.sections.discard(key, sequence)
        if key in self.store:
            self.store.sequence = sequence - 1
            self.store.delete(key, revision)


def _sequence_of(entry: store.Entry) -> int:
    return entry.sequence
