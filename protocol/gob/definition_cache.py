"""Definitions that have been read before, one behind the other: found again by their bytes, and not read again.

Agents of one build begin with the same definitions, in front of their first value or inside it, and in a storm reading
those is half of what their hellos cost. What a run of definitions makes of a table depends on nothing but the two, so
a stream that goes on with the same bytes comes to the same table.
"""

from typing import NamedTuple

from protocol.gob import types

MAX_RUN_BYTES = 4096
"""Of one run; and of its definitions, with those before it."""
MAX_RUNS = 16
"""The newest are kept: whoever sends ever new definitions makes others be read once more, as they were before."""


class Run(NamedTuple):
    """What has led from the types of one table to those of another."""

    before: types.Table
    rest: bytes
    """What comes first: of a message that has been begun."""
    messages: bytes
    """Whole ones, behind that. Go ends a message behind a definition that is inside a value."""
    ends_message: bool
    """Whether `rest` goes to the end of its message; else the value follows there."""
    behind: types.Table


class Runs:
    """The newest runs of all streams."""

    __slots__ = ("_runs",)

    def __init__(self) -> None:
        self._runs: tuple[Run, ...] = ()

    def find(
        self, before: types.Table, message: bytes, position: int, *, buffer: bytes | bytearray, start: int
    ) -> Run | None:
        """A run with which the message goes on at its position, and behind the message the buffer at `start`."""
        for run in self._runs:
            if (
                run.before is before
                and message.startswith(run.rest, position)
                and (position + len(run.rest) == len(message)) is run.ends_message
                and buffer.startswith(run.messages, start)
            ):
                return run
        return None

    def add(self, run: Run) -> None:
        """Definitions have been read that are not known yet."""
        if run.behind is run.before:
            return
        if max(len(run.rest) + len(run.messages), run.behind.definition_bytes) <= MAX_RUN_BYTES:
            self._runs = (run, *self._runs[: MAX_RUNS - 1])


RUNS = Runs()
