"""Real replicas, of which one is fed by the other: the same data, no request to the API server, and every fall."""

import contextlib
import os
import pathlib
import signal
import ssl
from collections.abc import AsyncIterator

import pytest

from clients import mirror
from loadtest.apiserver import resources as simulated
from loadtest.apiserver import settings as simulator_settings
from loadtest.environment import control_plane
from tests.harness import certificates, replica_answers, served
from typha.worker import tls

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]
NAME = "typha-server"
"""The common name of the certificates that the replicas serve with, and so of those that they follow with."""
FALLEN_BACK = r'Source of the data .*mode="watching".*problems="([^"]*)"'
FOLLOWS, WATCHES = 'typha_source{mode="following"}', 'typha_source{mode="watching"}'


def variables(*upstreams: str, fallback_seconds: int = 600) -> dict[str, str]:
    """Of a replica that is fed by one of these. Whether Calico is installed would be a question to the API server."""
    return {
        "TYPHA_UPSTREAM": ",".join(upstreams),
        "TYPHA_UPSTREAMFALLBACKAFTERSECS": str(fallback_seconds),
        "TYPHA_CALICOFEEDS": "false",
    }


@contextlib.asynccontextmanager
async def replica(cluster: served.Cluster, *upstreams: str, **options: int) -> AsyncIterator[served.Service]:
    """A replica that follows one of others; without any, one that watches."""
    async with served.serving(cluster, "--workers", "1", **variables(*upstreams, **options)) as service:
        yield service


def signal_all(service: served.Service, number: signal.Signals) -> None:
    """Send a signal to all processes of a service."""
    os.killpg(service.process.pid, number)


@contextlib.asynccontextmanager
async def watched(address: str | list[str]) -> AsyncIterator[tuple[mirror.Mirror, list[str]]]:
    """A client, and the keys whose deletion it has been told."""
    deleted: list[str] = []

    def note(changes: object) -> None:
        assert isinstance(changes, list)
        deleted.extend(change.key for change in changes if change.new is None)

    async with mirror.Mirror(address, feed=served.FEED, agent="agent", on_change=note) as one:
        await one.wait_in_sync(timeout_seconds=60)
        yield one, deleted


async def test_a_follower_serves_the_same_and_asks_the_api_server_nothing(tmp_path: pathlib.Path) -> None:
    async with (
        served.Cluster(tmp_path) as cluster,
        replica(cluster) as root,
        replica(cluster, await root.address()) as first,
        replica(cluster, await first.address()) as second,
        watched(await root.address()) as (at_root, _),
        watched(await first.address()) as (at_first, _),
        watched(await second.address()) as (at_second, _),
    ):
        everyone = [at_root, at_first, at_second]
        await served.converged(cluster, everyone)
        before = cluster.simulator.counters.requests.total()
        cluster.put("new", "p1")
        cluster.simulator.store.delete(simulated.PODS, "default", "p2")
        await served.converged(cluster, everyone)
        assert len({one.digest for one in everyone}) == 1
        entries = [dict(one) for one in everyone]
        assert entries[0] == entries[1] == entries[2]  # with revisions
        assert cluster.simulator.counters.requests.total() == before
        assert [await one.metric(FOLLOWS) for one in (root, first, second)] == [0, 1, 2]


async def test_a_follower_whose_upstream_is_killed_follows_another_one(tmp_path: pathlib.Path) -> None:
    async with (
        served.Cluster(tmp_path) as cluster,
        replica(cluster) as second,
        contextlib.AsyncExitStack() as mortal,
    ):
        first = await mortal.enter_async_context(replica(cluster))
        addresses = [await first.address(), await second.address()]
        async with (
            replica(cluster, *addresses) as follower,
            watched(await follower.address()) as (one, deleted),
        ):
            found = await follower.logged('mode="following" upstream="([^"]*)"')
            upstream, other = (first, second) if found[1] == addresses[0] else (second, first)
            signal_all(upstream, signal.SIGKILL)
            cluster.put("new", "p1")
            await served.converged(cluster, [one])
            await follower.logged(f'mode="following" upstream="{await other.address()}"')
            assert deleted == []
            assert await follower.metric(FOLLOWS) == 1
            assert await follower.metric('typha_source_changes_total{mode="watching"}') == 0


async def test_a_follower_whose_upstream_is_stopped_falls_back_to_the_api_server(tmp_path: pathlib.Path) -> None:
    async with (
        served.Cluster(tmp_path) as cluster,
        replica(cluster) as root,
        replica(cluster, await root.address(), fallback_seconds=2) as follower,
        watched(await follower.address()) as (one, deleted),
    ):
        assert cluster.simulator.counters.watches_by_resource() == {"core/v1/pods": 1}
        signal_all(root, signal.SIGSTOP)
        try:
            cluster.put("new")
            cluster.simulator.store.delete(simulated.PODS, "default", "p2")
            await follower.metric_is('typha_source_changes_total{mode="watching"}', 1)
            await served.converged(cluster, [one])
            assert [key.rpartition("/")[2] for key in deleted] == ["p2"]
            assert await follower.metric(WATCHES) == 1
        finally:
            signal_all(root, signal.SIGCONT)


async def test_an_upstream_that_begins_again_with_other_data(tmp_path: pathlib.Path, free_port: int) -> None:
    """The follower serves what it has until the new upstream is complete, and deletes only what is gone."""
    options = {**variables(), "TYPHA_SERVERPORT": str(free_port)}
    async with served.Cluster(tmp_path) as cluster, contextlib.AsyncExitStack() as mortal:
        first = await mortal.enter_async_context(served.serving(cluster, "--workers", "1", **options))
        async with (
            replica(cluster, await first.address()) as follower,
            watched(await follower.address()) as (one, deleted),
        ):
            first.process.terminate()
            await first.ends()
            cluster.put("new", "p1")
            cluster.simulator.store.delete(simulated.PODS, "default", "p2")
            async with served.serving(cluster, "--workers", "1", **options):
                await served.converged(cluster, [one])
                assert [key.rpartition("/")[2] for key in deleted] == ["p2"]


async def test_replicas_that_name_each_other_make_no_ring(tmp_path: pathlib.Path) -> None:
    async with served.Cluster(tmp_path) as cluster:
        ports = [control_plane.free_port() for _ in range(2)]
        one, other = (f"127.0.0.1:{port}" for port in ports)
        options = {"fallback_seconds": 2}
        async with (
            served.serving(
                cluster, "--workers", "1", **{**variables(other, **options), "TYPHA_SERVERPORT": str(ports[0])}
            ) as first,
            served.serving(
                cluster, "--workers", "1", **{**variables(one, **options), "TYPHA_SERVERPORT": str(ports[1])}
            ) as second,
            watched(one) as (at_first, _),
            watched(other) as (at_second, _),
        ):
            cluster.put("new")
            await served.converged(cluster, [at_first, at_second])
            watching = first if await first.metric(WATCHES) else second
            await watching.metric_is(WATCHES, 1)


def tls_variables(
    files: certificates.Files, *upstreams: str, engine: str = tls.OPENSSL, cn: str = NAME
) -> dict[str, str]:
    """Of a replica with these files that accepts clients of this name."""
    return {
        "TYPHA_SERVERKEYFILE": str(files.folder / "server.key"),
        "TYPHA_SERVERCERTFILE": str(files.folder / "server.pem"),
        "TYPHA_CAFILE": str(files.folder / "ca.pem"),
        "TYPHA_CLIENTCN": cn,
        "TYPHA_TLSENGINE": engine,
        "TYPHA_UPSTREAM": ",".join(upstreams),
        "TYPHA_UPSTREAMFALLBACKAFTERSECS": "2" if cn != NAME else "600",
        "TYPHA_CALICOFEEDS": "false",
    }


def made(folder: pathlib.Path, name: str) -> certificates.Files:
    """Files of an authority of their own."""
    (folder / name).mkdir()
    return certificates.make(folder / name)


@contextlib.asynccontextmanager
async def client(address: str, context: ssl.SSLContext) -> AsyncIterator[mirror.Mirror]:
    """An agent."""
    async with mirror.Mirror(address, feed=served.FEED, agent="agent", tls=context) as one:
        yield one


async def fallen_back(cluster: served.Cluster, follower: served.Service, agent: mirror.Mirror) -> str:
    """A replica watches for itself, and serves its agent. Returns what it says of its upstreams."""
    cluster.put("new", "p1")
    await served.converged(cluster, [agent])
    assert await follower.metric(WATCHES) == 1
    return (await follower.logged(FALLEN_BACK))[1]


@pytest.mark.parametrize("engine", certificates.ENGINES)
async def test_a_follower_shows_the_certificate_that_it_serves_with(tmp_path: pathlib.Path, engine: str) -> None:
    files = made(tmp_path, "ours")
    context = certificates.client_context(files.authority, cn=NAME)
    async with (
        served.Cluster(tmp_path) as cluster,
        served.serving(cluster, "--workers", "1", **tls_variables(files, engine=engine)) as root,
        served.serving(
            cluster, "--workers", "1", **tls_variables(files, await root.address(), engine=engine)
        ) as follower,
        client(await follower.address(), context) as one,
    ):
        cluster.put("new", "p1")
        await served.converged(cluster, [one])
        assert await follower.metric(FOLLOWS) == 1
        assert cluster.simulator.counters.watches_by_resource() == {"core/v1/pods": 1}


@pytest.mark.parametrize("engine", certificates.ENGINES)
async def test_a_follower_whose_certificate_is_refused_watches_and_says_why(
    tmp_path: pathlib.Path, engine: str
) -> None:
    files = made(tmp_path, "ours")
    context = certificates.client_context(files.authority)
    async with (
        served.Cluster(tmp_path) as cluster,
        served.serving(cluster, "--workers", "1", **tls_variables(files, engine=engine, cn=certificates.AGENT)) as root,
        served.serving(
            cluster,
            "--workers",
            "1",
            **tls_variables(files, await root.address(), engine=engine, cn=certificates.AGENT),
        ) as follower,
        client(await follower.address(), context) as one,
    ):
        said = await fallen_back(cluster, follower, one)
        assert await root.address() in said
        assert "perhaps its ClientCN or ClientURISAN does not allow" in said


async def test_a_replica_that_falls_back_says_what_is_wrong_with_each_upstream(tmp_path: pathlib.Path) -> None:
    older = replica_answers.hello("freshness", feed=served.FEED)
    async with (
        served.Cluster(tmp_path) as cluster,
        replica_answers.answering(older) as other,
        replica(cluster, "host.invalid:5473", other, fallback_seconds=1) as service,
    ):
        said = (await service.logged(FALLEN_BACK))[1]
    assert "host.invalid:5473: cannot resolve the name" in said
    assert f"{other}: it cannot feed replicas" in said


async def test_an_upstream_of_another_authority_is_not_followed(tmp_path: pathlib.Path) -> None:
    files, others = made(tmp_path, "ours"), made(tmp_path, "theirs")
    context = certificates.client_context(files.authority)
    async with (
        served.Cluster(tmp_path) as cluster,
        served.serving(cluster, "--workers", "1", **tls_variables(others)) as root,
        served.serving(
            cluster, "--workers", "1", **tls_variables(files, await root.address(), cn=certificates.AGENT)
        ) as follower,
        client(await follower.address(), context) as one,
    ):
        said = await fallen_back(cluster, follower, one)
        assert "certificate verify failed" in said
        assert len([line for line in follower.text.splitlines() if "verify failed" in line]) == 1


async def test_an_elected_replica_without_rights_on_leases_watches_and_says_so_once(tmp_path: pathlib.Path) -> None:
    path = "/apis/coordination.k8s.io/v1/namespaces/kube-system/leases/calico-typha-source"
    forbidden = simulator_settings.SimulatorSettings(forbidden=frozenset({path}))
    elected = {
        **variables("elected", fallback_seconds=5),
        "TYPHA_K8SNAMESPACE": "kube-system",
        "TYPHA_K8SSERVICENAME": "calico-typha",
        "TYPHA_PEERADDRESSES": "127.0.0.1:1",
    }
    async with (
        served.Cluster(tmp_path, forbidden) as cluster,
        served.serving(cluster, "--workers", "1", **elected) as service,
        watched(await service.address()) as (one, _),
    ):
        cluster.put("new")
        await served.converged(cluster, [one])
        assert await service.metric(WATCHES) == 1
        said = await service.logged("Cannot take part in the election.*")
        assert "cannot read" in said[0]
        assert path in said[0]
        assert service.text.count("Cannot take part in the election") == 1
