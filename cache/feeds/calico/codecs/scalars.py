"""Readers for the schema's scalar kinds, with Go's rules. Pure. All readers raise ValueError."""

import datetime
import functools
import re
from collections.abc import Callable
from typing import Any

from cache.feeds.calico.codecs import durations

AS_NUMBER = "as-number"
_INTEGER_BOUNDS = {
    "int": (-(1 << 63), (1 << 63) - 1),
    "int64": (-(1 << 63), (1 << 63) - 1),
    "int32": (-(1 << 31), (1 << 31) - 1),
    "uint32": (0, (1 << 32) - 1),
    "uint16": (0, (1 << 16) - 1),
    "uint8": (0, (1 << 8) - 1),
}
_BOOLEANS = {
    **dict.fromkeys(("1", "t", "T", "TRUE", "true", "True"), True),
    **dict.fromkeys(("0", "f", "F", "FALSE", "false", "False", ""), False),
}
_PORT_RANGE = re.compile(r"([0-9]+):([0-9]+)")
_PORT_NAME = re.compile(r"[a-zA-Z0-9_.-]{1,128}")
_DIGITS = re.compile(r"[0-9]+")
_RFC3339 = re.compile(
    r"([0-9]{4}-[0-9]{2}-[0-9]{2})T([0-9]{1,2})(:[0-9]{2}:[0-9]{2})(?:[.,][0-9]+)?(Z|[+-][0-9]{2}:[0-9]{2})"
)
_ZERO_TIME = "0001-01-01T00:00:00Z"


def parse_port(value: Any) -> int | str:
    """Parse a port: a number, a range `low:high` of two different numbers, or a name. Raises ValueError."""
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


def parse_boolean(text: str) -> bool:
    """Parse a text that stands for a boolean, as Go's strconv does. An empty one is false. Raises ValueError."""
    try:
        return _BOOLEANS[text]
    except KeyError:
        raise ValueError(f"not a boolean: {text[:140]!r}") from None


def parse_time(text: str) -> str:
    """Print an RFC 3339 time as Go does, in UTC with whole seconds; "" for the zero time. Raises ValueError."""
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


def _integer(kind: str, value: Any) -> int:
    low, high = _INTEGER_BOUNDS[kind]
    if not isinstance(value, int) or isinstance(value, bool) or not low <= value <= high:
        raise ValueError(f"not an integer of {low} to {high}: {value!r:.80}")
    return value


def _port_number(text: str) -> int:
    return _integer("uint16", int(text) if len(text) < 20 else -1)


def parse_as_number(value: Any) -> int:
    """Parse an AS number, or its text in decimal or as two dotted halves of 16 bits. Raises ValueError."""
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


READERS: dict[str, Callable[[Any], Any]] = {
    **{kind: functools.partial(_integer, kind) for kind in _INTEGER_BOUNDS},
    "string": _string,
    "bool": _bool,
    "time": lambda value: parse_time(_string(value)),
    "duration": lambda value: durations.parse(_string(value)),
    "port": parse_port,
    AS_NUMBER: parse_as_number,
    "int-or-string": _int_or_string,
    "uint8-or-name": _small_int_or_name,
}
"""By kind. Values of other kinds stay unchanged."""
ZEROS: dict[str, Any] = {
    "string": "",
    "bool": False,
    "duration": 0,
    "time": "",
    **dict.fromkeys(("port", "int-or-string", "uint8-or-name", AS_NUMBER), 0),
    **dict.fromkeys(_INTEGER_BOUNDS, 0),
}
"""The value of each kind if it is absent."""
