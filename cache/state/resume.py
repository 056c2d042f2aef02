"""What a client needs that comes back with a map from an earlier connection. Pure.

By position: the client has everything up to a sequence of this incarnation. The log continues there, or catch-up blocks
do. Clients that left at about the same time begin at the same `start_point`, so that they share blocks.

By digests: the client has told the digests of its chunks. It gets a snapshot of this moment, but only the frames of the
chunks that differ. These are ranges of the file that all clients share; only the first frame is made for the client.
"""

import array
import operator
from collections.abc import Callable

from cache.state import files
from protocol import digest as chunk_digest
from protocol import messages

RANGES_MAX = 1024
"""Ranges of the file that one client gets, 120 kB of memory. Behind the last one everything is sent. A feed needs more
than 150,000 keys for that many, and a change in every second chunk."""
_AS_DIGITS = bytes.maketrans(b"\x00\x01", b"01")


def start_point(sequence: int, newest_sequence: int) -> int:
    """The sequence from which a client is caught up that has everything up to `sequence`.

    It is up to an eighth of the way to the newest sequence before the client's own, so that few blocks serve many
    clients, honest or not: eight for each doubling of the distance.
    """
    step = 1 << max(0, (newest_sequence - sequence).bit_length() - 4)
    return sequence - sequence % step


def pieces(
    file: files.SnapshotFile, digests: "array.array[int]", encode: Callable[[messages.SnapshotResume], bytes]
) -> files.Pieces | None:
    """What a client with these digests of its chunks is sent of a snapshot; None if it has no chunk of it.

    `encode` makes the first frame.

    Raises:
        OSError: the file cannot be read.
    """
    index = file.index
    count = min(len(digests), file.chunks)
    equal = bytes(map(operator.eq, chunk_digest.fold(digests, count), index.coarse(count)))
    kept = bytearray(equal * (file.chunks // count))  # a chunk's number modulo `count` is that of its coarser chunk
    ranges: list[files.Piece] = []
    first = kept.find(0)
    while first >= 0:
        after = kept.find(1, first)
        if after < 0 or len(ranges) == RANGES_MAX - 1:
            after = file.chunks
            kept[first:] = bytes(after - first)
        ranges.append(files.Piece(None, *index.range_of(first, after)))
        first = kept.find(0, after)
    if not any(kept):
        return None
    bitmap = int(kept[::-1].translate(_AS_DIGITS), 2).to_bytes(-(-file.chunks // 8), "little")
    begin = encode(messages.SnapshotResume(file.sequence, file.keys, file.chunks, bitmap))
    end = files.Piece(None, index.end, file.length - index.end)
    return files.Pieces([files.Piece(begin, 0, len(begin)), *ranges, end])
