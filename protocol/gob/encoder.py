"""Internal: encodes values of fixed types with fixed type ids. The bytes are the same for every connection.

Go numbers types by first use, and sends a definition with the first value that needs it. Here all definitions are one
constant, which is sent first. What follows does not depend on the connection.
"""

import io
from collections.abc import Mapping, Sequence
from typing import Any

from protocol.gob import scalars, schema

_uint, _int, _text, _bytes = scalars.encode_uint, scalars.encode_int, scalars.encode_text, scalars.encode_bytes
STRING_IN_INTERFACE = _text("string") + _int(schema.STRING_ID)
"""The bytes before the length and value of a string in an interface."""


class Encoder:
    """Encodes values of a fixed set of types.

    Args:
        kinds: all structs, slices and opaque types. Their ids are consecutive, from 64 on.
        names: the types that an interface may contain: Python type -> registered name and struct. Strings are implied.
        ids: ids to use instead, one for each kind.
    """

    def __init__(
        self,
        kinds: Sequence[schema.Defined],
        names: Mapping[type, tuple[bytes, schema.Struct]],
        *,
        ids: Sequence[int] | None = None,
    ) -> None:
        self._ids: dict[schema.Kind, int] = dict(
            zip(kinds, ids or range(schema.FIRST_DEFINED_ID, schema.FIRST_DEFINED_ID + len(kinds)), strict=True)
        )
        self._names = names
        self.definitions = b"".join(self._definition(kind) for kind in kinds)
        """The messages that define all types. Send them once, before everything else."""

    def id_of(self, kind: schema.Kind) -> int:
        """The type id of a kind on the wire."""
        if isinstance(kind, schema.Basic):
            return kind.id
        return schema.INTERFACE_ID if isinstance(kind, schema.Interface) else self._ids[kind]

    def message(self, top: schema.Struct, value: object) -> bytes:
        """A complete message with one value."""
        return frame(_int(self.id_of(top)) + self.value(top, value))

    def value(self, kind: schema.Kind, value: Any) -> bytes:
        """The bytes of a value inside a message. Zero fields of structs are omitted, as in Go."""
        match kind:
            case schema.Struct():
                return self._struct(kind, value)
            case schema.Slice():
                return _uint(len(value)) + b"".join([self.value(kind.element, element) for element in value])
            case schema.Interface():
                return self._interface(value)
            case schema.Opaque():
                return _bytes(value)
        match kind.id:
            case schema.STRING_ID:
                return _text(value)
            case schema.BYTES_ID:
                return _bytes(value)
            case schema.INT_ID:
                return _int(value)
            case schema.UINT_ID | schema.BOOL_ID:
                return _uint(int(value))
        raise ValueError(f"kind {kind} cannot be encoded")

    def _struct(self, kind: schema.Struct, value: object) -> bytes:
        out = io.BytesIO()
        last = -1
        for number, field in enumerate(kind.fields):
            content = field.get(value)
            if content is None or (not isinstance(field.kind, schema.Interface) and not content):
                continue
            out.write(_uint(number - last))
            out.write(self.value(field.kind, content))
            last = number
        out.write(b"\0")
        return out.getvalue()

    def _interface(self, value: object) -> bytes:
        if value is None:
            return b"\0"
        if isinstance(value, str):
            return STRING_IN_INTERFACE + _bytes(b"\0" + _text(value))
        name, kind = self._names[type(value)]
        return self.interface_start(name, kind) + _bytes(self._struct(kind, value))

    def interface_start(self, name: bytes, kind: schema.Struct) -> bytes:
        """The bytes before the length and value of a struct in an interface."""
        return _bytes(name) + _int(self.id_of(kind))

    def _definition(self, kind: schema.Kind) -> bytes:
        """The message that defines a type: its negated id, and a wireType with one field set."""
        type_id = self.id_of(kind)
        match kind:
            case schema.Struct():
                members = [_named(field.name, self.id_of(field.kind)) for field in kind.fields]
                form, own = 3, b"\1" + _uint(len(members)) + b"".join(members) if members else b""
            case schema.Slice():
                form, own = 2, b"\1" + _int(self.id_of(kind.element))
            case schema.Opaque():
                form, own = 5, b""
            case _:
                raise ValueError(f"kind {kind} needs no definition")
        return frame(_int(-type_id) + _uint(form) + b"\1" + _named(kind.name, type_id) + own + b"\0\0")


def frame(body: bytes) -> bytes:
    """A message: the length of its body, and the body."""
    return _uint(len(body)) + body


def _named(name: str, type_id: int) -> bytes:
    return b"\1" + _text(name) + b"\1" + _int(type_id) + b"\0"
