"""The model against recorded runs, and its page."""

import json
import pathlib
import re

import pytest
from click import testing

from loadtest import __main__ as command
from loadtest import plan

DOCS = pathlib.Path(__file__).parents[2] / "docs"
PAGE = (DOCS / "sizing.md").read_text()

CPU_FACTOR, LATENCY_FACTOR, MEMORY_FACTOR, START_FACTOR = 1.5, 2.0, 1.3, 2.0
"""As the page says."""


def within(factor: float, predicted: float, measured: float) -> bool:
    return measured / factor <= predicted <= measured * factor


def bench_rows() -> dict[str, list[float]]:
    """The newest figures in performance.md of both protocols, by row."""
    found: dict[str, list[float]] = {}
    for line in (DOCS / "performance.md").read_text().splitlines():
        match = re.match(
            r"\| ((?:CPU per delivery|delivery p99), [^|]+) \| [^|]* \| [^|]* \| ([\d.]+) (?:µs|ms) \|", line
        )
        if match:
            found.setdefault(match[1], []).append(float(match[2]))
    return found


ROWS = bench_rows()


@pytest.mark.parametrize("row", ROWS)
def test_the_model_is_near_the_bench(row: str) -> None:
    clients, rate = (int(part.replace(",", "")) for part in re.findall(r"[\d,]+(?= clients)|\d+(?= updates)", row))
    cluster = plan.Cluster(nodes=clients, pods=5000, updates_per_second=rate, workers=1, is_tls="mTLS" in row)
    one = plan.replica(cluster, clients)
    for measured in ROWS[row]:
        if row.startswith("CPU"):
            assert within(CPU_FACTOR, one.cores / (clients * rate) * 1e6, measured)
        else:
            assert within(LATENCY_FACTOR, one.p99_seconds * 1e3, measured)


def test_the_bench_has_rows() -> None:
    assert len(ROWS) >= 14
    assert all(len(measured) == 2 for measured in ROWS.values())


def sizes() -> list[list[float]]:
    text = (DOCS / "operations.md").read_text()
    table = text[text.index("| Clients | Pods | Nodes |") :].split("\n\n")[0].splitlines()[2:]
    rows = [row.strip("| ").replace("/s", "").replace(",", "").split("|") for row in table]
    return [[float(cell.split()[0]) for cell in row] for row in rows]


@pytest.mark.parametrize("row", sizes())
def test_the_model_is_near_the_sizes(row: list[float]) -> None:
    clients, pods, _, ready, start_cpu, hub, worker, shared, cores, deliveries = row
    cluster = plan.Cluster(nodes=int(clients), pods=int(pods), updates_per_second=deliveries / clients, workers=1)
    one = plan.replica(cluster, clients)
    assert within(MEMORY_FACTOR, one.hub_mb, hub)
    # Each of these clients is a Felix: it has no sisters on its node.
    assert within(MEMORY_FACTOR, plan.value("worker_mb") + clients * plan.value("client_kb") / 1e3, worker)
    assert shared <= one.shared_mb
    assert within(START_FACTOR, one.start_cpu_seconds, start_cpu)
    assert within(START_FACTOR, one.ready_seconds, ready)
    if clients <= 1000:
        assert within(CPU_FACTOR, one.cores, cores)
    else:
        assert one.cores >= cores, "two CPUs were full, and updates were put together: the model is an upper bound"


def test_the_model_is_near_what_replicas_cost_an_api_server() -> None:
    rows = json.loads((DOCS / "pictures" / "api-server-load.json").read_text())["rows"]
    sent = {(row["way"], row["agents"]): max(row["sent_mb_per_second"]) for row in rows}
    one_replica = sent["proxy", 0] - sent["direct", 0]
    assert within(1.2, 20 * plan.value("api_kb_per_update") / 1e3, one_replica)


def test_the_page_has_the_figures_of_the_model() -> None:
    assert plan.table() in PAGE, plan.table()
    for factor in (CPU_FACTOR, LATENCY_FACTOR, MEMORY_FACTOR, START_FACTOR):
        assert f"factor of {factor:g}" in PAGE
    for figure in plan.FIGURES.values():
        page = figure.source.partition(",")[0]
        assert (DOCS / page).exists(), page


def test_the_page_has_the_plan_of_a_large_cluster() -> None:
    asked = plan.Cluster(nodes=15_000, pods=150_000, updates_per_second=200)
    shown = "\n".join(f"{name}: {text}" for name, text in plan.lines(asked))
    assert shown in PAGE, shown


def test_one_replica_may_be_missing() -> None:
    for nodes in (10, 1000, 15_000, 100_000):
        cluster = plan.Cluster(nodes=nodes, pods=10 * nodes, updates_per_second=100)
        count, _ = plan.replicas(cluster)
        left = plan.replica(cluster, nodes / (count - 1))
        assert count >= plan.REPLICAS_MIN
        assert left.nodes * plan.CONNECTIONS_PER_NODE <= plan.value("connections_max")
        assert left.pass_seconds <= plan.PASS_SECONDS_MAX * 1.01


def test_the_command() -> None:
    arguments = ["plan", "--nodes", "500", "--pods", "5000", "--replicas", "5"]
    result = testing.CliRunner().invoke(command.main, arguments)
    assert result.exit_code == 0
    assert "replicas: 3, because of the least that survives a lost machine; 5 are planned" in result.output
