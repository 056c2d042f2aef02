"""Value types of settings: how to parse the text of a source. Pure apart from `existing_file`.

The rules are the original's. Booleans are words from a list. Integers take their base from the prefix, and a leading 0
means octal. Choices ignore case and are stored as the table spells them.
"""

import dataclasses
import math
import os
import re
from collections.abc import Callable
from typing import Generic, TypeVar

from cache.feeds.calico import releases

T = TypeVar("T")

_TRUE = frozenset(("true", "1", "yes", "y", "t"))
_FALSE = frozenset(("false", "0", "no", "n", "f"))
_INTEGER = re.compile(
    r"[+-]?(0[xX]_?[0-9a-fA-F]+(_[0-9a-fA-F]+)*|0[bB]_?[01]+(_[01]+)*|[0-9]+(_[0-9]+)*|0[oO]_?[0-7]+)"
)
_OLD_OCTAL = re.compile(r"[+-]?0_?[0-9_]+")
_FLOAT = re.compile(r"[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]{1,3})?")
_HOST = re.compile(r"[a-zA-Z0-9._+-]{1,253}|\[?[a-fA-F0-9:.]{2,45}(%[a-zA-Z0-9._+-]{1,15})?\]?")
_AUTHORITY = re.compile(r"[^:/]+:[0-9]+")
_ENDPOINT = re.compile(r"(https?)://[^/?#@\s]+")
_INTEGER_LIMIT = 2**31
_BYTES_LIMIT = 2**40
_TEXT_LENGTH_LIMIT = 4096


@dataclasses.dataclass(frozen=True, slots=True)
class ValueType(Generic[T]):
    """How to parse a setting."""

    label: str
    """Type for documentation and help."""
    parse: Callable[[str], T]
    """Raises ValueError; the message says what was expected."""
    zero: T
    """The value that `none` stands for."""


def boolean() -> ValueType[bool]:
    """true/1/yes/y/t or false/0/no/n/f, in any case."""
    return ValueType("bool", _parse_boolean, zero=False)


def integer(minimum: int, maximum: int = _INTEGER_LIMIT - 1) -> ValueType[int]:
    """An integer from `minimum` to `maximum`: decimal, with the prefix 0x, 0o or 0b, or octal with a leading 0."""

    def parse(text: str) -> int:
        value = _parse_integer(text)
        if not minimum <= value <= maximum:
            raise ValueError(f"expected an integer from {minimum} to {maximum}")
        return value

    at_most = "" if maximum in (_INTEGER_LIMIT - 1, _BYTES_LIMIT) else f" to {maximum}"
    return ValueType(f"int, {minimum}{at_most or ' or more'}", parse, zero=0)


def size(minimum: int) -> ValueType[int]:
    """A number of bytes, at least `minimum`. The syntax is that of `integer`."""
    return integer(minimum, _BYTES_LIMIT)


def seconds(minimum: float = -math.inf) -> ValueType[float]:
    """A duration in seconds, with fractions. Without a minimum, it may be negative, as in the original."""

    def parse(text: str) -> float:
        if not _FLOAT.fullmatch(text):
            raise ValueError("expected a number of seconds")
        value = float(text)
        if not math.isfinite(value):
            raise ValueError("expected a finite number of seconds")
        if value < minimum:
            raise ValueError(f"expected at least {minimum:g} seconds")
        return value

    return ValueType("seconds" if minimum == -math.inf else f"seconds, {minimum:g} or more", parse, zero=0.0)


def ratio() -> ValueType[float]:
    """A number from 0 to 1."""

    def parse(text: str) -> float:
        if not _FLOAT.fullmatch(text) or not 0.0 <= float(text) <= 1.0:
            raise ValueError("expected a number from 0 to 1")
        return float(text)

    return ValueType("number, 0 to 1", parse, zero=0.0)


def one_of(*choices: str) -> ValueType[str]:
    """One of the choices, in any case, stored as spelled here. If `none` is a choice, it is also the zero value."""
    by_lower_case = {choice.lower(): choice for choice in choices}

    def parse(text: str) -> str:
        try:
            return by_lower_case[text.lower()]
        except KeyError:
            raise ValueError(f"expected one of {', '.join(choices)}") from None

    return ValueType(" / ".join(choices), parse, zero=by_lower_case.get("none", ""))


def host_address() -> ValueType[str]:
    """A host name or an IP address, which may have brackets and a zone; empty means all addresses."""
    return _pattern("host", _HOST, "expected a host name or an IP address")


def authority() -> ValueType[str]:
    """A host and a port, as host:port."""
    return _pattern("host:port", _AUTHORITY, "expected host:port")


def endpoints() -> ValueType[str]:
    """A comma-separated list of http://host:port or https://host:port, all with the same scheme."""

    def parse(text: str) -> str:
        matches = [_ENDPOINT.fullmatch(part.strip()) for part in text.split(",")]
        schemes = {match.group(1) for match in matches if match}
        if not all(matches) or len(schemes) != 1:
            raise ValueError("expected a comma-separated list of scheme://host:port, all with the same scheme")
        return ",".join(match.group(0) for match in matches if match)

    return ValueType("list of scheme://host:port", parse, zero="")


def path() -> ValueType[str]:
    """The path of a file. Not checked before the file is opened."""
    return ValueType("path", _parse_text, zero="")


def existing_file() -> ValueType[str]:
    """The path of a file that must exist at start."""

    def parse(text: str) -> str:
        if not os.path.exists(_parse_text(text)):
            raise ValueError("expected a file that exists")
        return text

    return ValueType("existing file", parse, zero="")


def agent_releases() -> ValueType[str]:
    """Patterns of agents' versions with their releases, as `releases.parse_overrides` reads them."""

    def parse(text: str) -> str:
        releases.parse_overrides(text)
        return text

    return ValueType("pattern=release, ...", parse, zero="")


def replicas(*keywords: str) -> ValueType[str]:
    """A comma-separated list of HOST:PORT, or one of the keywords in any case."""

    def parse(text: str) -> str:
        for keyword in keywords:
            if text.strip().lower() == keyword:
                return keyword
        from clients import addresses  # late: most services name no replicas, and need nothing of the client

        parts = [part.strip() for part in _parse_text(text).split(",") if part.strip()]
        for part in parts:
            if part.lower() in keywords:
                raise ValueError(f"expected `{part.lower()}` alone or a list of HOST:PORT")
            try:
                addresses.parse(part)
            except ValueError as error:
                raise ValueError(f"expected HOST:PORT, comma-separated: {error}") from None
        return ",".join(parts)

    return ValueType(" / ".join((*keywords, "list of host:port")), parse, zero="")


def text() -> ValueType[str]:
    """Text of up to 4096 characters, without control characters."""
    return ValueType("string", _parse_text, zero="")


def _pattern(label: str, pattern: re.Pattern[str], expectation: str) -> ValueType[str]:
    def parse(text: str) -> str:
        if not pattern.fullmatch(text):
            raise ValueError(expectation)
        return text

    return ValueType(label, parse, zero="")


def _parse_boolean(text: str) -> bool:
    word = text.lower()
    if word in _TRUE:
        return True
    if word in _FALSE:
        return False
    raise ValueError("expected true or false")


def _parse_integer(text: str) -> int:
    # Without a length limit, parsing a megabyte of digits takes seconds.
    if len(text) > 64 or not _INTEGER.fullmatch(text):
        raise ValueError("expected an integer")
    try:
        return int(text, 8 if _OLD_OCTAL.fullmatch(text) else 0)
    except ValueError:
        raise ValueError("expected an integer (a leading 0 makes it octal)") from None


def _parse_text(text: str) -> str:
    if len(text) > _TEXT_LENGTH_LIMIT:
        raise ValueError(f"expected at most {_TEXT_LENGTH_LIMIT} characters")
    if not text.isprintable():
        raise ValueError("expected text without control characters")
    return text
