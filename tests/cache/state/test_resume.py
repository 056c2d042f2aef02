"""A client that comes back has the server's map, whatever it had, whoever serves it, and wherever it was cut off.

Replicas of a service see one history of objects, each at its own pace. A replica may be started again, also from an
older state of the objects. Clients keep their map, connect to any replica, and are cut off at any byte.
"""

import array
import os
import zlib
from unittest import mock

import pytest
from hypothesis import event, given, settings
from hypothesis import strategies as st

from cache.feeds import feed, raw
from cache.state import cursor, files, resume, snapshot, store
from protocol import digest, messages
from protocol.native import codec, encoder, frames
from tests.harness import channel_harness
from tests.harness.channel_harness import PODS, pod_event
from tests.harness.pipeline_channel import Channel, Client
from tests.harness.returning import Returning
from typha.worker import protocol_adapters

State = cursor.CursorState
LIMITS = store.StoreLimits(chunk_target_keys=2, chunk_target_bytes=300, split_at_once_keys=4)
CLIENTS = 3
REPLICAS = 2

names = st.sampled_from([f"web-{number}" for number in range(12)])
contents = st.integers(0, 3) | st.integers(100, 300).map("x".__mul__)
replicas = st.integers(0, REPLICAS - 1)
clients = st.integers(0, CLIENTS - 1)
counts = st.lists(st.integers(1, 300) | st.just(5000), min_size=1, max_size=8)
steps = st.one_of(
    st.tuples(st.just("apply"), st.lists(st.tuples(names, st.none() | contents), min_size=1, max_size=6)),
    st.tuples(st.just("see"), replicas, st.integers(1, 12)),
    st.tuples(st.just("see"), replicas, st.just(100)),
    st.tuples(st.just("resync"), replicas, st.booleans()),
    st.tuples(st.just("make_snapshot"), replicas),
    st.tuples(st.just("take_the_log_back"), replicas),
    st.tuples(st.just("forget_deletions"), replicas, st.floats(0, 1)),
    st.tuples(st.just("restart"), replicas, st.floats(0, 1)),
    st.tuples(st.just("connect"), clients, replicas),
    st.tuples(st.just("connect"), clients, replicas),
    st.tuples(st.just("send"), clients, counts),
    st.tuples(st.just("follow"), clients),
    st.tuples(st.just("come_back"), clients),
    st.tuples(st.just("come_back"), clients),
    st.tuples(st.just("cut_off"), clients),
)


class Replica:
    """One incarnation of a server, which has seen the first `seen` events."""

    def __init__(self, incarnation: int, history: list[tuple[str, object]], seen: int) -> None:
        self.history = history
        self.seen = 0
        self.feed = feed.RawFeed(
            raw.FeedSpec("pods", (raw.ResourceSpec(PODS),)), max_value_bytes=1000, store_limits=LIMITS
        )
        latest = dict(history[:seen])
        for version, (name, content) in enumerate(sorted(latest.items(), key=lambda one: one[0])):
            if content is not None:
                self.feed.apply(pod_event(name, version=version + 1, content=content))
        self.seen = seen
        self.feed.set_status(PODS, messages.SyncStatus.IN_SYNC)
        self.feed.take()
        self.channel = Channel(self.feed, encoder.PLAIN, segment_bytes=1000)
        self.status = messages.SyncStatus.IN_SYNC
        self.channel.statuses = [(0, self.status)]
        self.offer = protocol_adapters.Offer(
            frozenset({"pods"}), incarnation.to_bytes(16, "big"), ping_interval_seconds=10.0, max_frame_bytes=1 << 24
        )
        self.make_snapshot()

    def see(self, count: int) -> None:
        """See the next events, as one batch."""
        for name, content in self.history[self.seen : self.seen + count]:
            self.seen += 1
            happened = pod_event(name, version=self.seen + 1000, content=content)
            if content is None:
                self.feed.delete(happened)
            else:
                self.feed.apply(happened)
        self._commit()

    def resync(self, in_sync: bool) -> None:
        self.feed.set_status(PODS, messages.SyncStatus.IN_SYNC if in_sync else messages.SyncStatus.RESYNC)
        self._commit()

    def _commit(self) -> None:
        batch = self.feed.take()
        if batch is not None:
            self.channel.append(batch)
            self.channel.publish()

    def make_snapshot(self) -> None:
        self.channel.begin_snapshot()
        while self.channel.step_snapshot():
            pass

    def take_the_log_back(self) -> None:
        self.make_snapshot()
        self.channel.trim(self.channel.writer.end)

    @property
    def content(self) -> dict[str, bytes]:
        return {entry.key: entry.value for entry in self.feed.store}


class World:
    """Replicas, clients, and the steps of a history."""

    def __init__(self, features: frozenset[str]) -> None:
        self.history: list[tuple[str, object]] = []
        self.started = 0
        self.replicas = [self._start(0) for _ in range(REPLICAS)]
        self.old: list[Replica] = []
        self.clients = [Returning("pods", features=features) for _ in range(CLIENTS)]
        self.connected: dict[int, tuple[Client, Replica]] = {}

    def _start(self, seen: int) -> Replica:
        self.started += 1
        return Replica(self.started, self.history, seen)

    def run(self, step: tuple[object, ...]) -> None:
        name, *arguments = step
        getattr(self, str(name))(*arguments)
        for number in self.connected:
            self.check(number)

    def apply(self, changes: list[tuple[str, object]]) -> None:
        self.history += changes

    def see(self, replica: int, count: int) -> None:
        self.replicas[replica].see(count)

    def resync(self, replica: int, in_sync: bool) -> None:
        self.replicas[replica].resync(in_sync)

    def make_snapshot(self, replica: int) -> None:
        self.replicas[replica].make_snapshot()

    def take_the_log_back(self, replica: int) -> None:
        self.replicas[replica].take_the_log_back()

    def forget_deletions(self, replica: int, share: float) -> None:
        content = self.replicas[replica].feed.store
        content.forget_deletions(int(content.sequence * share))

    def restart(self, replica: int, share: float) -> None:
        """Another incarnation, which knows the objects as they were at some time."""
        gone = self.replicas[replica]
        for number in [number for number, (_, at) in self.connected.items() if at is gone]:
            self.cut_off(number)
        self.old.append(gone)
        self.replicas[replica] = self._start(int(len(self.history) * share))

    def connect(self, number: int, replica: int) -> None:
        self.cut_off(number)
        at, returning = self.replicas[replica], self.clients[number]
        [greeted] = protocol_adapters.NativeAdapter(at.offer, number).receive(returning.connect())
        assert isinstance(greeted, protocol_adapters.Subscribed)
        one = Client(at.channel, returning, greeted.resumption)
        at.channel.clients.append(one)
        self.connected[number] = one, at
        one.receive(greeted.data)

    def send(self, number: int, counts: list[int]) -> None:
        if number in self.connected:
            for count in counts:
                self.connected[number][0].send(count)

    def follow(self, number: int) -> None:
        """Send all there is, if it can be sent."""
        if number in self.connected:
            one, _ = self.connected[number]
            for _ in range(200):
                if not one.is_at_end():
                    one.send(5000)

    def come_back(self, number: int) -> None:
        """Connect to the same replica once more."""
        if number in self.connected:
            self.connect(number, self.replicas.index(self.connected[number][1]))

    def cut_off(self, number: int) -> None:
        if number in self.connected:
            one, at = self.connected.pop(number)
            at.channel.clients.remove(one)
            if one.is_connected():
                one.leave()

    def check(self, number: int) -> None:
        """A client at the end of the log has the replica's map, and knows how current it is."""
        one, at = self.connected[number]
        if one.is_at_end():
            returning = self.clients[number]
            assert returning.entries == at.content
            assert returning.status is at.feed.store.status
            assert returning.differ.position == (at.offer.incarnation, at.feed.store.sequence)

    def finish(self) -> None:
        for number in range(CLIENTS):
            replica = number % REPLICAS
            self.see(replica, len(self.history))
            self.resync(replica, True)
            self.make_snapshot(replica)
            self.connect(number, replica)
            one, at = self.connected[number]
            turns = 0
            while not one.is_at_end():
                one.send(1000)
                turns += 1
                assert turns < 10_000, one
            self.check(number)
            event(_how(self.clients[number].kinds))
            assert at.seen == len(self.history)

    def close(self) -> None:
        for number in range(CLIENTS):
            self.cut_off(number)
        for replica in (*self.replicas, *self.old):
            replica.channel.close()


def _how(kinds: list[type[messages.Message]]) -> str:
    if messages.SnapshotBegin in kinds:
        return "whole snapshot"
    return "digests" if messages.SnapshotResume in kinds else "position"


@pytest.mark.slow
@pytest.mark.parametrize("features", [{"resume", "chunk-digests"}, {"resume"}, {"chunk-digests"}], ids=sorted)
@mock.patch.object(encoder, "FRAME_TARGET_BYTES", 400)
@settings(max_examples=60)
@given(history=st.lists(steps, min_size=20, max_size=80))
def test_a_client_that_comes_back_has_the_servers_map(features: set[str], history: list[tuple[object, ...]]) -> None:
    descriptors_before = channel_harness.descriptors_before()
    world = World(frozenset(features))
    try:
        for step in [("apply", [("web-0", 1), ("web-1", 2)]), ("see", 0, 9), ("connect", 0, 0), *history]:
            world.run(step)
        world.finish()
    finally:
        world.close()
    assert channel_harness.open_descriptors() == descriptors_before


def snapshot_of(source: store.Store) -> tuple[files.SnapshotFile, bytes]:
    """A snapshot, and its bytes."""
    builder = snapshot.begin(encoder.NativeEncoder(), source, log_offset=0)
    for _ in builder.steps():
        pass
    made = builder.snapshot
    file = files.SnapshotFile(
        made.descriptor,
        length=made.length,
        log_offset=0,
        sequence=made.sequence,
        status=made.status,
        keys=made.keys,
        chunks=len(made.chunks),
    )
    return file, os.pread(made.descriptor, made.length, 0)


def filled(count: int, *, keys_per_chunk: int = 4) -> store.Store:
    source = store.Store(store.StoreLimits(chunk_target_keys=keys_per_chunk, split_at_once_keys=1 << 20))
    for number in range(count):
        source.put(f"/{number}", str(number).encode(), "1")
    return source


def digests_of(content: dict[str, bytes], count: int) -> "array.array[int]":
    chunks: list[list[tuple[str, bytes]]] = [[] for _ in range(count)]
    for key, value in content.items():
        chunks[zlib.crc32(key.encode()) % count].append((key, value))
    return array.array("Q", [digest.state_digest(pairs) for pairs in chunks])


@pytest.mark.parametrize("count", [1, 2, 8, 64, 4096])
def test_any_number_of_digests_finds_the_chunks_that_differ(count: int) -> None:
    source = filled(500)
    content = {entry.key: entry.value for entry in source}
    file, whole = snapshot_of(source)
    content["/7"] = b"another value"
    found = resume.pieces(file, digests_of(content, count), encoder.snapshot_resume)
    if count == 1:
        assert found is None  # all that there is differs
    else:
        assert found is not None
        head = found.at(0).data
        assert head is not None
        message = codec.decode(head[frames.HEADER.size :])
        assert isinstance(message, messages.SnapshotResume)
        assert (message.sequence, message.keys, message.chunks) == (500, 500, source.chunk_count)
        sent = [number for number in range(message.chunks) if not message.keeps(number)]
        assert {number % count for number in sent} == {zlib.crc32(b"/7") % min(count, message.chunks)}
        assert len(sent) == max(1, message.chunks // count)
        ranges, position = [], len(head)
        while position < found.length:
            piece = found.at(position)
            assert piece.data is None
            ranges.append(whole[piece.position : piece.position + piece.length])
            position += piece.length
        assert len(b"".join(ranges)) + len(head) == found.length
        assert whole.endswith(ranges[-1])
    file.close()


def test_a_client_with_nothing_or_with_everything() -> None:
    file, whole = snapshot_of(filled(500))
    content = {f"/{number}": str(number).encode() for number in range(500)}
    assert resume.pieces(file, digests_of({"/none": b""}, 1), encoder.snapshot_resume) is None
    everything = resume.pieces(file, digests_of(content, file.chunks), encoder.snapshot_resume)
    assert everything is not None
    end = everything.at(everything.length - 1)
    assert end.position == len(whole) - 1
    assert everything.length < 100
    file.close()


def test_one_client_gets_a_limited_number_of_ranges() -> None:
    source = filled(20_000, keys_per_chunk=1)
    assert source.chunk_count > 8 * resume.RANGES_MAX
    file, _ = snapshot_of(source)
    digests = array.array("Q", file.index.digests)
    for number in range(0, len(digests), 3):
        digests[number] ^= 1
    found = resume.pieces(file, digests, encoder.snapshot_resume)
    assert found is not None
    assert repr(found).startswith(f"<Pieces count={resume.RANGES_MAX + 2} ")
    head = found.at(0).data
    assert head is not None
    message = codec.decode(head[frames.HEADER.size :])
    assert isinstance(message, messages.SnapshotResume)
    kept = [message.keeps(number) for number in range(message.chunks)]
    assert sum(kept) == 2 * (resume.RANGES_MAX - 1)  # behind the last range nothing is kept
    file.close()


@given(st.integers(0, 1 << 40), st.integers(0, 1 << 40))
def test_few_start_points_serve_all_clients(one: int, other: int) -> None:
    sequence, newest = sorted((one, other))
    start = resume.start_point(sequence, newest)
    assert 0 <= start <= sequence
    assert sequence - start <= (newest - sequence) / 8
    octave = {resume.start_point(newest - (newest - sequence) * step // 64, newest) for step in range(32, 64)}
    assert len(octave) <= 18
