"""Tests of loadtest.environment.processes."""

import pathlib

import pytest

from loadtest.apiserver.settings import SimulatorSettings
from loadtest.apiserver.simulator import Simulator
from loadtest.environment import kubeconfig, processes


@pytest.mark.slow
async def test_the_service_is_started_so_that_it_only_reads(tmp_path: pathlib.Path) -> None:
    async with Simulator(SimulatorSettings()) as simulator:
        path = tmp_path / "kubeconfig"
        kubeconfig.write(path, simulator.url)
        async with processes.ServiceProcess(tmp_path, kubeconfig=path, types=["v1/pods"]) as service:
            environment = pathlib.Path(f"/proc/{service.pid}/environ").read_text().split("\0")
    assert {"TYPHA_READONLY=true", "TYPHA_CALICOFEEDS=false"} <= set(environment)
