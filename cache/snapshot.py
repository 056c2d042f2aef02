"""Snapshot files: one cut of a store as whole frames in sealed shared memory, and the chunk cache at the same time.

A snapshot is: begin, every chunk, end; behind it a client goes on in the log at `log_offset`. The status is not in the
file: a client may have known a newer map than this cut, from an earlier connection, and must not take the cut for the
present. Its worker tells it the status where it has everything up to the moment at which it came.

Chunks that have not changed since the last snapshot are copied from its file.
"""

import os
from collections.abc import Iterator
from typing import NamedTuple

from cache import memfile, store
from protocol import encoding, messages

_COPY_BYTES = 1024 * 1024


class ChunkPlace(NamedTuple):
    """Where a chunk's frames stand in the file, and as of which change of the chunk."""

    sequence: int
    position: int
    length: int


class Snapshot:
    """A finished file; `descriptor` is its own until `close`."""

    __slots__ = ("chunks", "descriptor", "keys", "length", "log_offset", "sequence", "status")

    def __init__(
        self, descriptor: int, *, sequence: int, status: messages.SyncStatus, keys: int, log_offset: int
    ) -> None:
        self.descriptor = descriptor
        self.status = status
        self.sequence = sequence
        self.keys = keys
        self.log_offset = log_offset
        self.length = 0
        self.chunks: list[ChunkPlace] = []

    def __repr__(self) -> str:
        return f"<Snapshot sequence={self.sequence} keys={self.keys} bytes={self.length} log_offset={self.log_offset}>"

    def close(self) -> None:
        """Lets the file go; readers in other processes keep it until they are done."""
        os.close(self.descriptor)


class SnapshotBuilder:
    """Writes a snapshot step by step, so that its maker can do other things in between.

    Take the cut with `previous.sequence` of the snapshot given here. Run `steps` to its end, then take `snapshot`;
    or `abandon`.
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
        """Yields after each chunk; the file is sealed when it ends."""
        cut, encoder, snapshot = self._cut, self._encoder, self.snapshot
        self._write(encoder.snapshot_begin(cut.sequence, keys=cut.keys, chunks=len(cut.chunks)))
        for chunk in cut.chunks:
            position = snapshot.length
            self._write_chunk(chunk)
            snapshot.chunks.append(ChunkPlace(chunk.sequence, position, snapshot.length - position))
            yield
        self._write(encoder.snapshot_end(cut.sequence, keys=cut.keys, digest=cut.digest))
        memfile.seal(snapshot.descriptor)

    def abandon(self) -> None:
        """Gives an unfinished file up."""
        self.snapshot.close()

    def _write_chunk(self, chunk: store.ChunkCut) -> None:
        if chunk.entries is not None:
            updates = (entry.as_update() for entry in chunk.entries)
            self._write(self._encoder.snapshot_chunk(chunk.number, chunk.digest, updates))
            self.chunks_encoded += 1
            return
        if self._previous is None:
            raise ValueError(
                f"the cut left chunk {chunk.number} out, and there is no previous snapshot to copy it from"
            )
        place = self._previous.chunks[chunk.number]
        self._copy(self._previous.descriptor, place.position, place.length)
        self.chunks_copied += 1

    def _write(self, data: bytes) -> None:
        view = memoryview(data)
        while view:
            written = os.write(self.snapshot.descriptor, view)
            view = view[written:]
            self.snapshot.length += written

    def _copy(self, descriptor: int, position: int, length: int) -> None:
        while length:
            data = os.pread(descriptor, min(length, _COPY_BYTES), position)
            if not data:
                raise ValueError(f"the previous snapshot ends at {position}, inside a chunk")
            self._write(data)
            position += len(data)
            length -= len(data)
