"""The types of resources that are sent whole: reads JSON into their fields, writes them in their order. Pure.

`field_order.json` beside this module names every type's fields in order, with kinds, omission and validation tags.
What `read` gives is a dict of the fields that are there (never None): JSON's own values, but durations as
nanoseconds and times as Go prints them ("" for the zero time). Unknown fields are dropped.
"""

import functools
import pathlib
from collections.abc import Callable
from typing import Any, TypeAlias

import msgspec

from cache.feeds.calico import model
from cache.feeds.calico.codecs import durations, gojson, scalars

Values: TypeAlias = dict[str, Any]


class FieldType(msgspec.Struct, frozen=True):
    """What a value is: its kind, of what a list or map is, and which type an object has."""

    kind: str
    of: "FieldType | None" = None
    type: str = ""


class Field(msgspec.Struct, frozen=True):
    """One field. `pointer`: only absence is empty. `config_name` and `timescale`: see the configuration converters."""

    name: str
    kind: str
    omit: bool
    pointer: bool = False
    omitzero: bool = False
    of: FieldType | None = None
    type: str = ""
    check: str = ""
    config_name: str = ""
    timescale: str = ""

    @property
    def value_type(self) -> FieldType:
        """The type of the field's value."""
        return FieldType(self.kind, self.of, self.type)


class _Schema(msgspec.Struct, frozen=True):
    types: dict[str, tuple[Field, ...]]


_AS_NUMBER_FIELDS = frozenset({"asNumber", "localASNumber", "asPathPrefix", "prefix"})


def _load() -> dict[str, tuple[Field, ...]]:
    path = pathlib.Path(__file__).with_name("field_order.json")
    types = msgspec.json.decode(path.read_bytes(), type=_Schema).types
    return {name: tuple(map(_with_as_number, fields)) for name, fields in types.items()}


def _with_as_number(field: Field) -> Field:
    """AS numbers are numbers in the file, but Go reads them from text, too."""
    if field.name not in _AS_NUMBER_FIELDS:
        return field
    if field.of is not None:
        return msgspec.structs.replace(field, of=FieldType(scalars.AS_NUMBER))
    return msgspec.structs.replace(field, kind=scalars.AS_NUMBER)


TYPES = _load()

parse_port = scalars.parse_port
parse_time = scalars.parse_time
_NEVER_EMPTY = frozenset({"object", "int-or-string"})  # structs in Go, which omitempty does not know when to leave out


class _Undecodable(ValueError):
    """A value is not of its kind; `path` leads to it, its last step first."""

    def __init__(self, what: str) -> None:
        super().__init__(what)
        self.path: list[str] = []


def read(type_name: str, source: Any, *, fold_case: bool = False) -> Values:
    """The fields of an object of the type.

    Args:
        fold_case: names match in any case of letters, as Go's encoding/json has it (the API's own decoder has not).

    Raises:
        ConversionError: a value is not of its field's kind, as the original could not decode it either; names its path.
    """
    try:
        return _read(type_name, source, fold_case)
    except _Undecodable as error:
        path = "".join(reversed(error.path)).removeprefix(".") or "object"
        raise model.ConversionError("undecodable", f"{path}: {error}") from error


def write(type_name: str, values: Values) -> Values:
    """The object for `gojson.encode`: fields in order, empty ones left out or written as the type has it."""
    written: Values = {}
    for field, writer in _write_plan(type_name):
        value = values.get(field.name)
        if value is None:
            if field.omit and (field.pointer or field.omitzero or field.kind not in _NEVER_EMPTY):
                continue
            written[field.name] = None if field.pointer else _zero_text(field)
        elif field.omit and not value and not field.pointer and field.kind not in _NEVER_EMPTY:
            continue
        else:
            written[field.name] = writer(value) if writer else value
    return written


def _read(type_name: str, source: Any, fold_case: bool) -> Values:
    if not isinstance(source, dict):
        raise _Undecodable("not an object")
    readers = _read_plan(type_name, fold_case)
    found: Values = {}
    for name, value in source.items():
        plan = readers.get(name.casefold() if fold_case else name)
        if plan is not None and value is not None:
            field_name, reader = plan
            try:
                found[field_name] = reader(value)
            except ValueError as error:
                raise _at(error, f".{name}") from error
    return found


@functools.cache
def _read_plan(type_name: str, fold_case: bool) -> dict[str, tuple[str, Callable[[Any], Any]]]:
    """By the name in the source: the field's name, and what reads its value (raising ValueError)."""
    return {
        field.name.casefold() if fold_case else field.name: (field.name, _reader(field.value_type, fold_case))
        for field in TYPES[type_name]
    }


@functools.cache
def _write_plan(type_name: str) -> list[tuple[Field, Callable[[Any], Any] | None]]:
    """The fields in order, and what writes their values (None: they are written as they are)."""
    return [(field, _writer(field.value_type)) for field in TYPES[type_name]]


def _reader(value_type: FieldType, fold_case: bool) -> Callable[[Any], Any]:
    of = value_type.of
    if value_type.kind == "object":
        return lambda value: _read(value_type.type, value, fold_case)
    if of is not None and value_type.kind in ("list", "map"):
        read_element = _reader(of, fold_case)
        zero: Any = {} if of.kind == "object" else scalars.ZEROS.get(of.kind)
        read_elements = _read_list if value_type.kind == "list" else _read_map
        return lambda value: read_elements(value, lambda element: zero if element is None else read_element(element))
    return scalars.READERS.get(value_type.kind, lambda value: value)


def _read_list(value: Any, read_element: Callable[[Any], Any]) -> list[Any]:
    if not isinstance(value, list):
        raise _Undecodable("not a list")
    found: list[Any] = []
    try:
        for element in value:
            found.append(read_element(element))
    except ValueError as error:
        raise _at(error, f"[{len(found)}]") from error
    return found


def _read_map(value: Any, read_element: Callable[[Any], Any]) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise _Undecodable("not a map")
    found: dict[str, Any] = {}
    for name, element in value.items():
        try:
            found[name] = read_element(element)
        except ValueError as error:
            raise _at(error, f".{name}") from error
    return found


def _writer(value_type: FieldType) -> Callable[[Any], Any] | None:
    kind = value_type.kind
    if kind == "object":
        return lambda value: write(value_type.type, value)
    if value_type.of is not None and kind == "list":
        write_element = _writer(value_type.of)
        return (lambda value: list(map(write_element, value))) if write_element else None
    if kind == "map":
        return gojson.sorted_map
    if kind == "duration":
        return durations.text
    return (lambda value: value or None) if kind == "time" else None


def _at(error: ValueError, step: str) -> "_Undecodable":
    """The error with one more step of the path that leads to it; steps come from the inside out."""
    undecodable = error if isinstance(error, _Undecodable) else _Undecodable(str(error))
    undecodable.path.append(step)
    return undecodable


def _zero_text(field: Field) -> Any:
    """What Go writes for an absent field that is not left out."""
    if field.kind == "object":
        return write(field.type, {})
    if field.kind == "int-or-string":
        return 0
    return {"duration": "0s", "time": None}.get(field.kind, scalars.ZEROS.get(field.kind))
