"""The live display of a load test: a table on a terminal, plain lines elsewhere."""

import sys
from typing import Any, Final, Self

from rich import console, live, table

from loadtest.reporting import monitor

PLAIN_EVERY_SAMPLES: Final = 3


class Dashboard:
    """Shows the newest sample; a context manager."""

    def __init__(self, title: str) -> None:
        self._title = title
        self._console = console.Console()
        self._live = live.Live(console=self._console, auto_refresh=False) if sys.stdout.isatty() else None
        self._shown = 0

    def __enter__(self) -> Self:
        if self._live is not None:
            self._live.__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        if self._live is not None:
            self._live.__exit__(*error)

    def say(self, text: str) -> None:
        """Print a line that stays."""
        if self._live is None:
            print(text, flush=True)
        else:
            self._console.print(text, markup=False, highlight=False)

    def show(self, sample: monitor.Sample) -> None:
        """Show a sample. On a terminal it replaces the last one; elsewhere every third becomes a line."""
        if self._live is None:
            if self._shown % PLAIN_EVERY_SAMPLES == 0:
                print(line(sample), flush=True)
            self._shown += 1
            return
        self._live.update(self._table(sample), refresh=True)

    def _table(self, sample: monitor.Sample) -> table.Table:
        grid = table.Table(title=self._title, show_header=False, min_width=60)
        grid.add_column(style="bold")
        grid.add_column(justify="right", min_width=24)
        for name, text in rows(sample):
            grid.add_row(name, text)
        return grid


def rows(sample: monitor.Sample) -> list[tuple[str, str]]:
    """Names and values in the table."""
    return [
        ("time", f"{sample.seconds:.0f} s"),
        ("agents connected", f"{sample.connected:,} of {sample.agents:,}"),
        ("agents in sync", f"{sample.in_sync:,}"),
        ("snapshot", _joined(_count(sample.keys, "keys"), _size(sample.snapshot_bytes))),
        ("updates", _rate(sample.updates_per_second)),
        ("deliveries", _rate(sample.deliveries_per_second)),
        ("delivery latency p50", _milliseconds(sample.latency_p50_seconds)),
        ("delivery latency p99", _milliseconds(sample.latency_p99_seconds)),
        ("lag of the slowest", _milliseconds(sample.slowest_lag_seconds)),
        ("memory of the service", _size(sample.service_memory_bytes)),
        ("CPU of the service", f"{sample.hub_cores:.2f} + {sample.workers_cores:.2f} cores"),
        ("CPU per delivery", _microseconds(sample.cpu_seconds_per_delivery)),
        (
            "requests at the API server",
            _joined(_count(sample.api_requests, "requests"), _count(sample.api_watches, "open watches")),
        ),
    ]


def line(sample: monitor.Sample) -> str:
    """The most important values in one line."""
    return (
        f"{sample.seconds:4.0f} s  agents {sample.connected}/{sample.agents} in sync {sample.in_sync}"
        f"  snapshot {_joined(_count(sample.keys, 'keys'), _size(sample.snapshot_bytes))}"
        f"  {_rate(sample.updates_per_second)} updates  {_rate(sample.deliveries_per_second)} deliveries"
        f"  p50 {_milliseconds(sample.latency_p50_seconds)}  p99 {_milliseconds(sample.latency_p99_seconds)}"
        f"  lag {_milliseconds(sample.slowest_lag_seconds)}  memory {_size(sample.service_memory_bytes)}"
        f"  API server {_joined(_count(sample.api_requests, 'requests'), _count(sample.api_watches, 'watches'))}"
    )


def _joined(*parts: str) -> str:
    known = [part for part in parts if part != "-"]
    return ", ".join(known) or "-"


def _count(value: float | None, what: str) -> str:
    return "-" if value is None else f"{value:,.0f} {what}"


def _size(value: float | None) -> str:
    return "-" if value is None else f"{value / 1e6:,.1f} MB"


def _rate(value: float | None) -> str:
    return "-" if value is None else f"{value:,.0f}/s"


def _milliseconds(value: float | None) -> str:
    return "-" if value is None else f"{value * 1e3:,.1f} ms"


def _microseconds(value: float | None) -> str:
    return "-" if value is None else f"{value * 1e6:,.1f} µs"
