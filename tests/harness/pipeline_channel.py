"""A channel and its clients without sockets: the parts of hub and worker, driven in the order that a test chooses."""

import os
from collections.abc import Iterator

from cache.feeds import feed
from cache.state import catchup, cursor, files, log, resume, snapshot, store
from protocol import encoding, formats, messages, reasons
from protocol.native import encoder
from tests.harness import channel_harness, returning
from typha.worker import protocol_adapters

State = cursor.CursorState
CATCHING_UP = messages.SyncStatus.CATCHING_UP
BLOCK_TARGET_BYTES = 500
"""Small, so that catching up takes several blocks."""


class Channel:
    """The log and the snapshots of one wire format, and the worker's knowledge of them."""

    def __init__(self, source: feed.RawFeed, wire_format: str, *, segment_bytes: int) -> None:
        self.source = source
        self.encoder = formats.make_encoder(wire_format)
        self.is_native = formats.replaces_by_snapshot(wire_format)
        self.writer = log.LogWriter(segment_bytes=segment_bytes, sequence=source.store.sequence)
        self.reader = log.LogReader()
        self.newest: snapshot.Snapshot | None = None
        self.builder: snapshot.SnapshotBuilder | None = None
        self.steps: Iterator[None] = iter(())
        self.file: files.SnapshotFile | None = None
        self.blocks: list[files.BlockFile] = []
        """All blocks ever made, newest last."""
        self.clients: list[Client] = []
        self.statuses: list[tuple[int, messages.SyncStatus]] = [(0, messages.SyncStatus.WAITING)]
        """(offset, status) of every status in the log."""

    def append(self, batch: feed.Batch) -> None:
        encoded: list[encoding.EncodedFrame] = []
        if batch.updates:
            encoded += self.encoder.updates(batch.previous_sequence, batch.updates)
        if batch.status is not None:
            encoded.append(self.encoder.status(batch.previous_sequence + len(batch.updates), batch.status))
        for segment in self.writer.append(encoded):
            descriptors = os.dup(segment.descriptor), os.dup(segment.index_descriptor)
            self.reader.add_segment(segment.base, segment.size, *descriptors)
        if batch.status is not None:
            self.statuses.append((self.writer.status_offset, batch.status))

    def publish(self) -> None:
        if self.writer.segments:
            self.reader.publish(self.writer.end, self.writer.segments[-1].frames)

    @property
    def status_offset(self) -> int:
        """Offset of the end of the last status in the published log."""
        return max(offset for offset, _ in self.statuses if offset <= self.reader.end)

    def status_at(self, offset: int) -> tuple[int, messages.SyncStatus]:
        """Return the last (offset, status) in the log up to an offset."""
        return [status for status in self.statuses if status[0] <= offset][-1]

    def make_block(self, from_sequence: int) -> files.BlockFile | None:
        """Make a block as of now from a sequence. None if some later deletions are forgotten."""
        self.publish()
        try:
            difference = self.source.store.changes_since(from_sequence)
        except store.Forgotten:
            return None
        builder = catchup.BlockBuilder(
            self.encoder, difference, log_offset=self.writer.end, target_bytes=BLOCK_TARGET_BYTES
        )
        for _ in builder.steps():
            pass
        self.blocks.append(builder.block)
        return self.blocks[-1]

    def block_for(self, client: "Client") -> files.BlockFile | None:
        """Return the oldest block that the client may read. Make one if there is none."""
        for block in self.blocks:
            fits = block.from_sequence == client.sequence and block.cut_sequence >= client.needed_sequence
            if fits and (not block.is_final or block.log_offset >= self.reader.start):
                return block
        return self.make_block(client.sequence)

    def begin_snapshot(self) -> None:
        self.give_up_snapshot()
        self.builder = snapshot.begin(self.encoder, self.source.store, log_offset=self.writer.end, previous=self.newest)
        self.steps = self.builder.steps()

    def step_snapshot(self) -> bool:
        """Run one step. Return False when the file is finished and published."""
        if self.builder is None or next(self.steps, self) is None:
            return self.builder is not None
        if self.newest is not None:
            self.newest.close()
        made = self.newest = self.builder.snapshot
        self.builder = None
        self.close_file()
        self.file = files.SnapshotFile(
            os.dup(made.descriptor),
            length=made.length,
            log_offset=made.log_offset,
            sequence=made.sequence,
            status=made.status,
            keys=made.keys,
            chunks=len(made.chunks),
        )
        return False

    def give_up_snapshot(self) -> None:
        if self.builder is not None:
            self.builder.abandon()
            self.builder = None

    def close_file(self) -> None:
        """Close the file, unless clients still read it. Then its last reader closes it."""
        if self.file is not None and self.file.readers == 0:
            os.close(self.file.descriptor)
        self.file = None

    def trim(self, before_offset: int) -> None:
        limit = self.writer.start if self.newest is None else self.newest.log_offset
        start = self.writer.trim(min(before_offset, limit))
        self.publish()
        for client in self.clients:
            if client.state is State.FOLLOWING and client.offset < start:
                client.fall_behind()
        self.reader.drop(start)

    def close(self) -> None:
        for client in self.clients:
            if client.is_connected():
                client.leave()
        self.give_up_snapshot()
        self.close_file()
        for block in self.blocks:
            assert block.readers == 0
            os.close(block.descriptor)
        if self.newest is not None:
            self.newest.close()
        self.writer.close()
        self.reader.close()


class Client(cursor.Cursor):
    """A cursor and the client at the other end of its connection. It moves as in `typha.worker.delivery`."""

    def __init__(
        self,
        channel: Channel,
        returning: returning.Returning | None = None,
        resumption: protocol_adapters.Resumption | None = None,
    ) -> None:
        """`returning` has said hello, and has what its `resumption` tells."""
        super().__init__()
        self.channel = channel
        self.returning = returning
        self.resumption = resumption or protocol_adapters.Resumption()
        self.model = channel_harness.ModelClient()
        self.typha = None if channel.is_native else channel_harness.TyphaModelClient()
        if self.typha is not None:
            self.typha.model = self.model
        self.greet_offset = self.greet_sequence = 0
        self.greeting: memoryview | None = None
        self.greeting_status = messages.SyncStatus.WAITING
        self.sent_status: tuple[int, messages.SyncStatus] | None = None
        """(offset, status) of the last status sent to this client alone."""
        self.become_held()

    def receive(self, data: bytes) -> None:
        """Pass bytes to the client."""
        if self.returning is not None:
            self.returning.receive(data)
        elif self.typha is not None:
            self.typha.receive(data)
        else:
            self.model.receive(data)

    def send(self, count: int) -> None:
        """Send up to `count` bytes of what comes next, or move to the next file."""
        reader = self.channel.reader
        if self.state is State.HELD:
            if not self._resume():
                self._begin_snapshot()
        elif self.tail:
            self.receive(bytes(self.tail[:count]))
            self.tail = self.tail[count:]
        elif read := self.snapshot or self.block:
            if self.pieces is None:
                data = os.pread(read.descriptor, min(count, read.length - self.position), self.position)
            else:
                piece = self.pieces.at(self.position)
                count = min(count, piece.length)
                data = piece.data[:count] if piece.data else os.pread(read.descriptor, count, piece.position)
            self.position += len(data)
            self.receive(data)
            if self.position == self.read_length:
                self._follow()
        elif self.state is State.CATCHING_UP:
            self._find_block()
        elif self.greeting is not None and self.offset == self.greet_offset:
            self.tail, self.greeting = self.greeting, None
            self.sent_status = self.offset, self.greeting_status
        elif self.state is State.FOLLOWING and self.offset < reader.end:
            descriptor, position, available = reader.file_range(self.offset)
            if self.greeting is not None:
                available = min(available, self.greet_offset - self.offset)
            data = os.pread(descriptor, min(count, available), position)
            assert data == reader.view(self.offset)[: len(data)]
            self.offset += len(data)
            self.receive(data)
            told = self.returning.status if self.returning is not None else self.model.status
            assert self.greeting is None or told in (None, CATCHING_UP), "sent an old status"

    def _resume(self) -> bool:
        """Go on from the position that the client has, if there is one and it exists. Return False if not."""
        sequence, self.resumption = self.resumption.sequence, self.resumption._replace(sequence=None)
        reader, writer = self.channel.reader, self.channel.writer
        if sequence is None or sequence > reader.sequence_at(reader.end):
            return False
        status_offset, status = self.channel.status_at(reader.end)
        offset = reader.offset_of(sequence)
        self.greet_sequence = reader.sequence_at(reader.end)
        if offset is not None and offset >= max(reader.start, status_offset):
            self.resumption = protocol_adapters.Resumption()
            self.become_resumed(offset, sequence)
            self.greet_offset = reader.end
            self.greeting = memoryview(self.channel.encoder.status(self.greet_sequence, status).data)
            self.greeting_status = status
        else:
            assert writer.end >= reader.end
            start = resume.start_point(sequence, self.greet_sequence)
            self.become_returning(start, needed_sequence=self.greet_sequence, offset=reader.end)
            self.owe(self.channel.encoder.status(start, CATCHING_UP).data)
        return True

    def _begin_snapshot(self) -> None:
        """Begin a snapshot if the log after it is complete and contains no status.

        The client gets its status at the end of the published log.
        """
        reader, file = self.channel.reader, self.channel.file
        if file is None or file.log_offset < max(reader.start, self.channel.status_offset):
            return
        digests, self.resumption = self.resumption.digests, protocol_adapters.Resumption()
        self.become_snapshot(file, None if digests is None else resume.pieces(file, digests, encoder.snapshot_resume))
        self.greet_offset = max(reader.end, file.log_offset)
        is_new = self.greet_offset == file.log_offset
        self.greet_sequence = file.sequence if is_new else reader.sequence_at(self.greet_offset)
        self.greeting = memoryview(self.channel.encoder.status(self.greet_sequence, file.status).data)
        self.greeting_status = file.status

    def _follow(self) -> None:
        """Continue after a snapshot or block."""
        read, block = self.snapshot, self.block
        if block is not None and not (block.is_final and block.log_offset >= self.channel.reader.start):
            self.become_waiting()
            return
        self.become_following()
        if read is not None:
            self._close_unread(read)
        if self.offset < self.channel.reader.start:
            self.fall_behind()
        elif block is not None:
            self._tell(block.status)

    def _tell(self, status: messages.SyncStatus) -> None:
        """Send the status to a client that is in the log again. Typha's clients get it only if it is news."""
        if self.typha is not None:
            self.typha.may_be_catching_up = False
        if self.channel.is_native or self.sent_status is None or self.sent_status[1] is not status:
            self.owe(self.channel.encoder.status(self.sequence, status).data)
        self.sent_status = self.offset, status

    def fall_behind(self) -> None:
        """Drop the client's position from the log."""
        self.become_catching_up(self.channel.reader)
        if self.greeting is not None:
            self.need(self.greet_sequence)
            self.greeting = None
        elif self.sent_status is not None:
            logged = self.channel.status_at(self.offset)
            self.sent_status = logged if logged[0] > self.sent_status[0] else self.sent_status
        if self.channel.is_native:
            self.owe(self.channel.encoder.status(self.sequence, CATCHING_UP).data)
        if self.typha is not None:
            self.typha.may_be_catching_up = True

    def _find_block(self) -> None:
        block = self.channel.block_for(self)
        if block is not None:
            self.resumption = protocol_adapters.Resumption()
            self.become_reading(block)
            if block.length == 0:
                self._follow()
        elif self.channel.is_native:
            self.become_held()
        else:
            self.leave()

    def is_connected(self) -> bool:
        """Return whether the server still serves the client."""
        return not self.is_closing()

    def _close_unread(self, read: files.SnapshotFile) -> None:
        if read is not self.channel.file and read.readers == 0:
            os.close(read.descriptor)

    def leave(self) -> None:
        read = self.snapshot
        self.become_closing(reasons.DisconnectReason.CLIENT_CLOSED)
        if read is not None:
            self._close_unread(read)

    def is_at_end(self) -> bool:
        is_greeted = self.greeting is None and not self.tail
        return self.state is State.FOLLOWING and is_greeted and self.offset == self.channel.writer.end
