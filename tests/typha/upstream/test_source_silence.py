"""An upstream from which nothing comes any more, over a network that ends no connection."""

import contextlib
import pathlib

import pytest

from loadtest.scenarios.real import relay
from tests.harness import served
from tests.typha.upstream import test_source

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]


async def test_a_follower_whose_upstream_is_silent_follows_another_one(tmp_path: pathlib.Path) -> None:
    async with (
        served.Cluster(tmp_path) as cluster,
        test_source.replica(cluster) as first,
        test_source.replica(cluster) as second,
        contextlib.AsyncExitStack() as stack,
    ):
        ways = {}
        for one in (first, second):
            host, _, port = (await one.address()).partition(":")
            way = await stack.enter_async_context(relay.Relay(host, int(port)))
            ways[f"127.0.0.1:{way.port}"] = way
        async with (
            test_source.replica(cluster, *ways) as follower,
            test_source.watched(await follower.address()) as (agent, deleted),
        ):
            await served.converged(cluster, [agent])
            followed = (await follower.logged('mode="following" upstream="([^"]*)"'))[1]
            [other] = ways.keys() - {followed}
            ways[followed].silence()
            cluster.put("new", "p1")
            await served.converged(cluster, [agent])
            await follower.logged(f'mode="following" upstream="{other}"')
            assert deleted == []
            assert await follower.metric('typha_source_changes_total{mode="watching"}') == 0
            assert await follower.metric("typha_connections_active") == 1
            assert await follower.metric('typha_disconnects_total{reason="client-closed"}') == 0
