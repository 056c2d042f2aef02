"""The dashboards, ours and Calico's: their expressions, on a Prometheus that scrapes the service under load."""

import asyncio
import contextlib
import datetime
import itertools
import json
import math
import pathlib
import re
import shutil
import time
from collections.abc import AsyncIterator, Iterator
from typing import Any, NamedTuple

import aiohttp
import pytest

from loadtest.apiserver import resources as simulated
from loadtest.environment import control_plane
from tests.harness import certificates, served
from tests.harness.repository import ROOT
from typha.observability import metrics_table

DASHBOARD = json.loads((ROOT / "deploy" / "chart" / "files" / "dashboard.json").read_text())
GRAFANA_10 = 38
"""The version of dashboards with which Grafana 10 begins."""
_READY = "sum by (instance) (rate(typha_breadcrumb_non_block[30s]))"
UPDATES = "sum by (instance) (rate(typha_updates_total[$__rate_interval]))"
CALICO_EXPRESSIONS = (
    "max by (instance) (typha_cache_size)",
    'rate(process_cpu_seconds_total{job="typha_metrics"}[30s])',
    'process_resident_memory_bytes{job="typha_metrics"}',
    "rate(typha_connections_accepted[1m])",
    "sum by (instance) (typha_connections_streaming)",
    "rate(typha_connections_dropped[$__rate_interval])",
    "max by (instance) (typha_client_latency_secs{quantile='0.99'})",
    "max by (instance) (typha_client_write_latency_secs)",
    'max by (instance) (typha_ping_latency{quantile="0.99"})',
    'max by (instance) (typha_breadcrumb_size{quantile="0.99"})',
    f"({_READY})/(({_READY})+(sum by (instance) (rate(typha_breadcrumb_block[30s]))))",
    UPDATES,
    "sum by (instance) (rate(typha_updates_skipped[$__rate_interval]))",
    'max by (instance) (typha_client_snapshot_send_secs{quantile="0.5"})',
    "sum by (instance) (typha_connections_grace_used)",
    "max(typha_snapshot_raw_bytes)",
    "max(typha_snapshot_compressed_bytes)",
)
"""Of Calico's Grafana dashboard for Typha."""
CLIENTS = 8
OBJECTS = 20
LOAD_SECONDS = 10.0
CHANGE_SECONDS = 0.1
QUIET_EVERY = 100
"""Changes."""
QUIET_SECONDS = 2.5
"""Clients that are sent data get no ping."""
JOB = "typha_metrics"
"""As Calico's expressions want it."""


def panels() -> list[dict[str, Any]]:
    return [panel for panel in DASHBOARD["panels"] if panel["type"] != "row"]


def expressions() -> list[str]:
    return [target["expr"] for panel in panels() for target in panel["targets"]]


def concrete(expression: str) -> str:
    """The expression as Grafana sends it, for a scrape every second."""
    return expression.replace("$__rate_interval", "8s").replace("$job", ".*").replace("$instance", ".*")


def test_the_dashboard_is_one_for_grafana_10() -> None:
    assert DASHBOARD["schemaVersion"] >= GRAFANA_10
    assert {panel["type"] for panel in panels()} <= {"stat", "timeseries", "heatmap", "table"}
    identifiers = [panel["id"] for panel in DASHBOARD["panels"]]
    assert len(set(identifiers)) == len(identifiers)
    taken: set[tuple[int, int]] = set()
    for panel in DASHBOARD["panels"]:
        place = panel["gridPos"]
        assert panel["title"]
        cells = {(place["x"] + x, place["y"] + y) for x in range(place["w"]) for y in range(place["h"])}
        assert not cells & taken, panel["title"]
        taken |= cells
        assert place["x"] + place["w"] <= 24
    for panel in panels():
        assert panel["description"], panel["title"]
        for source in (panel["datasource"], *(target["datasource"] for target in panel["targets"])):
            assert source == {"type": "prometheus", "uid": "${datasource}"}


@pytest.mark.parametrize("expression", expressions())
def test_an_expression_uses_metrics_that_exist(expression: str) -> None:
    known = {metric.name for metric in metrics_table.METRICS}
    known |= {"process_cpu_seconds_total", "process_resident_memory_bytes", "process_open_fds"}
    used = set(re.findall(r"\b(?:typha|process)_\w+", expression))
    assert used
    assert {re.sub("_(bucket|sum|count)$", "", name) for name in used} <= known
    assert expression.count('{job=~"$job", instance=~"$instance"') >= len(used)


class Prometheus(NamedTuple):
    """A Prometheus that scrapes the service."""

    session: aiohttp.ClientSession
    url: str

    async def is_ready(self) -> bool:
        """Whether it answers questions."""
        try:
            async with self.session.get(f"{self.url}/-/ready") as response:
                return response.status == 200
        except aiohttp.ClientConnectionError:
            return False

    async def query(self, expression: str) -> list[float]:
        """The values that an expression has now. Fails if Prometheus does not understand it."""
        async with self.session.get(f"{self.url}/api/v1/query", params={"query": expression}) as response:
            answer = await response.json()
        assert answer["status"] == "success", (expression, answer)
        return [float(sample["value"][1]) for sample in answer["data"]["result"]]


@contextlib.asynccontextmanager
async def prometheus(folder: pathlib.Path, metrics_port: int) -> AsyncIterator[Prometheus]:
    """Run Prometheus until the end of the block. It scrapes once a second."""
    port = control_plane.free_port()
    scrape = {"job_name": JOB, "static_configs": [{"targets": [f"127.0.0.1:{metrics_port}"]}]}
    config = folder / "prometheus.yaml"
    config.write_text(json.dumps({"global": {"scrape_interval": "1s"}, "scrape_configs": [scrape]}))
    with (folder / "prometheus.log").open("wb") as log:
        process = await asyncio.create_subprocess_exec(
            "prometheus",
            f"--config.file={config}",
            f"--storage.tsdb.path={folder / 'tsdb'}",
            f"--web.listen-address=127.0.0.1:{port}",
            stdout=log,
            stderr=log,
        )
    try:
        async with aiohttp.ClientSession() as session:
            reader = Prometheus(session, f"http://127.0.0.1:{port}")
            deadline = time.monotonic() + served.TIMEOUT_SECONDS
            while not await reader.is_ready():
                assert time.monotonic() < deadline, (folder / "prometheus.log").read_text()
                await asyncio.sleep(0.1)
            yield reader
    finally:
        process.terminate()
        await process.wait()


def change(cluster: served.Cluster, number: int) -> None:
    """Write one of the pods, with the time of the write as an API server notes it."""
    now = datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    metadata = {
        "name": f"p{number % OBJECTS}",
        "namespace": "default",
        "annotations": {"number": str(number)},
        "managedFields": [{"manager": "test", "operation": "Update", "time": now}],
    }
    cluster.simulator.store.replace(simulated.PODS, {"metadata": metadata})


async def change_all_the_time(cluster: served.Cluster) -> None:
    """Write pods until cancelled, with a pause now and then."""
    for number in itertools.count():
        change(cluster, number)
        await asyncio.sleep(QUIET_SECONDS if number % QUIET_EVERY == QUIET_EVERY // 2 else CHANGE_SECONDS)


@contextlib.asynccontextmanager
async def scraped(folder: pathlib.Path) -> AsyncIterator[tuple[Prometheus, served.Service]]:
    """A service with TLS under load, until its metrics have been scraped for a while."""
    files = certificates.make(folder)
    tls = certificates.client_context(files.authority)
    variables = {
        "TYPHA_SERVERKEYFILE": str(folder / "server.key"),
        "TYPHA_SERVERCERTFILE": str(folder / "server.pem"),
        "TYPHA_CAFILE": str(folder / "ca.pem"),
        "TYPHA_CLIENTCN": certificates.AGENT,
        "TYPHA_SERVERPINGINTERVALSECS": "1",
    }
    async with served.Cluster(folder) as cluster, served.serving(cluster, "--workers", "2", **variables) as service:
        found = await service.logged(r'HTTP server is listening .*port=(\d+) server="metrics"')
        async with (
            served.mirrors(await service.address(), CLIENTS, tls=tls),
            prometheus(folder, int(found[1])) as reader,
        ):
            load = asyncio.create_task(change_all_the_time(cluster), name="load")
            try:
                await asyncio.sleep(LOAD_SECONDS)
                yield reader, service
            finally:
                load.cancel()
                await asyncio.wait([load])


@pytest.mark.skipif(shutil.which("prometheus") is None, reason="Prometheus is missing (make packages)")
async def test_every_expression_has_values_under_load(tmp_path: pathlib.Path) -> None:
    async with scraped(tmp_path) as (reader, service):
        values: dict[str, list[float]] = {}
        missing = [*expressions(), *CALICO_EXPRESSIONS]
        deadline = time.monotonic() + served.TIMEOUT_SECONDS
        while missing:  # the first scrapes come late on a busy machine
            assert time.monotonic() < deadline, missing
            for expression in missing:
                values[expression] = await reader.query(concrete(expression))
            missing = [name for name in missing if not values[name] or all(map(math.isnan, values[name]))]
            if values[UPDATES] == [0.0]:  # the last scrapes were during a pause
                missing = [*missing, UPDATES]
        assert values["sum by (instance) (typha_connections_streaming)"] == [CLIENTS]
        assert values["max by (instance) (typha_cache_size)"] == [OBJECTS]
        [updates] = values[UPDATES]
        assert updates > 0
        [resident] = values['process_resident_memory_bytes{job="typha_metrics"}']
        [hub] = resident_bytes(service.process.pid)
        assert resident > hub * 1.3  # the workers count
    assert "Traceback" not in service.text


def resident_bytes(pid: int) -> Iterator[int]:
    text = pathlib.Path(f"/proc/{pid}/status").read_text()
    return (int(size) * 1024 for size in re.findall(r"VmRSS:\s+(\d+) kB", text))
