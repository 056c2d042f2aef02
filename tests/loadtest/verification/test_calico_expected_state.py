"""Tests of loadtest.verification.calico_expected_state, on the simulated API server."""

from pathlib import Path

from loadtest.apiserver import population, settings, simulator
from loadtest.apiserver.resources import PODS
from loadtest.environment import kubeconfig
from loadtest.verification import calico_expected_state, expected_state

SMALL = population.Population(nodes=2, pods=30, namespaces=3, services=4, widgets=5, calico=True)


async def test_the_felix_feed_of_a_cluster_with_calico(tmp_path: Path) -> None:
    async with simulator.Simulator(settings.SimulatorSettings()) as server:
        server.populate(SMALL)
        kubeconfig.write(tmp_path / "config", server.url)
        async with expected_state.ApiClient(await kubeconfig.load(tmp_path / "config")) as client:
            found = await calico_expected_state.read(client, "felix")
            endpoints = [key for key in found.live if "/workload/" in key]
            assert len(endpoints) == 30
            assert [key for key in found.live if key.startswith("/calico/v1/ipam/v4/pool/")]
            namespace, _, name = next(iter(server.store.objects(PODS))).partition("/")
            server.store.patch(PODS, namespace, name, {"metadata": {"annotations": {"x": "y"}}})
            assert (await calico_expected_state.read(client, "felix")).digest == found.digest
            server.store.patch(PODS, namespace, name, {"metadata": {"labels": {"x": "y"}}})
            assert (await calico_expected_state.read(client, "felix")).digest != found.digest
