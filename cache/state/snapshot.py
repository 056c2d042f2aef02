"""Snapshot files: one cut of a store as whole frames in sealed shared memory. Also the cache for the next snapshot.

A snapshot consists of begin, every chunk and end. After it, a client continues in the log at `log_offset`. The file
does not contain the status: a reconnecting client may have seen newer data than this cut, and must not believe that
the cut is current. The worker sends the status when the client has everything up to the moment at which it connected.

After the bytes for clients, the file has an index of its chunks (`files.SnapshotIndex`). With it a worker sends a
client only those that differ from what the client has.

A snapshot with sections has no begin and end, because they differ for each node: the common chunks come first, then the
section of each node, and then a table of the sections.

Chunks that have not changed since the previous snapshot are copied from its file. Some formats need the keys in order.
Their snapshots have runs of consecutive keys instead of chunks. The hashes of the keys decide where a run ends, so
that a new key changes only its own run.
"""

import array
import heapq
import operator
import os
from collections.abc import Iterator
from typing import NamedTuple

from cache.state import files, memfile, sections, store
from protocol import encoding, messages

_COPY_BYTES = 1024 * 1024
RUN_KEYS = 128
"""Mean number of keys in a run."""
_RUN_BYTES = 64 * 1024
"""A run ends when its values have this many bytes, the contents of one snappy chunk."""
_key = operator.attrgetter("key")


class ChunkPlace(NamedTuple):
    """The place of a chunk's frames in the file, and the sequence of the chunk's last change."""

    sequence: int
    position: int
    length: int
    raw_length: int
    """Before compression."""
    digest: int


class Run(NamedTuple):
    """The place of the frames of consecutive keys in the file, and the sequence of each key in 8 bytes."""

    sequences: bytes
    position: int
    length: int
    raw_length: int


class Snapshot:
    """A finished snapshot file. It owns `descriptor` until `close`."""

    __slots__ = (
        "chunks",
        "common",
        "descriptor",
        "keys",
        "length",
        "log_offset",
        "raw_length",
        "runs",
        "sections",
        "sequence",
        "status",
    )

    def __init__(
        self, descriptor: int, *, sequence: int, status: messages.SyncStatus, keys: int, log_offset: int
    ) -> None:
        self.descriptor = descriptor
        self.status = status
        self.sequence = sequence
        self.keys = keys
        self.log_offset = log_offset
        self.length = 0
        """Bytes for clients; the index comes after them."""
        self.raw_length = 0
        """Bytes of the same snapshot without compression."""
        self.chunks: list[ChunkPlace] = []
        self.runs: dict[str, Run] = {}
        """By first key. Only for snapshots in key order."""
        self.common: files.CommonPart | None = None
        self.sections: dict[int, ChunkPlace] = {}
        """By the tag of the node. Only for snapshots with sections, as `common`."""

    def __repr__(self) -> str:
        return f"<Snapshot sequence={self.sequence} keys={self.keys} bytes={self.length} log_offset={self.log_offset}>"

    def close(self) -> None:
        """Close the file. Readers in other processes keep it until they have finished."""
        memfile.close(self.descriptor)


class SnapshotBuilder:
    """Writes a snapshot step by step, so that the caller can do other work in between.

    The cut must be made with the sequence of the `previous` snapshot given here; `begin` does that. Run `steps` to the
    end, then use `snapshot`; or call `abandon`.
    """

    def __init__(
        self, encoder: encoding.Encoder, cut: store.Cut, *, log_offset: int, previous: Snapshot | None = None
    ) -> None:
        self._encoder = encoder
        self._cut = cut
        self._previous = previous
        self.snapshot = Snapshot(
            memfile.create_empty("typha-snapshot"),
            sequence=cut.sequence,
            status=cut.status,
            keys=cut.keys,
            log_offset=log_offset,
        )
        self.chunks_encoded = 0
        self.chunks_copied = 0

    def steps(self) -> Iterator[None]:
        """Write the file. Yield after each chunk. The file is sealed at the end."""
        cut, encoder, snapshot = self._cut, self._encoder, self.snapshot
        self._write(encoder.snapshot_begin(cut.sequence, keys=cut.keys, chunks=len(cut.chunks)))
        for chunk in cut.chunks:
            position, raw_length = snapshot.length, snapshot.raw_length
            self._write_chunk(chunk)
            length, raw_length = snapshot.length - position, snapshot.raw_length - raw_length
            snapshot.chunks.append(ChunkPlace(chunk.sequence, position, length, raw_length, chunk.digest))
            yield
        self._write(encoder.snapshot_end(cut.sequence, keys=cut.keys, digest=cut.digest))
        memfile.write_all(snapshot.descriptor, self._index())
        memfile.seal(snapshot.descriptor)

    def _index(self) -> bytes:
        pack, chunks = files.INDEX_RECORD.pack, self.snapshot.chunks
        first = pack(chunks[0].position, self._cut.digest)
        return first + b"".join(pack(chunk.position + chunk.length, chunk.digest) for chunk in chunks)

    def abandon(self) -> None:
        """Discard an unfinished file."""
        self.snapshot.close()

    def _previous_place(self, chunk: store.ChunkCut) -> ChunkPlace | None:
        return None if self._previous is None else self._previous.chunks[chunk.number]

    def _write_chunk(self, chunk: store.ChunkCut) -> None:
        if chunk.entries is not None:
            updates = (entry.as_update() for entry in chunk.entries)
            self._write(self._encoder.snapshot_chunk(chunk.number, chunk.digest, updates))
            self.chunks_encoded += 1
            return
        place = self._previous_place(chunk)
        if self._previous is None or place is None:
            raise ValueError(f"the cut lacks chunk {chunk.number}, and no previous snapshot exists to copy it from")
        self._copy(self._previous.descriptor, place)
        self.chunks_copied += 1

    def _write(self, data: bytes) -> None:
        self._append(data)
        self.snapshot.raw_length += self._encoder.raw_length(data)

    def _append(self, data: bytes) -> None:
        memfile.write_all(self.snapshot.descriptor, data)
        self.snapshot.length += len(data)

    def _copy(self, descriptor: int, place: ChunkPlace | Run) -> None:
        position, length = place.position, place.length
        self.snapshot.raw_length += place.raw_length
        while length:
            data = os.pread(descriptor, min(length, _COPY_BYTES), position)
            if not data:
                raise ValueError(f"the previous snapshot ends at {position}, inside a chunk")
            self._append(data)
            position += len(data)
            length -= len(data)


class SectionedSnapshotBuilder(SnapshotBuilder):
    """Writes a snapshot with a section for each node. The cut has the common keys, and its sequence is that of both."""

    def __init__(
        self,
        encoder: encoding.Encoder,
        cut: store.Cut,
        cut_sections: list[sections.SectionCut],
        *,
        log_offset: int,
        previous: Snapshot | None = None,
    ) -> None:
        super().__init__(encoder, cut, log_offset=log_offset, previous=previous)
        self._sections = cut_sections
        self.snapshot.keys += sum(section.keys for section in cut_sections)

    def steps(self) -> Iterator[None]:
        """Write the file. Yield after each chunk and section. The file is sealed at the end."""
        cut, snapshot = self._cut, self.snapshot
        for chunk in cut.chunks:
            begun = snapshot.length, snapshot.raw_length
            self._write_chunk(chunk._replace(number=chunk.number + 1))
            snapshot.chunks.append(self._place(begun, chunk.sequence, chunk.digest))
            yield
        snapshot.common = files.CommonPart(
            snapshot.length, cut.keys, len(cut.chunks), cut.digest, sections=len(self._sections)
        )
        table = []
        for section in self._sections:
            begun = snapshot.length, snapshot.raw_length
            self._write_section(section)
            place = snapshot.sections[section.tag] = self._place(begun, section.sequence, section.digest)
            table.append(
                files.SECTION_RECORD.pack(section.tag, place.position, place.length, section.keys, section.digest)
            )
            yield
        memfile.write_all(snapshot.descriptor, b"".join(table))
        memfile.seal(snapshot.descriptor)

    def _place(self, begun: tuple[int, int], sequence: int, digest: int) -> ChunkPlace:
        position, raw_position = begun
        snapshot = self.snapshot
        return ChunkPlace(sequence, position, snapshot.length - position, snapshot.raw_length - raw_position, digest)

    def _previous_place(self, chunk: store.ChunkCut) -> ChunkPlace | None:
        return self._previous.chunks[chunk.number - 1] if self._previous is not None else None

    def _write_section(self, section: sections.SectionCut) -> None:
        if section.entries is not None:
            updates = (entry.as_update() for entry in section.entries)
            self._write(self._encoder.snapshot_chunk(0, section.digest, updates))
            self.chunks_encoded += 1
            return
        if self._previous is None:
            raise ValueError(f"the cut lacks section {section.tag}, and no previous snapshot exists to copy it from")
        self._copy(self._previous.descriptor, self._previous.sections[section.tag])
        self.chunks_copied += 1


class OrderedSnapshotBuilder(SnapshotBuilder):
    """Writes a snapshot in the byte order of its keys. The cut must contain all chunks."""

    run_keys = RUN_KEYS

    def steps(self) -> Iterator[None]:
        """Write the file. Yield after each sorted chunk and each written run. The file is sealed at the end."""
        cut, encoder, snapshot = self._cut, self._encoder, self.snapshot
        self._write(encoder.snapshot_begin(cut.sequence, keys=cut.keys, chunks=len(cut.chunks)))
        ordered = []
        for chunk in cut.chunks:
            if chunk.entries is None:
                raise ValueError(f"the cut lacks chunk {chunk.number}, but a snapshot in key order needs all chunks")
            ordered.append(sorted(chunk.entries, key=_key))
            yield
        run: list[store.Entry] = []
        run_bytes = 0
        for entry in heapq.merge(*ordered, key=_key):
            run.append(entry)
            run_bytes += len(entry.value)
            if run_bytes >= _RUN_BYTES or store.chunk_hash(entry.key) % self.run_keys == 0:
                self._write_run(run)
                run, run_bytes = [], 0
                yield
        if run:
            self._write_run(run)
        self._write(encoder.snapshot_end(cut.sequence, keys=cut.keys, digest=cut.digest))
        memfile.seal(snapshot.descriptor)

    def _write_run(self, entries: list[store.Entry]) -> None:
        sequences = array.array("Q", [entry.sequence for entry in entries]).tobytes()
        position, raw_length = self.snapshot.length, self.snapshot.raw_length
        first = entries[0].key
        old = self._previous.runs.get(first) if self._previous is not None else None
        if self._previous is not None and old is not None and old.sequences == sequences:
            self._copy(self._previous.descriptor, old)
            self.chunks_copied += 1
        else:
            self._write(self._encoder.snapshot_chunk(0, 0, (entry.as_update() for entry in entries)))
            self.chunks_encoded += 1
        self.snapshot.runs[first] = Run(
            sequences, position, self.snapshot.length - position, self.snapshot.raw_length - raw_length
        )


def begin(
    encoder: encoding.Encoder,
    source: store.Store,
    *,
    log_offset: int,
    previous: Snapshot | None = None,
    by_node: sections.Sections | None = None,
) -> SnapshotBuilder:
    """Cut the store, and the sections of nodes, now. Return a builder for a snapshot after which clients continue at
    `log_offset`."""
    if encoder.in_key_order:
        return OrderedSnapshotBuilder(encoder, source.cut(), log_offset=log_offset, previous=previous)
    since_sequence = -1 if previous is None else previous.sequence
    cut = source.cut(since_sequence=since_sequence)
    if by_node is not None:
        cut_sections = by_node.cut(since_sequence=since_sequence)
        return SectionedSnapshotBuilder(encoder, cut, cut_sections, log_offset=log_offset, previous=previous)
    return SnapshotBuilder(encoder, cut, log_offset=log_offset, previous=previous)
