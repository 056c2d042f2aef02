"""The kit's end of a connection survives whatever a peer sends."""

import asyncio
import socket
import struct
from collections.abc import Awaitable, Callable

import pytest

from clients.conformance import wire
from clients.conformance.link import Ended, Link
from clients.conformance.report import Broken


async def read(data: bytes, action: Callable[[Link], Awaitable[object]]) -> object:
    """What a link makes of bytes and the end of the stream."""
    ours, theirs = socket.socketpair()
    with theirs:
        theirs.sendall(data)
        theirs.shutdown(socket.SHUT_WR)
        reader, writer = await asyncio.open_connection(sock=ours)
        try:
            return await action(Link(reader, writer, patience_seconds=5.0))
        finally:
            writer.transport.abort()


@pytest.mark.parametrize(
    ("data", "rule"),
    [
        (bytes(4), "L2"),
        (struct.pack(">I", wire.MAX_FRAME_BYTES + 1), "L2"),
        (wire.framed(wire.payload([8]), 2), "F3"),
        (wire.framed(b"\xc1"), "F4"),
        (wire.framed(b"\x91\x08\xc0"), "F4"),
        (wire.framed(b"\x91" * 100_000), "F4"),
        (wire.framed(b"\x90"), "M2"),
        (wire.framed(b"\x91\xc3"), "M2"),
        (wire.framed(b"\x08"), "M2"),
        (wire.framed(bytes.fromhex("28b52ffda0010000011100009108"), 1), "F7"),
        (wire.framed(bytes.fromhex("28b52ffd00581100009108"), 1), "F7"),
        (wire.framed(b"no zstd", 1), "F7"),
    ],
)
async def test_what_breaks_a_rule(data: bytes, rule: str) -> None:
    with pytest.raises(Broken) as info:
        await read(data, lambda link: link.message())
    assert info.value.rule == rule


async def test_frames_and_the_end() -> None:
    assert await read(wire.frame(9, 5), lambda link: link.message()) == [9, 5]
    assert await read(wire.compressed(9, 5), lambda link: link.message()) == [9, 5]
    with pytest.raises(Ended):
        await read(wire.frame(9, 5)[:-1], lambda link: link.message())
    assert await read(b"something", lambda link: link.closed()) is True
    with pytest.raises(Broken, match="H3"):
        await read(b"HTTP/1.1 200", lambda link: link.preface())


@pytest.mark.parametrize("stated", ["28b52ffda0010000011100009108", "28b52ffd00581100009108"])
async def test_the_stated_size_is_checked_before_decompression(stated: str) -> None:
    with pytest.raises(Broken, match=r"states (16777217|-1) bytes"):
        await read(wire.framed(bytes.fromhex(stated), 1), lambda link: link.message())
