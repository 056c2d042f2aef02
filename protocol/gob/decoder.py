"""Internal: an incremental decoder of a gob stream. Bytes go in, values of the top-level type come out.

A value may span several length-prefixed messages: Go begins a new message when a type is first used inside an
interface. The decoder reads only complete messages. A value that needs another message is a suspended generator, so
nothing is read twice.
"""

import dataclasses
import enum
import itertools
from collections.abc import Iterator, Mapping
from typing import Any, Final

from protocol import errors, reasons
from protocol.gob import definition_cache, plans, scalars, schema, types

MAX_NAME_BYTES = 1024
"""Limit of the name of a concrete type: that of Go."""
MAX_INTERFACE_DEPTH = 16
"""Limit of interfaces inside interfaces, the only recursion whose depth the stream determines."""
MAX_SKIPPED_DEPTH = 100
"""Limit of the nesting of an unknown field's value. Kubernetes' deepest types nest 20 levels."""


_STRING = scalars.encode_text("string") + scalars.encode_int(schema.STRING_ID)
"""The bytes before a string in an interface."""


class NeedData(enum.Enum):
    """The type of NEED_DATA, which means that more bytes are needed. None would not do: it may be a value."""

    NEED_DATA = "need data"


NEED_DATA: Final = NeedData.NEED_DATA


@dataclasses.dataclass(frozen=True, slots=True)
class Limits:
    """Limits of what a peer may send. Type definitions have their own limits, in `types`."""

    message_bytes: int
    """Limit of one value with all definitions before and in it. The announced length counts."""
    skipped_values: int
    """Limit of the elements and nesting levels in the unknown fields of one value. 1,000 of them take 1 ms."""


HELLO_LIMITS = Limits(message_bytes=16 * 1024, skipped_values=1024)
"""Limits for a client's hello. A real one has 450 to 650 bytes, and no unknown field."""
CLIENT_LIMITS = Limits(message_bytes=2 * 1024, skipped_values=128)
"""Limits for a client's messages after its hello. Acks and pongs take 200 bytes, including all definitions."""


class Decoder(scalars.Scanner):
    """Reads values of the struct `top`. `names` maps registered names to the types that an interface may contain.

    `receive` appends bytes; `next_value` returns a value or NEED_DATA. Do not use it after a RemoteProtocolError.
    """

    __slots__ = (
        "_buffer",
        "_cache",
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
        self,
        top: schema.Struct,
        names: Mapping[bytes, schema.Kind],
        *,
        limits: Limits = HELLO_LIMITS,
        cache: definition_cache.DefinitionCache = definition_cache.SHARED,
    ) -> None:
        super().__init__()
        self._top = top
        self._names = names
        self.limits = limits
        self._cache = cache
        self._table = types.EMPTY
        self._buffer = bytearray()
        self._start = 0
        self._running: plans.Resumable | None = None
        self._message_bytes = 0
        self._skipped = 0
        self._depth = 0

    @property
    def pending_bytes(self) -> int:
        """Number of bytes that are kept of an incomplete value."""
        return len(self._buffer) - self._start + self._message_bytes

    @property
    def is_inside_value(self) -> bool:
        """Whether a value has begun, so that the stream must not end here."""
        return self._running is not None or len(self._buffer) > self._start

    @property
    def definitions(self) -> Mapping[int, types.WireType]:
        """The types that the stream has defined so far, by id."""
        return self._table.types

    def receive(self, data: bytes) -> None:
        """Appends bytes of the stream."""
        self._drop_consumed()
        self._buffer += data

    def _drop_consumed(self) -> None:
        if self._start:
            del self._buffer[: self._start]
            self._start = 0

    def take_rest(self) -> bytes:
        """Removes and returns the bytes after the last value, where another encoding may begin."""
        rest = bytes(self._buffer[self._start :])
        self._buffer.clear()
        self._start = 0
        return rest

    def next_value(self) -> Any:
        """Returns the next value, or NEED_DATA.

        Raises:
            RemoteProtocolError: the stream is not gob, does not match the local types, or is over a limit.
        """
        running = self._running
        if running is None:
            if self._start == len(self._buffer):
                return NEED_DATA
            running = self._read_value()
        try:
            next(running)
        except StopIteration as finished:
            self._running = None
            self.data, self.position, self.end = b"", 0, 0
            self._message_bytes = self._skipped = 0
            if self._start == len(self._buffer):
                self._drop_consumed()
            return finished.value
        self._running = running
        self._drop_consumed()
        return NEED_DATA

    # Messages.

    def _load_message(self) -> bool:
        """Switches to the next message if it is complete. Drops the rest of the current one, as Go does."""
        header = scalars.split_uint(self._buffer, self._start)
        if header is None:
            return False
        length, body = header
        if self._message_bytes + body - self._start + length > self.limits.message_bytes:
            raise errors.RemoteProtocolError(
                f"gob: message of {length} bytes after {self._message_bytes} of the same value is over the limit of "
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

    def _read_value(self) -> plans.Resumable:
        """Reads definitions up to the next value of the top-level type, and that value."""
        if self._table is types.EMPTY:
            self._skip_cached_definitions()
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
                raise errors.RemoteProtocolError("gob: there are bytes after a definition in its message")
        if before is types.EMPTY and not was_cut:
            messages = bytes(self._buffer[start:message_start])
            self._cache.add(definition_cache.Entry(before, b"", messages, True, self._table))
        return (yield from self._read_concrete(type_id, self._top))

    def _skip_cached_definitions(self) -> None:
        """Skips definitions at the current position that are in the cache."""
        found = self._cache.find(self._table, self.data, self.position, buffer=self._buffer, start=self._start)
        if found is not None and self._message_bytes + len(found.messages) <= self.limits.message_bytes:
            self._table = found.table_after
            self.position += len(found.message_part)
            self._start += len(found.messages)
            self._message_bytes += len(found.messages)

    def _read_concrete(self, type_id: int, kind: schema.Kind) -> plans.Resumable:
        """Reads a top-level value, or the value in an interface."""
        if isinstance(kind, schema.Struct):
            plan = plans.plan_for(self._table, type_id, kind)
            if plan.is_mismatch:
                raise errors.RemoteProtocolError(f"gob: type {type_id} and {kind.name} have no field in common")
            return (yield from self.read_struct(plan))
        reader = plans.reader_for(self._table, type_id, kind)
        if reader is None:
            raise errors.RemoteProtocolError(f"gob: type {type_id} is not the registered type")
        if self.uint() != 0:
            raise errors.RemoteProtocolError("gob: a single value that is not preceded by 0")
        if reader.read is not None:
            return reader.read(self)
        assert reader.resumable is not None
        return (yield from reader.resumable(self))

    # Called by plans.

    def read_struct(self, plan: plans.Plan) -> plans.Resumable:
        """Reads the fields of a struct, up to its terminator or the end of the message."""
        fields = plan.fields
        count = len(fields)
        values = plan.zeros.copy()
        number = -1
        while self.position < self.end:
            delta = self.uint()
            if delta == 0:
                break
            number += delta
            if number >= count:
                raise errors.RemoteProtocolError(f"gob: field {number} of a struct with {count}")
            field = fields[number]
            if field.read is not None:
                values[field.index] = field.read(self)
            elif field.resumable is not None:
                values[field.index] = yield from field.resumable(self)
        values.pop()
        return plan.make(*values)

    def read_slice(self, resumable: plans.ResumableRead) -> plans.Resumable:
        """Reads a slice whose elements may contain interfaces."""
        values = []
        for _ in range(self._read_count()):
            if self.position == self.end:
                raise errors.RemoteProtocolError("gob: a slice has more elements than bytes")
            values.append((yield from resumable(self)))
        return values

    def _read_count(self) -> int:
        count = self.uint()
        if count > self.limits.message_bytes:
            raise errors.RemoteProtocolError(f"gob: {count} elements, over the limit of {self.limits.message_bytes}")
        return count

    def read_interface(self) -> plans.Resumable:
        """Reads the value in an interface: a registered name, new definitions, and the value. No name means None."""
        if self.data.startswith(_STRING, self.position) and b"string" in self._names:
            self.position += len(_STRING)  # The usual case. A string needs no definitions, and so no further generator.
            return self._read_string()
        name = self.raw()
        if not name:
            return None
        if len(name) > MAX_NAME_BYTES:
            raise errors.RemoteProtocolError(f"gob: name of {len(name)} bytes is over the limit of {MAX_NAME_BYTES}")
        kind = self._names.get(name)
        if kind is None:
            raise errors.RemoteProtocolError(f"gob: {name.decode('utf-8', 'replace')[:100]!r} is not registered")
        type_id = self._read_adjacent_id()
        if type_id is None:
            type_id = yield from self._read_concrete_id()
        self.uint()  # The number of bytes, for readers that skip the value.
        self._depth += 1
        if self._depth > MAX_INTERFACE_DEPTH:
            raise errors.RemoteProtocolError(f"gob: more than {MAX_INTERFACE_DEPTH} nested interfaces")
        value = yield from self._read_concrete(type_id, kind)
        self._depth -= 1
        return value

    def _read_string(self) -> str:
        self.uint()
        if self.uint() != 0:
            raise errors.RemoteProtocolError("gob: a single value that is not preceded by 0")
        return self.text()

    def _read_adjacent_id(self) -> int | None:
        """Reads the type id of an interface's value. If definitions precede it, skips the cached ones; returns None."""
        position = self.position
        if position < self.end:
            type_id = self.signed()
            if type_id >= 0:
                return type_id
            self.position = position
        self._skip_cached_definitions()
        return None

    def _read_concrete_id(self) -> plans.Resumable:
        """Reads the type id of an interface's value, and the definitions before it."""
        before, first, part_start, start = self._table, self.data, self.position, self._start
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
                self.uint()  # The length of the rest. Go would begin a new message here.
        if self.data is first:
            self._cache.add(definition_cache.Entry(before, first[part_start:position], b"", False, self._table))
        elif not was_cut and position == 0:
            messages = bytes(self._buffer[start:message_start])
            self._cache.add(definition_cache.Entry(before, first[part_start:], messages, True, self._table))
        return type_id

    # Values of unknown types.

    def skip(self, type_id: int) -> plans.Resumable:
        """Skips a value. It does not recurse: a recursive type may nest as deeply as its message is long."""
        levels: list[Iterator[int]] = [iter((type_id,))]
        while levels:
            for current in levels[-1]:
                self._skipped += 1
                if self._skipped > self.limits.skipped_values or self._skipped > self._message_bytes:
                    raise errors.RemoteProtocolError(f"gob: {self._skipped} elements in unknown fields")
                skip = plans.skip_for(current)
                if skip is not None:
                    skip(self)
                elif current == schema.INTERFACE_ID:
                    yield from self._skip_interface()
                else:
                    if len(levels) > MAX_SKIPPED_DEPTH:
                        raise errors.RemoteProtocolError(f"gob: more than {MAX_SKIPPED_DEPTH} levels in unknown fields")
                    levels.append(self._element_types(current))
                    break
            else:
                levels.pop()

    def _element_types(self, type_id: int) -> Iterator[int]:
        """Yields the types of a value's elements. The caller skips each element before it asks for the next."""
        wire_type = self._table.types.get(type_id)
        if wire_type is None:
            raise errors.RemoteProtocolError(f"gob: type {type_id} is not defined")
        match wire_type.form:
            case types.Form.STRUCT:
                return self._field_types(wire_type.ids)
            case types.Form.SLICE:
                return itertools.repeat(wire_type.ids[0], self._read_count())
            case types.Form.ARRAY:
                count = self._read_count()
                if count != wire_type.length:
                    raise errors.RemoteProtocolError(f"gob: {count} elements in an array of {wire_type.length}")
                return itertools.repeat(wire_type.ids[0], count)
            case types.Form.MAP:
                return itertools.chain.from_iterable(itertools.repeat(wire_type.ids, self._read_count()))
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

    def _skip_interface(self) -> plans.Resumable:
        if self._skip_name() == 0:
            return
        yield from self._read_concrete_id()
        self.skip_bytes()

    def _skip_name(self) -> int:
        """Skips a name. Returns its length."""
        start = self.position
        length = self.uint()
        self.position = start
        self.skip_bytes()
        return length
