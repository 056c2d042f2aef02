"""Encoder of Typha's two wire formats: in snappy framing, and as plain gob for clients without it.

Every frame is whole gob messages, in whole snappy chunks if compressed. The definitions that precede them all go out
with the handshake (`protocol.typha.connection`), once for each connection: what is here may be sent any number of
times, to a client that waits for its first snapshot too.
"""

from collections.abc import Iterable, Iterator, Sequence

from protocol import encoding, messages
from protocol.typha import codec, snappy, timestamps
from protocol.typha import messages as typha_messages

PLAIN = "typha"
SNAPPY = "typha+snappy"

MESSAGE_TARGET_BYTES = 256 * 1024
"""A message is closed at this size: clients give up if one takes 30 s to come, and at 1 Mbit/s this takes 2."""
UPDATES_PER_MESSAGE = 100
"""The original's number for changes: a client handles one message in one call, and answers no ping meanwhile."""


def _messages(updates: Iterable[messages.Update]) -> Iterator[tuple[bytes, int]]:
    """Messages with up to so many updates and about so many bytes each, and how many updates each has."""
    encoded: list[bytes] = []
    encoded_bytes = 0
    for update in updates:
        data = codec.encode_update(update)
        if encoded and (len(encoded) == UPDATES_PER_MESSAGE or encoded_bytes + len(data) > MESSAGE_TARGET_BYTES):
            yield codec.encode_key_values(encoded), len(encoded)
            encoded, encoded_bytes = [], 0
        encoded.append(data)
        encoded_bytes += len(data)
    if encoded:
        yield codec.encode_key_values(encoded), len(encoded)


class TyphaEncoder:
    """Frames of Typha's protocol; see `protocol.encoding.Encoder` for the contract."""

    in_key_order = True
    """As the original's: Felix computes other routes if a workload comes before the block that its address is of."""

    def __init__(self, *, compress: bool) -> None:
        self.name = SNAPPY if compress else PLAIN
        self._compress = compress

    def _frame(self, gob: bytes) -> bytes:
        return snappy.compress(gob) if self._compress else gob

    def make_ping(self, unix_nanoseconds: int) -> bytes:
        """A ping that says when it was sent; clients echo that in their pongs."""
        ping = typha_messages.Ping(timestamps.from_unix_nanoseconds(unix_nanoseconds))
        return self._frame(codec.encode(ping, types=codec.SERVER))

    def updates(self, previous_sequence: int, updates: Sequence[messages.Update]) -> list[encoding.EncodedFrame]:
        """One frame for each message."""
        encoded = []
        for message, count in _messages(updates):
            previous_sequence += count
            encoded.append(encoding.EncodedFrame(self._frame(message), previous_sequence))
        return encoded

    def changes(
        self, previous_sequence: int, changes: Iterable[tuple[int, messages.Update]], *, end_sequence: int
    ) -> Iterator[encoding.EncodedFrame]:
        """One frame for each message; a client knows nothing of sequences."""
        sequences: list[int] = []

        def noted() -> Iterator[messages.Update]:
            for sequence, update in changes:
                sequences.append(sequence)
                yield update
            sequences[-1:] = [end_sequence]  # what was the last change gets the client there

        encoded = 0
        for message, count in _messages(noted()):
            encoded += count
            yield encoding.EncodedFrame(self._frame(message), sequences[encoded - 1])

    def status(self, sequence: int, status: messages.SyncStatus) -> encoding.EncodedFrame:
        """The frame of a status; catching up is unknown to these clients, for whom it is a resync."""
        known = messages.SyncStatus.RESYNC if status is messages.SyncStatus.CATCHING_UP else status
        message = codec.encode(typha_messages.SyncStatus(int(known)), types=codec.SERVER)
        return encoding.EncodedFrame(self._frame(message), sequence, status)

    def snapshot_begin(self, sequence: int, *, keys: int, chunks: int) -> bytes:
        """Nothing: a snapshot is no more than its updates."""
        return b""

    def snapshot_chunk(self, index: int, digest: int, updates: Iterable[messages.Update]) -> bytes:
        """The messages of one chunk, compressed together."""
        return self._frame(b"".join([message for message, _ in _messages(updates)]))

    def snapshot_end(self, sequence: int, *, keys: int, digest: int) -> bytes:
        """Nothing."""
        return b""
