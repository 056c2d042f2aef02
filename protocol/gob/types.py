"""Types that a stream has defined, as an immutable table that connections with the same definitions share.

Go numbers types by first use in a process, so an id means nothing without its definition. Thousands of agents of one
build send the same definitions in the same order: their tables are one object, and with it what was compiled.
"""

import dataclasses
import enum
import functools
from collections.abc import Iterator

from protocol import errors, reasons
from protocol.gob import scalars, schema

MAX_TYPES = 1024
"""A connection of the Go client defines 7."""
MAX_DEFINITION_BYTES = 256 * 1024
"""Of all definitions together; they are what a decoder remembers."""
_SHARED_BYTES = 4096
"""Tables with more than this are not shared, so that the tables kept for sharing are small."""
_SHARED_TABLES = 256


class Form(enum.IntEnum):
    """What a definition defines; the number is that of wireType's field."""

    ARRAY = 0
    SLICE = 1
    STRUCT = 2
    MAP = 3
    GOB_ENCODER = 4
    BINARY_MARSHALER = 5
    TEXT_MARSHALER = 6


@dataclasses.dataclass(frozen=True, slots=True)
class WireType:
    """One definition. `ids`: element, (key, element), or those of the fields."""

    form: Form
    name: str = ""
    ids: tuple[int, ...] = ()
    field_names: tuple[str, ...] = ()
    length: int = 0
    """Of an array."""


class Table:
    """Types by id. `plans` is the decoder's: what it has compiled for them."""

    __slots__ = ("definition_bytes", "plans", "types")

    def __init__(self, types: dict[int, WireType], plans: dict[object, object], definition_bytes: int) -> None:
        self.types = types
        self.plans = plans
        self.definition_bytes = definition_bytes

    def extend(self, type_id: int, tail: bytes) -> tuple["Table", int]:
        """A table with one more type, whose definition `tail` begins with, and the length of the definition.

        Raises:
            RemoteProtocolError: the id is taken or reserved, the definition is broken, or a limit is reached.
        """
        if len(tail) + self.definition_bytes <= _SHARED_BYTES:
            return _extend_shared(self, type_id, tail)
        return _extend(self, type_id, tail)


EMPTY = Table({}, {}, 0)


def _extend(table: Table, type_id: int, tail: bytes) -> tuple[Table, int]:
    if type_id < schema.FIRST_DEFINED_ID or type_id in table.types:
        raise errors.RemoteProtocolError(f"gob: type {type_id} defined twice, or reserved")
    scanner = scalars.Scanner(tail)
    wire_type = _read_wire_type(scanner)
    definition_bytes = table.definition_bytes + scanner.position
    if len(table.types) >= MAX_TYPES or definition_bytes > MAX_DEFINITION_BYTES:
        raise errors.RemoteProtocolError(
            f"gob: more than {MAX_TYPES} types or {MAX_DEFINITION_BYTES} bytes of definitions",
            reason=reasons.DisconnectReason.MESSAGE_TOO_LARGE,
        )
    return Table({**table.types, type_id: wire_type}, dict(table.plans), definition_bytes), scanner.position


_extend_shared = functools.lru_cache(maxsize=_SHARED_TABLES)(_extend)


def _fields(scanner: scalars.Scanner, count: int) -> Iterator[int]:
    """Numbers of a struct's fields as they come, the scanner standing at the value; to the terminator or the end."""
    number = -1
    while scanner.position < scanner.end:
        delta = scanner.uint()
        if delta == 0:
            return
        number += delta
        if number >= count:
            raise errors.RemoteProtocolError(f"gob: field {number} in a definition's struct of {count}")
        yield number


def _read_wire_type(scanner: scalars.Scanner) -> WireType:
    found = None
    for number in _fields(scanner, len(Form)):
        found = _read_form(scanner, Form(number))
    if found is None:
        raise errors.RemoteProtocolError("gob: a definition of nothing")
    return found


def _read_form(scanner: scalars.Scanner, form: Form) -> WireType:
    """arrayType, sliceType, structType, mapType or gobEncoderType: CommonType first, then what is its own."""
    own_fields = {Form.ARRAY: 2, Form.SLICE: 1, Form.STRUCT: 1, Form.MAP: 2}.get(form, 0)
    name = ""
    numbers = [0, 0]
    members: tuple[tuple[str, int], ...] = ()
    for number in _fields(scanner, 1 + own_fields):
        if number == 0:
            name = _read_named(scanner)[0]
        elif form is Form.STRUCT:
            members = tuple([_read_named(scanner) for _ in range(_count(scanner))])
        else:
            numbers[number - 1] = scanner.signed()
    match form:
        case Form.STRUCT:
            return WireType(
                form, name, tuple([field_id for _, field_id in members]), tuple([field for field, _ in members])
            )
        case Form.ARRAY:
            return WireType(form, name, (numbers[0],), length=numbers[1])
        case Form.SLICE:
            return WireType(form, name, (numbers[0],))
        case Form.MAP:
            return WireType(form, name, (numbers[0], numbers[1]))
        case _:
            return WireType(form, name)


def _read_named(scanner: scalars.Scanner) -> tuple[str, int]:
    """CommonType and fieldType: a name and an id."""
    name, named_id = "", 0
    for number in _fields(scanner, 2):
        if number == 0:
            name = scanner.text()
        else:
            named_id = scanner.signed()
    return name, named_id


def _count(scanner: scalars.Scanner) -> int:
    """The number of a struct's fields: each takes a byte at least, so more than there are bytes is a lie."""
    count = scanner.uint()
    if count > scanner.end - scanner.position:
        raise errors.RemoteProtocolError(f"gob: {count} fields in {scanner.end - scanner.position} bytes")
    return count
