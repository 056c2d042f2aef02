"""The types of whole resources: reads JSON into their fields, and writes the fields in order. Pure.

`field_order.json` in this directory lists the fields of every type in order, with their kinds, omission rules and
validation tags. `read` returns a dict of the present fields (never None). Values are JSON's own, except durations
(nanoseconds) and times (as Go prints them, "" for the zero time). Unknown fields are dropped.
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
    """The type of a value: its kind, the element type of a list or map, and the type name of an object."""

    kind: str
    of: "FieldType | None" = None
    type: str = ""


class Field(msgspec.Struct, frozen=True):
    """One field. `pointer`: only an absent value is empty. `config_name`, `timescale`: see `configurations`.

    `since` and `until`: the first and the last release that has the field, if that matters to agents in use.
    """

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
    since: str = ""
    until: str = ""

    @property
    def value_type(self) -> FieldType:
        """The type of the field's value."""
        return FieldType(self.kind, self.of, self.type)


FELIX_CONFIGURATION_SPEC = "v3.FelixConfigurationSpec"
OLDER_FELIX_CONFIGURATION_SPEC = "v3.FelixConfigurationSpec until 3.31"
"""The fields that are gone."""


class _Schema(msgspec.Struct, frozen=True):
    types: dict[str, tuple[Field, ...]]


_AS_NUMBER_FIELDS = frozenset({"asNumber", "localASNumber", "asPathPrefix", "prefix"})


def _load() -> dict[str, tuple[Field, ...]]:
    path = pathlib.Path(__file__).with_name("field_order.json")
    types = msgspec.json.decode(path.read_bytes(), type=_Schema).types
    return {name: tuple(map(_with_as_number, fields)) for name, fields in types.items()}


def _with_as_number(field: Field) -> Field:
    """In the file AS numbers are plain numbers, but Go also reads them from text."""
    if field.name not in _AS_NUMBER_FIELDS:
        return field
    if field.of is not None:
        return msgspec.structs.replace(field, of=FieldType(scalars.AS_NUMBER))
    return msgspec.structs.replace(field, kind=scalars.AS_NUMBER)


TYPES = _load()

parse_port = scalars.parse_port
parse_time = scalars.parse_time
_NEVER_EMPTY = frozenset({"object", "int-or-string"})  # structs in Go, which omitempty never leaves out


class _Undecodable(ValueError):
    """A value is not of its kind. `path` leads to it, innermost step first."""

    def __init__(self, what: str) -> None:
        super().__init__(what)
        self.path: list[str] = []


def read(type_name: str, source: Any, *, fold_case: bool = False) -> Values:
    """Read the fields of an object of the type.

    Args:
        fold_case: ignore the case of names, as Go's encoding/json does. The API's own decoder does not.

    Raises:
        ConversionError: a value is not of its field's kind. The original cannot decode it either. Names the path.
    """
    try:
        return _read(type_name, source, fold_case)
    except _Undecodable as error:
        path = "".join(reversed(error.path)).removeprefix(".") or "object"
        raise model.ConversionError("undecodable", f"{path}: {error}") from error


def write(type_name: str, values: Values) -> Values:
    """Return the object for `gojson.encode`: fields in order, empty ones left out or written by the type's rules."""
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
    """Map each name in the source to the field's name and the function that reads its value (raises ValueError)."""
    return {
        field.name.casefold() if fold_case else field.name: (field.name, _reader(field.value_type, fold_case))
        for field in TYPES[type_name]
    }


@functools.cache
def _write_plan(type_name: str) -> list[tuple[Field, Callable[[Any], Any] | None]]:
    """Return the fields in order, and the functions that write their values (None: write the value as it is)."""
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
    """Return the error with one more step of its path. The innermost step comes first."""
    undecodable = error if isinstance(error, _Undecodable) else _Undecodable(str(error))
    undecodable.path.append(step)
    return undecodable


def _zero_text(field: Field) -> Any:
    """Return what Go writes for an absent field that is not left out."""
    if field.kind == "object":
        return write(field.type, {})
    if field.kind == "int-or-string":
        return 0
    return {"duration": "0s", "time": None}.get(field.kind, scalars.ZEROS.get(field.kind))
