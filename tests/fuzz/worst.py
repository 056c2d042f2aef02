"""Searches for the hello that costs most: hill climbing over lists of parts, by the CPU time of a whole handshake.

A candidate is a list of parts. A change repeats, replaces, inserts, removes or copies parts, and is kept if the hello
then costs more. The parts include the attacks that were found by hand. Lengths are made to fit, and the candidate is
cut to the largest hello that its protocol allows, because a hello over that limit costs nothing.
"""

import contextlib
import random
import time
from collections.abc import Callable, Sequence
from typing import NamedTuple

from protocol import errors
from protocol.gob import scalars
from protocol.native import frames
from protocol.typha import codec, connection
from tests.fuzz import cost, targets
from tests.protocol.gob.test_decoder import definition, other

MAX_NATIVE_BYTES = 64 * 1024 - 1
"""Of a payload: the limit of a frame counts its flags."""
_PATIENCE = 400
"""Tries without success after which the search begins from another candidate."""


class Found(NamedTuple):
    """The costliest hello, and how many were tried."""

    milliseconds: float
    data: bytes
    tries: int


class Kind(NamedTuple):
    """One protocol: parts to build a hello from, and how to make a stream of them."""

    name: str
    parts: Sequence[bytes]
    build: Callable[[Sequence[bytes]], bytes]
    starts: Sequence[Sequence[bytes]]


def feed(data: bytes) -> None:
    """A handshake with this hello, good or bad."""
    with contextlib.suppress(errors.RemoteProtocolError):
        targets.serve(data)


def search(kind: Kind, *, seconds: float, seed: int) -> Found:
    """The costliest hello that was found in this time, and in one try at least."""
    rng = random.Random(seed)
    deadline = time.monotonic() + seconds
    best = Found(0.0, b"", 0)
    tries = 0
    starts = list(kind.starts)
    while not tries or time.monotonic() < deadline:
        current = list(starts.pop(0) if starts else [rng.choice(kind.parts) for _ in range(rng.randrange(1, 30))])
        current_cost = _cost(kind.build(current))
        since = 0
        while since < _PATIENCE and (not tries or time.monotonic() < deadline):
            tries += 1
            since += 1
            changed = _change(current, kind.parts, rng)
            data = kind.build(changed)
            measured = _cost(data)
            if measured > current_cost * 1.02:
                current, current_cost, since = changed, measured, 0
            if measured > best.milliseconds:
                measured = cost.cpu_milliseconds(lambda: feed(data), times=7)  # noqa: B023
                if measured > best.milliseconds:
                    best = Found(measured, data, tries)
    return best._replace(tries=tries)


def _cost(data: bytes) -> float:
    return cost.cpu_milliseconds(lambda: feed(data), times=3)


def _change(parts: list[bytes], known: Sequence[bytes], rng: random.Random) -> list[bytes]:
    changed = list(parts)
    place = rng.randrange(len(changed) + 1)
    end = min(len(changed), place + rng.choice((1, 1, 2, 4, 20)))
    match rng.randrange(7):
        case 0 | 1:
            changed[place:place] = changed[place:end] * rng.choice((1, 2, 10, 100, 1000, 10_000))
        case 2:
            changed[place:end] = [rng.choice(known)]
        case 3:
            changed.insert(place, rng.choice(known))
        case 4:
            del changed[place:end]
        case 5:
            changed[place:place] = changed[place:] * rng.choice((1, 3))
        case _:
            changed[place:place] = [rng.choice(known)] * rng.choice((1, 10, 100, 1000, 10_000))
    return changed[:70_000] or [rng.choice(known)]


# The native protocol: the members of a hello's map.

_REQUIRED = b"\xa4feed\xa4pods\xa5agent\xa1a\xa8versions\x91\x01"
_NATIVE_PARTS = (
    *(
        b"\xdd\x00\x10\x00\x00",
        b"\xdc\xff\xff",
        b"\xdc\x03\xe8",
        b"\xdc\x00\x40",
        b"\x91",
        b"\x90",
        b"\x80",
        b"\x81\xa0",
    ),
    *(
        b"\xde\xff\xff",
        b"\xdf\x00\x10\x00\x00",
        b"\xa0",
        b"\xa1x",
        b"\xc0",
        b"\x01",
        b"\xcf" + b"\xff" * 8,
        b"\xcb" + bytes(8),
    ),
    *(b"\xc4\x00", b"\xd9\x40" + b"x" * 64, b"\xd9\x40" + b"\xc3\xa9" * 32, b"\xd4\x01\x00", b"\xc7\x00\x01"),
    *(b"\xa4node\xa0", b"\xa4node", b"\xa8software\xa0", b"\xa8features", b"\xa8features\xdc\x00\x40" + b"\xa0" * 64),
    *(
        b"\xa8versions\x91\x01",
        b"\xa8versions\xdc\x00\x40" + b"\x01" * 64,
        b"\xadchunk_digests",
        b"\xadchunk_digests\x90",
    ),
    *(
        b"\xadchunk_digests\xdc\x20\x00" + b"\x01" * 8192,
        b"\xa6resume\x92\xc4\x00\x00",
        b"\xa6resume",
        b"\xacsubscription",
    ),
    *(b"\xacsubscription\x80", _REQUIRED),
)


def _build_native(parts: Sequence[bytes]) -> bytes:
    members = (_REQUIRED + b"".join(parts))[: MAX_NATIVE_BYTES - 5]
    hello = b"\x92\x01\xde" + _members(members).to_bytes(2, "big") + members
    return frames.PREFACE + frames.pack_frame(hello)


def _members(members: bytes) -> int:
    """How many members to announce: as many as there are, if a reader of the whole map can tell."""
    count = members.count(b"\xa0\xc0") + members.count(b"\xa4node\xa0") + members.count(b"\xa8features\xdc\x00\x40")
    count += members.count(b"\xa8versions") + members.count(b"\xadchunk_digests") + members.count(b"\xa6resume\x92")
    return min(65_535, max(3, count + 2))


_NATIVE_STARTS = (
    (b"\xa1x", *[b"\xdd\x00\x10\x00\x00"] * 1000),
    (b"\xa1x", b"\xdc\xff\x00", *[b"\x80"] * 0xFF00),
    (b"\xadchunk_digests\xdc\xfe\x00", *[b"\x01"] * 0xFE00),
    (b"\xa8features\xdc\x00\x40" + b"\xa0" * 64,) * 850,
    (b"\xa4node\xa0",) * 10_000,
    (b"\xa0\xc0",) * 32_000,
)

# Typha's: the bodies of messages, each a definition or a value. An empty part ends a body.

_NAME = codec.NAME_PREFIX + b"MsgClientHello"
_IDS = [scalars.encode_int(number) for number in range(64, 76)]
_TYPHA_PARTS = (
    *(b"", b"\x00", b"\x01", b"\x02", b"\x7f", b"\xff\xff", b"\xfe\x3f\xff", b"\x10", b"\x01\x06string\x0c", b"\x0c"),
    *_IDS,
    scalars.encode_bytes(_NAME),
    *(definition(64 + number) + b"\x00" for number in range(6)),
    *(definition(70, *[(f"F{field}", kind) for field in range(40)]) for kind in (1, 8, 70, 71)),
    *(
        other(70 + kind % 3, *form)
        for kind in range(3)
        for form in ((2, 70), (2, 71), (4, 71, 72), (1, 71, 5), (2, 1), (2, 8))
    ),
    *(other(number, 2, number + 1) for number in range(70, 75)),
    codec.CLIENT.definitions,
)
_ENVELOPE = definition(64, ("Message", 8), ("Odd", 70), ("Odder", 71))


def _build_typha(parts: Sequence[bytes]) -> bytes:
    bodies: list[list[bytes]] = [[]]
    for part in parts:
        if part:
            bodies[-1].append(part)
        else:
            bodies.append([])
    stream = b""
    limit = _typha_limit()
    for body in bodies:
        message = b"".join(body)[: max(0, limit - len(stream) - 3)]
        if message:
            stream += scalars.encode_bytes(message)
    return stream


def _typha_limit() -> int:
    return connection.Connection(connection.Role.SERVER)._decoder.limits.message_bytes


def _odd(*definitions: bytes, content: bytes) -> tuple[bytes, ...]:
    """A hello whose envelope has an unknown field of type 70."""
    parts: list[bytes] = [_ENVELOPE, b""]
    for one in definitions:
        parts += (one, b"")
    return (*parts, other(71, 2, 1), b"", _IDS[0] + b"\x02", *[content] * 15_000)


_CHAIN = [definition(number, *[(f"F{field}", number + 1) for field in range(9)]) for number in range(72, 83)]
_TYPHA_STARTS = (
    _odd(other(70, 2, 70), content=b"\x01"),
    _odd(definition(70, ("A", 70)), content=b"\x01"),
    (
        *_odd(other(70, 2, 71), content=b"")[:-15_001],
        _IDS[0] + b"\x02" + scalars.encode_uint(15_000),
        *[b"\x00"] * 15_000,
    ),
    (
        _ENVELOPE,
        b"",
        *[part for one in _CHAIN for part in (one, b"")],
        other(70, 2, 72),
        b"",
        other(71, 2, 72),
        b"",
        _IDS[0] + b"\x02\x05",
    ),
    tuple(part for number in range(64, 2000) for part in (definition(number), b"")),
    (codec.CLIENT.definitions,),
)

KINDS = (
    Kind("native", _NATIVE_PARTS, _build_native, _NATIVE_STARTS),
    Kind("typha", _TYPHA_PARTS, _build_typha, _TYPHA_STARTS),
)
