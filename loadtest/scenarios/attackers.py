"""Attacks on the service's ports, one row each. `python -m loadtest.scenarios.attackers` makes one of them.

An attacker opens connections, sends the same bytes on each, and then waits until the service closes it, or goes on to
send. It uses neither the public client nor the swarm's engine: its bytes are mostly ones that no client sends.
"""

import asyncio
import contextlib
import ctypes
import ctypes.util
import dataclasses
import enum
import functools
import json
import os
import pathlib
import random
import socket
import ssl
import sys
import time
from collections.abc import Callable, Coroutine, Mapping
from pathlib import Path
from typing import Any, Final

import msgspec

from loadtest.environment import child
from loadtest.swarm import agent, control, nativeagent, tls, typhaagent, worker
from protocol import messages
from protocol.gob import encoder, scalars, schema
from protocol.native import codec
from protocol.native import frames as native
from protocol.reasons import DisconnectReason
from protocol.typha import codec as typha_codec
from protocol.typha import messages as typha

READ_BYTES: Final = 64 * 1024
CONNECTS_AT_ONCE: Final = 100
AGAIN_SECONDS: Final = 0.2
"""From the end of a connection to the next one in its place."""
NESTED_ARRAYS: Final = 1000
NESTED_SLICES: Final = 260_000
HELD_BYTES: Final = 1_000_000
PONGS_AT_ONCE: Final = 1000
ESTABLISHED: Final = 1
"""tcpi_state, the first byte of struct tcp_info."""


class Victim(msgspec.Struct, frozen=True):
    """What is attacked, and what the attacker has: the feed's name, perhaps the files of a valid agent."""

    host: str
    port: int
    metrics_port: int
    feed: str
    tls: control.TlsFiles | None = None


class Way(enum.Enum):
    """How the connections of an attack come."""

    ONCE = "once"
    """All at once, and none again."""
    HELD = "held"
    """All at once; each that ends comes again."""
    RATE = "rate"
    """So many a second."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Attack:
    """One attack. `size` is the full number of connections, or for `Way.RATE` of connections a second."""

    size: int
    way: Way = Way.HELD
    first: Callable[[Victim], bytes] = lambda _: b""
    """What is sent first."""
    then: Callable[[Victim], bytes] | None = None
    """What is sent after it, over and over."""
    reads: bool = True
    metrics: bool = False
    """On the port of the metrics instead of that of the clients."""
    raw: bool = False
    """Without a TLS handshake before the first byte, where the clients' port has TLS."""
    special: Callable[[Victim, asyncio.Semaphore], Coroutine[Any, Any, None]] | None = None
    """In place of all this, for one connection."""
    reasons: tuple[DisconnectReason, ...] = ()
    """One of these is counted for each connection that the service closes."""


def _native_hello(victim: Victim) -> bytes:
    one = nativeagent.NativeAgent("attacker", agent.Shared(), control.Group())
    return one.connected(feed=victim.feed, compressed=False, now_ns=0)


def _typha_hello(victim: Victim) -> bytes:
    one = typhaagent.TyphaAgent("attacker", agent.Shared(), control.Group())
    return one.connected(feed=victim.feed, compressed=False, now_ns=0)


def _junk(_: Victim) -> bytes:
    dice = random.Random(1)
    return bytes([dice.randrange(0x80, 0xFF)]) + dice.randbytes(5000)


def _nested_arrays(_: Victim) -> bytes:
    """A native hello of 5 kB: arrays that announce 2^20 elements, each within another."""
    return native.PREFACE + native.pack_frame(b"\x92\x01" + b"\xdd\x00\x10\x00\x00" * NESTED_ARRAYS)


def _gob_hello(element: int, value: bytes) -> bytes:
    """A Typha hello whose envelope has an unknown field: a slice of `element`, or of itself."""
    envelope, unknown = schema.FIRST_DEFINED_ID, schema.FIRST_DEFINED_ID + 1

    def named(name: str, type_id: int) -> bytes:
        return b"\1" + scalars.encode_text(name) + b"\1" + scalars.encode_int(type_id) + b"\0"

    members = named("Message", schema.INTERFACE_ID) + named("Unknown", unknown)
    struct = b"\3\1" + named("Envelope", envelope) + b"\1\2" + members + b"\0\0"
    slices = b"\2\1" + named("R", unknown) + b"\1" + scalars.encode_int(element or unknown) + b"\0\0"
    bodies = (
        scalars.encode_int(-envelope) + struct,
        scalars.encode_int(-unknown) + slices,
        scalars.encode_int(envelope) + b"\2" + value + b"\0",
    )
    return b"".join(encoder.frame(body) for body in bodies)


def _nested_slices(_: Victim) -> bytes:
    return _gob_hello(0, b"\1" * NESTED_SLICES + b"\0")


def _booleans(_: Victim) -> bytes:
    return _gob_hello(schema.BOOL_ID, scalars.encode_uint(NESTED_SLICES) + b"\1" * NESTED_SLICES)


def _held(_: Victim) -> bytes:
    """All but the end of a Typha hello of the greatest size."""
    hello = typha.ClientHello(hostname="x" * HELD_BYTES, info="", version="", syncer_type="felix")
    return (typha_codec.CLIENT.definitions + typha_codec.encode(hello, types=typha_codec.CLIENT))[:-8]


def _partial_frame(victim: Victim) -> bytes:
    """A good hello, then all but the end of a frame of the greatest size that clients may send."""
    return _native_hello(victim) + native.pack_frame(bytes(60_000))[:-8]


def _native_pongs(_: Victim) -> bytes:
    return native.pack_frame(codec.encode(messages.Pong(0))) * PONGS_AT_ONCE


def _typha_pongs(_: Victim) -> bytes:
    return typha_codec.encode(typha.Pong(), types=typha_codec.CLIENT) * PONGS_AT_ONCE


def _client_hello(victim: Victim) -> bytes:
    """The first flight of a TLS handshake, without a certificate."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    return tls.Channel(context, victim.host).begin()


def _get(_: Victim) -> bytes:
    return b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n"


async def _update_keys(victim: Victim, _: asyncio.Semaphore) -> None:
    """A handshake and a hello, then TLS 1.3 KeyUpdates that ask for no answer: they carry no data.

    Python's ssl module cannot send them, so this calls OpenSSL's library. Raises OSError if it is not there.
    """
    assert victim.tls is not None
    files = victim.tls
    library = ctypes.CDLL(ctypes.util.find_library("ssl") or "libssl.so.3")
    for name in ("TLS_client_method", "SSL_CTX_new", "SSL_new"):
        getattr(library, name).restype = ctypes.c_void_p
    context = ctypes.c_void_p(library.SSL_CTX_new(ctypes.c_void_p(library.TLS_client_method())))
    library.SSL_CTX_use_certificate_chain_file(context, files.certificate.encode())
    library.SSL_CTX_use_PrivateKey_file(context, files.key.encode(), 1)
    hello = _native_hello(victim)

    def flood() -> None:
        with socket.create_connection((victim.host, victim.port)) as sock:
            connection = ctypes.c_void_p(library.SSL_new(context))
            counts["opened"] += 1
            library.SSL_set_fd(connection, sock.fileno())
            if library.SSL_connect(connection) != 1:
                return
            library.SSL_write(connection, hello, len(hello))
            # Each call writes one record. It fails when the service has closed the connection.
            while library.SSL_key_update(connection, 0) == 1 and library.SSL_do_handshake(connection) == 1:
                counts["sent"] += 1
            counts["closed"] += 1

    await asyncio.to_thread(flood)


_UNKNOWN_BYTES: Final = (DisconnectReason.BAD_PREFACE, DisconnectReason.UNSUPPORTED_PROTOCOL)
_BROKEN: Final = (DisconnectReason.PROTOCOL_ERROR, DisconnectReason.MESSAGE_TOO_LARGE, *_UNKNOWN_BYTES)
_LATE: Final = (DisconnectReason.HANDSHAKE_TIMEOUT, DisconnectReason.TOO_MANY_CONNECTIONS)
_STUCK: Final = (DisconnectReason.NO_PROGRESS, DisconnectReason.PONG_TIMEOUT)

PLAIN: Final = {
    "silent": Attack(size=2000, raw=True, reasons=_LATE),
    "random bytes": Attack(size=4, way=Way.ONCE, first=_junk, reasons=_UNKNOWN_BYTES),
    "no hello": Attack(size=4, way=Way.ONCE, first=lambda _: native.PREFACE, reasons=_LATE),
    "half a hello": Attack(size=4, way=Way.ONCE, first=lambda victim: _native_hello(victim)[:-5], reasons=_LATE),
    "a hello of 100 MB": Attack(
        size=4,
        way=Way.ONCE,
        first=lambda _: native.PREFACE + native.HEADER.pack(100_000_000, 0),
        then=lambda _: bytes(READ_BYTES),
        reasons=(DisconnectReason.MESSAGE_TOO_LARGE,),
    ),
    "nested arrays": Attack(size=20, way=Way.RATE, first=_nested_arrays, reasons=_BROKEN),
    "gob of 256 k booleans": Attack(size=20, way=Way.RATE, first=_booleans, reasons=_BROKEN),
    "a volley of nested gob": Attack(size=60, way=Way.ONCE, first=_nested_slices, reasons=_BROKEN),
    "1 MiB of gob held": Attack(size=600, first=_held, reasons=(*_LATE, *_BROKEN)),
    "half a frame held": Attack(size=2000, first=_partial_frame),
    **{
        f"pongs, {size} {name}": Attack(size=size, first=hello, then=pongs, reasons=(*_BROKEN, *_STUCK))
        for name, hello, pongs in (("native", _native_hello, _native_pongs), ("Typha's", _typha_hello, _typha_pongs))
        for size in (1, 20, 200)
    },
    "never reads": Attack(size=4, way=Way.ONCE, first=_native_hello, reads=False, reasons=_STUCK),
    "metrics, idle": Attack(size=1000, metrics=True),
    "metrics, half a request": Attack(size=300, metrics=True, first=lambda victim: _get(victim)[:9]),
    "metrics, 200 requests in a row, not read": Attack(
        size=200, metrics=True, first=lambda victim: _get(victim) * 200, reads=False
    ),
    "metrics, bad requests": Attack(size=233, way=Way.RATE, metrics=True, first=lambda _: b"GET\r\n\r\n"),
}
"""On a port without TLS."""
TLS: Final = {
    "TLS, silent": PLAIN["silent"],
    "TLS, a ClientHello and no more": Attack(
        size=400, way=Way.RATE, raw=True, first=_client_hello, reasons=(*_LATE, DisconnectReason.TLS_FAILED)
    ),
    "TLS, KeyUpdates": Attack(size=1, special=_update_keys, reasons=(*_BROKEN, DisconnectReason.TLS_FAILED)),
    "TLS, pongs": PLAIN["pongs, 200 native"],
    "TLS, nested arrays": PLAIN["nested arrays"],
}
"""On a port with mutual TLS; those that get past the handshake have an agent's certificate."""
ATTACKS: Final = {**PLAIN, **TLS}

NICENESS: Final = 10
"""A tenth of the weight of the service, the agents and the API server, if they share all CPUs."""
counts: Final = {"opened": 0, "closed": 0, "refused": 0, "sent": 0}
"""Connections; those that the service closed; those that failed to connect; repetitions sent."""


async def attack(what: Attack, victim: Victim, size: int) -> None:
    """Attack until cancelled."""
    one: Callable[[asyncio.Semaphore], Coroutine[Any, Any, None]]
    if what.special is not None:
        one = functools.partial(what.special, victim)
    else:
        then = what.then(victim) if what.then is not None else b""
        one = functools.partial(_connection, what, victim, what.first(victim), then)
    gate = asyncio.Semaphore(CONNECTS_AT_ONCE)

    async def again() -> None:
        while True:
            await one(gate)
            await asyncio.sleep(AGAIN_SECONDS)

    async with asyncio.TaskGroup() as group:
        if what.way is Way.RATE:
            begin, made = time.monotonic(), 0
            while True:
                while made < (time.monotonic() - begin) * size:
                    group.create_task(one(gate), name="connection of an attacker")
                    made += 1
                await asyncio.sleep(1 / size)
        for _ in range(size):
            group.create_task(again() if what.way is Way.HELD else one(gate), name="connection of an attacker")


_context_of: Final = functools.cache(tls.context_of)


async def _connection(what: Attack, victim: Victim, first: bytes, then: bytes, gate: asyncio.Semaphore) -> None:
    """One connection, until the service closes it."""
    context = _context_of(victim.tls) if victim.tls and not (what.raw or what.metrics) else None
    sock = socket.socket()
    sock.setblocking(False)
    if not what.reads:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1)
    try:
        async with gate:
            await asyncio.get_running_loop().sock_connect(
                sock, (victim.host, victim.metrics_port if what.metrics else victim.port)
            )
            reader, writer = await asyncio.open_connection(
                sock=sock,
                ssl=context,
                server_hostname=victim.host if context else None,
                limit=READ_BYTES if what.reads else 1,
            )
        counts["opened"] += 1
    except OSError:
        sock.close()
        counts["refused"] += 1
        return
    until_closed = _discard(reader) if what.reads else _until_closed(sock)
    waits = [asyncio.create_task(until_closed, name="reads of an attacker")]
    if then:
        waits.append(asyncio.create_task(_repeat(writer, then), name="writes of an attacker"))
    try:
        writer.write(first)
        await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
        counts["closed"] += 1
    finally:
        for wait in waits:
            wait.cancel()
        writer.transport.abort()


async def _discard(reader: asyncio.StreamReader) -> None:
    with contextlib.suppress(OSError):
        while await reader.read(READ_BYTES):
            pass


async def _until_closed(sock: socket.socket) -> None:
    """Return when the other end has closed the connection, without reading from it."""
    while True:
        await asyncio.sleep(AGAIN_SECONDS)
        if sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 1)[0] != ESTABLISHED:
            return


async def _repeat(writer: asyncio.StreamWriter, data: bytes) -> None:
    with contextlib.suppress(OSError):
        while True:
            writer.write(data)
            await writer.drain()
            await asyncio.sleep(0)  # `drain` alone lets no other connection send
            counts["sent"] += 1


class Attackers(child.Child):
    """The process of one or more attacks, each with its number of connections."""

    def __init__(self, victim: Victim, sizes: Mapping[str, int], folder: Path) -> None:
        super().__init__("attackers", folder / "attackers.log")
        arguments = json.dumps({"victim": msgspec.to_builtins(victim), "sizes": sizes})
        self._command = [sys.executable, "-m", "loadtest.scenarios.attackers", arguments]

    async def start(self) -> None:
        """Start it. Raises ProcessError."""
        await self._spawn(self._command, stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE)
        await self._read_ready_line()

    async def counts(self) -> dict[str, int]:
        """What all of them have done so far. Raises ProcessError."""
        await self.write(b"\n")
        return await self._read_ready_line()


def yield_cpu() -> None:
    """Let everything else go first: an attacker's own work is not what an attack on a service costs its clients."""
    os.nice(NICENESS)
    with contextlib.suppress(OSError):  # where Linux schedules sessions as groups, the niceness of the group counts
        pathlib.Path("/proc/self/autogroup").write_text(str(NICENESS))


async def _main(victim: Victim, sizes: Mapping[str, int]) -> None:
    commands = asyncio.StreamReader()
    await asyncio.get_running_loop().connect_read_pipe(lambda: asyncio.StreamReaderProtocol(commands), sys.stdin)
    attacks = [asyncio.create_task(attack(ATTACKS[name], victim, size), name=name) for name, size in sizes.items()]
    print("{}", flush=True)
    while await commands.readline():
        for done in filter(asyncio.Task.done, attacks):
            done.result()
        print(json.dumps(counts), flush=True)
    os._exit(0)  # a thread may still send


if __name__ == "__main__":
    worker.raise_file_limit()
    yield_cpu()
    given = json.loads(sys.argv[1])
    asyncio.run(_main(msgspec.convert(given["victim"], Victim), given["sizes"]))
