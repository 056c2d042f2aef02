"""Two real replicas, of which one loses the API server: alone, or together with the other."""

import asyncio
import contextlib
import pathlib
import ssl
from collections.abc import AsyncIterator, Mapping

import pytest

from clients import connection, follower, mirror
from loadtest.apiserver import resources as simulated
from loadtest.environment import kubeconfig
from loadtest.scenarios.real.relay import Relay
from protocol import messages
from tests.harness import certificates, served
from tests.harness.worker_stand import eventually
from typha.worker import tls

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]
TIMES = {"TYPHA_STALEHANDOVERAFTERSECS": "1", "TYPHA_STALEHANDOVERSPREADSECS": "1"}
CONNECTIONS = "typha_connections_active"


@contextlib.asynccontextmanager
async def changing(cluster: served.Cluster) -> AsyncIterator[None]:
    """Changes an object again and again: with every change the API server confirms the data."""

    async def change() -> None:
        while True:
            cluster.put("restless")
            await asyncio.sleep(0.3)

    task = asyncio.create_task(change(), name="changes")
    try:
        yield
    finally:
        task.cancel()
        await asyncio.wait([task])


def publish(cluster: served.Cluster, address: str) -> None:
    """The Service's EndpointSlice with the address of a replica, and a slice of another Service."""
    host, _, port = address.partition(":")
    for service in ("calico-typha", "another"):
        labels = {"kubernetes.io/service-name": service}
        content = {
            "metadata": {"name": f"{service}-1", "namespace": "kube-system", "labels": labels},
            "endpoints": [{"addresses": [host], "conditions": {"ready": True}}],
            "ports": [{"name": "calico-typha", "port": int(port) if service == "calico-typha" else 1}],
        }
        cluster.simulator.store.create(simulated.ENDPOINT_SLICES, content)


@contextlib.asynccontextmanager
async def replicas(
    cluster: served.Cluster, folder: pathlib.Path, *, by_service: bool = False, **more: str
) -> AsyncIterator[tuple[served.Service, served.Service, Relay, contextlib.AsyncExitStack]]:
    """One replica whose way to the API server can be closed, one whose way is open, and who knows whom."""
    way = contextlib.AsyncExitStack()
    relay = await way.enter_async_context(Relay("127.0.0.1", int(cluster.simulator.url.rpartition(":")[2])))
    near = folder / "kubeconfig-of-the-first"
    kubeconfig.write(near, f"http://127.0.0.1:{relay.port}")
    variables = {**TIMES, **more}
    async with served.serving(cluster, "--workers", "1", **variables) as second:
        known = {"KUBECONFIG": str(near)}
        if by_service:
            publish(cluster, await second.address())
            known["TYPHA_CONNECTIONREBALANCINGMODE"] = "kubernetes"
            known["TYPHA_K8SSERVICEPOLLINTERVALSECS"] = "1"
        else:
            known["TYPHA_PEERADDRESSES"] = await second.address()
        async with served.serving(cluster, "--workers", "1", **variables, **known) as first:
            yield first, second, relay, way
    await way.aclose()


def secured(folder: pathlib.Path, engine: str) -> tuple[Mapping[str, str], ssl.SSLContext | None]:
    """The variables of replicas that are each other's clients over mutual TLS, and an agent's context."""
    if not engine:
        return {}, None
    files = certificates.make(folder, engine)
    variables = {
        "TYPHA_SERVERKEYFILE": str(files.folder / "server.key"),
        "TYPHA_SERVERCERTFILE": str(files.folder / "server.pem"),
        "TYPHA_CAFILE": str(files.folder / "ca.pem"),
        "TYPHA_CLIENTCN": certificates.SERVER,
        "TYPHA_TLSENGINE": engine,
    }
    return variables, certificates.client_context(files.authority, cn=certificates.SERVER)


@pytest.mark.parametrize(
    ("by_service", "engine"),
    [
        (False, ""),
        (True, ""),
        (True, tls.OPENSSL),
        pytest.param(False, tls.RUSTLS, marks=certificates.needs_rustls),
    ],
)
async def test_clients_of_a_replica_that_alone_is_stale_move(
    tmp_path: pathlib.Path, by_service: bool, engine: str
) -> None:
    variables, context = secured(tmp_path, engine)
    async with (
        served.Cluster(tmp_path) as cluster,
        changing(cluster),
        replicas(cluster, tmp_path, by_service=by_service, **variables) as (first, second, _, way),
        contextlib.AsyncExitStack() as clients,
    ):
        old, new = await first.address(), await second.address()
        native = [
            await clients.enter_async_context(
                mirror.Mirror([old, new], feed="web", agent=f"native-{number}", tls=context)
            )
            for number in range(3)
        ]
        for one in native:
            await one.wait_in_sync(timeout_seconds=180)
        alone = await clients.enter_async_context(mirror.Mirror(old, feed="web", agent="alone", tls=context))
        await alone.wait_in_sync(timeout_seconds=180)
        if by_service:
            await first.logged("Replicas of the Service .*replicas=1")
        await way.aclose()  # the first replica has lost the API server
        await first.metric_is("typha_handing_over", 1)
        await first.metric_is("typha_ready", 0)
        await eventually(lambda: all(one.connected and one.in_sync for one in native))
        # The client that knew only the stale replica was told where to go.
        await eventually(lambda: alone.connected and alone.in_sync)
        await second.metric_is(CONNECTIONS, 4)
        assert await second.metric("typha_handing_over") == 0
        await first.metric_is(CONNECTIONS, 0)  # then it has counted the ends of all
        before = await first.metric('typha_disconnects_total{reason="rebalanced"}')
        assert before >= 1
        newcomer = follower.follow(old, feed="web", agent="newcomer", tls=context)
        async with contextlib.aclosing(newcomer):
            async for event in newcomer:
                if isinstance(event, follower.StatusChanged):
                    assert event.status is messages.SyncStatus.WAITING
                    break
        await asyncio.sleep(2.0)
        assert await first.metric('typha_disconnects_total{reason="rebalanced"}') == before
        assert 'stance="handing-over"' in first.text


async def test_nobody_moves_if_all_are_stale(tmp_path: pathlib.Path) -> None:
    async with (
        served.Cluster(tmp_path) as cluster,
        replicas(cluster, tmp_path) as (first, second, _, _),
        mirror.Mirror(await first.address(), feed="web", agent="one") as one,
        mirror.Mirror(
            await first.address(), feed="web", agent="two", timeouts=connection.Timeouts(hello_seconds=30.0)
        ) as two,
    ):
        await one.wait_in_sync(timeout_seconds=180)
        await two.wait_in_sync(timeout_seconds=180)
        async with changing(cluster):
            await asyncio.sleep(1.0)
        await cluster.simulator.stop()
        await first.logged('stance="all-stale"')
        await eventually(lambda: one.status is two.status is messages.SyncStatus.WAITING)
        for replica in (first, second):  # for longer than an answer may be old
            await replica.metric_becomes("typha_stale_seconds", lambda seen: seen > 8, "is above 8")
        assert "handing-over" not in first.text
        assert await first.metric("typha_ready") == await second.metric("typha_ready") == 1
        assert one.connected
        assert two.connected
