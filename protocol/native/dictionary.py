"""Internal: dictionaries for the compression of small frames (docs/protocol.md, "Dictionaries").

A small frame has little that repeats, but it repeats much of what other frames have had. A dictionary is trained from
such content and sent once; a frame that was compressed with it is as short as what is new in it. It belongs to a feed
and not to a connection, so that one encoding of a frame still serves every client.
"""

from collections.abc import Sequence

import zstandard

from protocol import errors, messages
from protocol.native import codec, frames

MAX_BYTES = 64 * 1024
"""Limit of a dictionary's size that a client accepts. More than 16 KiB saves nothing that could be measured."""
TRAINED_BYTES = 16 * 1024
"""Size of the dictionaries that are trained here: docs/decisions/dictionary-compression.md compares sizes."""
PAYLOAD_BYTES_MAX = 16 * 1024
"""Larger payloads have enough that repeats in themselves: with the dictionary they cost more CPU and shrink by 8 %."""
PAYLOAD_BYTES_MIN = 48
"""A smaller payload is shorter than what zstd adds."""
_SAMPLES_MIN = 100
"""With fewer the dictionary is a copy of some of them."""
_SAMPLE_BYTES_PER_BYTE = 4
"""A dictionary is at most this part of its samples, for the same reason."""
_JUDGED_EVERY = 8
"""One in so many samples is left out of the training. These judge the dictionary."""
_WORTH_SHARE = 0.8
"""A dictionary that leaves more of the bytes than this is not worth its size."""
_NUMBER_MAX = (1 << 32) - 1
_EMPTY_FRAME = bytes.fromhex("28b52ffd2000010000")
"""A whole zstd frame without content. Decompressing it makes the library read the dictionary."""


class Compression:
    """The side that compresses: a dictionary, its frame, and what compresses with it."""

    __slots__ = ("_compressor", "frame", "message")

    def __init__(self, message: messages.Dictionary) -> None:
        self.message = message
        self.frame = frames.pack_frame(codec.encode(message), compressor=frames.make_compressor())
        """What clients are sent before the first frame that needs it."""
        content = zstandard.ZstdCompressionDict(message.data, dict_type=zstandard.DICT_TYPE_FULLDICT)
        content.precompute_compress(level=frames.ZSTD_LEVEL)
        self._compressor = zstandard.ZstdCompressor(
            level=frames.ZSTD_LEVEL,
            dict_data=content,
            write_content_size=True,
            write_checksum=False,
            write_dict_id=True,
        )

    def __repr__(self) -> str:
        return f"<Compression {self.message!r}>"

    def pack_frame(self, payload: bytes) -> bytes:
        """Returns a frame around a payload, compressed with the dictionary if that makes it smaller."""
        return frames.pack_frame(payload, compressor=self._compressor, least_bytes=PAYLOAD_BYTES_MIN)


def train(payloads: Sequence[bytes], number: int, *, max_bytes: int = TRAINED_BYTES) -> Compression | None:
    """Trains a dictionary from sample payloads. None if they are too few, or too different for it to save much.

    Takes 50 ms of CPU for 1,000 pods. The library lets other threads run meanwhile.
    """
    learned: list[bytes | bytearray | memoryview] = [
        payload for place, payload in enumerate(payloads) if place % _JUDGED_EVERY
    ]
    size_bytes = min(max_bytes, sum(map(len, learned)) // _SAMPLE_BYTES_PER_BYTE)
    if len(payloads) < _SAMPLES_MIN:
        return None
    try:
        trained = zstandard.train_dictionary(size_bytes, learned, dict_id=number, level=frames.ZSTD_LEVEL)
    except zstandard.ZstdError:  # the library's word for samples that have nothing in common
        return None
    made = Compression(messages.Dictionary(number, trained.as_bytes()))
    judged = payloads[::_JUDGED_EVERY]
    compressor = frames.make_compressor()
    before = sum(len(frames.pack_frame(payload, compressor=compressor)) for payload in judged)
    after = sum(len(made.pack_frame(payload)) for payload in judged)
    return made if after < before * _WORTH_SHARE else None


class Decompression:
    """The side that decompresses: the dictionary that a server has sent."""

    __slots__ = ("_decompressor", "number")

    def __init__(self, message: messages.Dictionary) -> None:
        """Reads the dictionary.

        Raises:
            RemoteProtocolError: it is too large, is not a dictionary of zstd, or has another number.
        """
        self.number, data = message.number, message.data
        if len(data) > MAX_BYTES:
            raise errors.RemoteProtocolError(f"a dictionary has {len(data)} bytes, and the limit is {MAX_BYTES}")
        if not 0 < self.number <= _NUMBER_MAX:
            raise errors.RemoteProtocolError(f"a dictionary has number {self.number}")
        try:
            content = zstandard.ZstdCompressionDict(data, dict_type=zstandard.DICT_TYPE_FULLDICT)
            self._decompressor = zstandard.ZstdDecompressor(dict_data=content)
            self._decompressor.decompress(_EMPTY_FRAME)
        except zstandard.ZstdError as error:
            raise errors.RemoteProtocolError(f"a dictionary is broken: {error}") from error
        if content.dict_id() != self.number:
            raise errors.RemoteProtocolError(f"dictionary {self.number} has the number {content.dict_id()} inside")

    def decompress(self, body: bytes | memoryview) -> bytes:
        """The content of a zstd frame that names the dictionary.

        Raises:
            zstandard.ZstdError: the frame is broken, or names another one.
        """
        return self._decompressor.decompress(body, allow_extra_data=False)
