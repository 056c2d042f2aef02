"""The types of resources that are sent whole: reads JSON into their fields, writes them in their order. Pure.

`field_order.json` beside this module names every type's fields in order, with kinds, omission and validation tags.
What `read` gives is a dict of the fields that are there (never None): JSON's own values, but durations as
nanoseconds and times as Go prints them ("" for the zero time). Unknown fields are dropped.
"""

import datetime
import pathlib
import re
from collections.abc import Callable
from typing import Any, TypeAlias

import msgspec

from cache.calico import durations, gojson, model

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
_AS_NUMBER = "as-number"


def _load() -> dict[str, tuple[Field, ...]]:
    path = pathlib.Path(__file__).with_name("field_order.json")
    types = msgspec.json.decode(path.read_bytes(), type=_Schema).types
    return {name: tuple(map(_with_as_number, fields)) for name, fields in types.items()}


def _with_as_number(field: Field) -> Field:
    """AS numbers are numbers in the file, but Go reads them from text, too."""
    if field.name not in _AS_NUMBER_FIELDS:
        return field
    if field.of is not None:
        return msgspec.structs.replace(field, of=FieldType(_AS_NUMBER))
    return msgspec.structs.replace(field, kind=_AS_NUMBER)


TYPES = _load()

_BY_NAME = {type_name: {field.name: field for field in fields} for type_name, fields in TYPES.items()}
_BY_FOLDED_NAME = {type_name: {field.name.casefold(): field for field in fields} for type_name, fields in TYPES.items()}
_INTEGER_BOUNDS = {
    "int": (-(1 << 63), (1 << 63) - 1),
    "int64": (-(1 << 63), (1 << 63) - 1),
    "int32": (-(1 << 31), (1 << 31) - 1),
    "uint32": (0, (1 << 32) - 1),
    "uint16": (0, (1 << 16) - 1),
    "uint8": (0, (1 << 8) - 1),
}
_ZEROS: dict[str, Any] = {
    "string": "",
    "bool": False,
    "duration": 0,
    "time": "",
    **dict.fromkeys(("port", "int-or-string", "uint8-or-name", _AS_NUMBER), 0),
    **dict.fromkeys(_INTEGER_BOUNDS, 0),
}
_PORT_RANGE = re.compile(r"([0-9]+):([0-9]+)")
_PORT_NAME = re.compile(r"[a-zA-Z0-9_.-]{1,128}")
_DIGITS = re.compile(r"[0-9]+")
_RFC3339 = re.compile(
    r"([0-9]{4}-[0-9]{2}-[0-9]{2})T([0-9]{1,2})(:[0-9]{2}:[0-9]{2})(?:[.,][0-9]+)?(Z|[+-][0-9]{2}:[0-9]{2})"
)
_ZERO_TIME = "0001-01-01T00:00:00Z"


def read(type_name: str, source: Any, *, fold_case: bool = False, where: str = "") -> Values:
    """The fields of an object of the type, in the type's order.

    Args:
        fold_case: names match in any case of letters, as Go's encoding/json has it (the API's own decoder has not).
        where: path of the object, for messages.

    Raises:
        ConversionError: a value is not of its field's kind, as the original could not decode it either.
    """
    if not isinstance(source, dict):
        raise _undecodable(where, "not an object")
    names = _BY_FOLDED_NAME[type_name] if fold_case else _BY_NAME[type_name]
    found: Values = {}
    for name, value in source.items():
        field = names.get(name.casefold() if fold_case else name)
        if field is not None and value is not None:
            path = f"{where}.{name}" if where else name
            found[field.name] = read_value(field.value_type, value, fold_case=fold_case, where=path)
    return {field.name: found[field.name] for field in TYPES[type_name] if field.name in found}


def read_value(value_type: FieldType, value: Any, *, fold_case: bool = False, where: str = "") -> Any:
    """One value of the type; raises ConversionError."""
    kind = value_type.kind
    if kind == "object":
        return read(value_type.type, value, fold_case=fold_case, where=where)
    of = value_type.of
    if of is not None and kind == "list":
        if not isinstance(value, list):
            raise _undecodable(where, "not a list")
        return [_element(of, element, fold_case, f"{where}[{index}]") for index, element in enumerate(value)]
    if of is not None and kind == "map":
        if not isinstance(value, dict):
            raise _undecodable(where, "not a map")
        return {name: _element(of, element, fold_case, f"{where}.{name}") for name, element in value.items()}
    try:
        return _scalar(kind, value)
    except ValueError as error:
        raise _undecodable(where, str(error)) from error


def write(type_name: str, values: Values) -> Values:
    """The object for `gojson.encode`: fields in order, empty ones left out or written as the type has it."""
    written: Values = {}
    for field in TYPES[type_name]:
        value = values.get(field.name)
        if value is None:
            if field.omit and (field.pointer or field.omitzero or field.kind not in ("object", "int-or-string")):
                continue
            written[field.name] = None if field.pointer else _zero_text(field)
        elif field.omit and not field.pointer and not value and field.kind not in ("object", "int-or-string"):
            continue
        else:
            written[field.name] = _write_value(field.value_type, value)
    return written


def parse_port(value: Any) -> int | str:
    """A port as a number, `low:high` of two different numbers, or a name. Raises ValueError."""
    if isinstance(value, str):
        if _DIGITS.fullmatch(value):
            return _port_number(value)
        if matched := _PORT_RANGE.fullmatch(value):
            low, high = _port_number(matched[1]), _port_number(matched[2])
            if low > high:
                raise ValueError(f"the port range {value!r} is not in order")
            return low if low == high else f"{low}:{high}"
        if not _PORT_NAME.fullmatch(value):
            raise ValueError(f"not a port: {value[:140]!r}")
        return value
    return _integer("uint16", value)


def parse_time(text: str) -> str:
    """An RFC 3339 time printed as Go does: in UTC, whole seconds; "" for the zero time. Raises ValueError."""
    matched = _RFC3339.fullmatch(text)
    if matched is None:
        raise ValueError(f"not a time: {text[:80]!r}")
    date, hour, rest, zone = matched.groups()
    offset = "+00:00" if zone == "Z" else zone
    try:
        moment = datetime.datetime.fromisoformat(f"{date}T{hour:0>2}{rest}{offset}").astimezone(datetime.UTC)
    except OverflowError as error:
        raise ValueError(f"not a time: {text!r}") from error
    printed = moment.replace(tzinfo=None).isoformat() + "Z"
    return "" if printed == _ZERO_TIME else printed


def _element(value_type: FieldType, value: Any, fold_case: bool, where: str) -> Any:
    if value is None:
        return {} if value_type.kind == "object" else _ZEROS.get(value_type.kind)
    return read_value(value_type, value, fold_case=fold_case, where=where)


def _scalar(kind: str, value: Any) -> Any:
    if kind in _INTEGER_BOUNDS:
        return _integer(kind, value)
    if kind == "raw-json":
        return value
    reader = _READERS.get(kind)
    return reader(value) if reader else value


def _integer(kind: str, value: Any) -> int:
    low, high = _INTEGER_BOUNDS[kind]
    if not isinstance(value, int) or isinstance(value, bool) or not low <= value <= high:
        raise ValueError(f"not an integer of {low} to {high}: {value!r:.80}")
    return value


def _port_number(text: str) -> int:
    return _integer("uint16", int(text) if len(text) < 20 else -1)


def parse_as_number(value: Any) -> int:
    """An AS number, or its text in decimal or as two dotted halves of 16 bits. Raises ValueError."""
    if not isinstance(value, str):
        return _integer("uint32", value)
    text = value
    high, dot, low = text.partition(".")
    if not _DIGITS.fullmatch(high) or len(text) > 40 or (dot and not _DIGITS.fullmatch(low)):
        raise ValueError(f"not an AS number: {text[:80]!r}")
    if dot:
        return (_integer("uint16", int(high)) << 16) + _integer("uint16", int(low))
    return _integer("uint32", int(high))


def _string(value: Any) -> str:
    if not isinstance(value, str):
        raise ValueError(f"not a string: {value!r:.80}")
    return value


def _bool(value: Any) -> bool:
    if not isinstance(value, bool):
        raise ValueError(f"not a boolean: {value!r:.80}")
    return value


def _int_or_string(value: Any) -> int | str:
    return value if isinstance(value, str) else _integer("int32", value)


def _small_int_or_name(value: Any) -> int | str:
    if isinstance(value, str):
        return int(value) if _DIGITS.fullmatch(value) and len(value) < 20 and int(value) < 256 else value
    return _integer("uint8", value)


_READERS: dict[str, Callable[[Any], Any]] = {
    "string": _string,
    "bool": _bool,
    "time": lambda value: parse_time(_string(value)),
    "duration": lambda value: durations.parse(_string(value)),
    "port": parse_port,
    _AS_NUMBER: parse_as_number,
    "int-or-string": _int_or_string,
    "uint8-or-name": _small_int_or_name,
}


def _zero_text(field: Field) -> Any:
    """What Go writes for an absent field that is not left out."""
    if field.kind == "object":
        return write(field.type, {})
    if field.kind == "int-or-string":
        return 0
    return {"duration": "0s", "time": None}.get(field.kind, _ZEROS.get(field.kind))


def _write_value(value_type: FieldType, value: Any) -> Any:
    kind = value_type.kind
    if kind == "object":
        return write(value_type.type, value)
    if value_type.of is not None and kind == "list":
        return [_write_value(value_type.of, element) for element in value]
    if kind == "map":
        return gojson.sorted_map(value)
    if kind == "duration":
        return durations.text(value)
    if kind == "time":
        return value or None
    return value


def _undecodable(where: str, what: str) -> model.ConversionError:
    return model.ConversionError("undecodable", f"{where or 'object'}: {what}")
