"""The kit's own bytes: frames from plain values, and a small feed with its snapshot."""

import hashlib
import struct
import zlib
from collections.abc import Mapping, Sequence
from typing import Any, Final

import msgpack
import zstandard

PREFACE: Final = b"\0TYPHA\r\n"
MAX_FRAME_BYTES: Final = 16 * 1024 * 1024
HELLO_TYPE, SERVER_HELLO, BEGIN, CHUNK, END, UPDATES, STATUS, PING, PONG, GOODBYE, APPLIED, RESUME, DICTIONARY_TYPE = (
    range(1, 14)
)
WAITING, RESYNC, IN_SYNC, CATCHING_UP = range(4)
STATUS_NAMES: Final = ("waiting", "resync", "in-sync", "catching-up")

POD: Final = "/core/v1/pods/default/web-1"
NODE: Final = "/core/v1/nodes//n1"
POD_VALUE: Final = b'{"kind":"Pod"}'
NODE_VALUE: Final = "é".encode()
MAP: Final[Mapping[str, bytes]] = {POD: POD_VALUE, NODE: NODE_VALUE}
"""The map that most scenarios begin with."""
SEQUENCE: Final = 40
"""The sequence of that map."""


def payload(message: object) -> bytes:
    """A message as msgpack."""
    packed: bytes = msgpack.packb(message)
    return packed


def widely(value: object) -> bytes:
    """A value in the longest encoding that msgpack has for it."""
    match value:
        case bool() | None:
            return payload(value)
        case int():
            return b"\xcf" + struct.pack(">Q", value)
        case str():
            return b"\xdb" + struct.pack(">I", len(value.encode())) + value.encode()
        case bytes():
            return b"\xc6" + struct.pack(">I", len(value)) + value
        case list():
            return b"\xdd" + struct.pack(">I", len(value)) + b"".join(map(widely, value))
        case dict():
            parts = [widely(part) for pair in value.items() for part in pair]
            return b"\xdf" + struct.pack(">I", len(value)) + b"".join(parts)
    raise TypeError(f"{value!r} is not in the protocol")


def framed(content: bytes, flags: int = 0) -> bytes:
    """A frame around a payload."""
    return struct.pack(">IB", len(content) + 1, flags) + content


def frame(*message: object) -> bytes:
    """A message as a plain frame."""
    return framed(payload(message))


def compressed(*message: object) -> bytes:
    """A message as a compressed frame."""
    compressor = zstandard.ZstdCompressor(write_content_size=True)
    return framed(compressor.compress(payload(message)), 1)


DICTIONARY_NUMBER: Final = 7
DICTIONARY: Final = bytes.fromhex(
    "37a430ec070000002410d853e90c83979bcaab14bd1d5cce64184a96524a29a5947159babbbbbb5b67b796760a9302000000"
    "56bbc906000004800300000080801c00000001000080839c39e2060004e4750000640000400000000000007487072c0522e8"
    "43360000000000000000000000010000000400000008000000742f7765622d323432c4167b226b696e64223a22506f64222c"
    "2278223a3234327da333343202a0009406ccf3ccf49196bd2f742f7765622d313835c4167b226b696e64223a22506f64222c"
    "2278223a3138357da332383502a0009406ccbaccbb9196bd2f6c742f7765622d313639c4167b226b696e64223a22506f6422"
    "2c2278223a31"
)
"""A small dictionary of zstd, trained from updates of pods."""


def compressed_with(dictionary: bytes, *message: object) -> bytes:
    """A message as a frame that is compressed with a dictionary, and names it."""
    content = zstandard.ZstdCompressionDict(dictionary, dict_type=zstandard.DICT_TYPE_FULLDICT)
    compressor = zstandard.ZstdCompressor(dict_data=content, write_content_size=True, write_dict_id=True)
    return framed(compressor.compress(payload(message)), 1)


def digest(content: Mapping[str, bytes]) -> int:
    """The state digest of section 5."""
    total = 0
    for key, value in content.items():
        name = key.encode()
        total += int.from_bytes(hashlib.sha256(struct.pack(">I", len(name)) + name + value).digest()[:8], "big")
    return total % (1 << 64)


def chunk_digests(content: Mapping[str, bytes], count: int) -> list[int]:
    """The state digests of so many chunks (section 4, R2)."""
    chunks: list[dict[str, bytes]] = [{} for _ in range(count)]
    for key, value in content.items():
        chunks[chunk_of(key, count)][key] = value
    return [digest(chunk) for chunk in chunks]


def chunk_of(key: str, count: int) -> int:
    """The number of a key's chunk, of so many."""
    return zlib.crc32(key.encode()) % count


def update(key: str, value: bytes | None, kind: int = 2) -> list[object]:
    """An update."""
    return [key, value, "1", kind]


INCARNATION: Final = bytes(range(16))
"""Of the kit's server, unless a check says otherwise."""


def server_hello(feed: object, **members: Any) -> bytes:
    """A server's hello; `members` replace or add to the usual ones, and None leaves one out."""
    content = {
        "version": 1,
        "feed": feed,
        "incarnation": INCARNATION,
        "features": [],
        "not_supported": [],
        "software": "conformance-kit",
        "connection_id": 7,
        "ping_interval_ms": 10_000,
        "max_frame_bytes": MAX_FRAME_BYTES,
    }
    return frame(SERVER_HELLO, {name: value for name, value in (content | members).items() if value is not None})


def client_hello(feed: object, **members: Any) -> bytes:
    """A client's hello, in the same way."""
    content = {"versions": [1], "feed": feed, "agent": "conformance-kit"}
    return frame(HELLO_TYPE, {name: value for name, value in (content | members).items() if value is not None})


def chunk(
    index: int, content: Mapping[str, bytes], *, more: bool = False, of: Mapping[str, bytes] | None = None
) -> bytes:
    """A chunk's frame; `of` is the whole chunk, if it has more frames."""
    total = digest(content if of is None else of)
    return frame(CHUNK, index, total, more, [update(key, value, 1) for key, value in content.items()])


def snapshot(sequence: int, content: Mapping[str, bytes], *, chunks: int = 2) -> bytes:
    """A snapshot without the status after it: a key in each chunk in turn."""
    keys = list(content)
    parts: Sequence[dict[str, bytes]] = [{key: content[key] for key in keys[index::chunks]} for index in range(chunks)]
    return b"".join(
        [
            frame(BEGIN, sequence, len(content), chunks),
            *(chunk(index, part) for index, part in enumerate(parts)),
            frame(END, sequence, len(content), digest(content)),
        ]
    )


def status(sequence: int, kind: int = IN_SYNC) -> bytes:
    """A status."""
    return frame(STATUS, sequence, kind)
