"""From objects to the maps of clients, for any order of events, in both protocols (docs/architecture.md, rule 1).

A client at the end of the log has exactly the server's map, whatever its snapshot, its pauses and the number of times
that the log dropped its position. On the way no key goes back. A client whose position is dropped catches up by any
blocks that the rules of `cache.state.cursor` allow, also old ones, or by a new snapshot.
"""

import itertools
from unittest import mock

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cache import resources
from cache.feeds import feed, raw
from cache.state import cursor, store
from protocol import messages
from protocol.native import encoder
from protocol.typha import encoder as typha_encoder
from tests.harness import channel_harness
from tests.harness.channel_harness import NODES, PODS, pod_event
from tests.harness.pipeline_channel import Channel, Client

State = cursor.CursorState
MAX_VALUE_BYTES = 450
FORMATS = (encoder.PLAIN, encoder.ZSTD, typha_encoder.SNAPPY)

names = st.sampled_from([f"web-{number}" for number in range(8)])
contents = st.integers(0, 3) | st.integers(100, 400).map("x".__mul__)
types = st.sampled_from([PODS, NODES])
indexes = st.integers(0, 5)
# Repeated entries are drawn more often. Without them, a client rarely is inside a frame when the log drops it.
steps = st.one_of(
    st.tuples(st.just("apply"), names, contents, types),
    st.tuples(st.just("apply"), names, contents, types),
    st.tuples(st.just("delete"), names, types),
    st.tuples(st.just("resync"), types),
    st.tuples(st.just("in_sync")),
    st.tuples(st.just("commit"), st.booleans()),
    st.tuples(st.just("commit"), st.just(True)),
    st.tuples(st.just("commit_part"), st.integers(1, 2)),
    st.tuples(st.just("publish"), indexes),
    st.tuples(st.just("make_snapshot"), indexes, st.booleans(), st.integers(0, 12)),
    st.tuples(st.just("take_the_log_back"), indexes),
    st.tuples(st.just("trim"), indexes, st.floats(0, 1)),
    st.tuples(st.just("connect"), indexes),
    st.tuples(st.just("send"), indexes, st.lists(st.integers(1, 300) | st.just(5000), min_size=1, max_size=6)),
    st.tuples(st.just("send"), indexes, st.lists(st.just(5000), min_size=3, max_size=8)),
    st.tuples(st.just("ping"), indexes),
    st.tuples(st.just("make_block"), indexes),
    st.tuples(st.just("forget_deletions"), st.floats(0, 1)),
)


class Pipeline:
    """A feed with a channel for each wire format, and the steps of a history."""

    def __init__(self, *, segment_bytes: int) -> None:
        specs = (raw.ResourceSpec(PODS), raw.ResourceSpec(NODES))
        limits = store.StoreLimits(chunk_target_keys=2, chunk_target_bytes=300, split_at_once_keys=4)
        self.feed = feed.RawFeed(raw.FeedSpec("pods", specs), max_value_bytes=MAX_VALUE_BYTES, store_limits=limits)
        self.expected: dict[str, bytes] = {}
        self.version = 0
        self.segment_bytes = segment_bytes
        self.channels: list[Channel] = []

    def run(self, step: tuple[object, ...]) -> None:
        """Run one step. Then check every client that is at the end of its log."""
        name, *arguments = step
        getattr(self, str(name))(*arguments)
        for client in self.clients():
            if client.is_at_end():
                self.check(client)

    def clients(self) -> list[Client]:
        return [client for channel in self.channels for client in channel.clients]

    def channel(self, index: int) -> Channel | None:
        """Return a channel. Open the next one first if the feed has data to serve and some are not open."""
        if len(self.channels) < len(FORMATS) and self.feed.synced_once:
            wire_format = FORMATS[len(self.channels)]
            self.channels.append(Channel(self.feed, wire_format, segment_bytes=self.segment_bytes))
        return self.channels[index % len(self.channels)] if self.channels else None

    def apply(self, name: str, content: object, type: resources.ResourceType) -> None:
        self.version += 1
        event = pod_event(name, version=self.version, content=content, type=type)
        key = raw.object_key(type, "default", name)
        value = raw.object_value(event.raw or b"", api_version="v1", kind="Pod")
        self.expected.pop(key, None)
        if len(value) <= MAX_VALUE_BYTES:
            self.expected[key] = value
        assert (self.feed.apply(event) is None) == (key in self.expected)

    def delete(self, name: str, type: resources.ResourceType) -> None:
        self.version += 1
        self.feed.delete(pod_event(name, version=self.version, type=type))
        self.expected.pop(raw.object_key(type, "default", name), None)

    def resync(self, type: resources.ResourceType) -> None:
        self.feed.set_status(type, messages.SyncStatus.RESYNC)

    def in_sync(self) -> None:
        for type in self.feed.types:
            self.feed.set_status(type, messages.SyncStatus.IN_SYNC)

    def commit(self, publishes: bool) -> None:
        self._commit(self.feed.take(), publishes)

    def commit_part(self, changes: int) -> None:
        """Commit the oldest changes. A status waits for the part that leaves none."""
        batch = self.feed.take(feed.BatchLimits(changes=changes, split_keys=1))
        assert batch is None or batch.status is None or not self.feed.is_unfinished or self.feed.store.is_splitting
        self._commit(batch, True)

    def _commit(self, batch: feed.Batch | None, publishes: bool) -> None:
        if batch is None:
            return
        for channel in self.channels:
            channel.append(batch)
            if publishes:
                channel.publish()

    def publish(self, index: int) -> None:
        if (channel := self.channel(index)) is not None:
            channel.publish()

    def make_snapshot(self, index: int, begins: bool, count: int) -> None:
        """Run some steps of a snapshot that begins now or began earlier."""
        if (channel := self.channel(index)) is not None:
            if begins:
                channel.begin_snapshot()
            for _ in range(count):
                channel.step_snapshot()

    def take_the_log_back(self, index: int) -> None:
        """Make a snapshot of this moment, and trim the log as far as possible."""
        if (channel := self.channel(index)) is not None:
            channel.begin_snapshot()
            while channel.step_snapshot():
                pass
            channel.trim(channel.writer.end)

    def trim(self, index: int, share: float) -> None:
        if (channel := self.channel(index)) is not None:
            channel.trim(int(channel.writer.end * share))

    def connect(self, index: int) -> None:
        if (channel := self.channel(index)) is not None:
            channel.clients.append(Client(channel))

    def send(self, index: int, counts: list[int]) -> None:
        for client in self.clients()[index : index + 1]:
            for count in counts:
                client.send(count)

    def ping(self, index: int) -> None:
        for client in self.clients()[index : index + 1]:
            if client.at_boundary(client.channel.reader):
                client.receive(client.channel.encoder.make_ping(1))

    def make_block(self, index: int) -> None:
        """Make a block that a client may read much later, if the rules still allow it."""
        for client in self.clients()[index : index + 1]:
            if client.state is State.CATCHING_UP:
                client.channel.make_block(client.sequence)

    def forget_deletions(self, share: float) -> None:
        self.feed.store.forget_deletions(int(self.feed.store.sequence * share / 2))

    def check(self, client: Client) -> None:
        """Check that the client's map is the store's, with revisions, status and sequence."""
        held = self.feed.store
        assert client.model.map.keys() == {entry.key for entry in held}
        for entry in held:
            update = client.model.map[entry.key]
            assert (update.value, update.revision) == (entry.value, entry.revision)
        if client.typha is not None:
            assert client.typha.statuses[-1] == held.status
            assert not any(one == other for one, other in itertools.pairwise(client.typha.statuses))
        else:
            assert client.model.status is held.status
            assert client.model.connection.sequence == held.sequence

    def finish(self) -> None:
        """Publish everything, and let every client reach the end of its log."""
        self.commit(True)
        assert {entry.key: entry.value for entry in self.feed.store} == self.expected
        for channel in self.channels:
            channel.publish()
            channel.begin_snapshot()
            while channel.step_snapshot():
                pass
        for client in self.clients():
            turns = 0
            while client.is_connected() and not client.is_at_end():
                client.send(1000)
                turns += 1
                assert turns < 10_000, client
            if client.is_connected():
                self.check(client)
                assert client.model.values() == self.expected


@pytest.mark.slow
@mock.patch.object(encoder, "FRAME_TARGET_BYTES", 400)
@mock.patch.object(typha_encoder, "UPDATES_PER_MESSAGE", 2)
@settings(max_examples=150)
@given(st.integers(100, 3000), st.lists(steps, min_size=60, max_size=160))
def test_a_client_at_the_end_of_the_log_has_the_servers_map(
    segment_bytes: int, history: list[tuple[object, ...]]
) -> None:
    descriptors_before = channel_harness.descriptors_before()
    pipeline = Pipeline(segment_bytes=segment_bytes)
    try:
        for step in [("in_sync",), ("commit", True), ("connect", 0), ("connect", 1), ("connect", 2), *history]:
            pipeline.run(step)
        pipeline.finish()
    finally:
        for channel in pipeline.channels:
            channel.close()
    assert channel_harness.open_descriptors() == descriptors_before
