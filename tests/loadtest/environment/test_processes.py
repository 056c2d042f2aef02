"""The service as the load test starts it."""

import json
import pathlib

import pytest

from loadtest.apiserver.settings import SimulatorSettings
from loadtest.apiserver.simulator import Simulator
from loadtest.environment import processes


@pytest.mark.slow
async def test_the_service_is_started_so_that_it_only_reads(tmp_path: pathlib.Path) -> None:
    async with Simulator(SimulatorSettings()) as simulator:
        kubeconfig = tmp_path / "kubeconfig"
        content = {
            "apiVersion": "v1",
            "kind": "Config",
            "current-context": "c",
            "clusters": [{"name": "c", "cluster": {"server": simulator.url}}],
            "contexts": [{"name": "c", "context": {"cluster": "c", "user": "u"}}],
            "users": [{"name": "u", "user": {}}],
        }
        kubeconfig.write_text(json.dumps(content))
        async with processes.Service(tmp_path, kubeconfig_file=kubeconfig, types=["v1/pods"]) as service:
            environment = pathlib.Path(f"/proc/{service.hub_pid}/environ").read_text().split("\0")
    assert {"TYPHA_READONLY=true", "TYPHA_CALICOFEEDS=false"} <= set(environment)
