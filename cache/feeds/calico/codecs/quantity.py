"""Kubernetes quantities ("100M", "1.5Gi", "1e3") as whole numbers, with Go's results. Pure."""

import re

_QUANTITY = re.compile(r"([+-]?)(0*)([0-9]*)(?:(\.)([0-9]*))?([eEinumkKMGTP]*[+-]?[0-9]*)")
_BINARY_EXPONENTS = {"Ki": 10, "Mi": 20, "Gi": 30, "Ti": 40, "Pi": 50, "Ei": 60}
_DECIMAL_EXPONENTS = {"n": -9, "u": -6, "m": -3, "": 0, "k": 3, "M": 6, "G": 9, "T": 12, "P": 15, "E": 18}
_EXPONENT = re.compile(r"[eE]([+-]?[0-9]+)")
_MAX_INT64 = (1 << 63) - 1
_MODULUS = 1 << 64
_SHORT_DIGITS = 18
_EXPONENT_LIMIT = 1 << 63
_DIGITS_BEYOND_ANY = 400
"""No valid quantity is longer, or has more decimal places. Powers beyond are never computed."""


def whole_value(text: str) -> int | None:
    """Parse a quantity and round it up to a whole number. None if it is invalid.

    Beyond 63 bits, return what Go's arithmetic gives. With a decimal suffix: 0 for up to 18 digits, the low 64 bits for
    more. With a binary suffix: the largest number.
    """
    matched = _QUANTITY.fullmatch(text)
    if not text or matched is None or len(text) > _DIGITS_BEYOND_ANY:
        return None
    sign, _, whole, _, fraction, suffix = matched.groups(default="")
    digits = int((whole or "0") + fraction)
    negative = sign == "-"
    if suffix in _BINARY_EXPONENTS:
        scaled = digits << _BINARY_EXPONENTS[suffix]
        value = min(_divided_up(scaled, len(fraction)), _MAX_INT64)
        return -value if negative else value
    exponent = _decimal_exponent(suffix)
    if exponent is None:
        return None
    is_short = len(whole or "0") + len(fraction) <= _SHORT_DIGITS
    value = _decimal_value(digits, exponent - len(fraction), wraps=not is_short)
    return -value if negative else value


def _decimal_exponent(suffix: str) -> int | None:
    if suffix in _DECIMAL_EXPONENTS:
        return _DECIMAL_EXPONENTS[suffix]
    matched = _EXPONENT.fullmatch(suffix)
    if matched is None or len(matched[1]) > _DIGITS_BEYOND_ANY:
        return None
    exponent = int(matched[1])
    if not -_EXPONENT_LIMIT <= exponent < _EXPONENT_LIMIT:
        return None
    return (exponent + (1 << 31)) % (1 << 32) - (1 << 31)  # Go keeps it as an int32


def _decimal_value(digits: int, scale: int, *, wraps: bool) -> int:
    if scale <= 0:
        value = _divided_up(digits, -scale)
    elif wraps:
        value = digits * pow(10, scale, _MODULUS)
    else:
        value = digits * 10**scale if scale <= _DIGITS_BEYOND_ANY else digits and _MODULUS
        if value > _MAX_INT64:
            return 0
    return (value + (1 << 63)) % _MODULUS - (1 << 63)


def _divided_up(value: int, decimal_places: int) -> int:
    if decimal_places > _DIGITS_BEYOND_ANY:
        return 1 if value else 0
    divisor: int = 10**decimal_places
    return -(-value // divisor)
