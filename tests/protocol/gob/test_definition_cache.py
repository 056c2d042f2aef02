"""Definitions that are known from before: whatever a stream says, it is read as by a decoder that knows none."""

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
    """The same hello with all that is defined inside it in one message."""
    bodies, start = [], 0
    for _ in range(4):
        length, body_start = scalars.split_uint(stream, start) or (0, start)
        start = body_start + length
        bodies.append(stream[body_start:start])
    first, *parts = bodies
    return encoder.frame(first) + encoder.frame(parts[0] + b"".join(map(scalars.encode_bytes, parts[1:])))


STREAMS = [*RECORDED, OURS, in_one_message(RECORDED[0])]


@pytest.fixture(autouse=True)
def known_runs(monkeypatch: pytest.MonkeyPatch) -> definition_cache.Runs:
    """None at first."""
    known = definition_cache.Runs()
    monkeypatch.setattr(definition_cache, "RUNS", known)
    return known


def read(data: bytes, *, step: int = 1 << 20, limits: decoder.Limits = decoder.CLIENT_MESSAGES) -> list[object]:
    """What a decoder makes of a stream, to its end or first error, and the types and bytes that it is left with."""
    reader = codec.make_server_decoder(limits)
    found: list[Any] = []
    try:
        for start in range(0, len(data), step):
            reader.receive(data[start : start + step])
            while (value := reader.next_value()) is not decoder.NOT_YET:
                found.append(value)
    except errors.RemoteProtocolError as error:
        found.append((str(error), error.reason))
    else:
        found.append(reader.pending_bytes)
    return [*found, dict(reader.definitions)]


def read_both(data: bytes, known: list[bytes], *, step: int, limits: decoder.Limits) -> tuple[object, object]:
    """By a decoder that knows nothing, and by one that knows what the other streams have defined."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(definition_cache, "RUNS", definition_cache.Runs())
        unknowing = read(data, step=step, limits=limits)
        patch.setattr(definition_cache, "RUNS", definition_cache.Runs())
        for stream in known:
            read(stream)
        return unknowing, read(data, step=step, limits=limits)


@st.composite
def damaged(draw: st.DrawFn) -> bytes:
    """A client's stream, whole or with some bytes changed, added or cut off."""
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
def test_what_is_known_changes_nothing(data: bytes, known: list[bytes], step: int, message_bytes: int) -> None:
    limits = decoder.Limits(message_bytes=message_bytes)
    unknowing, knowing = read_both(data, [*STREAMS, *known], step=step, limits=limits)
    assert knowing == unknowing


@pytest.mark.parametrize("data", STREAMS)
def test_a_hello_that_differs_in_its_values_alone_defines_nothing(data: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    first = read(data)
    monkeypatch.setattr(types.Table, "extend", lambda *_: pytest.fail("a definition was read again"))
    assert read(data.replace(b"node-a", b"node-b").replace(b"a host", b"a home"))[-1] == first[-1]


def test_they_are_few_and_small(known_runs: definition_cache.Runs) -> None:
    tables = [types.EMPTY]
    for number in range(definition_cache.MAX_RUNS + 1):
        tables.append(types.Table({}, {}, 100))
        known_runs.add(definition_cache.Run(types.EMPTY, b"", b"definition %d" % number, True, tables[-1]))
    found = [
        known_runs.find(types.EMPTY, b"", 0, buffer=b"definition %d" % number, start=0) is not None
        for number in range(definition_cache.MAX_RUNS + 1)
    ]
    assert found == [False] + [True] * definition_cache.MAX_RUNS
    long = b"x" * (definition_cache.MAX_RUN_BYTES + 1)
    known_runs.add(definition_cache.Run(types.EMPTY, b"", long, True, tables[-1]))
    assert known_runs.find(types.EMPTY, b"", 0, buffer=long, start=0) is None
    known_runs.add(
        definition_cache.Run(types.EMPTY, b"", b"y", True, types.Table({}, {}, definition_cache.MAX_RUN_BYTES + 1))
    )
    assert known_runs.find(types.EMPTY, b"", 0, buffer=b"y", start=0) is None
