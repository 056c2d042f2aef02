"""`python -m loadtest bench`."""

import dataclasses
from pathlib import Path

from loadtest.bench import rows
from loadtest.bench.runner import QUICK, BenchSettings
from loadtest.swarm import control

HISTORY = Path("docs/performance")


def settings(
    *,
    names: str,
    rounds: int | None,
    seconds: float | None,
    scale: float | None,
    quick: bool,
    protocol: control.Protocol,
    record: bool,
    folder: Path,
) -> BenchSettings:
    """What the options say; what is not given is the full size's, or the quick pass's. Raises ValueError."""
    base = QUICK if quick else BenchSettings()
    chosen = tuple(name for name in names.split(",") if name)
    chosen = chosen or tuple(row.name for row in rows.ROWS if protocol is control.Protocol.NATIVE or row.both)
    rows.choose(chosen)
    sizes = dataclasses.replace(
        base.sizes,
        scale=base.sizes.scale if scale is None else scale,
        seconds=base.sizes.seconds if seconds is None else seconds,
    )
    return dataclasses.replace(
        base,
        names=chosen,
        rounds=base.rounds if rounds is None else rounds,
        sizes=sizes,
        protocol=protocol,
        record=HISTORY if record else None,
        folder=folder,
    )
