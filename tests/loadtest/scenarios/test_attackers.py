"""Tests of loadtest.scenarios.attackers: what the attackers send, and when they come again."""

import asyncio
import contextlib

import pytest

from loadtest.scenarios import attackers
from protocol.gob import scalars

VICTIM = attackers.Victim(host="127.0.0.1", port=0, metrics_port=0, feed="felix")


@pytest.mark.parametrize("name", [name for name in attackers.PLAIN if "gob" in name])
def test_gob_messages_are_whole_but_for_the_held_ones(name: str) -> None:
    data, position, count = attackers.PLAIN[name].first(VICTIM), 0, 0
    while position < len(data):
        split = scalars.split_uint(data, position)
        assert split is not None
        length, start = split
        position = start + length
        count += 1
    assert position - len(data) == (8 if "held" in name else 0)
    assert count >= 3, "definitions, and a value"


@pytest.mark.parametrize("way", list(attackers.Way))
async def test_connections_come_at_once_again_or_at_a_rate(way: attackers.Way) -> None:
    received: list[bytes] = []
    enough = asyncio.Event()

    async def close(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        received.append(await reader.readexactly(4))
        writer.close()
        if len(received) == 12:
            enough.set()

    async with await asyncio.start_server(close, "127.0.0.1", 0) as server:
        port: int = server.sockets[0].getsockname()[1]
        victim = attackers.Victim(host="127.0.0.1", port=port, metrics_port=0, feed="")
        what = attackers.Attack(size=4, way=way, first=lambda _: b"once", then=lambda _: b"more", reads=False)
        attacking = asyncio.create_task(attackers.attack(what, victim, 4))
        if way is attackers.Way.ONCE:
            async with asyncio.timeout(180):
                await attacking
            assert received == [b"once"] * 4
        else:
            async with asyncio.timeout(180):
                await enough.wait()
            assert received == [b"once"] * 12
            attacking.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await attacking
