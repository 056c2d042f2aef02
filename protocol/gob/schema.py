"""Internal: local types. The decoder matches them with a stream's types by field name; the encoder writes them."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

BOOL_ID, INT_ID, UINT_ID, FLOAT_ID, BYTES_ID, STRING_ID, COMPLEX_ID, INTERFACE_ID = range(1, 9)
"""Type ids that exist in every stream without a definition."""
FIRST_DEFINED_ID = 64


@dataclasses.dataclass(frozen=True, slots=True)
class Basic:
    """A scalar, a string or bytes. `bits` limits integers."""

    id: int
    zero: object
    bits: int = 64


BOOL = Basic(BOOL_ID, False)
INT = Basic(INT_ID, 0)
UINT = Basic(UINT_ID, 0)
UINT8 = Basic(UINT_ID, 0, 8)
FLOAT = Basic(FLOAT_ID, 0.0)
COMPLEX = Basic(COMPLEX_ID, 0j)
STRING = Basic(STRING_ID, "")
BYTES = Basic(BYTES_ID, b"")


@dataclasses.dataclass(frozen=True, slots=True)
class Interface:
    """A value of any registered type, or None."""


INTERFACE = Interface()


@dataclasses.dataclass(frozen=True, slots=True, eq=False)
class Opaque:
    """A type that encodes itself (Go: GobEncoder). `check` raises RemoteProtocolError if the bytes are invalid."""

    name: str
    check: Callable[[bytes], None]


@dataclasses.dataclass(frozen=True, slots=True, eq=False)
class Slice:
    """A slice; in Python, a list. A reader accepts at most `max_length` elements."""

    name: str
    element: "Kind"
    max_length: int = 1 << 62


@dataclasses.dataclass(frozen=True, slots=True, eq=False)
class Field:
    """A field of a struct: its name in Go, and a function that gets its value from the Python object."""

    name: str
    kind: "Kind"
    get: Callable[[Any], Any]


@dataclasses.dataclass(frozen=True, slots=True, eq=False)
class Struct:
    """A struct. `make` takes the values of all fields, with zero values for missing ones."""

    name: str
    fields: Sequence[Field]
    make: Callable[..., Any]


Defined: TypeAlias = Opaque | Slice | Struct
"""Kinds that a stream defines before it uses them."""
Kind: TypeAlias = Basic | Interface | Defined


def zero_of(kind: Kind) -> object:
    """The value of a field that was not sent. An empty list is not sent, and is read as ()."""
    match kind:
        case Basic():
            return kind.zero
        case Slice():
            return ()
        case Opaque():
            return b""
        case _:
            return None


_INTEGER_BITS = {"": 64, "8": 8, "16": 16, "32": 32, "64": 64}
_BASIC_NAMES: dict[str, Basic] = {
    **{f"int{suffix}": Basic(INT_ID, 0, bits) for suffix, bits in _INTEGER_BITS.items()},
    **{f"uint{suffix}": Basic(UINT_ID, 0, bits) for suffix, bits in _INTEGER_BITS.items()},
    "uintptr": UINT,
    "float32": FLOAT,
    "float64": FLOAT,
    "complex64": COMPLEX,
    "complex128": COMPLEX,
    "bool": BOOL,
    "string": STRING,
}
REGISTERED: dict[bytes, Kind] = {
    **{name.encode(): kind for name, kind in _BASIC_NAMES.items()},
    **{f"[]{name}".encode(): Slice(f"[]{name}", kind) for name, kind in _BASIC_NAMES.items() if name != "uint8"},
    b"[]byte": BYTES,
}
"""The types that Go registers on its own: any interface may contain them."""
