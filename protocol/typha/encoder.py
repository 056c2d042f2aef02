"""Internal: the encoder of Typha's two wire formats: gob in snappy framing, and plain gob.

A frame consists of complete gob messages, in complete snappy chunks if compressed. `protocol.typha.connection` sends
the type definitions once per connection, in the handshake. So a frame can be sent to any client any number of times.
"""

from collections.abc import Iterable, Iterator, Sequence

from protocol import encoding, messages
from protocol.typha import codec, snappy, timestamps
from protocol.typha import messages as typha_messages

PLAIN = "typha"
SNAPPY = "typha+snappy"

MESSAGE_TARGET_BYTES = 256 * 1024
"""A message ends at this size, which takes 2 s at 1 Mbit/s: clients give up after 30 s without a whole message."""
UPDATES_PER_MESSAGE = 100
"""The original's limit for deltas: a client handles a message in one call, and answers no pings meanwhile."""


def _messages(updates: Iterable[messages.Update]) -> Iterator[tuple[bytes, int]]:
    """Yields messages within the two limits above, each with its number of updates."""
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
    """Frames of Typha's protocol. See `protocol.encoding.Encoder` for the contract."""

    in_key_order = True
    """As in the original: Felix computes other routes if a workload precedes the block of its address."""

    def __init__(self, *, compress: bool) -> None:
        self.name = SNAPPY if compress else PLAIN
        self._compress = compress

    def _frame(self, gob: bytes) -> bytes:
        return snappy.compress(gob) if self._compress else gob

    def make_ping(self, unix_nanoseconds: int) -> bytes:
        """A ping with its time, which clients echo in their pongs."""
        ping = typha_messages.Ping(timestamps.from_unix_nanoseconds(unix_nanoseconds))
        return self._frame(codec.encode(ping, types=codec.SERVER))

    def updates(self, previous_sequence: int, updates: Sequence[messages.Update]) -> list[encoding.EncodedFrame]:
        """One frame for each message."""
        encoded = []
        for message, count in _messages(updates):
            previous_sequence += count
            encoded.append(encoding.EncodedFrame(self._frame(message), previous_sequence, updates=count))
        return encoded

    def selected(
        self, previous_sequence: int, sequence: int, parts: Sequence[tuple[int, Sequence[messages.Update]]]
    ) -> list[encoding.EncodedFrame]:
        """These clients have no subscriptions, so there are no such frames.

        Raises:
            ValueError: always.
        """
        raise ValueError("a client of Typha's protocol gets the whole feed")

    def changes(
        self, previous_sequence: int, changes: Iterable[tuple[int, messages.Update]], *, end_sequence: int
    ) -> Iterator[encoding.EncodedFrame]:
        """One frame for each message. Clients do not see the sequences."""
        sequences: list[int] = []

        def record_sequences() -> Iterator[messages.Update]:
            for sequence, update in changes:
                sequences.append(sequence)
                yield update
            sequences[-1:] = [end_sequence]  # The last change brings the client there.

        encoded = 0
        for message, count in _messages(record_sequences()):
            encoded += count
            yield encoding.EncodedFrame(self._frame(message), sequences[encoded - 1])

    def status(self, sequence: int, status: messages.SyncStatus) -> encoding.EncodedFrame:
        """The frame of a status. These clients do not know catching-up, so they get a resync instead."""
        known = messages.SyncStatus.RESYNC if status is messages.SyncStatus.CATCHING_UP else status
        message = codec.encode(typha_messages.SyncStatus(int(known)), types=codec.SERVER)
        return encoding.EncodedFrame(self._frame(message), sequence, status)

    def snapshot_begin(self, sequence: int, *, keys: int, chunks: int) -> bytes:
        """Empty: in this protocol, a snapshot consists of its updates only."""
        return b""

    def snapshot_chunk(self, index: int, digest: int, updates: Iterable[messages.Update]) -> bytes:
        """The messages of one chunk, compressed together."""
        return self._frame(b"".join([message for message, _ in _messages(updates)]))

    def raw_length(self, data: bytes) -> int:
        """See `protocol.encoding.Encoder`."""
        return snappy.content_length(data) if self._compress else len(data)

    def snapshot_end(self, sequence: int, *, keys: int, digest: int) -> bytes:
        """Empty, like `snapshot_begin`."""
        return b""
