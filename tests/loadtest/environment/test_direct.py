"""Tests of loadtest.environment.direct: the Go program against a real API server."""

import pathlib

import pytest

from cache.feeds.calico import syncers
from loadtest.apiserver import population
from loadtest.environment import control_plane, direct, kubeconfig
from loadtest.scenarios.real import cluster
from loadtest.verification import expected_state

PATIENCE_SECONDS = 120.0


@pytest.mark.control_plane
@pytest.mark.go
@pytest.mark.slow
async def test_agents_follow_and_come_back_when_the_api_server_does(tmp_path: pathlib.Path) -> None:
    with control_plane.ControlPlane(tmp_path / "control-plane") as plane:
        async with expected_state.ApiClient(await kubeconfig.load(plane.kubeconfig)) as client:
            objects = cluster.Cluster(
                client, population.Population(nodes=2, pods=10, services=3, widgets=0, calico=True)
            )
            await objects.populate()
            async with direct.DirectAgents(tmp_path, plane, agents=3) as agents:
                kinds = len(direct.kinds())
                await agents.wait_watching(timeout_seconds=PATIENCE_SECONDS)
                assert (agents.totals.watches, agents.totals.lists) == (3 * kinds, 3 * kinds)
                await objects.change_pods(changes_per_second=50.0, seconds=0.2)
                await agents.wait_for(lambda now: now.events >= 30, timeout_seconds=PATIENCE_SECONDS)
                assert agents.totals.events == agents.latency.total == 30
                assert 0.0 < (agents.latency.quantile(1.0) or 0.0) < PATIENCE_SECONDS

                plane.restart()
                await agents.wait_for(lambda now: now.ended >= 3 * kinds, timeout_seconds=PATIENCE_SECONDS)
                await agents.wait_watching(timeout_seconds=PATIENCE_SECONDS)
                assert agents.totals.lists >= 6 * kinds


def test_the_kinds_are_those_that_felix_watches() -> None:
    paths = {source.type.list_path for source in direct.kinds()}
    assert {"/api/v1/pods", "/apis/projectcalico.org/v3/tiers"} <= paths
    assert not any("adminnetworkpolicies" in path for path in paths)  # those of older releases
    [felix] = [spec for spec in syncers.specs(syncers.Group.V3) if spec.name == syncers.FELIX]
    assert len(paths) == sum(not source.is_older for source in felix.sources) - 1  # without KubeVirt's
