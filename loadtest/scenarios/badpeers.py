"""Peers that break the protocol: the service closes each with one reason, and other clients are not delayed."""

import asyncio
import contextlib
import random
import socket
from collections.abc import Coroutine
from typing import Any, Final

from loadtest.environment import testbed
from loadtest.reporting import dashboard, measure, report
from loadtest.scenarios import assertions, fixture
from protocol import messages
from protocol.native import codec
from protocol.native import frames as native
from protocol.reasons import DisconnectReason

COPIES: Final = 4
"""Peers of each kind, except the silent ones."""
HUGE_BYTES: Final = 100_000_000
CONNECTS_AT_ONCE: Final = 100
CLOSE_TIMEOUT_SECONDS: Final = 30.0
NO_PROGRESS_TIMEOUT_SECONDS: Final = 15
NEVER_READER_SECONDS: Final = 45.0

_UNKNOWN_BYTES: Final = (DisconnectReason.BAD_PREFACE, DisconnectReason.UNSUPPORTED_PROTOCOL)
_STUCK: Final = (DisconnectReason.NO_PROGRESS, DisconnectReason.PONG_TIMEOUT)


async def bad_peers(settings: fixture.Settings, screen: dashboard.Dashboard) -> report.Report:
    """Alternating spans without and with bad peers; in the end, peers that never read."""
    environment = {"TYPHA_NOPROGRESSTIMEOUTSECS": str(NO_PROGRESS_TIMEOUT_SECONDS)}
    async with fixture.open_scene(settings, screen, environment=environment) as scene:
        running = scene.testbed
        await scene.start_churn()
        first = await running.service.counters()
        disturbance = assertions.Disturbance()
        still_open = 0

        async def attack() -> None:
            nonlocal still_open
            still_open += await _attack(running.service.address, settings.silent_connections)

        for number in range(settings.rounds):
            screen.say(f"round {number + 1} of {settings.rounds}: without, then with bad peers")
            without = await running.window(settings.seconds)
            disturbance.add(without, await running.window(settings.seconds, attack))
        middle = await running.service.counters()
        screen.say(f"{COPIES} peers that never read")
        await _never_read(running)
        last = await running.service.counters()
        stuck = sum(_rise(middle, last, reason) for reason in _STUCK)
        checks = [
            *_counted(first, middle, settings, still_open),
            report.Check(
                "peers that never read are given up on",
                stuck == COPIES,
                f"{stuck:.0f} of {COPIES} closed with {' or '.join(_STUCK)}",
            ),
            report.Check("each end has a line in the log", *_logged(running.service.log.read_text(errors="replace"))),
            disturbance.check("bad peers do not delay the others", judged=settings.judge_times),
        ]
        facts = {
            "p99 of the rounds without": assertions.milliseconds(disturbance.without),
            "p99 of the rounds with": assertions.milliseconds(disturbance.with_it),
            "memory of the service at its peak with them": f"{disturbance.peak_bytes / 1e6:.1f} MB",
        }
        return await scene.finish("Bad peers", facts, checks)


def _counted(
    before: measure.Metrics, after: measure.Metrics, settings: fixture.Settings, still_open: int
) -> list[report.Check]:
    """Every peer was closed, and counted once, with its reason."""
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
            "each has one reason, and no other connection was closed",
            total == wanted and not still_open,
            f"{total:.0f} closed connections for {wanted} bad peers, {still_open} still open after a while",
        )
    )
    return checks


def _rise(before: measure.Metrics, after: measure.Metrics, reason: str) -> float:
    name = "typha_disconnects_total"
    return after.total(name, reason=reason) - before.total(name, reason=reason)


def _logged(log: str) -> tuple[bool, str]:
    wanted = (DisconnectReason.MESSAGE_TOO_LARGE, DisconnectReason.HANDSHAKE_TIMEOUT)
    missing = [reason for reason in wanted if f'"{reason}"' not in log]
    if not any(f'"{reason}"' in log for reason in _UNKNOWN_BYTES):
        missing.append(_UNKNOWN_BYTES[0])
    if not any(f'"{reason}"' in log for reason in _STUCK):
        missing.append(_STUCK[0])
    return not missing, f"missing in the log: {', '.join(missing)}" if missing else "all reasons are in the log"


async def _attack(address: tuple[str, int], silent: int) -> int:
    """Open peers of all kinds at once; returns how many the server did not close."""
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
    """Send data, if `endless` followed by 100 MB, and wait until the server closes; returns whether it did."""
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


async def _never_read(running: testbed.Testbed) -> None:
    """Open connections that send a proper hello and read nothing, until the service has closed them."""
    loop = asyncio.get_running_loop()
    sockets = []

    async def closed() -> bool:
        counters = await running.service.counters()
        return counters.total("typha_connections_active") <= running.swarm.agents

    try:
        for _ in range(COPIES):
            sock = socket.socket()
            sockets.append(sock)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1)
            sock.setblocking(False)
            await loop.sock_connect(sock, running.service.address)
            await loop.sock_sendall(sock, native.PREFACE + _hello())
        await running.sleep(2.0)
        await running.wait_until(closed, timeout_seconds=NEVER_READER_SECONDS, interval_seconds=1.0)
    finally:
        for sock in sockets:
            sock.close()


def _hello() -> bytes:
    hello = messages.ClientHello(feed="loadtest", agent="never-reads", features=frozenset({"zstd"}))
    return native.pack_frame(codec.encode(hello))
