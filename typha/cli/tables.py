"""Tables, durations and sizes as people read them."""

import math
from collections.abc import Iterable, Sequence

from typha.cli import watch_output

_UNITS = ((86400, "d"), (3600, "h"), (60, "m"))
_SIZES = ((1 << 30, "GiB"), (1 << 20, "MiB"), (1 << 10, "KiB"))
_CELL_CHARS_MAX = 60
_EMPTY = "-"


def lines(header: Sequence[str], rows: Iterable[Sequence[str]], *, width_max: int = _CELL_CHARS_MAX) -> list[str]:
    """The lines of a table. Nothing in it can act on a terminal."""
    cells = [list(header), *([_cell(cell, width_max) for cell in row] for row in rows)]
    widths = [max(len(row[column]) for row in cells) for column in range(len(header))]
    return ["   ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in cells]


def _cell(text: str, width_max: int) -> str:
    text = watch_output.printable(text) or _EMPTY
    return text if len(text) <= width_max else text[: width_max - 1] + "…"


def duration(seconds: float | None) -> str:
    """Such as 0.3s, 12s, 3m5s, 2h10m, 4d; - for None, and for what is no time."""
    if seconds is None or not math.isfinite(seconds):
        return _EMPTY
    if seconds < 10:
        return f"{max(0.0, seconds):.1f}s" if seconds >= 0.05 else "0s"
    whole = round(seconds)
    for place, (size, unit) in enumerate(_UNITS):
        if whole >= size:
            smaller_size, smaller = (*_UNITS, (1, "s"))[place + 1]
            rest = whole % size // smaller_size
            return f"{whole // size}{unit}" + (f"{rest}{smaller}" if rest and whole < 10 * size else "")
    return f"{whole}s"


def size(count: int) -> str:
    """Such as 512 B, 1.5 KiB, 12 MiB."""
    for unit_size, unit in _SIZES:
        if count >= unit_size:
            number = count / unit_size
            return f"{number:.1f} {unit}" if number < 10 else f"{number:.0f} {unit}"
    return f"{count} B"
