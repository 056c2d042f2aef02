"""Networks that drop what is sent, and end no connection: each side notices within its limit, and says so."""

import contextlib
import pathlib
from collections.abc import AsyncIterator

import pytest

from clients import mirror
from loadtest.environment import kubeconfig
from loadtest.scenarios.real import relay
from tests.harness import served
from tests.harness.worker_stand import eventually
from tests.typha.peers import test_watch

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]


@contextlib.asynccontextmanager
async def relayed(address: str) -> AsyncIterator[tuple[relay.Relay, str]]:
    """A way to an address that can become silent, and the address of its beginning."""
    host, _, port = address.partition(":")
    async with relay.Relay(host, int(port)) as way:
        yield way, f"127.0.0.1:{way.port}"


async def test_a_stale_replica_hands_over_only_while_the_others_answer(tmp_path: pathlib.Path) -> None:
    async with (
        served.Cluster(tmp_path) as cluster,
        served.serving(cluster, "--workers", "1") as second,
        relayed(await second.address()) as (to_second, beginning),
        relayed(cluster.simulator.url.rpartition("/")[2]) as (to_api, api),
    ):
        near = tmp_path / "kubeconfig-of-the-first"
        kubeconfig.write(near, f"http://{api}")
        variables = {
            "KUBECONFIG": str(near),
            "TYPHA_PEERADDRESSES": beginning,
            "TYPHA_STALEHANDOVERAFTERSECS": "1",
            # Its time to move is drawn from this: the client is still there when the moves are called off.
            "TYPHA_STALEHANDOVERSPREADSECS": "1000000000",
        }
        async with (
            served.serving(cluster, "--workers", "1", **variables) as first,
            mirror.Mirror(await first.address(), feed=served.FEED, agent="agent") as one,
        ):
            await one.wait_in_sync(timeout_seconds=served.TIMEOUT_SECONDS)
            to_second.silence()
            to_api.shut()
            await first.logged('stance="alone"')
            await eventually(lambda: not one.in_sync, seconds=served.TIMEOUT_SECONDS)
            assert one.connected
            assert await first.metric("typha_ready") == 1
            async with test_watch.changing(cluster):
                to_second.resume()
                await first.logged('stance="handing-over"')
                await first.metric_is("typha_ready", 0)
                to_second.silence()
                await first.logged('before="handing-over".* stance="alone"')
            await first.metric_is("typha_ready", 1)
            assert await first.metric('typha_disconnects_total{reason="rebalanced"}') == 0
            await to_api.open()
            await eventually(lambda: one.in_sync, seconds=served.TIMEOUT_SECONDS)
            await served.converged(cluster, [one])


async def test_client_and_replica_both_notice_that_nothing_comes(tmp_path: pathlib.Path) -> None:
    quick = {"TYPHA_SERVERPINGINTERVALSECS": "1", "TYPHA_SERVERPONGTIMEOUTSECS": "3"}
    pong_timeouts = 'typha_disconnects_total{reason="pong-timeout"}'
    async with (
        served.Cluster(tmp_path) as cluster,
        served.serving(cluster, "--workers", "1", **quick) as service,
        relayed(await service.address()) as (way, beginning),
        mirror.Mirror(beginning, feed=served.FEED, agent="agent") as one,
    ):
        await served.converged(cluster, [one])
        before = await service.metric(pong_timeouts)  # a busy test may have answered too late
        way.silence()
        await eventually(lambda: not one.connected, seconds=served.TIMEOUT_SECONDS)
        await service.metric_becomes(pong_timeouts, lambda seen: seen > before, "counts the client")
        cluster.put("new")
        way.resume()
        await served.converged(cluster, [one])
