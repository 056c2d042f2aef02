"""Measures the memory model of docs/operations.md: the memory of a key, a channel, an update and a deletion.

PYTHONPATH=. .venv/bin/python tools/measure_memory.py
"""

import asyncio
import sys
import tempfile
from pathlib import Path

from loadtest.bench import comparisons, rows, standalone
from loadtest.reporting import dashboard


def main() -> None:
    """Measure and print everything. This starts the service six times."""
    with tempfile.TemporaryDirectory() as folder, dashboard.Dashboard("memory model") as screen:
        settings = comparisons.BenchSettings(folder=Path(folder))
        figures = asyncio.run(standalone.memory_model(settings, screen))
    [row] = rows.choose(["memory-model"])
    for figure in row.figures:
        sys.stdout.write(f"{figure.title:<72}{figures[figure.name]:>10.2f} {figure.unit}\n")


if __name__ == "__main__":
    main()
