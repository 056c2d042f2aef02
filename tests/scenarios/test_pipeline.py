"""From objects to clients' maps, in any order of events: rule 1 of the design, in both wire formats.

A client at the end of the log holds exactly the server's map, whenever its snapshot was cut and made, wherever its
reads stopped, and however often the log was taken from under its feet.
"""

import os
from collections.abc import Iterator
from unittest import mock

from hypothesis import given, settings
from hypothesis import strategies as st

from cache import cursor, feed, log, raw, resources, snapshot, store
from protocol import encoding, messages, reasons
from protocol.native import codec, encoder, frames
from tests.cache import channel_harness
from tests.cache.channel_harness import NODES, PODS, pod_event

State = cursor.CursorState
MAX_VALUE_BYTES = 450
PING = frames.pack_frame(codec.encode(messages.Ping()))

names = st.sampled_from([f"web-{number}" for number in range(8)])
contents = st.integers(0, 3) | st.integers(100, 400).map("x".__mul__)
types = st.sampled_from([PODS, NODES])
indexes = st.integers(0, 5)
# Each entry is drawn as often as it stands here; a client that stands inside a frame when the log goes is rare enough.
steps = st.one_of(
    st.tuples(st.just("apply"), names, contents, types),
    st.tuples(st.just("apply"), names, contents, types),
    st.tuples(st.just("delete"), names, types),
    st.tuples(st.just("resync"), types),
    st.tuples(st.just("in_sync")),
    st.tuples(st.just("commit"), st.booleans()),
    st.tuples(st.just("commit"), st.just(True)),
    st.tuples(st.just("publish"), indexes),
    st.tuples(st.just("make_snapshot"), indexes, st.booleans(), st.integers(0, 12)),
    st.tuples(st.just("take_the_log_back"), indexes),
    st.tuples(st.just("trim"), indexes, st.floats(0, 1)),
    st.tuples(st.just("connect"), indexes),
    st.tuples(st.just("send"), indexes, st.lists(st.integers(1, 300) | st.just(5000), min_size=1, max_size=6)),
    st.tuples(st.just("send"), indexes, st.lists(st.just(5000), min_size=3, max_size=8)),
    st.tuples(st.just("ping"), indexes),
)


class Channel:
    """One wire format's log and snapshots, with what a worker has been told of them."""

    def __init__(self, source: feed.RawFeed, *, zstd: bool, segment_bytes: int) -> None:
        self.source = source
        self.encoder = encoder.NativeEncoder(zstd=zstd)
        self.writer = log.LogWriter(segment_bytes=segment_bytes, sequence=source.store.sequence)
        self.reader = log.LogReader()
        self.newest: snapshot.Snapshot | None = None
        self.builder: snapshot.SnapshotBuilder | None = None
        self.steps: Iterator[None] = iter(())
        self.file: cursor.SnapshotFile | None = None
        self.clients: list[Client] = []
        self.status_offset = 0

    def append(self, batch: feed.Batch) -> None:
        encoded: list[encoding.EncodedFrame] = []
        if batch.updates:
            encoded += self.encoder.updates(batch.previous_sequence, batch.updates)
        if batch.status is not None:
            encoded.append(self.encoder.status(batch.previous_sequence + len(batch.updates), batch.status))
        for segment in self.writer.append(encoded):
            descriptors = os.dup(segment.descriptor), os.dup(segment.index_descriptor)
            self.reader.add_segment(segment.base, segment.size, *descriptors)
            self.status_offset = self.writer.status_offset

    def publish(self) -> None:
        if self.writer.segments:
            self.reader.publish(self.writer.end, self.writer.segments[-1].frames)
            self.status_offset = self.writer.status_offset

    def begin_snapshot(self) -> None:
        self.give_up_snapshot()
        since = -1 if self.newest is None else self.newest.sequence
        cut = self.source.store.cut(since_sequence=since)
        self.builder = snapshot.SnapshotBuilder(self.encoder, cut, log_offset=self.writer.end, previous=self.newest)
        self.steps = self.builder.steps()

    def step_snapshot(self) -> bool:
        """One step; False when the file is finished and told of."""
        if self.builder is None or next(self.steps, self) is None:
            return self.builder is not None
        if self.newest is not None:
            self.newest.close()
        made = self.newest = self.builder.snapshot
        self.builder = None
        self.close_file()
        self.file = cursor.SnapshotFile(
            os.dup(made.descriptor),
            length=made.length,
            log_offset=made.log_offset,
            sequence=made.sequence,
            status=made.status,
        )
        return False

    def give_up_snapshot(self) -> None:
        if self.builder is not None:
            self.builder.abandon()
            self.builder = None

    def close_file(self) -> None:
        """A file that somebody reads is closed by its last reader."""
        if self.file is not None and self.file.readers == 0:
            os.close(self.file.descriptor)
        self.file = None

    def trim(self, before_offset: int) -> None:
        limit = self.writer.start if self.newest is None else self.newest.log_offset
        start = self.writer.trim(min(before_offset, limit))
        self.publish()
        for client in self.clients:
            if client.state is State.FOLLOWING and client.offset < start:
                client.become_catching_up(self.reader)
        self.reader.drop(start)

    def close(self) -> None:
        for client in self.clients:
            client.leave()
        self.give_up_snapshot()
        self.close_file()
        if self.newest is not None:
            self.newest.close()
        self.writer.close()
        self.reader.close()


class Client(cursor.Cursor):
    """A cursor, and the client at the other end of its wire; moves as `typha.delivery` moves one."""

    def __init__(self, channel: Channel) -> None:
        super().__init__()
        self.channel = channel
        self.model = channel_harness.ModelClient()
        self.greet_offset = 0
        self.greeting: memoryview | None = None
        self.become_held()

    def send(self, count: int) -> None:
        """Up to so many bytes of what it is owed, or its next place."""
        reader = self.channel.reader
        if self.state is State.HELD:
            self._begin_snapshot()
        elif self.state is State.SNAPSHOT and self.snapshot is not None:
            data = os.pread(self.snapshot.descriptor, min(count, self.snapshot.length - self.position), self.position)
            self.position += len(data)
            self.model.receive(data)
            if self.position == self.snapshot.length:
                self._follow(self.snapshot)
        elif self.tail:
            self.model.receive(bytes(self.tail[:count]))
            self.tail = self.tail[count:]
        elif self.state is State.CATCHING_UP:
            self.become_held()
        elif self.greeting is not None and self.offset == self.greet_offset:
            self.tail, self.greeting = self.greeting, None
        elif self.offset < reader.end:
            descriptor, position, available = reader.file_range(self.offset)
            if self.greeting is not None:
                available = min(available, self.greet_offset - self.offset)
            data = os.pread(descriptor, min(count, available), position)
            assert data == reader.view(self.offset)[: len(data)]
            self.offset += len(data)
            self.model.receive(data)
            assert self.greeting is None or self.model.status is None, "told a status of the past"

    def _begin_snapshot(self) -> None:
        """If the log behind the newest one is all there and tells no status, which is told where the present is."""
        reader, file = self.channel.reader, self.channel.file
        if file is None or file.log_offset < max(reader.start, self.channel.status_offset):
            return
        self.become_snapshot(file)
        self.greet_offset = max(reader.end, file.log_offset)
        is_new = self.greet_offset == file.log_offset
        sequence = file.sequence if is_new else reader.sequence_at(self.greet_offset)
        self.greeting = memoryview(self.channel.encoder.status(sequence, file.status).data)

    def _follow(self, read: cursor.SnapshotFile) -> None:
        self.become_following()
        self._close_unread(read)
        if self.offset < self.channel.reader.start:
            self.become_catching_up(self.channel.reader)

    def _close_unread(self, read: cursor.SnapshotFile) -> None:
        if read is not self.channel.file and read.readers == 0:
            os.close(read.descriptor)

    def leave(self) -> None:
        read = self.snapshot
        self.become_closing(reasons.DisconnectReason.CLIENT_CLOSED)
        if read is not None:
            self._close_unread(read)

    def is_at_end(self) -> bool:
        is_told = self.greeting is None and not self.tail
        return self.state is State.FOLLOWING and is_told and self.offset == self.channel.writer.end


class Pipeline:
    """A feed with a channel for each wire format, and the steps of a history."""

    def __init__(self, *, segment_bytes: int) -> None:
        specs = (raw.ResourceSpec(PODS), raw.ResourceSpec(NODES))
        self.feed = feed.RawFeed(raw.FeedSpec("pods", specs), max_value_bytes=MAX_VALUE_BYTES)
        self.expected: dict[str, bytes] = {}
        self.version = 0
        self.segment_bytes = segment_bytes
        self.channels: list[Channel] = []

    def run(self, step: tuple[object, ...]) -> None:
        """One step; then whoever is at the end of a log must hold everything."""
        name, *arguments = step
        getattr(self, str(name))(*arguments)
        for client in self.clients():
            if client.is_at_end():
                self.check(client)

    def clients(self) -> list[Client]:
        return [client for channel in self.channels for client in channel.clients]

    def channel(self, index: int) -> Channel | None:
        """One of the two, opened if it is not yet and the feed has something to serve."""
        if len(self.channels) < 2 and self.feed.synced_once:
            zstd = len(self.channels) == 1
            self.channels.append(Channel(self.feed, zstd=zstd, segment_bytes=self.segment_bytes))
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
        batch = self.feed.take()
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
        """Some steps of one, begun now or earlier."""
        if (channel := self.channel(index)) is not None:
            if begins:
                channel.begin_snapshot()
            for _ in range(count):
                channel.step_snapshot()

    def take_the_log_back(self, index: int) -> None:
        """As far as it goes: a snapshot of this moment, and all before it is trimmed."""
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
                client.model.receive(PING)

    def check(self, client: Client) -> None:
        """The client's map is the store's, with revisions, status and sequence."""
        held = self.feed.store
        assert client.model.map.keys() == {entry.key for entry in held}
        for entry in held:
            update = client.model.map[entry.key]
            assert (update.value, update.revision) == (entry.value, entry.revision)
        assert client.model.status is held.status
        assert client.model.connection.sequence == held.sequence

    def finish(self) -> None:
        """When all is published and made, every client gets to the end of the log."""
        self.commit(True)
        assert {entry.key: entry.value for entry in self.feed.store} == self.expected
        for channel in self.channels:
            channel.publish()
            channel.begin_snapshot()
            while channel.step_snapshot():
                pass
        for client in self.clients():
            turns = 0
            while not client.is_at_end():
                client.send(1000)
                turns += 1
                assert turns < 10_000, client
            self.check(client)
            assert client.model.values() == self.expected


@mock.patch.object(store, "CHUNK_TARGET_KEYS", 2)
@mock.patch.object(store, "CHUNK_TARGET_BYTES", 300)
@mock.patch.object(encoder, "FRAME_TARGET_BYTES", 400)
@settings(max_examples=150)
@given(st.integers(100, 3000), st.lists(steps, min_size=60, max_size=160))
def test_whoever_is_at_the_end_holds_the_servers_map(segment_bytes: int, history: list[tuple[object, ...]]) -> None:
    descriptors_before = channel_harness.open_descriptors()
    pipeline = Pipeline(segment_bytes=segment_bytes)
    try:
        for step in [("in_sync",), ("commit", True), ("connect", 0), ("connect", 1), *history]:
            pipeline.run(step)
        pipeline.finish()
    finally:
        for channel in pipeline.channels:
            channel.close()
    assert channel_harness.open_descriptors() == descriptors_before
