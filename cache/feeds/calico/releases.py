"""Releases. Pure."""

import enum


class Release(enum.Enum):
    """A release whose agents get a feed of their own."""

    NEWEST = "3.33"
    V3_32 = "3.32"
    V3_31 = "3.31"
    V3_30 = "3.30"
    V3_29 = "3.29"


def parse_release(text: str) -> Release:
    return next(r for r in Release if text.startswith("v" + r.value))
