"""Changes inputs at random: as bytes, as values of JSON or msgpack, and as streams of messages."""

import contextlib
import random
from collections.abc import Callable, Sequence
from typing import Any

import msgpack
import msgspec

from protocol import errors
from protocol.gob import scalars
from protocol.native import frames
from protocol.typha import snappy

MAX_BYTES = 64 * 1024
"""An input does not grow beyond this."""
_MAX_CHANGES = 4
_BYTES = (
    *(b"\x00", b"\x01", b"\x7f", b"\x80", b"\xff", b"\xc0", b"\xc1", b"\x91" * 40, b"\x81\xa0" * 40),
    *(
        b"\xdd\xff\xff\xff\xff",
        b"\xdd\x00\x10\x00\x00",
        b"\xdc\xff\xff",
        b"\xdf\xff\xff\xff\xff",
        b"\xc9\xff\xff\xff\xff",
    ),
    *(b"\xf8" + b"\xff" * 8, b"\xff\x81\x03", b"\x7f\x03", b"\x01\x01\x08", b"\x10", b"\xed\xa0\x80", b"\xc3"),
)
_TEXT = (
    *(b"{", b"}", b"[", b"]", b":", b",", b'"', b"\\", b"\n", b"null", b"true", b"NaN", b"1e999", b"-0", b"\xff"),
    *(
        b'"\\ud800"',
        b"[" * 200,
        b'{"a":' * 200,
        b"0" * 400,
        b"\xe2\x80\xa8",
        b"&a",
        b"*a",
        b"!!python/none",
        b"? ",
        b"- ",
    ),
)
_VALUES: tuple[Any, ...] = (
    *(None, True, False, 0, 1, -1, 2**31, 2**63 - 1, 2**64 - 1, -(2**63), 0.5, 1e308, "", "a", "/", "x" * 300, "\0"),
    *("0.0.0.0/0", "::/0", "10.0.0.0/33", "1.2.3.4.5", "all()", "has(", "a == 'b' && " * 20, "99999999999999999999h"),
    *("TCP", "Deny", "projectcalico.org", "*", "\U0001f600", "-1", "1e9", [], {}, [None], [[]], {"": None}),
)

Mutate = Callable[[bytes, random.Random], bytes]


def mutate_bytes(data: bytes, rng: random.Random, *, text: bool = False) -> bytes:
    """Changes, removes, repeats or inserts some bytes."""
    mutated = bytearray(data)
    for _ in range(rng.randrange(1, _MAX_CHANGES + 1)):
        position = rng.randrange(len(mutated) + 1)
        end = min(len(mutated), position + rng.randrange(1, 32))
        match rng.randrange(7):
            case 0:
                del mutated[position:end]
            case 1:
                mutated[position:position] = mutated[position:end] * rng.choice((1, 1, 1, 10, 100))
            case 2:
                mutated[position:end] = rng.randbytes(end - position)
            case 3 | 4:
                mutated[position:position] = rng.choice(_TEXT if text else _BYTES)
            case 5 if position < len(mutated):
                mutated[position] = rng.randrange(256)
            case _ if position < len(mutated):
                mutated[position] ^= 1 << rng.randrange(8)
    return bytes(mutated[:MAX_BYTES])


def mutate_text(data: bytes, rng: random.Random) -> bytes:
    """As `mutate_bytes`, with parts of JSON and YAML."""
    return mutate_bytes(data, rng, text=True)


def mutate_value(value: Any, rng: random.Random) -> Any:
    """Changes one place of a value that consists of dicts, lists and scalars."""
    if isinstance(value, dict) and value and rng.randrange(8):
        key = rng.choice(list(value))
        changed = dict(value)
        match rng.randrange(12):
            case 0:
                del changed[key]
            case 1:
                changed[rng.choice(("", "name", "x" * 70, key))] = changed.pop(key)
            case 2:
                changed[rng.choice(_KEYS)] = rng.choice(_VALUES)
            case _:
                changed[key] = mutate_value(value[key], rng)
        return changed
    if isinstance(value, list | tuple) and value and rng.randrange(8):
        items = list(value)
        place = rng.randrange(len(items))
        match rng.randrange(8):
            case 0:
                del items[place]
            case 1:
                items[place:place] = items[place : place + 1] * rng.choice((1, 2, 50))
            case 2:
                items.insert(place, rng.choice(_VALUES))
            case _:
                items[place] = mutate_value(items[place], rng)
        return items
    if isinstance(value, str) and value and not rng.randrange(16):
        return _long(value, rng)
    if isinstance(value, str) and value and rng.randrange(2):
        return mutate_bytes(value.encode(), rng, text=True).decode("utf-8", "replace")
    if isinstance(value, bytes) and value and rng.randrange(2):
        return mutate_bytes(value, rng)
    return rng.choice(_VALUES)


_KEYS = (
    "metadata",
    "spec",
    "annotations",
    "labels",
    "rules",
    "selector",
    "name",
    "namespace",
    "cidr",
    "ports",
    "order",
)


def _long(text: str, rng: random.Random) -> str:
    """A text in which a piece repeats hundreds of times: what backtracks or is quadratic shows then."""
    place = rng.randrange(len(text))
    piece = rng.choice(
        (text[place : place + rng.randrange(1, 9)], "0", "a", "a.", "1.", "(", " ", "a-", "1:", "'", "[")
    )
    return text[:place] + piece * rng.choice((300, 2000)) + rng.choice(("", "!", text[place:]))


def mutate_json(data: bytes, rng: random.Random) -> bytes:
    """Changes a JSON text as a value; one time in four, or if it is no JSON, as bytes."""
    if rng.randrange(4):
        with contextlib.suppress(msgspec.MsgspecError, UnicodeError, RecursionError):
            value = msgspec.json.decode(data)
            for _ in range(rng.randrange(1, _MAX_CHANGES)):
                value = mutate_value(value, rng)
            return msgspec.json.encode(value)[:MAX_BYTES]
    return mutate_text(data, rng)


def mutate_msgpack(data: bytes, rng: random.Random) -> bytes:
    """Changes a msgpack value; one time in four, or if it is none, as bytes."""
    if rng.randrange(4):
        with contextlib.suppress(ValueError, RecursionError, OverflowError, TypeError, msgpack.UnpackException):
            value = msgpack.unpackb(data, raw=False, strict_map_key=False, max_array_len=1000, max_map_len=1000)
            for _ in range(rng.randrange(1, _MAX_CHANGES)):
                value = mutate_value(value, rng)
            packed: bytes = msgpack.packb(value, use_bin_type=True)
            return packed[:MAX_BYTES]
    return mutate_bytes(data, rng)


def mutate_frames(data: bytes, rng: random.Random) -> bytes:
    """Changes the content of one native frame, and its length with it; or the stream as bytes."""
    if data.startswith(frames.PREFACE) and rng.randrange(3):
        with contextlib.suppress(errors.RemoteProtocolError):
            splitter = frames.FrameSplitter()
            splitter.receive(data[len(frames.PREFACE) :])
            parts = []
            while (part := splitter.next_frame()) is not None:
                parts.append(part)
            if parts:
                place = rng.randrange(len(parts))
                payload = bytes(frames.unpack_payload(*parts[place], max_payload_bytes=MAX_BYTES))
                changed = frames.pack_frame(mutate_msgpack(payload, rng), compressor=_compressor(parts[place][0]))
                whole = [frames.HEADER.pack(len(body) + 1, flags) + body for flags, body in parts]
                whole[place] = changed
                return frames.PREFACE + b"".join(whole)
    return mutate_bytes(data, rng)


def _compressor(flags: int) -> Any:
    return frames.make_compressor() if flags & frames.FLAG_ZSTD else None


def gob_messages(data: bytes) -> list[bytes]:
    """The bodies of the complete messages at the beginning of a gob stream."""
    bodies = []
    position = 0
    with contextlib.suppress(errors.RemoteProtocolError):
        while (header := scalars.split_uint(data, position)) is not None and header[1] + header[0] <= len(data):
            position = header[1] + header[0]
            bodies.append(data[header[1] : position])
    return bodies


def mutate_gob(data: bytes, rng: random.Random) -> bytes:
    """Changes messages and their lengths; or the stream as bytes."""
    bodies = gob_messages(data) if rng.randrange(3) else []
    if not bodies:
        return mutate_bytes(data, rng)
    place = rng.randrange(len(bodies))
    match rng.randrange(8):
        case 0:
            del bodies[place]
        case 1:
            bodies.insert(rng.randrange(len(bodies)), bodies[place])
        case _:
            bodies[place] = mutate_bytes(bodies[place], rng)
    return b"".join(map(scalars.encode_bytes, bodies))[:MAX_BYTES]


def mutate_snappy(data: bytes, rng: random.Random) -> bytes:
    """Changes the content of the chunks and compresses it again, with valid checksums; or the stream as bytes."""
    start = data.find(snappy.IDENTIFIER)
    if start < 0 or not rng.randrange(3):
        return mutate_gob(data, rng)
    reader = snappy.ChunkReader()
    reader.receive(data[start:])
    content = b""
    with contextlib.suppress(errors.RemoteProtocolError):
        while (piece := reader.next_content()) is not None:
            content += piece
    return data[:start] + snappy.IDENTIFIER + snappy.compress(mutate_gob(content, rng))


def pieces(data: bytes) -> Sequence[bytes]:
    """The input as it may arrive: whole, or for one in four in up to 60 pieces. The bytes themselves decide."""
    if len(data) % 4:
        return (data,)
    step = len(data) // (1 + sum(data[:8]) % 60) + 1  # No data comes in no piece.
    return [data[start : start + step] for start in range(0, len(data), step)]
