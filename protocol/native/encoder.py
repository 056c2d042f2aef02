"""Internal: the encoder of the native protocol's wire formats: plain, with zstd, and with zstd and a dictionary."""

from collections.abc import Iterable, Iterator, Sequence

from protocol import encoding, messages, subscriptions
from protocol.native import codec, dictionary, frames

FRAME_TARGET_BYTES = 256 * 1024
"""A frame ends at this size: large enough for a low overhead, small enough for a slow link (2 s at 1 Mbit/s)."""
UPDATE_OVERHEAD_BYTES = 64
"""Upper limit of the encoded size of an update without its texts and its value."""
MESSAGE_OVERHEAD_BYTES = 64
"""Upper limit of what a frame of updates needs beside them."""
VALUE_OVERHEAD_BYTES = 32 * 1024
"""What a frame needs in addition to its largest value: a key of 4,096 characters, which take up to 16 KiB, and the
object's versions, which are short."""

PLAIN = "native"
ZSTD = "native+zstd"
ZSTD_DICTIONARY = "native+zstd+dictionary"
NAMES = (PLAIN, ZSTD, ZSTD_DICTIONARY)


def _text_size(text: str) -> int:
    return len(text) if text.isascii() else 4 * len(text)


def _size(update: messages.Update) -> int:
    """Upper limit of the update's bytes in a frame. Typical updates have some 80 bytes less."""
    texts_bytes = _text_size(update[0]) + _text_size(update[2]) + _text_size(update[4])
    return texts_bytes + len(update[1] or b"") + UPDATE_OVERHEAD_BYTES


def snapshot_resume(message: messages.SnapshotResume) -> bytes:
    """The frame that one client gets before its part of a snapshot."""
    return frames.pack_frame(codec.encode(message))


class NativeEncoder:
    """Frames of the native protocol. See `protocol.encoding.Encoder` for the contract."""

    in_key_order = False

    def __init__(
        self, *, zstd: bool = False, takes_dictionary: bool = False, max_frame_bytes: int = frames.MAX_FRAME_BYTES
    ) -> None:
        """No frame has more than `max_frame_bytes`, if no value has more than that less `VALUE_OVERHEAD_BYTES`.

        With zstd, it may take a dictionary.
        """
        self.name = (ZSTD_DICTIONARY if takes_dictionary else ZSTD) if zstd else PLAIN
        self._batch_bytes = min(FRAME_TARGET_BYTES, max_frame_bytes - MESSAGE_OVERHEAD_BYTES)
        self.ping = frames.pack_frame(codec.encode(messages.Ping()))
        self._compressor = frames.make_compressor() if zstd else None
        self._dictionary: dictionary.Compression | None = None

    @property
    def takes_dictionary(self) -> bool:
        """Whether its clients understand dictionaries."""
        return self.name == ZSTD_DICTIONARY

    def use_dictionary(self, trained: dictionary.Compression, sequence: int) -> encoding.EncodedFrame:
        """From now on, `updates` and `selected` compress with a dictionary. Clients need the frame with it before.

        What is not in the log's order, such as snapshots and catch-up blocks, is encoded without it.
        """
        self._dictionary = trained
        return encoding.EncodedFrame(trained.frame, sequence)

    def _frame(self, payload: bytes) -> bytes:
        return frames.pack_frame(payload, compressor=self._compressor)

    def _batches(self, updates: Iterable[messages.Update]) -> Iterator[list[messages.Update]]:
        """Splits into lists of about the target size. There is at least one list; it is empty only without updates."""
        batch: list[messages.Update] = []
        batch_bytes = 0
        for update in updates:
            update_bytes = _size(update)
            if batch and batch_bytes + update_bytes > self._batch_bytes:
                yield batch
                batch, batch_bytes = [], 0
            batch.append(update)
            batch_bytes += update_bytes
        yield batch

    def make_ping(self, unix_nanoseconds: int) -> bytes:
        """The constant ping frame; it contains no time."""
        return self.ping

    def updates(self, previous_sequence: int, updates: Sequence[messages.Update]) -> list[encoding.EncodedFrame]:
        """One frame, or several if the updates are larger than the target size."""
        encoded = []
        for batch in self._batches(updates):
            sequence = previous_sequence + len(batch)
            encoded.append(self._delta(previous_sequence, sequence, batch))
            previous_sequence = sequence
        return encoded

    def _delta(
        self, previous_sequence: int, sequence: int, updates: Sequence[messages.Update]
    ) -> encoding.EncodedFrame:
        """Updates in the log's order, where clients have the dictionary."""
        return self._updates(previous_sequence, sequence, updates, trained=self._dictionary)

    def _updates(
        self,
        previous_sequence: int,
        sequence: int,
        updates: Sequence[messages.Update],
        *,
        trained: dictionary.Compression | None = None,
    ) -> encoding.EncodedFrame:
        payload = codec.encode_updates(previous_sequence, sequence, updates)
        is_small = len(payload) <= dictionary.PAYLOAD_BYTES_MAX
        data = self._frame(payload) if trained is None or not is_small else trained.pack_frame(payload)
        return encoding.EncodedFrame(data, sequence, updates=len(updates))

    def selected(
        self, previous_sequence: int, sequence: int, parts: Sequence[tuple[int, Sequence[messages.Update]]]
    ) -> list[encoding.EncodedFrame]:
        """See `protocol.encoding.Encoder`."""
        encoded = []
        has_common = bool(parts) and parts[-1][0] == subscriptions.COMMON
        for number, (tag, updates) in enumerate(parts, 1):
            batches = list(self._batches(updates))
            for left, batch in zip(range(len(batches) - 1, -1, -1), batches, strict=True):
                is_complete = not left and (not has_common or number == len(parts))
                reached = sequence if is_complete else previous_sequence
                encoded.append(self._delta(previous_sequence, reached, batch)._replace(tag=tag))
        return encoded

    def changes(
        self, previous_sequence: int, changes: Iterable[tuple[int, messages.Update]], *, end_sequence: int
    ) -> Iterator[encoding.EncodedFrame]:
        """Frames of about the target size, of updates that skip sequences."""
        batch: list[messages.Update] = []
        batch_bytes, reached = 0, previous_sequence
        for sequence, update in changes:
            update_bytes = _size(update)
            if batch and batch_bytes + update_bytes > self._batch_bytes:
                yield self._updates(previous_sequence, reached, batch)
                batch, batch_bytes, previous_sequence = [], 0, reached
            batch.append(update)
            batch_bytes += update_bytes
            reached = sequence
        if batch or end_sequence > previous_sequence:
            yield self._updates(previous_sequence, end_sequence, batch)

    def status(self, sequence: int, status: messages.SyncStatus) -> encoding.EncodedFrame:
        """The frame of a status."""
        return encoding.EncodedFrame(self._frame(codec.encode(messages.Status(sequence, status))), sequence, status)

    def snapshot_begin(self, sequence: int, *, keys: int, chunks: int) -> bytes:
        """The frame before the first chunk."""
        return self._frame(codec.encode(messages.SnapshotBegin(sequence, keys, chunks)))

    def snapshot_chunk(self, index: int, digest: int, updates: Iterable[messages.Update]) -> bytes:
        """The frames of one chunk."""
        batches = list(self._batches(updates))
        last = len(batches) - 1
        return b"".join(
            self._frame(codec.encode_chunk(index, digest, batch, more=number < last))
            for number, batch in enumerate(batches)
        )

    def raw_length(self, data: bytes) -> int:
        """See `protocol.encoding.Encoder`."""
        return frames.raw_length(data)

    def snapshot_end(self, sequence: int, *, keys: int, digest: int) -> bytes:
        """The frame after the last chunk."""
        return self._frame(codec.encode(messages.SnapshotEnd(sequence, keys, digest)))
