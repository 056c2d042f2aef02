"""Internal: the types that a stream has defined, in an immutable table that streams with equal definitions share.

Go numbers types by first use in a process, so an id means nothing without its definition. Agents of the same build send
the same definitions in the same order. They share one table, and the plans compiled for it.
"""

import dataclasses
import enum
import functools
from collections.abc import Iterator

from protocol import errors, reasons
from protocol.gob import scalars, schema

MAX_PARTS = 128
"""Limit of the number of types and fields in all definitions. A Go client sends 19, a Go server 26. Each definition
copies the table, and a decoder keeps the tables, so both must stay small whatever a peer defines."""
MAX_DEFINITION_BYTES = 16 * 1024
"""Limit of all definitions together: a decoder keeps them."""
_SHARED_BYTES = 4096
"""Larger tables are not shared, so that the shared ones take little memory."""
_SHARED_TABLES = 256


class Form(enum.IntEnum):
    """The form of a defined type. The numbers are those of the fields of Go's wireType."""

    ARRAY = 0
    SLICE = 1
    STRUCT = 2
    MAP = 3
    GOB_ENCODER = 4
    BINARY_MARSHALER = 5
    TEXT_MARSHALER = 6


@dataclasses.dataclass(frozen=True, slots=True)
class WireType:
    """One definition. `ids` are the ids of the element, of key and element, or of the fields."""

    form: Form
    name: str = ""
    ids: tuple[int, ...] = ()
    field_names: tuple[str, ...] = ()
    length: int = 0
    """The length of an array."""


class Table:
    """Types by id. `plans` belongs to the decoder: the plans that it has compiled for these types."""

    __slots__ = ("definition_bytes", "parts", "plans", "types")

    def __init__(
        self, types: dict[int, WireType], plans: dict[object, object], definition_bytes: int, parts: int
    ) -> None:
        self.types = types
        self.plans = plans
        self.definition_bytes = definition_bytes
        self.parts = parts
        """Number of types and of their fields."""

    def extend(self, type_id: int, tail: bytes) -> tuple["Table", int]:
        """Returns a table with one more type, and the length of its definition, with which `tail` begins.

        Raises:
            RemoteProtocolError: the id is in use or reserved, the definition is invalid, or a limit is reached.
        """
        if len(tail) + self.definition_bytes <= _SHARED_BYTES:
            return _extend_shared(self, type_id, tail)
        return _extend(self, type_id, tail)


EMPTY = Table({}, {}, 0, 0)


def _extend(table: Table, type_id: int, tail: bytes) -> tuple[Table, int]:
    if type_id < schema.FIRST_DEFINED_ID or type_id in table.types:
        raise errors.RemoteProtocolError(f"gob: type {type_id} is defined twice or reserved")
    scanner = scalars.Scanner(tail)
    wire_type = _read_wire_type(scanner)
    definition_bytes = table.definition_bytes + scanner.position
    parts = table.parts + 1 + len(wire_type.ids)
    if parts > MAX_PARTS or definition_bytes > MAX_DEFINITION_BYTES:
        raise _too_large()
    return Table({**table.types, type_id: wire_type}, dict(table.plans), definition_bytes, parts), scanner.position


def _too_large() -> errors.RemoteProtocolError:
    return errors.RemoteProtocolError(
        f"gob: more than {MAX_PARTS} types and fields or {MAX_DEFINITION_BYTES} bytes of definitions",
        reason=reasons.DisconnectReason.MESSAGE_TOO_LARGE,
    )


_extend_shared = functools.lru_cache(maxsize=_SHARED_TABLES)(_extend)


def _fields(scanner: scalars.Scanner, count: int) -> Iterator[int]:
    """Yields the numbers of a struct's fields, with the scanner at the value, up to the terminator or the end."""
    number = -1
    while scanner.position < scanner.end:
        delta = scanner.uint()
        if delta == 0:
            return
        number += delta
        if number >= count:
            raise errors.RemoteProtocolError(f"gob: field {number} in a definition with {count} fields")
        yield number


def _read_wire_type(scanner: scalars.Scanner) -> WireType:
    found = None
    for number in _fields(scanner, len(Form)):
        found = _read_form(scanner, Form(number))
    if found is None:
        raise errors.RemoteProtocolError("gob: empty definition")
    return found


def _read_form(scanner: scalars.Scanner, form: Form) -> WireType:
    """Reads arrayType, sliceType, structType, mapType or gobEncoderType: CommonType, then the fields of the form."""
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
    """Reads CommonType or fieldType: a name and an id."""
    name, named_id = "", 0
    for number in _fields(scanner, 2):
        if number == 0:
            name = scanner.text()
        else:
            named_id = scanner.signed()
    return name, named_id


def _count(scanner: scalars.Scanner) -> int:
    """Reads the number of a struct's fields. Each field takes at least one byte."""
    count = scanner.uint()
    if count > scanner.end - scanner.position:
        raise errors.RemoteProtocolError(f"gob: {count} fields in {scanner.end - scanner.position} bytes")
    if count > MAX_PARTS:
        raise _too_large()
    return count
