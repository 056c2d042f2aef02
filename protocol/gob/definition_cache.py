"""Internal: a cache of type definitions. A sequence of definitions that was decoded before is found by its bytes.

Agents of the same build begin with the same definitions, before their first value or inside it. When many agents
connect at once, decoding these definitions is half the cost of their hellos. The result depends only on the type table
before the definitions and on their bytes, so a stream that continues with the same bytes gets the same table.
"""

from typing import NamedTuple

from protocol.gob import types

MAX_ENTRY_BYTES = 4096
"""Limit of the bytes of one entry, and of all definitions in its resulting table."""
MAX_ENTRIES = 16
"""The newest entries are kept. A client that keeps sending new definitions only makes others decode theirs again."""


class Entry(NamedTuple):
    """A sequence of definitions, and the type tables before and after it."""

    table_before: types.Table
    message_part: bytes
    """The part inside a message that has already begun."""
    messages: bytes
    """The complete messages after that part. Inside a value, Go ends a message after each definition."""
    ends_message: bool
    """Whether `message_part` reaches the end of its message. Otherwise the value follows in the same message."""
    table_after: types.Table


class DefinitionCache:
    """The newest entries, shared by all streams."""

    __slots__ = ("_entries",)

    def __init__(self) -> None:
        self._entries: tuple[Entry, ...] = ()

    def find(
        self, table: types.Table, message: bytes, position: int, *, buffer: bytes | bytearray, start: int
    ) -> Entry | None:
        """Finds an entry that matches `message` from `position` on, and `buffer`, which follows it, from `start` on."""
        for entry in self._entries:
            if (
                entry.table_before is table
                and message.startswith(entry.message_part, position)
                and (position + len(entry.message_part) == len(message)) is entry.ends_message
                and buffer.startswith(entry.messages, start)
            ):
                return entry
        return None

    def add(self, entry: Entry) -> None:
        """Adds an entry, unless it defines nothing or is too large."""
        if entry.table_after is entry.table_before:
            return
        entry_bytes = len(entry.message_part) + len(entry.messages)
        if max(entry_bytes, entry.table_after.definition_bytes) <= MAX_ENTRY_BYTES:
            self._entries = (entry, *self._entries[: MAX_ENTRIES - 1])


SHARED = DefinitionCache()
"""The cache of this process."""
