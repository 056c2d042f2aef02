"""The keys that belong to a node, in a section for each node, beside the store of those that are common. Pure.

Entries are immutable, as in `cache.state.store`, so a cut stays correct while it is encoded.
"""

from typing import NamedTuple

from cache.state import store
from protocol import digest as digests


class _Section:
    __slots__ = ("digest", "entries", "sequence")

    def __init__(self) -> None:
        self.entries: dict[str, store.Entry] = {}
        self.digest = 0
        self.sequence = 0
        """Of the last change."""


class SectionCut(NamedTuple):
    """A section as it was at the cut. `entries` is None if it has not changed since the requested sequence."""

    tag: int
    sequence: int
    digest: int
    keys: int
    entries: tuple[store.Entry, ...] | None


class Sections:
    """Sections by the tag of their node (`protocol.subscriptions.tag_of`). None of them is empty."""

    def __init__(self) -> None:
        self._sections: dict[int, _Section] = {}
        self._tags: dict[str, int] = {}

    def __len__(self) -> int:
        """Return the number of keys."""
        return len(self._tags)

    def tag_of(self, key: str) -> int | None:
        """Return the tag of the section that has the key, or None."""
        return self._tags.get(key)

    def put(self, entry: store.Entry, tag: int | None) -> None:
        """Set a key, and move it to this section. None removes it: its node is not known."""
        old = self._tags.get(entry.key)
        if old is not None and old != tag:
            self.discard(entry.key, entry.sequence)
        if tag is None:
            return
        section = self._sections.get(tag)
        if section is None:
            section = self._sections[tag] = _Section()
        before = section.entries.get(entry.key)
        section.digest += entry.digest - (0 if before is None else before.digest)
        section.entries[entry.key] = entry
        section.sequence = entry.sequence
        self._tags[entry.key] = tag

    def discard(self, key: str, sequence: int) -> None:
        """Remove a key, if it is there, by the change with this sequence."""
        tag = self._tags.pop(key, None)
        if tag is None:
            return
        section = self._sections[tag]
        section.digest -= section.entries.pop(key).digest
        section.sequence = sequence
        if not section.entries:
            del self._sections[tag]

    def cut(self, *, since_sequence: int) -> list[SectionCut]:
        """Return all sections at this moment. Those unchanged after `since_sequence` come without their entries."""
        return [
            SectionCut(
                tag,
                section.sequence,
                section.digest % digests.MODULUS,
                len(section.entries),
                tuple(section.entries.values()) if section.sequence > since_sequence else None,
            )
            for tag, section in self._sections.items()
        ]
