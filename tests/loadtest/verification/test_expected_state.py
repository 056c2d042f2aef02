"""Tests of loadtest.verification.expected_state, on the simulated API server."""

from pathlib import Path

import pytest

from cache import resources
from cache.feeds import raw
from loadtest.apiserver import faults, population, settings, simulator
from loadtest.apiserver.resources import PODS
from loadtest.environment import kubeconfig
from loadtest.verification import expected_state

TYPES = ("v1/namespaces", "v1/pods", "discovery.k8s.io/v1/endpointslices", "loadtest.example.com/v1/widgets")


async def client_of(server: simulator.Simulator, folder: Path) -> expected_state.ApiClient:
    kubeconfig.write(folder / "config", server.url)
    return expected_state.ApiClient(await kubeconfig.load(folder / "config"))


async def test_lists_everything_in_pages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(expected_state, "PAGE_SIZE", 7)
    async with simulator.Simulator(settings.SimulatorSettings()) as server:
        server.populate(population.Population(nodes=2, pods=50, namespaces=3, services=4, widgets=5))
        async with await client_of(server, tmp_path) as client:
            found = await client.read_state(expected_state.specs(TYPES))
            assert len(found.live) == 3 + 50 + 4 + 5
            again = await client.read_state(expected_state.specs(TYPES))
            assert again.digest == found.digest
            key = next(name for name in found.live if name.startswith("/core/v1/pods/"))
            _, _, _, _, namespace, name = key.split("/")
            server.store.patch(PODS, namespace, name, {"metadata": {"labels": {"x": "y"}}})
            changed = await client.read_state(expected_state.specs(TYPES))
            assert changed.digest != found.digest
            assert changed.live[key].uid == found.live[key].uid
            assert changed.live[key].revision != found.live[key].revision
            assert client.requests == 3 * (1 + 8 + 1 + 1)


async def test_unknown_types_have_no_objects_and_refusals_are_errors(tmp_path: Path) -> None:
    async with simulator.Simulator(settings.SimulatorSettings()) as server, await client_of(server, tmp_path) as client:
        unknown = [raw.ResourceSpec(resources.ResourceType("nowhere.example.com", "v1", "things"))]
        assert (await client.read_state(unknown)).live == {}
        server.inject(faults.Fault(kind=faults.FaultKind.ERROR, code=403, duration_seconds=60))
        with pytest.raises(expected_state.ApiRequestError, match=r"/api/v1/pods: 403"):
            await client.read_state(expected_state.specs(["v1/pods"]))


async def test_no_server_is_an_error(tmp_path: Path, free_port: int) -> None:
    kubeconfig.write(tmp_path / "config", f"http://127.0.0.1:{free_port}")
    async with expected_state.ApiClient(await kubeconfig.load(tmp_path / "config")) as client:
        with pytest.raises(expected_state.ApiRequestError, match="GET /api/v1/pods"):
            await client.read_state(expected_state.specs(["v1/pods"]))


async def test_the_felix_feed_of_a_cluster_with_calico(tmp_path: Path) -> None:
    async with simulator.Simulator(settings.SimulatorSettings()) as server:
        server.populate(population.Population(nodes=2, pods=30, namespaces=3, services=4, widgets=5, calico=True))
        kubeconfig.write(tmp_path / "config", server.url)
        async with expected_state.ApiClient(await kubeconfig.load(tmp_path / "config")) as client:
            found = await client.read_calico_state("felix")
            endpoints = [key for key in found.live if "/workload/" in key]
            assert len(endpoints) == 30
            assert [key for key in found.live if key.startswith("/calico/v1/ipam/v4/pool/")]
            namespace, _, name = next(iter(server.store.objects(PODS))).partition("/")
            server.store.patch(PODS, namespace, name, {"metadata": {"annotations": {"x": "y"}}})
            assert (await client.read_calico_state("felix")).digest == found.digest
            server.store.patch(PODS, namespace, name, {"metadata": {"labels": {"x": "y"}}})
            assert (await client.read_calico_state("felix")).digest != found.digest
