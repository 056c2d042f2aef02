"""Measures the table of sizes in docs/operations.md: memory and CPU of the service by numbers of clients and pods.

PYTHONPATH=. .venv/bin/python tools/measure_sizes.py [CLIENTS:PODS:NODES]...

All clients are agents of Calico's felix feed with mutual TLS. They connect at once, which is the peak; then pods change
20 times a second.
"""

import json
import pathlib
import statistics
import subprocess
import sys
import tempfile
from typing import Any

SIZES = tuple(
    f"{clients}:{pods}:{nodes}"
    for pods, nodes in ((5_000, 500), (20_000, 1_000), (100_000, 5_000))
    for clients in (100, 1_000, 5_000)
)
SECONDS = 20
_TITLES = (
    "clients",
    "pods",
    "nodes",
    "start",
    "CPU of it",
    "hub",
    "workers",
    "logs and snapshots",
    "sockets",
    "CPU",
    "deliveries",
)


def run(clients: int, pods: int, nodes: int, folder: pathlib.Path) -> dict[str, Any]:
    """Run the load test. Returns its report."""
    options = {
        "scenario": "steady",
        "protocol": "typha",
        "feed": "felix",
        "agents": clients,
        "public-agents": min(10, clients // 10),
        "pods": pods,
        "nodes": nodes,
        "updates-per-second": 20,
        "duration": SECONDS,
        "folder": folder,
    }
    flags = [text for name, value in options.items() for text in (f"--{name}", str(value))]
    command = [sys.executable, "-m", "loadtest", "run", "--tls", "--show-times", *flags]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    report: dict[str, Any] = json.loads((folder / "report.json").read_text())
    return report


def main() -> None:
    """Measure, and print rows of a table in Markdown."""
    sys.stdout.write(f"| {' | '.join(_TITLES)} |\n|{'---|' * len(_TITLES)}\n")
    for size in sys.argv[1:] or SIZES:
        clients, pods, nodes = map(int, size.split(":"))
        with tempfile.TemporaryDirectory() as name:
            report = run(clients, pods, nodes, pathlib.Path(name))
        samples = report["samples"]
        steady = [sample for sample in samples if sample["deliveries_per_second"] > 0]

        def peak(key: str, samples: list[dict[str, Any]] = samples) -> float:
            return float(max(sample[key] for sample in samples)) / 1e6

        def usual(*keys: str, steady: list[dict[str, Any]] = steady) -> float:
            return float(statistics.median(sum(sample[key] for key in keys) for sample in steady))

        cells = (
            f"{clients:,}",
            f"{pods:,}",
            f"{nodes:,}",
            f"{report['start_seconds']:.1f} s",
            f"{report['start_cpu_seconds']:.1f} s",
            f"{peak('hub_private_bytes'):.0f} MB",
            f"{peak('workers_private_bytes'):.0f} MB",
            f"{peak('service_memfd_bytes'):.0f} MB",
            f"{peak('kernel_socket_bytes'):.0f} MB",
            f"{usual('hub_cores', 'workers_cores'):.2f}",
            f"{usual('deliveries_per_second'):,.0f}/s",
        )
        sys.stdout.write(f"| {' | '.join(cells)} |\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
