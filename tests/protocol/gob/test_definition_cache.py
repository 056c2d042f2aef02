"""The cache of definitions: a decoder that finds definitions in it behaves like one that reads them."""

from typing import Any

import hypothesis.strategies as st
import pytest
from hypothesis import given

from protocol import errors
from protocol.gob import decoder, definition_cache, encoder, scalars, types
from protocol.typha import codec, messages
from tests.harness import repository

RECORDED = [file.read_bytes() for file in sorted((repository.WIRE / "client-hello").glob("*.bin"))]
OURS = codec.CLIENT.definitions + codec.encode(
    messages.ClientHello("a host", "an agent", "v1", "felix"), types=codec.CLIENT
)


def in_one_message(stream: bytes) -> bytes:
    """The same hello, with all definitions inside it in one message."""
    bodies, start = [], 0
    for _ in range(4):
        length, body_start = scalars.split_uint(stream, start) or (0, start)
        start = body_start + length
        bodies.append(stream[body_start:start])
    first, *parts = bodies
    return encoder.frame(first) + encoder.frame(parts[0] + b"".join(map(scalars.encode_bytes, parts[1:])))


STREAMS = [*RECORDED, OURS, in_one_message(RECORDED[0])]


def read(
    data: bytes,
    cache: definition_cache.DefinitionCache,
    *,
    step: int = 1 << 20,
    limits: decoder.Limits = decoder.HELLO_LIMITS,
) -> list[object]:
    """The decoded values up to the end or the first error, then the decoder's types and pending bytes."""
    reader = decoder.Decoder(codec.ENVELOPE, codec.CLIENT_MESSAGE_TYPES, limits=limits, cache=cache)
    found: list[Any] = []
    try:
        for start in range(0, len(data), step):
            reader.receive(data[start : start + step])
            while (value := reader.next_value()) is not decoder.NEED_DATA:
                found.append(value)
    except errors.RemoteProtocolError as error:
        found.append((str(error), error.reason))
    else:
        found.append(reader.pending_bytes)
    return [*found, dict(reader.definitions)]


@st.composite
def damaged(draw: st.DrawFn) -> bytes:
    """A client's stream, intact or with some bytes changed, inserted or removed."""
    data = bytearray(draw(st.sampled_from(STREAMS)))
    for _ in range(draw(st.integers(0, 3))):
        place = draw(st.integers(0, len(data) - 1))
        match draw(st.sampled_from(("change", "add", "cut", "repeat"))):
            case "change":
                data[place] = draw(st.integers(0, 255))
            case "add":
                data[place:place] = draw(st.binary(max_size=4))
            case "repeat":
                data += data[: place + 1]
            case _:
                del data[place:]
                data += b"\1"
    return bytes(data)


@given(
    damaged(),
    st.lists(damaged(), max_size=3),
    st.sampled_from((1, 7, 60, 300, 1 << 20)),
    st.sampled_from((40, 300, 400, 500, 1 << 20)),
)
def test_a_full_cache_does_not_change_the_result(
    data: bytes, earlier: list[bytes], step: int, message_bytes: int
) -> None:
    limits = decoder.Limits(message_bytes=message_bytes, skipped_values=1024)
    cache = definition_cache.DefinitionCache()
    for stream in [*STREAMS, *earlier]:
        read(stream, cache)
    without = read(data, definition_cache.DefinitionCache(), step=step, limits=limits)
    assert read(data, cache, step=step, limits=limits) == without


@pytest.mark.parametrize("data", STREAMS)
def test_a_hello_with_other_values_needs_no_decoding_of_definitions(
    data: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = definition_cache.DefinitionCache()
    first = read(data, cache)
    monkeypatch.setattr(types.Table, "extend", lambda *_: pytest.fail("a definition was decoded again"))
    assert read(data.replace(b"node-a", b"node-b").replace(b"a host", b"a home"), cache)[-1] == first[-1]


def test_decoders_share_one_cache_by_default() -> None:
    first, second = codec.make_server_decoder(), codec.make_server_decoder()
    assert first._cache is second._cache is definition_cache.SHARED


def test_the_number_and_size_of_entries_are_limited() -> None:
    cache = definition_cache.DefinitionCache()
    tables = [types.EMPTY]
    for number in range(definition_cache.MAX_ENTRIES + 1):
        tables.append(types.Table({}, {}, 100, 0))
        cache.add(definition_cache.Entry(types.EMPTY, b"", b"definition %d" % number, True, tables[-1]))
    found = [
        cache.find(types.EMPTY, b"", 0, buffer=b"definition %d" % number, start=0) is not None
        for number in range(definition_cache.MAX_ENTRIES + 1)
    ]
    assert found == [False] + [True] * definition_cache.MAX_ENTRIES
    long = b"x" * (definition_cache.MAX_ENTRY_BYTES + 1)
    cache.add(definition_cache.Entry(types.EMPTY, b"", long, True, tables[-1]))
    assert cache.find(types.EMPTY, b"", 0, buffer=long, start=0) is None
    large_table = types.Table({}, {}, definition_cache.MAX_ENTRY_BYTES + 1, 0)
    cache.add(definition_cache.Entry(types.EMPTY, b"", b"y", True, large_table))
    assert cache.find(types.EMPTY, b"", 0, buffer=b"y", start=0) is None
