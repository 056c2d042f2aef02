"""The scalars of YAML as sigs.k8s.io/yaml resolves them: a YAML 1.1 of its own, without numbers to base 60."""

import base64
import binascii
import calendar
import contextlib
import decimal
import math
import re
import struct
from collections.abc import Callable
from typing import Final

import msgspec

from cache.feeds.calico.codecs import gojson

TAG: Final = "tag:yaml.org,2002:"
"""What the tags of YAML itself begin with."""

_SHOWN: Final = 40
_MAX_INT64: Final = (1 << 63) - 1
_MAX_UINT64: Final = (1 << 64) - 1
_MIN_INT64: Final = -(1 << 63)
_IN_MAP: Final[dict[str, bool | float | None]] = {
    **dict.fromkeys(("y", "Y", "yes", "Yes", "YES", "true", "True", "TRUE", "on", "On", "ON"), True),
    **dict.fromkeys(("n", "N", "no", "No", "NO", "false", "False", "FALSE", "off", "Off", "OFF"), False),
    **dict.fromkeys(("", "~", "null", "Null", "NULL")),
    **dict.fromkeys((".nan", ".NaN", ".NAN"), math.nan),
    **dict.fromkeys((".inf", ".Inf", ".INF", "+.inf", "+.Inf", "+.INF"), math.inf),
    **dict.fromkeys(("-.inf", "-.Inf", "-.INF"), -math.inf),
}
_INTEGER = re.compile(r"([-+]?)(?:0[xX]([0-9a-fA-F]+)|0[oO]([0-7]+)|0[bB]([01]+)|(0[0-7]*)|([1-9][0-9]*))", re.ASCII)
_BASES: Final = (16, 8, 2, 8, 10)
_FLOAT = re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?", re.ASCII)
_POINT_FIRST = re.compile(r"\.[0-9]+(_[0-9]+)*([eE][-+]?[0-9]+(_[0-9]+)*)?", re.ASCII)
_SIGNED_BINARY = re.compile(r"0b([-+][01]+)", re.ASCII)
_NUMBERLIKE = frozenset("+-0123456789")
_TIMESTAMP = re.compile(
    r"(\d{4})-(\d\d?)-(\d\d?)(?:[Tt](\d\d?):(\d\d?):(\d\d?)(?:[.,]\d+)?(?:Z|[-+](\d\d):(\d\d))"
    r"| (\d\d?):(\d\d?):(\d\d?)(?:[.,]\d+)?)?",
    re.ASCII,
)
_RESOLVED_TAGS: Final = {
    TAG + "str": "str",
    TAG + "bool": "bool",
    TAG + "int": "int",
    TAG + "float": "float",
    TAG + "null": "null",
    TAG + "timestamp": "timestamp",
}
encode: Callable[[object], bytes] = msgspec.json.Encoder().encode
"""Anything as JSON."""


def resolve(value: str) -> bool | int | float | str | None:
    """The value of a plain scalar without a tag. Times are texts."""
    if value in _IN_MAP:
        return _IN_MAP[value]
    first = value[0]
    if first == ".":
        return _float(value) if _POINT_FIRST.fullmatch(value) else value
    if first not in _NUMBERLIKE:
        return value
    plain = value.replace("_", "")
    if found := _INTEGER.fullmatch(plain):
        number = _integer(found)
        if number is not None:
            return number
    if _FLOAT.fullmatch(plain):
        return _float(value)
    if (found := _SIGNED_BINARY.fullmatch(plain)) and _MIN_INT64 <= (number := int(found[1], 2)) <= _MAX_INT64:
        return number
    return value


def _integer(found: "re.Match[str]") -> int | None:
    """None if it does not fit into 64 bits. Only numbers without a sign have 64 bits for the magnitude."""
    sign, *forms = found.groups()
    [(digits, base)] = [(digits, base) for digits, base in zip(forms, _BASES, strict=True) if digits is not None]
    if base == 10 and len(digits) > 20:
        return None
    number = int(sign + digits, base)
    return number if _MIN_INT64 <= number <= (_MAX_INT64 if sign else _MAX_UINT64) else None


def _float(value: str) -> float | str:
    number = float(value.replace("_", ""))
    return number if math.isfinite(number) else value


def tagged(tag: str, value: str) -> bool | int | float | str | None:
    """The value of a scalar with a tag. Raises ValueError."""
    if tag == TAG + "binary":
        return _binary(value)
    kind = _RESOLVED_TAGS.get(tag)
    if kind in (None, "str"):
        return value  # tags of other languages and types say nothing here
    if kind == "timestamp":
        if not _is_timestamp(value):
            raise ValueError(f"cannot decode {shown(value)} as a !!timestamp")
        return value
    resolved = resolve(value)
    if kind == "float" and type(resolved) is int and resolved <= _MAX_INT64:
        return float(resolved)
    if kind != _kind(resolved):
        raise ValueError(f"cannot decode {shown(value)} as a !!{kind}")
    return resolved


def _kind(resolved: object) -> str:
    return {type(None): "null", bool: "bool", int: "int", float: "float"}.get(type(resolved), "str")


def _binary(value: str) -> str:
    compact = value.replace("\r", "").replace("\n", "")
    try:
        if len(compact) % 4:
            raise binascii.Error
        data = base64.b64decode(compact, validate=True)
    except ValueError:
        raise ValueError("!!binary value contains invalid base64 data") from None
    return re.sub("[\udc80-\udcff]", "\ufffd", data.decode("utf-8", "surrogateescape"))


def _is_timestamp(value: str) -> bool:
    found = _TIMESTAMP.fullmatch(value)
    if found is None:
        return False
    year, month, day, hour, minute, second, zone_hour, zone_minute, *plain = (int(part or 0) for part in found.groups())
    hour, minute, second = hour + plain[0], minute + plain[1], second + plain[2]
    days = calendar.monthrange(year or 4, month)[1] if 1 <= month <= 12 else 0
    return 1 <= day <= days and hour < 24 and minute < 60 and second < 60 and zone_hour <= 24 and zone_minute <= 60


def as_json(resolved: bool | int | float | str | None) -> bytes:
    """A value as JSON. Raises ValueError."""
    return encode(gojson.number(resolved) if type(resolved) is float else resolved)


def as_name(resolved: bool | int | float | str | None) -> str:
    """A value as the name of a member. Raises ValueError."""
    if type(resolved) is str:
        return resolved
    if type(resolved) is bool:
        return "true" if resolved else "false"
    if type(resolved) is int and resolved <= _MAX_INT64:
        return str(resolved)
    if type(resolved) is float:
        return _floatas_name(resolved)
    raise ValueError(f"unsupported map key: {resolved if resolved is not None else 'null'}")


def _floatas_name(number: float) -> str:
    """As Go writes it with 32 bits."""
    if math.isnan(number):
        return ".nan"
    try:
        [short] = struct.unpack("<f", struct.pack("<f", number))
    except OverflowError:
        short = math.copysign(math.inf, number)
    if math.isinf(short):
        return ".inf" if short > 0 else "-.inf"
    digits = next(text for text in (f"{short:.{places}e}" for places in range(17)) if _is_float32(text, short))
    _, _, exponent = digits.partition("e")
    return digits if not -4 <= int(exponent) < 6 else format(decimal.Decimal(digits), "f")


def _is_float32(text: str, number: float) -> bool:
    with contextlib.suppress(OverflowError):
        return bool(struct.pack("<f", float(text)) == struct.pack("<f", number))
    return False


def shown(value: object) -> str:
    """A value for a message, cut."""
    text = str(value)
    return repr(text if len(text) <= _SHOWN else text[:_SHOWN] + "...")
