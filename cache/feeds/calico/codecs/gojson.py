"""JSON as Go's encoding/json writes it: no white space, HTML-escaped strings, shortest floats. Pure.

A struct is a dict with the fields in order. For a map use `sorted_map`. For a float that may be whole use `number`,
because Go writes whole floats without a fraction. JSON that must stay unchanged is a `Raw`.
"""

import re
from collections.abc import Mapping
from typing import Any, TypeVar

import msgspec

Value = TypeVar("Value")
Raw = msgspec.Raw

_encode = msgspec.json.Encoder().encode
_ESCAPE = re.compile(
    r"\\(?:u[dD][89abAB][0-9a-fA-F]{2}\\u[dD][c-fC-F][0-9a-fA-F]{2}|(u[dD][89a-fA-F][0-9a-fA-F]{2})|.)", re.DOTALL
)
"""A pair of surrogates, a lone surrogate (the group), or any other escape."""
_SMALLEST_PLAIN_EXPONENT = -6
_LARGEST_PLAIN_EXPONENT = 20


def encode(value: Any) -> bytes:
    """Encode None, bools, ints, strings, lists, dicts with string keys (in their order) and Raw.

    Raises:
        TypeError: the value contains something else.
    """
    return escape_html(_encode(value))


def escape_html(text: bytes) -> bytes:
    """Escape the bytes in valid JSON that only Go escapes. They occur in strings only."""
    if b"<" in text:
        text = text.replace(b"<", b"\\u003c")
    if b">" in text:
        text = text.replace(b">", b"\\u003e")
    if b"&" in text:
        text = text.replace(b"&", b"\\u0026")
    if b"\xe2\x80" in text:  # line and paragraph separators, which end a line in old JavaScript
        text = text.replace(b"\xe2\x80\xa8", b"\\u2028").replace(b"\xe2\x80\xa9", b"\\u2029")
    return text


def without_lone_surrogates(text: str) -> str:
    """Replace each escape of a lone surrogate in JSON by the replacement character, as Go does when it reads."""
    if "\\ud" not in text and "\\uD" not in text:
        return text
    return _ESCAPE.sub(lambda match: "\\ufffd" if match[1] else match[0], text)


def compact(text: bytes) -> Raw:
    """Keep JSON as it was written, but without white space between its tokens.

    Raises:
        msgspec.DecodeError: the text is not JSON.
    """
    return Raw(msgspec.json.format(text, indent=-1))


def number(value: float) -> Raw:
    """Prepare a float64 for `encode`, as Go writes it. Raises ValueError for infinities and NaN."""
    return Raw(float_text(value).encode())


def float_text(value: float) -> str:
    """Print the shortest digits that read back as the same float64: plain for 1e-6 to 1e21, else `1e-7`, `1e+21`."""
    negative, digits, exponent = shortest_digits(value)
    sign = "-" if negative else ""
    if digits == "0":
        return sign + "0"
    if _SMALLEST_PLAIN_EXPONENT <= exponent <= _LARGEST_PLAIN_EXPONENT:
        return sign + plain_text(digits, exponent)
    fraction = f".{digits[1:]}" if len(digits) > 1 else ""
    return f"{sign}{digits[0]}{fraction}e{'-' if exponent < 0 else '+'}{abs(exponent)}"


def shortest_digits(value: float) -> tuple[bool, str, int]:
    """Split a float64: (negative, digits without trailing zeros, exponent of the first digit).

    Raises:
        ValueError: an infinity, NaN, or an integer beyond float64. JSON has no text for them.
    """
    try:
        text = repr(float(value))
    except OverflowError as error:
        raise ValueError("not a float64: the integer is too large") from error
    if text[-1] in "fn":
        raise ValueError(f"not a number in JSON: {text}")
    negative = text[0] == "-"
    mantissa, _, exponent_text = text.lstrip("-").partition("e")
    whole, _, fraction = mantissa.partition(".")
    digits = (whole + fraction).lstrip("0")
    leading_zeros = len(whole) + len(fraction) - len(digits)
    exponent = len(whole) - 1 - leading_zeros + int(exponent_text or 0)
    digits = digits.rstrip("0")
    return (negative, digits, exponent) if digits else (negative, "0", 0)


def plain_text(digits: str, exponent: int) -> str:
    """Print the number without an exponent."""
    if exponent < 0:
        return "0." + "0" * (-exponent - 1) + digits
    whole_length = exponent + 1
    if len(digits) <= whole_length:
        return digits + "0" * (whole_length - len(digits))
    return f"{digits[:whole_length]}.{digits[whole_length:]}"


def sorted_map(members: Mapping[str, Value]) -> dict[str, Value]:
    """Sort the members by key in byte order, which is the order of the code points."""
    return dict(sorted(members.items()))


def omit_empty(members: Mapping[str, Value]) -> dict[str, Value]:
    """Return the members that Go's `omitempty` keeps: not None, False, 0, "", and no empty list or map."""
    return {name: value for name, value in members.items() if value or isinstance(value, Raw)}
