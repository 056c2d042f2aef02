"""One feed of an upstream, over real sockets: the follower has what the upstream has, and takes no more than it can."""

import asyncio
import contextlib
import os
from collections.abc import AsyncIterator, Awaitable, Callable

import pytest
import structlog

from cache.feeds import followed
from clients.conformance import wire
from clients.conformance.link import Ended
from clients.conformance.link import Link as Connection
from protocol import messages
from tests.harness import channel_harness, hub_stand, worker_stand
from typha.upstream import choice, limits, link

Script = Callable[[Connection], Awaitable[None]]
FEATURES = ["tiers", "resume", "chunk-digests"]
ROOMY_BYTES = 1 << 20
FIRST, SECOND = b"1" * 16, b"2" * 16
KEYS = [f"/core/v1/pods/default/p{number}" for number in range(40)]


def saying(*frames: bytes) -> Script:
    """Sends these after the hellos."""

    async def script(connection: Connection) -> None:
        connection.send(*frames)

    return script


def a_map(revisions: dict[str, str], *, value: bytes = b"{}", chunks: int = 4) -> Script:
    """Sends a whole map in which all keys have this value, and then is in sync."""
    parts: list[list[str]] = [[] for _ in range(chunks)]
    for key in revisions:
        parts[wire.chunk_of(key, chunks)].append(key)
    content = dict.fromkeys(revisions, value)
    return saying(
        wire.frame(wire.BEGIN, 7, len(content), chunks),
        *(
            wire.frame(
                wire.CHUNK,
                index,
                wire.digest(dict.fromkeys(part, value)),
                False,
                [[key, value, revisions[key], 1] for key in part],
            )
            for index, part in enumerate(parts)
        ),
        wire.frame(wire.END, 7, len(content), wire.digest(content)),
        wire.status(7),
    )


class Stand:
    """A hub whose feed is followed, and the link to one upstream after another."""

    def __init__(self) -> None:
        self.hub = hub_stand.HubStand().hub
        self.hub.follow()
        self.distrusted: list[bytes] = []
        self.hellos: list[dict[str, object]] = []

    @property
    def feed(self) -> followed.FollowedFeed:
        """The feed."""
        return self.hub.followed_feeds[worker_stand.FEED]

    @property
    def revisions(self) -> dict[str, str]:
        """Of all keys, as newcomers are to see them."""
        return {entry.key: entry.revision for entry in self.feed.store}

    def seen_by_an_agent(self) -> dict[str, str]:
        """The revisions that Typha's protocol gives a newcomer, once the snapshots are made that are asked for."""
        while (channel := self.hub.snapshots.take()) is not None:
            worker_stand.build_snapshot(self.hub, channel)
        newest = self.hub.channels[worker_stand.FEED, "typha", None].snapshot
        assert newest is not None
        sent = os.pread(newest.descriptor, newest.length, 0)
        return {one.key: one.revision for one in channel_harness.LooseReader("typha").updates(sent, after=0)}

    @contextlib.asynccontextmanager
    async def following(
        self, script: Script, *, incarnation: bytes = FIRST, bytes_max: int = ROOMY_BYTES
    ) -> AsyncIterator[link.Link]:
        """A link to an upstream that says what the script says on each connection."""
        running = asyncio.TaskGroup()
        peers: set[Connection] = set()

        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            connection = Connection(reader, writer, patience_seconds=60)
            peers.add(connection)
            with contextlib.suppress(Ended, TimeoutError):
                await connection.preface()
                self.hellos.append((await connection.message())[1])
                connection.send(
                    wire.PREFACE, wire.server_hello(worker_stand.FEED, features=FEATURES, incarnation=incarnation)
                )
                await script(connection)
                await connection.closed()
            connection.close()

        server = await asyncio.start_server(serve, "127.0.0.1", 0)
        upstream = choice.Upstream(f"127.0.0.1:{server.sockets[0].getsockname()[1]}", incarnation)
        made = link.Link(
            self.feed,
            upstream,
            self.hub,
            room=limits.Room(bytes_max, self.hub.followed_feeds.values),
            max_value_bytes=100_000,
            make_context=lambda: None,
            distrust=self.distrusted.append,
        )
        async with running:
            task = running.create_task(made.run())
            try:
                yield made
            finally:
                task.cancel()
                await asyncio.wait([task])
                server.close()
                for peer in peers:
                    peer.close()

    async def is_in_sync(self) -> None:
        """Returns when the store has what the upstream has said is complete."""
        await worker_stand.eventually(
            lambda: self.feed.confirmed_status is messages.SyncStatus.IN_SYNC and not self.feed.backlog
        )


@pytest.fixture
async def stand() -> AsyncIterator[Stand]:
    """A hub that nothing has fed."""
    made = Stand()
    yield made
    made.hub.close()


async def test_another_upstream_is_asked_by_digests_and_a_revision_that_alone_differs_is_not_taken(
    stand: Stand,
) -> None:
    old = dict.fromkeys(KEYS, "5")
    async with stand.following(a_map(old)):
        await stand.is_in_sync()
    stand.hub.want_channel(worker_stand.FEED, "typha")
    assert stand.seen_by_an_agent() == stand.revisions == old
    sequence = stand.feed.store.sequence
    async with stand.following(a_map(dict.fromkeys(KEYS, "6")), incarnation=SECOND):
        await stand.is_in_sync()
        assert stand.seen_by_an_agent() == stand.revisions == old, "clients hold the values with these"
        assert stand.feed.store.sequence == sequence, "nothing is sent to those that have the values"
    assert ["chunk_digests" in hello for hello in stand.hellos] == [False, True]


def filling(count: int, *, size: int, after: int = 7) -> list[bytes]:
    """Changes of so many new keys with values of so many bytes, in a message each."""
    return [
        wire.frame(wire.UPDATES, sequence, sequence + 1, [[f"/more/{sequence}", b"x" * size, "1", 1]])
        for sequence in range(after, after + count)
    ]


KEYS_TOO_MANY = ROOMY_BYTES // limits.KEY_BYTES + 1
FLOODS: dict[str, list[bytes]] = {
    "announces too many keys": [wire.frame(wire.BEGIN, 8, KEYS_TOO_MANY, 4)],
    "a snapshot of too many bytes": [
        wire.frame(wire.BEGIN, 8, 100, 100),
        *(wire.chunk(index, {f"/more/{index}": b"x" * 50_000}) for index in range(100)),
    ],
    "too many bytes after a snapshot": [
        wire.snapshot(8, dict.fromkeys(KEYS, b"{}")),
        *filling(100, size=50_000, after=8),
    ],
    "too many bytes": filling(100, size=50_000),
    "too many keys": [
        wire.frame(wire.UPDATES, 7, 7 + KEYS_TOO_MANY, [[f"/{n}", b"", "1", 1] for n in range(KEYS_TOO_MANY)])
    ],
}


@pytest.mark.parametrize("name", FLOODS)
async def test_an_upstream_that_sends_more_than_there_is_room_for_is_left(stand: Stand, name: str) -> None:
    held = dict.fromkeys(KEYS, "5")
    begin = a_map(held)

    async def script(connection: Connection) -> None:
        await begin(connection)
        await stand.is_in_sync()
        connection.send(*FLOODS[name])

    with structlog.testing.capture_logs() as lines:
        async with stand.following(script) as made:
            await worker_stand.eventually(lambda: bool(stand.distrusted))
    assert stand.distrusted[0] == FIRST
    [line] = [line for line in lines if line["event"] == "Connection to the upstream ended"][:1]
    assert line["upstream"] == made.upstream.address
    assert f"more than {ROOMY_BYTES} bytes" in line["error"]
    stand.hub.commit()
    assert held.items() <= stand.revisions.items(), "what was held is lost"
    store = stand.feed.store
    assert store.value_bytes + limits.KEY_BYTES * len(store) <= ROOMY_BYTES


async def test_a_long_revision_is_refused(stand: Stand) -> None:
    async with stand.following(a_map({"/a": "1" * (limits.REVISION_CHARS_MAX + 1)})):
        await worker_stand.eventually(lambda: bool(stand.distrusted))
    assert not stand.revisions


async def test_a_map_that_takes_all_the_room_is_followed_at_another_upstream_too(stand: Stand) -> None:
    size = ROOMY_BYTES // len(KEYS) - 2 * limits.KEY_BYTES
    script = a_map(dict.fromkeys(KEYS, "5"), value=b"x" * size)
    for incarnation in (FIRST, SECOND):
        async with stand.following(script, incarnation=incarnation):
            await stand.is_in_sync()
    assert stand.revisions == dict.fromkeys(KEYS, "5")
    assert not stand.distrusted
