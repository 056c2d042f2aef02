"""Snapshot files: a client decodes the store as it was at the cut, and copied chunks equal encoded ones."""

import os

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cache.state import files, snapshot, store
from protocol import digest, formats, messages
from protocol.native import encoder
from protocol.typha import encoder as typha_encoder
from tests.harness import channel_harness

keys = st.integers(0, 30).map("/core/v1/pods/default/web-{}".format)
histories = st.lists(st.tuples(keys, st.none() | st.binary(max_size=40) | st.just(b"a" * 2000)), max_size=40)
zstd = pytest.mark.parametrize("zstd", [False, True])


def change(target: store.Store, history: list[tuple[str, bytes | None]]) -> None:
    for key, value in history:
        if value is None:
            target.delete(key, "r")
        else:
            target.put(key, value, f"r{len(value)}", ttl=len(value) % 2)


def build(
    source: store.Store, *, zstd: bool, previous: snapshot.Snapshot | None = None, log_offset: int = 0
) -> snapshot.SnapshotBuilder:
    cut = source.cut(since_sequence=-1 if previous is None else previous.sequence)
    builder = snapshot.SnapshotBuilder(encoder.NativeEncoder(zstd=zstd), cut, log_offset=log_offset, previous=previous)
    for _ in builder.steps():
        pass
    return builder


def content(made: snapshot.Snapshot) -> bytes:
    data = os.pread(made.descriptor, made.length, 0)
    index_bytes = (len(made.chunks) + 1) * files.INDEX_RECORD.size if made.chunks else 0
    assert len(data) == made.length == os.fstat(made.descriptor).st_size - index_bytes
    return data


def file_of(made: snapshot.Snapshot) -> files.SnapshotFile:
    return files.SnapshotFile(
        made.descriptor,
        length=made.length,
        log_offset=made.log_offset,
        sequence=made.sequence,
        status=made.status,
        keys=made.keys,
        chunks=len(made.chunks),
    )


def received(made: snapshot.Snapshot) -> channel_harness.ModelClient:
    client = channel_harness.ModelClient()
    client.receive(content(made))
    assert client.connection.pending_bytes == 0
    assert client.connection.sequence == made.sequence
    return client


def entries(source: store.Store) -> dict[str, messages.Update]:
    return {entry.key: entry.as_update() for entry in source}


@zstd
@given(histories, histories, st.sampled_from(messages.SyncStatus), st.sampled_from(messages.SyncStatus))
def test_snapshot_after_snapshot(
    zstd: bool,
    first: list[tuple[str, bytes | None]],
    second: list[tuple[str, bytes | None]],
    status: messages.SyncStatus,
    later_status: messages.SyncStatus,
) -> None:
    before = channel_harness.descriptors_before()
    source = store.Store(store.StoreLimits(chunk_target_keys=4, chunk_target_bytes=4000))
    change(source, first)
    source.status = status
    one = build(source, zstd=zstd).snapshot
    client = received(one)
    assert client.map == entries(source)
    assert (one.status, client.status) == (status, None)

    change(source, second)
    source.status = later_status
    builder = build(source, zstd=zstd, previous=one)
    two = builder.snapshot
    client = received(two)
    assert client.map == entries(source)
    assert (two.status, client.status) == (later_status, None)
    assert two.keys == len(source)
    assert builder.chunks_copied + builder.chunks_encoded == source.chunk_count

    anew = build(source, zstd=zstd).snapshot
    assert content(anew) == content(two)
    assert anew.raw_length == two.raw_length
    assert zstd or two.raw_length == two.length
    for made in (one, two, anew):
        made.close()
    assert channel_harness.open_descriptors() == before


@zstd
def test_unchanged_chunks_are_copied(zstd: bool) -> None:
    source = store.Store()
    change(source, [(f"/{number}", b"x" * 100) for number in range(2000)])
    assert source.chunk_count == 8
    one = build(source, zstd=zstd).snapshot
    source.put("/7", b"changed", "2")
    source.put("/8", b"x" * 100, "no change")
    builder = build(source, zstd=zstd, previous=one)
    assert (builder.chunks_encoded, builder.chunks_copied) == (1, 7)
    one.close()
    assert received(builder.snapshot).map == entries(source)
    builder.snapshot.close()


def test_a_split_between_two_snapshots() -> None:
    """Two large values share a chunk until it splits. The empty half must not be copied from the old file."""
    names = [f"/{number}" for number in range(100) if store.chunk_hash(f"/{number}") & 1]
    source = store.Store()
    source.put(names[0], b"small", "1")
    one = build(source, zstd=False).snapshot
    source.put(names[1], b"x" * store.DEFAULT_LIMITS.chunk_target_bytes, "1")
    assert source.chunk_count == 2
    two = build(source, zstd=False, previous=one).snapshot
    assert received(two).map == entries(source)
    one.close()
    two.close()


def test_a_chunk_of_many_frames() -> None:
    source = store.Store(store.StoreLimits(max_chunks=1))
    change(source, [(f"/{number}", bytes([number]) * 200_000) for number in range(6)])
    made = build(source, zstd=False).snapshot
    client = received(made)
    assert client.map == entries(source)
    assert client.chunks == [(0, True, 1)] * 5 + [(0, False, 1)]
    made.close()


def test_later_changes_are_not_in_the_snapshot() -> None:
    source = store.Store()
    change(source, [(f"/{number}", b"x") for number in range(1000)])
    expected = entries(source)
    builder = snapshot.SnapshotBuilder(encoder.NativeEncoder(), source.cut(), log_offset=42)
    steps = builder.steps()
    for number, _ in enumerate(steps):
        change(source, [(f"/{number}", None), (f"/{number + 100}", b"y"), (f"/new-{number}", b"z")])
    assert received(builder.snapshot).map == expected
    assert builder.snapshot.log_offset == 42
    assert "keys=1000" in repr(builder.snapshot)
    builder.snapshot.close()


def test_a_finished_file_cannot_change() -> None:
    made = build(store.Store(), zstd=False).snapshot
    assert channel_harness.changes_another_process_can_make(made.descriptor) == []
    made.close()


def test_an_abandoned_builder_leaves_nothing_open() -> None:
    before = channel_harness.descriptors_before()
    source = store.Store()
    change(source, [(f"/{number}", b"x") for number in range(1000)])
    builder = snapshot.SnapshotBuilder(encoder.NativeEncoder(), source.cut(), log_offset=0)
    next(builder.steps())
    builder.abandon()
    assert channel_harness.open_descriptors() == before


def test_a_chunk_without_entries_needs_a_previous_snapshot() -> None:
    source = store.Store()
    source.put("/a", b"1", "1")
    cut = source.cut(since_sequence=source.sequence)
    builder = snapshot.SnapshotBuilder(encoder.NativeEncoder(), cut, log_offset=0)
    with pytest.raises(ValueError, match="chunk 0"):
        list(builder.steps())
    builder.abandon()


def test_copying_from_a_truncated_snapshot_raises() -> None:
    source = store.Store()
    source.put("/a", b"1", "1")
    one = build(source, zstd=False).snapshot
    one.chunks[0] = one.chunks[0]._replace(length=1000)
    cut = source.cut(since_sequence=one.sequence)
    builder = snapshot.SnapshotBuilder(encoder.NativeEncoder(), cut, log_offset=0, previous=one)
    with pytest.raises(ValueError, match="ends"):
        list(builder.steps())
    builder.abandon()
    one.close()


class ShortRunsBuilder(snapshot.OrderedSnapshotBuilder):
    run_keys = 4


def build_in_order(
    source: store.Store,
    *,
    previous: snapshot.Snapshot | None = None,
    builder_type: type[snapshot.OrderedSnapshotBuilder] = snapshot.OrderedSnapshotBuilder,
) -> snapshot.SnapshotBuilder:
    snappy = formats.make_encoder(typha_encoder.SNAPPY)
    builder = builder_type(snappy, source.cut(), log_offset=0, previous=previous)
    for _ in builder.steps():
        pass
    return builder


def in_order_received(made: snapshot.Snapshot) -> list[messages.Update]:
    return channel_harness.LooseReader(typha_encoder.SNAPPY).updates(content(made), after=0)


def in_order(source: store.Store) -> list[messages.Update]:
    """Return what the client must receive. It cannot distinguish an empty value from no value."""
    return [update._replace(value=update.value or None) for _, update in sorted(entries(source).items())]


@given(histories, histories)
def test_snapshots_for_typhas_clients_are_in_the_byte_order_of_their_keys(
    first: list[tuple[str, bytes | None]], second: list[tuple[str, bytes | None]]
) -> None:
    source = store.Store(store.StoreLimits(chunk_target_keys=4))
    change(source, first)
    one = build_in_order(source, builder_type=ShortRunsBuilder).snapshot
    assert in_order_received(one) == in_order(source)
    change(source, second)
    two = build_in_order(source, previous=one, builder_type=ShortRunsBuilder).snapshot
    assert in_order_received(two) == in_order(source)
    anew = build_in_order(source, builder_type=ShortRunsBuilder).snapshot
    assert in_order_received(anew) == in_order_received(two)
    for made in (one, two, anew):
        made.close()


def test_unchanged_runs_of_keys_are_copied() -> None:
    source = store.Store()
    change(source, [(f"/{number:04}", b"x" * 100) for number in range(2000)])
    first = build_in_order(source)
    one = first.snapshot
    assert (first.chunks_encoded, first.chunks_copied) == (len(one.runs), 0)
    assert 8 <= len(one.runs) <= 32
    source.put("/0007", b"changed", "2")
    source.delete("/1000", "2")
    source.put("/1999-new", b"x", "2")
    builder = build_in_order(source, previous=one)
    assert builder.chunks_encoded <= 4
    assert builder.chunks_copied >= len(one.runs) - 4
    one.close()
    expected = in_order(source)
    assert in_order_received(builder.snapshot) == expected
    anew = build_in_order(source).snapshot
    assert builder.snapshot.raw_length == anew.raw_length > builder.snapshot.length
    anew.close()
    builder.snapshot.close()


def test_a_run_with_other_keys_is_not_copied() -> None:
    """A run may keep its first key and its length although its last key and the next run have gone."""
    names = [f"/{number:04}" for number in range(2000)]
    ends = [index for index, name in enumerate(names) if store.chunk_hash(name) % 128 == 0]
    end, after = ends[0], ends[1]
    source = store.Store()
    change(source, [(name, b"x") for name in names])
    one = build_in_order(source).snapshot
    for name in [names[end], *names[end + 2 : after + 1]]:
        source.delete(name, "2")
    two = build_in_order(source, previous=one).snapshot
    assert in_order_received(two) == in_order(source)
    one.close()
    two.close()


def test_a_snapshot_in_key_order_needs_all_chunks() -> None:
    source = store.Store()
    source.put("/a", b"1", "1")
    cut = source.cut(since_sequence=source.sequence)
    builder = snapshot.OrderedSnapshotBuilder(formats.make_encoder(typha_encoder.SNAPPY), cut, log_offset=0)
    with pytest.raises(ValueError, match="chunk 0"):
        list(builder.steps())
    builder.abandon()


@zstd
@given(histories, histories)
def test_the_index_finds_each_chunk(
    zstd: bool, first: list[tuple[str, bytes | None]], second: list[tuple[str, bytes | None]]
) -> None:
    source = store.Store(store.StoreLimits(chunk_target_keys=4, chunk_target_bytes=4000))
    change(source, first)
    one = build(source, zstd=zstd).snapshot
    change(source, second)
    two = build(source, zstd=zstd, previous=one).snapshot  # with chunks that are copied
    file = file_of(two)
    assert (file.chunks, file.keys) == (source.chunk_count, len(source))
    assert file.index.digest == source.digest
    for number in range(file.chunks):
        position, length = file.index.range_of(number, number + 1)
        client = channel_harness.ModelClient()
        begin, end = file.index.range_of(0, 0)[0], file.index.end
        client.receive(content(two)[:begin])
        client.receive(content(two)[position : position + length])
        found = {entry.key: entry.as_update() for entry in source.chunk_entries(number)}
        assert client.building == found
        pairs = [(entry.key, entry.value) for entry in source.chunk_entries(number)]
        assert file.index.digests[number] == digest.state_digest(pairs)
        after = end if number + 1 == file.chunks else file.index.range_of(number + 1, number + 1)[0]
        assert position + length == after
    one.close()
    two.close()


def test_a_file_without_its_index_is_an_error() -> None:
    source = store.Store()
    made = build(source, zstd=False).snapshot
    file = file_of(made)
    file.chunks = 7
    with pytest.raises(OSError, match="32 bytes instead of 128"):
        file.index.range_of(0, 1)
    made.close()


@given(st.lists(st.binary(max_size=5) | st.integers(0, 5), max_size=8), st.data())
def test_pieces_are_read_one_after_another(parts: list[bytes | int], data: st.DataObject) -> None:
    """A number stands for a range of the shared file with so many bytes."""
    shared = bytes(range(100))
    pieces, expected, position = [], b"", 50
    for part in parts:
        if isinstance(part, bytes):
            pieces.append(files.Piece(part, 0, len(part)))
            expected += part
        else:
            pieces.append(files.Piece(None, position, part))
            expected += shared[position : position + part]
            position += part + 1
    made = files.Pieces(pieces)
    assert made.length == len(expected)
    read = b""
    while len(read) < made.length:
        piece = made.at(len(read))
        count = data.draw(st.integers(1, piece.length))
        source = shared[piece.position :] if piece.data is None else piece.data
        read += source[:count]
    assert read == expected
