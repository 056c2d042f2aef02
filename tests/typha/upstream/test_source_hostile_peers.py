"""A real replica whose upstream lies, stands still or sends it away: it goes on, and watches the API server."""

import asyncio
import contextlib
import pathlib
from collections.abc import AsyncIterator, Awaitable, Callable

import pytest

from clients import mirror
from clients.conformance import wire
from clients.conformance.link import Ended, Link
from tests.harness import served

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]
Script = Callable[[Link], Awaitable[None]]
FEATURES = ["freshness", "tiers", "resume", "chunk-digests"]
LIES = {"/core/v1/pods/default/lie": b"{}"}


@contextlib.asynccontextmanager
async def lying(script: Script) -> AsyncIterator[str]:
    """A server that confirms its data to all who ask, and sends those who want it what the script says."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        link = Link(reader, writer, patience_seconds=60)
        links.append(link)
        if (task := asyncio.current_task()) is not None:
            tasks.append(task)
        try:
            await link.preface()
            hello = (await link.message())[1]
            link.send(
                wire.PREFACE,
                wire.server_hello(served.FEED, features=FEATURES, confirmed_ms=0, ping_interval_ms=500),
            )
            if "resume" in hello.get("features", ()):
                await script(link)
            if script is not goodbye_after_a_while:
                await link.closed()
        except (Ended, TimeoutError):
            pass
        finally:
            link.close()

    links: list[Link] = []
    tasks: list[asyncio.Task[None]] = []
    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    try:
        yield f"127.0.0.1:{server.sockets[0].getsockname()[1]}"
    finally:
        server.close()
        for link in links:
            link.close()
        await asyncio.wait([*tasks, asyncio.create_task(asyncio.sleep(0))])


async def ping(link: Link) -> None:
    """Only pings, until the end."""
    while not await link.closed(0.5):
        link.send(wire.frame(wire.PING, 1))


def odd(update: list[object]) -> Script:
    """Sends a map, and then this."""

    async def script(link: Link) -> None:
        link.send(wire.snapshot(7, LIES), wire.status(7), wire.frame(wire.UPDATES, 7, 8, [update]), wire.status(8))
        await ping(link)

    return script


async def wrong_digest(link: Link) -> None:
    link.send(wire.snapshot(7, LIES)[:-8] + b"\x55" * 8)


async def nothing(link: Link) -> None:
    await ping(link)


async def waits(link: Link) -> None:
    link.send(wire.snapshot(7, LIES), wire.status(7, wire.WAITING))
    await ping(link)


async def half_a_snapshot(link: Link) -> None:
    link.send(wire.frame(wire.BEGIN, 7, 2, 4))
    await ping(link)


async def keys_without_end(link: Link) -> None:
    link.send(wire.frame(wire.BEGIN, 7, 1 << 30, 4))
    await ping(link)


async def goodbye(link: Link) -> None:
    link.send(wire.frame(wire.GOODBYE, {"reason": "shutting-down"}))


async def goodbye_after_a_while(link: Link) -> None:
    link.send(wire.frame(wire.BEGIN, 7, 2, 4), wire.chunk(0, {}))
    await asyncio.sleep(0.7)
    await goodbye(link)


SCRIPTS = {
    "a wrong digest": wrong_digest,
    "nothing": nothing,
    "waits": waits,
    "half a snapshot": half_a_snapshot,
    "keys without end": keys_without_end,
    "goodbye": goodbye,
    "goodbye after a while": goodbye_after_a_while,
    "a type that Typha's protocol lacks": odd(["/a", b"1", "1", -5000]),
    "a time to live that Typha's protocol lacks": odd(["/a", b"1", "1", 1, "", 2**64 - 1]),
    "a revision without end": odd(["/a", b"1", "1" * 100_000, 1]),
}
SILENT = {nothing, waits, half_a_snapshot, goodbye, goodbye_after_a_while}
"""They send nothing that is wrong, and too little."""


@pytest.mark.parametrize("name", SCRIPTS)
async def test_an_upstream_that_gives_no_data_is_left(tmp_path: pathlib.Path, name: str) -> None:
    variables = {"TYPHA_UPSTREAMFALLBACKAFTERSECS": "5", "TYPHA_CALICOFEEDS": "false"}
    async with (
        served.Cluster(tmp_path) as cluster,
        lying(SCRIPTS[name]) as liar,
        served.serving(cluster, "--workers", "1", TYPHA_UPSTREAM=liar, **variables) as follower,
        mirror.Mirror(await follower.address(), feed=served.FEED, agent="agent") as one,
    ):
        await follower.logged('mode="following"')
        await served.converged(cluster, [one])
        assert await follower.metric('typha_source_changes_total{mode="watching"}') >= 1
        if SCRIPTS[name] not in SILENT:
            assert await follower.metric('typha_source_changes_total{mode="refusing"}') >= 1
