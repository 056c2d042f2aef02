"""Tests of the demo, small: real processes, real sockets."""

import dataclasses
import json
from pathlib import Path

import pytest

from loadtest import demo
from loadtest.apiserver import population, settings, simulator
from loadtest.environment import kubeconfig
from loadtest.scenarios import fixture
from loadtest.verification import expected_state

pytestmark = pytest.mark.slow

SMALL = fixture.Settings(seconds=2.0, agents=20, public_agents=2, nodes=5, pods=50, updates_per_second=30.0)


async def test_the_demo_converges_and_leaves_a_report(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "report"
    assert await demo.run(dataclasses.replace(SMALL, folder=folder))
    assert "converged: 20 of 20 agents hold exactly the API server's state" in capsys.readouterr().out
    document = json.loads((folder / "report.json").read_text())
    assert document["passed"] is True
    assert document["verdict"]["public_agents"] == 2
    assert document["samples"]
    assert (folder / "report.html").exists()


async def test_a_cluster_is_only_read(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    async with simulator.Simulator(settings.SimulatorSettings()) as server:
        server.populate(population.Population(nodes=3, pods=30, namespaces=2, services=2, widgets=0))
        kubeconfig.write(tmp_path / "config", server.url)
        settings_in_folder = dataclasses.replace(SMALL, folder=tmp_path / "report")
        assert await demo.run(settings_in_folder, own_cluster=tmp_path / "config")
        verbs = {verb for verb, _, _ in server.counters.requests}
        assert verbs <= {"GET", "LIST", "WATCH", "WATCHLIST"}
    out = capsys.readouterr().out
    assert "it is only read (get, list, watch)" in out.splitlines()[0]
    assert "converged: 20 of 20" in out


async def test_a_cluster_where_nothing_may_be_read(tmp_path: Path, free_port: int) -> None:
    kubeconfig.write(tmp_path / "config", f"http://127.0.0.1:{free_port}")
    with pytest.raises(expected_state.ApiRequestError):
        await demo.run(dataclasses.replace(SMALL, folder=tmp_path / "report"), own_cluster=tmp_path / "config")
