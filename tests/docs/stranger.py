"""A client written from docs/protocol.md alone. It imports nothing of this project and shares no line with it."""

import hashlib
import struct

import msgpack
import zstandard

PREFACE = b"\0TYPHA\r\n"


def digest(content: dict[str, bytes]) -> int:
    """Section 5."""
    total = 0
    for key, value in content.items():
        name = key.encode()
        total += struct.unpack(">Q", hashlib.sha256(struct.pack(">I", len(name)) + name + value).digest()[:8])[0]
    return total % 2**64


def hello(feed: str, *, versions: tuple[int, ...] = (1,), features: tuple[str, ...] = ("zstd",)) -> bytes:
    """Sections 1 and 3."""
    body = {"versions": versions, "feed": feed, "agent": "stranger", "features": features}
    return PREFACE + frame([1, body])


def frame(message: object) -> bytes:
    """Section 2."""
    payload: bytes = msgpack.packb(message)
    return struct.pack(">IB", len(payload) + 1, 0) + payload


class Stranger:
    """Reads what a server sends, keeps the map and verifies it."""

    def __init__(self) -> None:
        self.buffer = b""
        self.begun = False
        self.map: dict[str, bytes] = {}
        self.next: dict[str, bytes] | None = None
        self.chunk: dict[str, bytes] = {}
        self.sequence = 0
        self.statuses: list[int] = []
        self.seen: list[int] = []
        self.hello: dict[str, object] = {}
        self.goodbye: list[object] | None = None
        self.to_send = b""

    def receive(self, data: bytes) -> None:
        """Take bytes and handle complete frames."""
        self.buffer += data
        if not self.begun and len(self.buffer) >= len(PREFACE):
            assert self.buffer.startswith(PREFACE)
            self.buffer = self.buffer[len(PREFACE) :]
            self.begun = True
        while self.begun and len(self.buffer) >= 4:
            (length,) = struct.unpack(">I", self.buffer[:4])
            assert 1 <= length <= 16 * 1024 * 1024
            if len(self.buffer) < 4 + length:
                return
            flags, payload = self.buffer[4], self.buffer[5 : 4 + length]
            self.buffer = self.buffer[4 + length :]
            assert flags in (0, 1)
            if flags:
                payload = zstandard.ZstdDecompressor().decompress(payload, max_output_size=16 * 1024 * 1024)
            self.handle(msgpack.unpackb(payload))

    def handle(self, message: list[object]) -> None:
        """Section 4."""
        self.seen.append(int(str(message[0])))
        match message:
            case [2, dict() as content, *_]:
                self.hello = content
            case [3, _, int(), int(), *_]:
                self.next, self.chunk = {}, {}
            case [4, int(), int() as expected, bool() as more, list() as updates, *_]:
                assert self.next is not None
                for key, value, *_ in updates:
                    assert isinstance(value, bytes)
                    self.chunk[key] = value
                if not more:
                    assert digest(self.chunk) == expected
                    self.next |= self.chunk
                    self.chunk = {}
            case [5, int() as sequence, int() as keys, int() as expected, *_]:
                assert self.next is not None
                assert len(self.next) == keys
                assert digest(self.next) == expected
                self.map, self.next, self.sequence = self.next, None, sequence
            case [6, int() as previous, int() as sequence, list() as updates, *_]:
                assert previous == self.sequence
                self.sequence = sequence
                for key, value, *_ in updates:
                    if value is None:
                        self.map.pop(key, None)
                    else:
                        self.map[key] = value
            case [7, int() as sequence, int() as status, *_]:
                assert sequence == self.sequence or (status == 3 and sequence < self.sequence)
                self.sequence = sequence
                self.statuses.append(status)
            case [8, *_]:
                self.to_send += frame([9, self.sequence])
            case [10, *rest]:
                self.goodbye = rest
            case _:
                raise AssertionError(f"not in section 3: {message!r}")
