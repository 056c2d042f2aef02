"""An incremental decoder of a gob stream: bytes in, one value of the top-level type after the other out.

A value may lie in several length-prefixed messages: Go cuts it where, inside an interface, a type is defined for the
first time. A value in the middle of which messages run out is a suspended generator, so nothing is read twice, and a
message is only looked at once all of it is there.
"""

import dataclasses
import enum
import itertools
from collections.abc import Iterator, Mapping
from typing import Any, Final

from protocol import errors, reasons
from protocol.gob import definition_cache, plans, scalars, schema, types

MAX_NAME_BYTES = 1024
"""Of a concrete type: Go's own limit."""
MAX_INTERFACE_DEPTH = 16
"""Of interfaces in what interfaces hold: the one thing here that nests as deep as a stream says."""


_STRING = scalars.encode_text("string") + scalars.encode_int(schema.STRING_ID)
"""How a string in an interface begins."""


class NotYet(enum.Enum):
    """What is given instead of a value while more bytes are needed; None may be a value."""

    NOT_YET = "not yet"


NOT_YET: Final = NotYet.NOT_YET


@dataclasses.dataclass(frozen=True, slots=True)
class Limits:
    """For what comes from a peer; types have limits of their own."""

    message_bytes: int = 1024 * 1024
    """Of one value with all definitions before and in it, as announced: not one byte of more is awaited."""
    skipped_values: int = 256 * 1024
    """Parts, or levels, of all fields of a value that are not known here: so many are passed over in 0.1 s."""


CLIENT_MESSAGES = Limits()
"""The original's limit for what it reads."""


class Decoder(scalars.Scanner):
    """Reads values of the struct `top`; `names` are the types that an interface may hold, by registered name.

    After RemoteProtocolError it is of no more use. `receive` appends; `next_value` gives a value, or NOT_YET.
    """

    __slots__ = (
        "_buffer",
        "_depth",
        "_message_bytes",
        "_names",
        "_running",
        "_skipped",
        "_start",
        "_table",
        "_top",
        "limits",
    )

    def __init__(
        self, top: schema.Struct, names: Mapping[bytes, schema.Kind], *, limits: Limits = CLIENT_MESSAGES
    ) -> None:
        super().__init__()
        self._top = top
        self._names = names
        self.limits = limits
        self._table = types.EMPTY
        self._buffer = bytearray()
        self._start = 0
        self._running: plans.Steps | None = None
        self._message_bytes = 0
        self._skipped = 0
        self._depth = 0

    @property
    def pending_bytes(self) -> int:
        """Bytes received and not yet used up."""
        return len(self._buffer) - self._start + self.end - self.position

    @property
    def is_inside_value(self) -> bool:
        """Whether a value has begun: an end of the stream would be in the middle of something."""
        return self._running is not None or len(self._buffer) > self._start

    @property
    def definitions(self) -> Mapping[int, types.WireType]:
        """The stream's types so far, by id."""
        return self._table.types

    def receive(self, data: bytes) -> None:
        """Takes more bytes of the stream."""
        if self._start:
            del self._buffer[: self._start]
            self._start = 0
        self._buffer += data

    def take_rest(self) -> bytes:
        """Bytes behind the last value, which are then gone from here: after it, another encoding may begin."""
        rest = bytes(self._buffer[self._start :])
        self._buffer.clear()
        self._start = 0
        return rest

    def next_value(self) -> Any:
        """The next value, or NOT_YET.

        Raises:
            RemoteProtocolError: what came is not gob, does not fit the local types, or is over a limit.
        """
        running = self._running
        if running is None:
            if self._start == len(self._buffer):
                return NOT_YET
            running = self._value()
        try:
            next(running)
        except StopIteration as finished:
            self._running = None
            self.data, self.position, self.end = b"", 0, 0
            self._message_bytes = self._skipped = 0
            if self._start == len(self._buffer):
                self._buffer.clear()
                self._start = 0
            return finished.value
        self._running = running
        return NOT_YET

    # Messages.

    def _load_message(self) -> bool:
        """Goes on to the next message if all of it is there; what is left of the last one is dropped, as Go does."""
        header = scalars.split_uint(self._buffer, self._start)
        if header is None:
            return False
        length, body = header
        if self._message_bytes + body - self._start + length > self.limits.message_bytes:
            raise errors.RemoteProtocolError(
                f"gob: message of {length} bytes behind {self._message_bytes} of the same value is over the limit of "
                f"{self.limits.message_bytes}",
                reason=reasons.DisconnectReason.MESSAGE_TOO_LARGE,
            )
        if length == 0:
            raise errors.RemoteProtocolError("gob: message of length 0")
        end = body + length
        if end > len(self._buffer):
            return False
        self._message_bytes += end - self._start
        with memoryview(self._buffer) as view:
            self.data = bytes(view[body:end])
        self.position, self.end = 0, length
        self._start = end
        return True

    def _define(self, type_id: int) -> None:
        self._table, definition_bytes = self._table.extend(type_id, self.data[self.position : self.end])
        self.position += definition_bytes

    def _value(self) -> plans.Steps:
        """Messages up to and including the one with a value of the top-level type."""
        if self._table is types.EMPTY:
            self._skip_known_run()
        before, start, was_cut = self._table, self._start, False
        while True:
            message_start = self._start
            while not self._load_message():
                was_cut = True
                yield
            type_id = self.signed()
            if type_id >= 0:
                break
            self._define(-type_id)
            if self.position < self.end:
                raise errors.RemoteProtocolError("gob: a definition is followed by more in its message")
        if before is types.EMPTY and not was_cut:
            definition_cache.RUNS.add(
                definition_cache.Run(before, b"", bytes(self._buffer[start:message_start]), True, self._table)
            )
        return (yield from self._concrete(type_id, self._top))

    def _skip_known_run(self) -> None:
        """Passes over definitions that are known, where the stream stands."""
        run = definition_cache.RUNS.find(self._table, self.data, self.position, buffer=self._buffer, start=self._start)
        if run is not None and self._message_bytes + len(run.messages) <= self.limits.message_bytes:
            self._table = run.behind
            self.position += len(run.rest)
            self._start += len(run.messages)
            self._message_bytes += len(run.messages)

    def _concrete(self, type_id: int, kind: schema.Kind) -> plans.Steps:
        """A whole value: top-level, or an interface's."""
        if isinstance(kind, schema.Struct):
            plan = plans.plan_of(self._table, type_id, kind)
            if plan.is_mismatch:
                raise errors.RemoteProtocolError(f"gob: type {type_id} and {kind.name} have no field in common")
            return (yield from self.struct(plan))
        reader = plans.reader_of(self._table, type_id, kind)
        if reader is None:
            raise errors.RemoteProtocolError(f"gob: type {type_id} is not the registered one")
        if self.uint() != 0:
            raise errors.RemoteProtocolError("gob: a single value that is not preceded by 0")
        if reader.read is not None:
            return reader.read(self)
        assert reader.steps is not None
        return (yield from reader.steps(self))

    # What plans are made of.

    def struct(self, plan: plans.Plan) -> plans.Steps:
        """A struct's fields, to its terminator or the end of the message."""
        members = plan.members
        count = len(members)
        values = plan.zeros.copy()
        number = -1
        while self.position < self.end:
            delta = self.uint()
            if delta == 0:
                break
            number += delta
            if number >= count:
                raise errors.RemoteProtocolError(f"gob: field {number} of a struct with {count}")
            member = members[number]
            if member.read is not None:
                values[member.index] = member.read(self)
            elif member.steps is not None:
                values[member.index] = yield from member.steps(self)
        values.pop()
        return plan.make(*values)

    def slice(self, steps: plans.SteppedRead) -> plans.Steps:
        """A slice of what may contain interfaces."""
        values = []
        for _ in range(self._count()):
            if self.position == self.end:
                raise errors.RemoteProtocolError("gob: a slice with more elements than there are bytes")
            values.append((yield from steps(self)))
        return values

    def _count(self) -> int:
        count = self.uint()
        if count > self.limits.message_bytes:
            raise errors.RemoteProtocolError(f"gob: {count} elements")
        return count

    def interface(self) -> plans.Steps:
        """A registered name, the definitions that are new, and the value; None for no name."""
        if self.data.startswith(_STRING, self.position) and b"string" in self._names:
            self.position += len(_STRING)  # the usual case, in which no definition can come: without more generators
            return self._string()
        name = self.raw()
        if not name:
            return None
        if len(name) > MAX_NAME_BYTES:
            raise errors.RemoteProtocolError(f"gob: name of {len(name)} bytes")
        kind = self._names.get(name)
        if kind is None:
            raise errors.RemoteProtocolError(f"gob: {name.decode('utf-8', 'replace')[:100]!r} is not registered")
        type_id = self._id_at_hand()
        if type_id is None:
            type_id = yield from self._concrete_id()
        self.uint()  # the count of bytes, for those who skip the value
        self._depth += 1
        if self._depth > MAX_INTERFACE_DEPTH:
            raise errors.RemoteProtocolError(f"gob: more than {MAX_INTERFACE_DEPTH} interfaces in each other")
        value = yield from self._concrete(type_id, kind)
        self._depth -= 1
        return value

    def _string(self) -> str:
        self.uint()
        if self.uint() != 0:
            raise errors.RemoteProtocolError("gob: a single value that is not preceded by 0")
        return self.text()

    def _id_at_hand(self) -> int | None:
        """The id of an interface's value where it is the next thing, as a rule; known definitions are passed over."""
        position = self.position
        if position < self.end:
            type_id = self.signed()
            if type_id >= 0:
                return type_id
            self.position = position
        self._skip_known_run()
        return None

    def _concrete_id(self) -> plans.Steps:
        """The id of an interface's value, behind definitions that came to be needed there."""
        before, first, rest_start, start = self._table, self.data, self.position, self._start
        was_cut = False
        while True:
            message_start = self._start
            if self.position == self.end:
                while not self._load_message():
                    was_cut = True
                    yield
            position = self.position
            type_id = self.signed()
            if type_id >= 0:
                break
            self._define(-type_id)
            if self.position < self.end:
                self.uint()  # the length of the rest, where Go would begin a message
        if self.data is first:
            definition_cache.RUNS.add(definition_cache.Run(before, first[rest_start:position], b"", False, self._table))
        elif not was_cut and position == 0:
            messages = bytes(self._buffer[start:message_start])
            definition_cache.RUNS.add(definition_cache.Run(before, first[rest_start:], messages, True, self._table))
        return type_id

    # Values of types that are not known here.

    def skip(self, type_id: int) -> plans.Steps:
        """Passes over a value; levels are kept on a list: a recursive type may nest as deep as its message is long."""
        levels: list[Iterator[int]] = [iter((type_id,))]
        while levels:
            for current in levels[-1]:
                self._skipped += 1
                if self._skipped > self.limits.skipped_values:
                    raise errors.RemoteProtocolError("gob: too much of what is not known here")
                skip = plans.skip_of(current)
                if skip is not None:
                    skip(self)
                elif current == schema.INTERFACE_ID:
                    yield from self._skip_interface()
                else:
                    levels.append(self._parts(current))
                    break
            else:
                levels.pop()

    def _parts(self, type_id: int) -> Iterator[int]:
        """The types of what a value consists of, each to be skipped before the next is asked for."""
        wire_type = self._table.types.get(type_id)
        if wire_type is None:
            raise errors.RemoteProtocolError(f"gob: type {type_id} is not defined")
        match wire_type.form:
            case types.Form.STRUCT:
                return self._field_types(wire_type.ids)
            case types.Form.SLICE:
                return itertools.repeat(wire_type.ids[0], self._count())
            case types.Form.ARRAY:
                count = self._count()
                if count != wire_type.length:
                    raise errors.RemoteProtocolError(f"gob: {count} elements in an array of {wire_type.length}")
                return itertools.repeat(wire_type.ids[0], count)
            case types.Form.MAP:
                return itertools.chain.from_iterable(itertools.repeat(wire_type.ids, self._count()))
            case _:
                self.skip_bytes()
                return iter(())

    def _field_types(self, ids: tuple[int, ...]) -> Iterator[int]:
        number = -1
        while self.position < self.end:
            delta = self.uint()
            if delta == 0:
                return
            number += delta
            if number >= len(ids):
                raise errors.RemoteProtocolError(f"gob: field {number} of a struct with {len(ids)}")
            yield ids[number]

    def _skip_interface(self) -> plans.Steps:
        if self.uint_of_name() == 0:
            return
        yield from self._concrete_id()
        self.skip_bytes()

    def uint_of_name(self) -> int:
        """Passes over a name; gives its length."""
        start = self.position
        length = self.uint()
        self.position = start
        self.skip_bytes()
        return length
