"""Peers that do not keep to the protocol: each is closed or contained with one reason, and nobody else notices."""

import asyncio
import contextlib
import random
import socket
import statistics
from collections.abc import Coroutine
from typing import Any, Final

from loadtest.environment import testbed
from loadtest.reporting import dashboard, measure, report
from loadtest.scenarios import fanout, fixture
from protocol import messages
from protocol.native import codec
from protocol.native import frames as native
from protocol.reasons import DisconnectReason

COPIES: Final = 4
"""Of each kind but the silent ones, which are many."""
HUGE_BYTES: Final = 100_000_000
CONNECTS_AT_ONCE: Final = 100
CLOSE_TIMEOUT_SECONDS: Final = 30.0
NO_PROGRESS_TIMEOUT_SECONDS: Final = 15
NEVER_READER_SECONDS: Final = 45.0

_UNKNOWN_BYTES: Final = (DisconnectReason.BAD_PREFACE, DisconnectReason.UNSUPPORTED_PROTOCOL)
_STUCK: Final = (DisconnectReason.NO_PROGRESS, DisconnectReason.PONG_TIMEOUT)


async def bad_peers(settings: fixture.Settings, screen: dashboard.View) -> report.Report:
    """Alternates quiet spans and spans with bad peers; in the end, peers that never read."""
    environment = {"TYPHA_NOPROGRESSTIMEOUTSECS": str(NO_PROGRESS_TIMEOUT_SECONDS)}
    async with fixture.open_scene(settings, screen, environment=environment) as scene:
        running = scene.running
        await scene.start_churn()
        await running.sleep(fanout.WARM_UP_SECONDS)
        first = await running.service.counters()
        quiet, disturbed = [], []
        still_open = 0
        peak = 0

        async def attack() -> None:
            nonlocal still_open
            still_open += await _attack(running.service.address, settings.silent_connections)

        for number in range(settings.rounds):
            screen.say(f"round {number + 1} of {settings.rounds}: without, then with bad peers")
            without = await running.window(settings.seconds)
            with_them = await running.window(settings.seconds, attack)
            quiet.append(without.latency.quantile(0.99) or 0.0)
            disturbed.append(with_them.latency.quantile(0.99) or 0.0)
            peak = max(peak, with_them.memory_bytes)
        middle = await running.service.counters()
        checks = _counted(first, middle, settings, still_open)
        screen.say(f"{COPIES} peers that never read")
        await _never_read(running)
        last = await running.service.counters()
        stuck = sum(_rise(middle, last, reason) for reason in _STUCK)
        checks += [
            report.Check(
                "peers that never read are given up on",
                stuck == COPIES,
                f"{stuck:.0f} of {COPIES} closed with {' or '.join(_STUCK)}",
            ),
            report.Check("each end has a line in the log", *_logged(running.service.log.read_text(errors="replace"))),
            fanout.unmoved(
                "bad peers move nobody else",
                statistics.median(quiet),
                statistics.median(disturbed),
                judged=settings.judge_times,
            ),
        ]
        facts = {
            "p99 of the rounds without": fanout.milliseconds(quiet),
            "p99 of the rounds with": fanout.milliseconds(disturbed),
            "memory of the service at its peak with them": f"{peak / 1e6:.1f} MB",
        }
        return await scene.finish("Bad peers", facts, checks)


def _counted(
    before: measure.Counters, after: measure.Counters, settings: fixture.Settings, still_open: int
) -> list[report.Check]:
    """That every peer was closed, and counted under its one reason."""
    rounds = settings.rounds
    expected = {
        "random bytes": (_UNKNOWN_BYTES, COPIES * rounds),
        "a hello of 100 MB": ((DisconnectReason.MESSAGE_TOO_LARGE,), COPIES * rounds),
        f"no hello, half a frame, {settings.silent_connections} silent connections": (
            (DisconnectReason.HANDSHAKE_TIMEOUT,),
            (2 * COPIES + settings.silent_connections) * rounds,
        ),
    }
    checks = []
    for name, (reasons, wanted) in expected.items():
        counted = sum(_rise(before, after, reason) for reason in reasons)
        checks.append(report.Check(name, counted == wanted, f"{counted:.0f} of {wanted} as {' or '.join(reasons)}"))
    total = after.total("typha_disconnects_total") - before.total("typha_disconnects_total")
    wanted = sum(count for _, count in expected.values())
    checks.append(
        report.Check(
            "each has one reason, and nobody else was closed",
            total == wanted and not still_open,
            f"{total:.0f} closed connections for {wanted} bad peers, {still_open} still open after a while",
        )
    )
    return checks


def _rise(before: measure.Counters, after: measure.Counters, reason: str) -> float:
    name = "typha_disconnects_total"
    return after.total(name, reason=reason) - before.total(name, reason=reason)


def _logged(log: str) -> tuple[bool, str]:
    wanted = (DisconnectReason.MESSAGE_TOO_LARGE, DisconnectReason.HANDSHAKE_TIMEOUT)
    missing = [reason for reason in wanted if f'"{reason}"' not in log]
    if not any(f'"{reason}"' in log for reason in _UNKNOWN_BYTES):
        missing.append(_UNKNOWN_BYTES[0])
    if not any(f'"{reason}"' in log for reason in _STUCK):
        missing.append(_STUCK[0])
    return not missing, f"missing in the log: {', '.join(missing)}" if missing else "all reasons stand in the log"


async def _attack(address: tuple[str, int], silent: int) -> int:
    """All kinds at once; returns how many the server had not closed in the end."""
    dice = random.Random(1)
    header = native.HEADER.pack(HUGE_BYTES, 0)
    peers: list[Coroutine[Any, Any, bool]] = []
    for _ in range(COPIES):
        peers += [
            _peer(address, bytes([dice.randrange(0x80, 0xFF)]) + dice.randbytes(5000)),
            _peer(address, native.PREFACE),
            _peer(address, native.PREFACE + header, endless=True),
            _peer(address, native.PREFACE + _hello()[:9]),
        ]
    gate = asyncio.Semaphore(CONNECTS_AT_ONCE)
    peers += [_peer(address, b"", gate=gate) for _ in range(silent)]
    closed = await asyncio.gather(*peers)
    return closed.count(False)


async def _peer(
    address: tuple[str, int], data: bytes, *, endless: bool = False, gate: asyncio.Semaphore | None = None
) -> bool:
    """Sends something, `endless` with 100 MB behind it, and waits to be closed; whether it was."""
    async with gate or contextlib.nullcontext():
        reader, writer = await asyncio.open_connection(*address)
    try:
        async with asyncio.timeout(CLOSE_TIMEOUT_SECONDS):
            writer.write(data)
            for _ in range(HUGE_BYTES // 65536 if endless else 0):
                writer.write(bytes(65536))
                await writer.drain()
            while await reader.read(65536):
                pass
        return True
    except ConnectionError:
        return True
    except TimeoutError:
        return False
    finally:
        writer.transport.abort()


async def _never_read(running: testbed.Stage) -> None:
    """Peers with a proper hello that read nothing, and keep their end open; until the service has given them up."""
    loop = asyncio.get_running_loop()
    sockets = []
    try:
        for _ in range(COPIES):
            sock = socket.socket()
            sockets.append(sock)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1)
            sock.setblocking(False)
            await loop.sock_connect(sock, running.service.address)
            await loop.sock_sendall(sock, native.PREFACE + _hello())
        await running.sleep(2.0)
        deadline = loop.time() + NEVER_READER_SECONDS
        while loop.time() < deadline and (await _active(running)) > running.plan.agents:
            await running.sleep(1.0)
    finally:
        for sock in sockets:
            sock.close()


async def _active(running: testbed.Stage) -> float:
    return (await running.service.counters()).total("typha_connections_active")


def _hello() -> bytes:
    hello = messages.ClientHello(feed="loadtest", agent="never-reads", features=frozenset({"zstd"}))
    return native.pack_frame(codec.encode(hello))
