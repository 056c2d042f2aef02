"""Internal: plans for decoding a stream's types into local types.

A plan is compiled once for each pair of types and kept with the stream's type table. Struct fields match by name, and
their kinds must be equal. Unknown fields are skipped; missing fields keep their zero value.
"""

import dataclasses
from collections.abc import Callable, Generator
from typing import TYPE_CHECKING, Any, TypeAlias

from protocol import errors
from protocol.gob import scalars, schema, types

if TYPE_CHECKING:
    from protocol.gob import decoder

Resumable: TypeAlias = Generator[None, None, Any]
"""A read in progress that yields whenever it needs another message: definitions inside a value begin new messages."""
Read: TypeAlias = Callable[[scalars.Scanner], Any]
"""Reads a value that lies within the current message."""
ResumableRead: TypeAlias = Callable[["decoder.Decoder"], Resumable]
"""Reads a value that contains an interface, and so may continue in further messages."""


@dataclasses.dataclass(frozen=True, slots=True)
class Reader:
    """How to read a value. Exactly one of the two is set."""

    read: Read | None = None
    resumable: ResumableRead | None = None


@dataclasses.dataclass(frozen=True, slots=True)
class FieldPlan:
    """How to read a field of the stream, and its index in the local struct. Index -1: skip the value."""

    index: int
    read: Read | None
    resumable: ResumableRead | None


@dataclasses.dataclass(frozen=True, slots=True)
class Plan:
    """How to read a struct of the stream into a local struct."""

    fields: tuple[FieldPlan, ...]
    zeros: list[object]
    """Zero values of the local fields, and a last element that takes skipped values."""
    make: Callable[..., Any]
    is_mismatch: bool
    """Whether both structs have fields, but none in common."""


def plan_for(table: types.Table, wire_id: int, local: schema.Struct) -> Plan:
    """Returns the plan for a struct; compiles it on first use.

    Raises:
        RemoteProtocolError: the stream's type is undefined, is not a struct, or has a field of another kind.
    """
    known = table.plans.get((wire_id, local))
    if isinstance(known, Plan):
        return known
    wire_type = _defined(table, wire_id)
    if wire_type.form is not types.Form.STRUCT:
        raise errors.RemoteProtocolError(f"gob: {wire_type.name} is not a struct, expected {local.name}")
    indexes = {field.name: index for index, field in enumerate(local.fields)}
    fields = []
    checked: set[int] = set()
    for name, field_id in zip(wire_type.field_names, wire_type.ids, strict=True):
        if not name:
            raise errors.RemoteProtocolError(f"gob: {wire_type.name} has a field without a name")
        index = indexes.get(name, -1)
        if index < 0:
            _check_defined(table, field_id, checked)
            skip = _SKIPS.get(field_id)
            fields.append(FieldPlan(-1, skip, None if skip else _skipper(field_id)))
            continue
        kind = local.fields[index].kind
        found = reader_for(table, field_id, kind)
        if found is None:
            raise errors.RemoteProtocolError(f"gob: wrong type for {local.name}.{name}")
        fields.append(FieldPlan(index, found.read, found.resumable))
    plan = Plan(
        fields=tuple(fields),
        zeros=[*(schema.zero_of(field.kind) for field in local.fields), None],
        make=local.make,
        is_mismatch=bool(fields and local.fields) and all(field.index < 0 for field in fields),
    )
    table.plans[wire_id, local] = plan
    return plan


def reader_for(table: types.Table, wire_id: int, kind: schema.Kind) -> Reader | None:
    """Returns the reader of a field, element or single value; None if the kinds differ."""
    match kind:
        case schema.Basic():
            return Reader(read=_basic_reader(kind)) if wire_id == kind.id else None
        case schema.Interface():
            return (
                Reader(resumable=lambda decoder: decoder.read_interface()) if wire_id == schema.INTERFACE_ID else None
            )
        case schema.Opaque():
            return Reader(read=_opaque_reader(kind)) if _has_form(table, wire_id, types.Form.GOB_ENCODER) else None
        case schema.Slice():
            if not _has_form(table, wire_id, types.Form.SLICE):
                return None
            element = reader_for(table, table.types[wire_id].ids[0], kind.element)
            return None if element is None else _slice_reader(element, kind.max_length)
        case schema.Struct():
            plan = plan_for(table, wire_id, kind)
            return Reader(resumable=lambda decoder: decoder.read_struct(plan))


def _slice_reader(element: Reader, max_length: int) -> Reader:
    read, resumable = element.read, element.resumable
    if read is not None:
        return Reader(read=lambda scanner: _read_list(scanner, read, max_length))
    assert resumable is not None
    return Reader(resumable=lambda decoder: decoder.read_slice(resumable))


def _read_list(scanner: scalars.Scanner, read: Read, max_length: int) -> list[Any]:
    count = scanner.uint()
    if count > max_length:
        raise errors.RemoteProtocolError(f"gob: {count} elements, over the limit of {max_length}")
    if count > scanner.end - scanner.position:
        raise errors.RemoteProtocolError(f"gob: {count} elements in {scanner.end - scanner.position} bytes")
    return [read(scanner) for _ in range(count)]


def _defined(table: types.Table, wire_id: int) -> types.WireType:
    wire_type = table.types.get(wire_id)
    if wire_type is None:
        raise errors.RemoteProtocolError(f"gob: type {wire_id} is not defined")
    return wire_type


def _has_form(table: types.Table, wire_id: int, form: types.Form) -> bool:
    wire_type = table.types.get(wire_id)
    return wire_type is not None and wire_type.form is form


def _check_defined(table: types.Table, wire_id: int, checked: set[int]) -> None:
    """Checks that a skipped type and everything in it is defined before the first value, as Go does."""
    unchecked = [wire_id]
    while unchecked:
        current = unchecked.pop()
        if current not in checked and not schema.BOOL_ID <= current <= schema.INTERFACE_ID:
            checked.add(current)
            unchecked.extend(_defined(table, current).ids)


def _basic_reader(kind: schema.Basic) -> Read:
    limit = 1 << kind.bits
    match kind.id:
        case schema.UINT_ID if kind.bits < 64:

            def read_uint(scanner: scalars.Scanner) -> int:
                number = scanner.uint()
                if number >= limit:
                    raise errors.RemoteProtocolError(f"gob: {number} does not fit {kind.bits} bits")
                return number

            return read_uint
        case schema.INT_ID if kind.bits < 64:

            def read_int(scanner: scalars.Scanner) -> int:
                number = scanner.signed()
                if not -limit // 2 <= number < limit // 2:
                    raise errors.RemoteProtocolError(f"gob: {number} does not fit {kind.bits} bits")
                return number

            return read_int
    return _BASIC_READS[kind.id]


_BASIC_READS: dict[int, Read] = {
    schema.BOOL_ID: lambda scanner: scanner.uint() != 0,
    schema.INT_ID: scalars.Scanner.signed,
    schema.UINT_ID: scalars.Scanner.uint,
    schema.FLOAT_ID: scalars.Scanner.double,
    schema.BYTES_ID: scalars.Scanner.raw,
    schema.STRING_ID: scalars.Scanner.text,
    schema.COMPLEX_ID: lambda scanner: complex(scanner.double(), scanner.double()),
}


def _opaque_reader(kind: schema.Opaque) -> Read:
    def read(scanner: scalars.Scanner) -> bytes:
        data = scanner.raw()
        kind.check(data)
        return data

    return read


def _skip_two(scanner: scalars.Scanner) -> None:
    scanner.uint()
    scanner.uint()


_SKIPS: dict[int, Read] = {
    **dict.fromkeys((schema.BOOL_ID, schema.INT_ID, schema.UINT_ID, schema.FLOAT_ID), scalars.Scanner.uint),
    **dict.fromkeys((schema.BYTES_ID, schema.STRING_ID), scalars.Scanner.skip_bytes),
    schema.COMPLEX_ID: _skip_two,
}


def _skipper(wire_id: int) -> ResumableRead:
    return lambda decoder: decoder.skip(wire_id)


def skip_for(wire_id: int) -> Read | None:
    """Returns the function that skips a predefined scalar; None for all other types."""
    return _SKIPS.get(wire_id)
