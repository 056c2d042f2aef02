"""Durations (in nanoseconds) as Go reads and prints them, and float numbers as Go's `%v` prints them. Pure."""

import re

from cache.feeds.calico.codecs import gojson

NANOSECONDS = 1
MILLISECOND = 1_000_000
SECOND = 1_000_000_000
_MINUTE = 60 * SECOND
_HOUR = 60 * _MINUTE
_UNITS = {
    "ns": NANOSECONDS,
    "us": 1_000,
    "µs": 1_000,  # the micro sign
    "μs": 1_000,  # the Greek letter
    "ms": MILLISECOND,
    "s": SECOND,
    "m": _MINUTE,
    "h": _HOUR,
}
_SIGNED = re.compile(r"([+-]?)(.*)", re.DOTALL)
_PART = re.compile(r"([0-9]*)(?:\.([0-9]*))?([^.0-9]+)")
_LARGEST = (1 << 63) - 1
_LARGEST_DIGITS = 19
_FIRST_EXPONENT = 6
_LAST_SMALL_EXPONENT = -4


def parse(text: str) -> int:
    """Parse `1h30m`, `-1.5s`, `100ms`, `0`, as time.ParseDuration does.

    Raises:
        ValueError: not a duration, or beyond 63 bits.
    """
    matched = _SIGNED.fullmatch(text)
    sign, rest = (matched[1], matched[2]) if matched else ("", "")
    if rest == "0":
        return 0
    if not rest:
        raise ValueError(f"not a duration: {text!r}")
    total = position = 0
    while position < len(rest):
        part = _PART.match(rest, position)
        if part is None or part[3] not in _UNITS or not (part[1] or part[2]):
            raise ValueError(f"not a duration: {text[:80]!r}")
        total += _part_value(part[1], part[2] or "", _UNITS[part[3]])
        if total > _LARGEST + (sign == "-"):
            raise ValueError(f"not a duration of at most 63 bits: {text[:80]!r}")
        position = part.end()
    return -total if sign == "-" else total


def text(nanoseconds: int) -> str:
    """Print a duration as Go does: `24h0m0s`, `1m30s`, `1.5s`, `100ms`, `0s`."""
    sign = "-" if nanoseconds < 0 else ""
    value = abs(nanoseconds)
    if value == 0:
        return "0s"
    if value < SECOND:
        for unit, size in (("ms", MILLISECOND), ("µs", 1_000)):
            if value >= size:
                return f"{sign}{_decimal(value, size)}{unit}"
        return f"{sign}{value}ns"
    hours, rest = divmod(value, _HOUR)
    minutes, rest = divmod(rest, _MINUTE)
    printed = f"{_decimal(rest, SECOND)}s"
    if hours:
        return f"{sign}{hours}h{minutes}m{printed}"
    return f"{sign}{minutes}m{printed}" if minutes else sign + printed


def seconds_text(nanoseconds: int) -> str:
    """Return the seconds as Go's `%v` prints the float64: `90`, `1.5`, `1e+06`."""
    return _scaled_text(nanoseconds, SECOND)


def milliseconds_text(nanoseconds: int) -> str:
    """Return the milliseconds as Go's `%v` prints the float64."""
    return _scaled_text(nanoseconds, MILLISECOND)


def float_text(value: float) -> str:
    """Print a float64 as Go's `%v` does: in exponent form (at least two digits) below 1e-4 and from 1e6 up."""
    negative, digits, exponent = gojson.shortest_digits(value)
    sign = "-" if negative else ""
    if _LAST_SMALL_EXPONENT <= exponent < _FIRST_EXPONENT or digits == "0":
        return sign + gojson.plain_text(digits, exponent)
    fraction = f".{digits[1:]}" if len(digits) > 1 else ""
    return f"{sign}{digits[0]}{fraction}e{'-' if exponent < 0 else '+'}{abs(exponent):02d}"


def _part_value(whole: str, fraction: str, unit: int) -> int:
    significant = whole.lstrip("0")
    if len(significant) > _LARGEST_DIGITS:
        return _LARGEST + 2
    return int(significant or "0") * unit + _fraction_value(fraction, unit)


def _fraction_value(fraction: str, unit: int) -> int:
    # Go computes this in float64, truncates, and ignores the digits that do not fit into 63 bits.
    digits, scale = 0, 1.0
    for digit in fraction[:_LARGEST_DIGITS]:
        if digits > _LARGEST // 10 or digits * 10 + int(digit) > _LARGEST + 1:
            break
        digits = digits * 10 + int(digit)
        scale *= 10
    return int(float(digits) * (float(unit) / scale))


def _scaled_text(nanoseconds: int, unit: int) -> str:
    # Go adds two floats, the whole units and the rest, each with the sign of the duration.
    whole, rest = divmod(abs(nanoseconds), unit)
    value = float(whole) + float(rest) / float(unit)
    return float_text(-value if nanoseconds < 0 else value)


def _decimal(value: int, unit: int) -> str:
    whole, rest = divmod(value, unit)
    if not rest:
        return str(whole)
    fraction = str(unit + rest)[1:].rstrip("0")
    return f"{whole}.{fraction}"
