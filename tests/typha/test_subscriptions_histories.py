"""From objects to the maps of clients that subscribe, for any order of events (docs/protocol.md, rules S3 to S5).

A client that has been sent all that is published has exactly the selected part of the feed, whatever its snapshot, its
pauses, the moves of objects between nodes, and the moment at which the selection took over what the feed had.
"""

import contextlib
import os
from collections.abc import Iterator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cache import resources
from cache.feeds import feed, raw, selection
from cache.state import cursor, files, store
from protocol import digest, formats, messages, subscriptions
from protocol.native import codec, connection, encoder, frames
from protocol.subscriptions import Subscription
from tests.harness import channel_harness, dictionaries
from tests.harness.channel_harness import NODES, PODS, pod_event
from tests.harness.worker_stand import is_selected
from typha.hub import policy as hub_policy
from typha.hub.channel import HubChannel
from typha.ipc import messages as ipc
from typha.worker import client, policy
from typha.worker.channel import WorkerChannel

WANTED = (
    Subscription(own_node=True),
    Subscription(kinds=("core/v1/pods",), own_node=True),
    Subscription(kinds=("core/v1/nodes",)),
    Subscription(namespaces=("default",), prefixes=("/core/v1/pods/default/web-1", "/core/v1/pods/default/web-2")),
)
LIMITS = hub_policy.HubPolicy(log_budget_bytes=1 << 20, segment_bytes=1500, max_frame_bytes=1 << 16)
DICTIONARIES = [dictionaries.trained(number) for number in (1, 2, 1)]
"""The third has the number of the first, as that of another channel might."""
SERVICES = resources.ResourceType("", "v1", "services")
"""Common to all nodes."""
NODE_NAMES = ("web-0", "web-1", "web-2")

names = st.sampled_from([f"web-{number}" for number in range(8)])
nodes = st.sampled_from(["", *NODE_NAMES])
indexes = st.integers(0, 5)
steps = st.one_of(
    st.tuples(st.just("apply"), names, nodes, st.integers(0, 300)),
    st.tuples(st.just("apply"), names, nodes, st.integers(0, 300)),
    st.tuples(st.just("apply"), names, nodes, st.integers(0, 3)),
    st.tuples(st.just("apply_other"), names, st.integers(0, 3), st.sampled_from([NODES, SERVICES, SERVICES])),
    st.tuples(st.just("delete"), names, st.sampled_from([PODS, NODES, SERVICES])),
    st.tuples(st.just("status"), st.booleans()),
    st.tuples(st.just("commit"), st.booleans()),
    st.tuples(st.just("commit"), st.just(True)),
    st.tuples(st.just("publish"), indexes),
    st.tuples(st.just("seed"), indexes),
    st.tuples(st.just("snapshot"), indexes),
    st.tuples(st.just("trim"), indexes),
    st.tuples(st.just("dictionary"), indexes, st.integers(0, 2)),
    st.tuples(st.just("connect"), indexes, st.sampled_from(NODE_NAMES)),
    st.tuples(st.just("send"), indexes, st.lists(st.integers(1, 300) | st.just(5000), min_size=1, max_size=6)),
    st.tuples(st.just("serve")),
    st.tuples(st.just("serve")),
)


class Hub:
    """A link's end that drops what is sent."""

    def send(self, message: object, /) -> None:
        """Drop the message."""


class Model:
    """A client that applies what it gets, and checks every claim of the server. It sees a subscription in force."""

    def __init__(self) -> None:
        self.connection = connection.Connection(connection.Role.CLIENT)
        self.map: dict[str, bytes] = {}
        self.status: messages.SyncStatus | None = None
        self._new: dict[str, bytes] = {}
        self._chunks: list[int] = []
        hello = messages.ServerHello(1, "pods", bytes(16), features=frozenset({"subscriptions", "zstd-dictionary"}))
        self.receive(frames.PREFACE + frames.pack_frame(codec.encode(hello)))

    def receive(self, data: bytes) -> None:
        """Process bytes."""
        self.connection.receive_data(data)
        while (message := self.connection.next_event()) is not None:
            self._take(message)

    def _take(self, message: messages.Message) -> None:
        match message:
            case messages.SnapshotBegin():
                self._new, self._chunks, self.status = {}, [], None
                self._announced = message
            case messages.SnapshotChunk():
                if message.index not in self._chunks:
                    self._chunks.append(message.index)
                for update in message.updates:
                    assert update.value is not None
                    assert update.key not in self._new
                    self._new[update.key] = update.value
            case messages.SnapshotEnd():
                assert self._chunks == list(range(self._announced.chunks))
                assert len(self._new) == message.keys == self._announced.keys
                assert digest.state_digest(self._new.items()) == message.digest
                self.map = self._new
            case messages.Updates():
                for update in message.updates:
                    if update.value is not None:
                        self.map[update.key] = update.value
                    elif self.status is messages.SyncStatus.CATCHING_UP:
                        self.map.pop(update.key, None)
                    else:
                        del self.map[update.key]
            case messages.Status():
                self.status = message.status


class Reader(client.Client):
    """The server's end of a client. It moves as in `typha.worker.delivery`."""

    def __init__(self, served: "Served", node: str) -> None:
        cursor.Cursor.__init__(self)
        self.index = -1
        self.channel = None
        self.greeting = None
        self.served = served
        self.node = node
        self.tag = subscriptions.tag_of(node) if served.worker.is_by_node else subscriptions.COMMON
        self.model = Model()
        self.become_held()

    def __repr__(self) -> str:
        return f"<Reader on {self.node} {self.state.value} offset={self.offset}>"

    def send(self, count: int) -> None:
        """Send up to `count` bytes of what comes next, or move on to it."""
        worker = self.served.worker
        if self.state is cursor.CursorState.HELD:
            snapshot = worker.servable_snapshot
            if snapshot is not None:
                worker.owe_dictionary(self, snapshot.log_offset)
                self.become_snapshot(snapshot, worker.take_pieces(self, snapshot))
                self.greeting = worker.greeting(snapshot)
        elif self.tail:
            self._sent(bytes(self.tail[:count]))
        elif self.snapshot is not None:
            self._send_snapshot(self.snapshot, count)
        elif self.state is cursor.CursorState.CATCHING_UP:
            self.become_held()
        else:
            self._send_log(count)

    def _sent(self, data: bytes) -> None:
        self.note_sent(len(data))
        self.model.receive(data)

    def _send_snapshot(self, snapshot: files.SnapshotFile, count: int) -> None:
        piece = self.pieces.at(self.position) if self.pieces else files.Piece(None, self.position, snapshot.length)
        wanted = min(count, piece.length)
        data = piece.data[:wanted] if piece.data else os.pread(snapshot.descriptor, wanted, piece.position)
        self._sent(data)
        if self.position == self.read_length:
            self.become_following()
            self.served.worker.close_unread_snapshots()
            if self.offset < self.served.worker.log.start:
                self.fall_behind()

    def _send_log(self, count: int) -> None:
        worker, log = self.served.worker, self.served.worker.log
        worker.pass_over(self)
        if self.greeting is not None and self.offset == self.greeting.offset:
            self.owe(self.greeting.frame)
            self.greeting = None
        elif self.offset < log.end:
            available = log.file_range(self.offset)[2]
            if worker.is_by_node:
                available = min(available, log.end_of_own(self.offset, self.tag) - self.offset)
            if self.greeting is not None:
                available = min(available, self.greeting.offset - self.offset)
            self._sent(bytes(log.view(self.offset)[: min(count, available)]))

    def fall_behind(self) -> None:
        """The log does not hold the client's place any longer."""
        self.become_catching_up(self.served.worker.log)
        self.greeting = None
        self.owe(self.served.worker.status_frame(self.sequence, messages.SyncStatus.CATCHING_UP))

    @property
    def is_at_end(self) -> bool:
        """Whether it has been sent everything that is published."""
        log = self.served.worker.log
        if self.state is not cursor.CursorState.FOLLOWING or self.greeting is not None or self.tail:
            return False
        return log.next_of(self.offset, self.tag, log.end) == log.end


class Served:
    """A selection with its channel, and a worker's end of that."""

    def __init__(self, number: int, source: feed.RawFeed, wanted: Subscription, wire_format: str) -> None:
        self.number = number
        self.wanted = wanted
        self.selection = selection.Selection(source, wanted.normalized())
        self.seed = self.selection.seed()
        self.encoder = formats.make_encoder(wire_format, max_frame_bytes=LIMITS.max_frame_bytes)
        self.hub: HubChannel | None = None
        self.worker = WorkerChannel("pods", self.encoder, Hub(), policy.Policy(), self.selection.subscription)
        self.readers: list[Reader] = []
        self.newest_dictionary = 0
        """Offset of the newest one that the worker knows."""

    def go_on_seeding(self, *, to_the_end: bool = False) -> None:
        """Take over some of what the feed has; after all of it, open the channel."""
        while self.hub is None:
            if next(self.seed, self) is not self:
                if to_the_end:
                    continue
                return
            if not self.selection.synced_once:
                return
            self.hub = HubChannel(self.number, self.selection, self.encoder, LIMITS)
            self.worker.open(self.number, start=0, start_sequence=self.hub.log.start_sequence)

    def follow(self, batch: feed.Batch) -> None:
        """Process a batch of the feed."""
        selected = self.selection.follow(batch)
        hub = self.hub
        if selected is None or hub is None:
            return
        for segment in hub.append(selected):
            self.worker.log.add_segment(
                segment.base, segment.size, os.dup(segment.descriptor), os.dup(segment.index_descriptor)
            )
        for logged in hub.dictionaries[-1:]:
            if logged.offset > self.newest_dictionary:
                self.newest_dictionary = logged.offset
                self.worker.note_dictionary(logged.offset, logged.frame)
        if hub.log.status_offset > self.worker.status_offset:
            self.worker.note_status(hub.log.status_offset, hub.log.status)

    def publish(self) -> None:
        """Let the worker see all of the log."""
        if self.hub is not None and self.hub.log.segments:
            self.worker.publish(self.hub.log.end, self.hub.frames, ipc.UNKNOWN_TIMES)

    def build_snapshot(self) -> None:
        """Make a snapshot of this moment."""
        hub = self.hub
        if hub is None:
            return
        builder = hub.begin_snapshot()
        for _ in builder.steps():
            pass
        hub.end_snapshot(builder.snapshot)
        made = hub.snapshot_file
        assert made is not None
        made.descriptor = os.dup(made.descriptor)
        self.worker.set_snapshot(made, 0.0)

    def trim(self) -> None:
        """Drop the log before the newest snapshot."""
        if self.hub is None or self.hub.snapshot is None:
            return
        start = self.hub.log.trim(self.hub.trim_limit(self.hub.log.end))
        self.publish()
        self.worker.trim_offset = start
        away: set[client.Client] = set(self.readers)
        self.worker.away = away
        for one in self.worker.behind(start):
            assert isinstance(one, Reader)
            one.fall_behind()
        self.worker.drop_log(start)

    def close(self) -> None:
        """Close all files."""
        self.worker.close()
        if self.hub is not None:
            self.hub.close()


class Pipeline:
    """A feed, selections of it, and the steps of a history."""

    def __init__(self, wire_format: str) -> None:
        specs = (raw.ResourceSpec(PODS), raw.ResourceSpec(NODES), raw.ResourceSpec(SERVICES))
        limits = store.StoreLimits(chunk_target_keys=2, chunk_target_bytes=300, split_at_once_keys=4)
        self.feed = feed.RawFeed(raw.FeedSpec("pods", specs), max_value_bytes=1 << 16, store_limits=limits)
        self.version = 0
        self.served = [Served(number, self.feed, wanted, wire_format) for number, wanted in enumerate(WANTED, 1)]

    def run(self, step: tuple[object, ...]) -> None:
        """Run one step. Then check every client that has been sent everything."""
        name, *arguments = step
        getattr(self, str(name))(*arguments)
        for served in self.served:
            for reader in served.readers:
                if reader.is_at_end and served.hub is not None and served.worker.log.end == served.hub.log.end:
                    self.check(served, reader)

    def check(self, served: Served, reader: Reader) -> None:
        """Check the client's map and status."""
        content = {entry.key: entry.value for entry in self.feed.store}
        expected = {key: value for key, value in content.items() if is_selected(served.wanted, reader.node, key, value)}
        assert reader.model.map == expected
        assert reader.model.status is self.feed.store.status
        assert reader.model.connection.sequence <= self.feed.store.sequence

    def apply(self, name: str, node: str, size: int) -> None:
        self.version += 1
        content = {"nodeName": node, "filling": "x" * size}
        self.feed.apply(pod_event(name, version=self.version, content=content))

    def apply_other(self, name: str, content: int, type: resources.ResourceType) -> None:
        self.version += 1
        self.feed.apply(pod_event(name, version=self.version, content={"content": content}, type=type))

    def delete(self, name: str, type: resources.ResourceType) -> None:
        self.version += 1
        self.feed.delete(pod_event(name, version=self.version, type=type))

    def status(self, is_in_sync: bool) -> None:
        wanted = messages.SyncStatus.IN_SYNC if is_in_sync else messages.SyncStatus.RESYNC
        for type in self.feed.types:
            self.feed.set_status(type, wanted)

    def commit(self, publishes: bool) -> None:
        batch = self.feed.take(feed.BatchLimits(changes=6, split_keys=2))
        for served in self.served:
            if batch is not None:
                served.follow(batch)
            if publishes:
                served.publish()

    def _one(self, index: int) -> Served:
        return self.served[index % len(self.served)]

    def publish(self, index: int) -> None:
        self._one(index).publish()

    def seed(self, index: int) -> None:
        self._one(index).go_on_seeding()

    def snapshot(self, index: int) -> None:
        self._one(index).build_snapshot()

    def trim(self, index: int) -> None:
        self._one(index).build_snapshot()
        self._one(index).trim()

    def dictionary(self, index: int, which: int) -> None:
        """From the next batch on, the channel compresses with this dictionary, if its clients understand them."""
        hub = self._one(index).hub
        if hub is not None:
            hub.offer_dictionary(DICTIONARIES[which])

    def connect(self, index: int, node: str) -> None:
        served = self._one(index)
        served.readers.append(Reader(served, node))

    def send(self, index: int, counts: list[int]) -> None:
        served = self._one(index)
        for reader in served.readers if served.hub is not None else ():
            for count in counts:
                reader.send(count)

    def serve(self) -> None:
        """Publish everything, and send much of it to everybody."""
        self.commit(True)
        for index, served in enumerate(self.served):
            if served.hub is not None and served.worker.servable_snapshot is None:
                served.build_snapshot()
            self.send(index, [5000] * 12)

    def prepare(self, seeded: set[int]) -> None:
        """Begin with some objects, in sync. Some selections have taken them over, and have clients."""
        for number in range(4):
            self.apply(f"web-{number}", NODE_NAMES[number % 3], number)
            self.apply_other(f"web-{number}", 0, NODES)
            self.apply_other(f"web-{number}", 0, SERVICES)
        self.status(True)
        while self.feed.backlog or not self.feed.synced_once:
            self.commit(True)
        for index, served in enumerate(self.served):
            if index in seeded:
                served.go_on_seeding(to_the_end=True)
            for node in NODE_NAMES[:2]:
                self.connect(index, node)
        self.serve()

    def finish(self) -> None:
        """Let every client come to the end."""
        self.status(True)
        while self.feed.backlog or self.feed.store.status is not messages.SyncStatus.IN_SYNC:
            self.commit(True)
        for served in self.served:
            served.go_on_seeding(to_the_end=True)
            served.publish()
            served.build_snapshot()
            for reader in served.readers:
                turns = 0
                while not reader.is_at_end:
                    reader.send(1000)
                    turns += 1
                    assert turns < 10_000, reader
        self.run(("publish", 0))


@contextlib.contextmanager
def small_seeds() -> Iterator[None]:
    """Selections take over two entries in a step."""
    before = selection._SEED_SLICE
    selection._SEED_SLICE = 2
    try:
        yield
    finally:
        selection._SEED_SLICE = before


@pytest.mark.parametrize("wire_format", encoder.NAMES)
def test_clients_have_the_selected_part(wire_format: str) -> None:
    descriptors = channel_harness.descriptors_before()

    @settings(max_examples=200, deadline=None)
    @given(seeded=st.sets(st.integers(0, 3)), history=st.lists(steps, max_size=60))
    def check(seeded: set[int], history: list[tuple[object, ...]]) -> None:
        pipeline = Pipeline(wire_format)
        with contextlib.ExitStack() as stack, small_seeds():
            for served in pipeline.served:
                stack.callback(served.close)
            pipeline.prepare(seeded)
            for step in history:
                pipeline.run(step)
            pipeline.finish()
        assert channel_harness.open_descriptors() == descriptors

    check()
