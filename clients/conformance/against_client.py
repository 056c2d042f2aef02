"""A scripted server that tests a client program. Each check starts the program anew, with an address of its own.

The program prints a line `state STATUS SEQUENCE KEYS DIGEST` after each status other than catching-up, with `-` for
what it does not know, and may print `put KEY` and `delete KEY` for each change that it passes on. Pongs and the ends
of connections show the rest.
"""

import asyncio
import contextlib
import functools
import shlex
import struct
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Mapping
from typing import Any, NamedTuple

from clients.conformance import checks, rejected, wire
from clients.conformance.link import Ended, Link, check_count, check_fields, check_text
from clients.conformance.report import Broken, Outcome, Result

HELLO_LIMIT_BYTES = 64 * 1024
LATER_LIMIT_BYTES = 2 * 1024
MAX_LINE_BYTES = 64 * 1024
MAX_LINES = 10_000
STARTUP_SECONDS = 30.0
"""For a program that loads much before it connects, on a busy machine."""
RECONNECT_SECONDS = 40.0
"""The longest back-off is 30 s."""
FAST_PING_MILLISECONDS = 400
SLACK_SECONDS = 3.0
"""How late a client on a busy machine may act."""
HELLO_TIMEOUT_SECONDS = 10.0
CHANGES = 40
CHANGE_SECONDS = 0.1
"""Between two of them: a client that reports each one sends forty, and a good one five."""
MAX_CHUNK_DIGESTS = 4096
ATTEMPTS = 8
ATTEMPTS_SECONDS_MIN = 0.5
"""Their pauses take 6 s on average, and less than this in one of 50,000 runs."""


class Options(NamedTuple):
    """What the user says of the client."""

    command: str
    """A template; `{address}` and `{feed}` are replaced."""
    feed: str = "workloads"
    is_verifying: bool = True
    is_observed: bool = True
    """The program prints its state."""
    patience_seconds: float = 5.0
    """How soon a client must act, where the page gives no time."""
    startup_seconds: float = STARTUP_SECONDS
    """How soon the program must connect."""


class Hello(NamedTuple):
    """What the client has said."""

    content: dict[str, Any]
    features: tuple[str, ...]


class Run:
    """A run of the program, and the server that it connects to."""

    def __init__(self, options: Options) -> None:
        self.options = options
        self._links: asyncio.Queue[Link] = asyncio.Queue(maxsize=100)
        self._states: asyncio.Queue[tuple[str, ...]] = asyncio.Queue(maxsize=MAX_LINES)
        self.changes: list[str] = []
        """The lines `put KEY` and `delete KEY` so far."""
        self.accepted_at: list[float] = []
        self.process: asyncio.subprocess.Process | None = None
        self._opened: list[Link] = []

    @contextlib.asynccontextmanager
    async def started(self) -> AsyncIterator["Run"]:
        """Starts the program, and ends it with the block."""
        server = await asyncio.start_server(self._accepted, "127.0.0.1", 0, limit=1 << 20)
        port = server.sockets[0].getsockname()[1]
        words = [
            word.replace("{address}", f"127.0.0.1:{port}").replace("{feed}", self.options.feed)
            for word in shlex.split(self.options.command)
        ]
        try:
            self.process = await asyncio.create_subprocess_exec(
                *words,
                stdin=asyncio.subprocess.DEVNULL,
                stdout=asyncio.subprocess.PIPE,
                stderr=asyncio.subprocess.DEVNULL,
                limit=MAX_LINE_BYTES,
            )
            reading = asyncio.create_task(self._read_lines(self.process))
            try:
                yield self
            finally:
                with contextlib.suppress(ProcessLookupError):
                    self.process.kill()
                await self.process.wait()
                reading.cancel()
                await asyncio.wait([reading])
        finally:
            server.close()
            for link in self._opened:
                link.close()

    def _accepted(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.accepted_at.append(asyncio.get_running_loop().time())
        link = Link(reader, writer, patience_seconds=self.options.patience_seconds)
        self._opened.append(link)
        try:
            self._links.put_nowait(link)
        except asyncio.QueueFull:
            link.close()

    async def _read_lines(self, process: asyncio.subprocess.Process) -> None:
        assert process.stdout is not None
        while True:
            try:
                line = await process.stdout.readline()
            except ValueError:  # longer than any line that matters
                continue
            if not line:
                return
            word, _, rest = line.decode(errors="replace").rstrip("\r\n").partition(" ")
            if word == "state" and not self._states.full():
                self._states.put_nowait(tuple(rest.split()))
            elif word in ("put", "delete") and len(self.changes) < MAX_LINES:
                self.changes.append(f"{word} {rest}")

    async def link(self, seconds: float | None = None) -> Link:
        """The next connection of the client. Without a time, it is the first one of the program."""
        seconds = self.options.startup_seconds if seconds is None else seconds
        try:
            async with asyncio.timeout(seconds):
                return await self._links.get()
        except TimeoutError:
            ended = self.process is not None and self.process.returncode is not None
            why = "the program has ended" if ended else f"no connection within {seconds:g} s"
            raise Broken("H1", why) from None

    async def greeted(self, seconds: float | None = None) -> tuple[Link, Hello]:
        """The next connection, with the client's preface and hello read and checked. Nothing is sent."""
        link = await self.link(seconds)
        try:
            await link.preface()
            message = await link.message(limit=HELLO_LIMIT_BYTES)
        except (Ended, TimeoutError):
            raise Broken("H1", "the client does not send its preface and hello at once") from None
        if link.is_compressed:
            raise Broken("F6", "the hello is compressed")
        return link, check_hello(message, self.options.feed)

    async def ready(self, seconds: float | None = None, **members: Any) -> tuple[Link, Hello]:
        """The same, and the server has sent its preface and its hello, with these members."""
        link, hello = await self.greeted(seconds)
        features = [feature for feature in hello.features if feature == "zstd"]
        link.send(wire.PREFACE, wire.server_hello(self.options.feed, **({"features": features} | members)))
        return link, hello

    async def following(self, seconds: float | None = None, **members: Any) -> Link:
        """The same, and the client has the kit's map and is in sync."""
        link, _ = await self.ready(seconds, **members)
        link.send(wire.snapshot(wire.SEQUENCE, wire.MAP), wire.status(wire.SEQUENCE))
        await self.reaches(link, wire.SEQUENCE)
        await self.state(wire.IN_SYNC, wire.SEQUENCE, wire.MAP, rule="O6")
        return link

    async def reaches(self, link: Link, sequence: int, *, rule: str = "K3") -> None:
        """Sends a ping; the client must answer with one pong that names the sequence."""
        link.send(wire.frame(wire.PING))
        found = await self.pong(link)
        if found != sequence:
            raise Broken(rule, f"the pong names sequence {found} instead of {sequence}")

    async def pong(self, link: Link) -> int:
        """The sequence of the pong that comes next."""
        try:
            message = await link.message(limit=LATER_LIMIT_BYTES)
        except TimeoutError:
            raise Broken("K3", f"no pong within {self.options.patience_seconds:g} s") from None
        except Ended:
            raise Broken("K3", "the client has closed the connection") from None
        if message[0] == wire.GOODBYE:
            raise Broken("K3", f"the client has said goodbye: {message[1:3]!r:.200}")
        if message[0] != wire.PONG:
            raise Broken("O1", f"message {message[0]} where a pong is due")
        if link.is_compressed:
            raise Broken("F6", "the pong is compressed")
        return check_count(check_fields(message, 1, "the pong")[0], "the pong's sequence")

    async def state(self, status: int, sequence: int, content: Mapping[str, bytes], *, rule: str) -> None:
        """The client must print this state, and no other before it."""
        if not self.options.is_observed:
            return
        wanted = (wire.STATUS_NAMES[status], str(sequence), str(len(content)), f"{wire.digest(content):016x}")
        try:
            async with asyncio.timeout(self.options.patience_seconds):
                found = await self._states.get()
        except TimeoutError:
            raise Broken(rule, f"the client does not print `state {' '.join(wanted)}`") from None
        if len(found) != len(wanted) or any(one not in (other, "-") for one, other in zip(found, wanted, strict=True)):
            raise Broken(rule, f"the client prints `state {' '.join(found)}` instead of `state {' '.join(wanted)}`")

    def check_changes(self, rule: str, *wanted: str) -> None:
        """The client must have passed on these changes since the last call, in any order, if it prints them."""
        seen, self.changes = self.changes, []
        if seen and sorted(seen) != sorted(wanted):
            raise Broken(rule, f"the client passes on {sorted(seen)} instead of {sorted(wanted)}"[:500])

    async def rejects(self, link: Link, rule: str, what: str, *, seconds: float | None = None) -> None:
        """The client must close the connection."""
        if not await link.closed(seconds):
            raise Broken(rule, f"the client does not close the connection after {what}")


def check_hello(message: list[Any], feed: str) -> Hello:
    """A client's hello, if it is a good one.

    Raises:
        Broken: it is not.
    """
    if message[0] != wire.HELLO_TYPE:
        raise Broken("O1", f"the first message is {message[0]} and no hello")
    [content] = check_fields(message, 1, "the hello")
    if not isinstance(content, dict):
        raise Broken("M2", "the hello has no map")
    for name in ("feed", "agent"):
        check_text(content.get(name), f"`{name}` of the hello")
    if content["feed"] != feed:
        raise Broken("M2", f"the client asks for feed {content['feed']!r:.60} instead of {feed!r}")
    versions = content.get("versions")
    if not isinstance(versions, list) or not 1 <= len(versions) <= 64:
        raise Broken("M2", "`versions` of the hello is no array of 1 to 64 elements")
    if 1 not in [check_count(version, "a version") for version in versions]:
        raise Broken("E1", "the client does not support version 1")
    for name in ("software", "node"):
        if content.get(name) is not None:
            check_text(content[name], f"`{name}` of the hello")
    features = content.get("features") or []
    if not isinstance(features, list) or len(features) > 64:
        raise Broken("M2", "`features` of the hello is no array of at most 64 elements")
    return Hello(content, tuple(check_text(feature, "a feature") for feature in features))


Script = Callable[[Run], Awaitable[None]]


class Check(NamedTuple):
    """One check, and the rules that it is about."""

    rules: tuple[str, ...]
    name: str
    script: Script
    needs: str = ""
    """Clients that it applies to: `rejected.VERIFYING`, those that offer the feature of this name, or all."""


CHECKS: list[Check] = []


def _check(rules: str, name: str, needs: str = "") -> Callable[[Script], Script]:
    def add(script: Script) -> Script:
        CHECKS.append(Check(tuple(rules.split()), name, script, needs))
        return script

    return add


# Handshake and frames.


@_check("H1 E1", "preface and hello come at once, and are good")
async def _greets(run: Run) -> None:
    await run.greeted()


@_check("H1", "the client sends nothing else before the server does")
async def _waits(run: Run) -> None:
    link, _ = await run.greeted()
    if not await link.silent(1.0):
        raise Broken("H1", "something follows the hello, or the client has closed")


@_check("F1", "frames in pieces of a byte")
async def _pieces(run: Run) -> None:
    link, _ = await run.greeted()
    data = wire.PREFACE + wire.server_hello(run.options.feed) + wire.snapshot(wire.SEQUENCE, wire.MAP)
    await link.send_in_pieces(data + wire.status(wire.SEQUENCE), 1)
    await run.reaches(link, wire.SEQUENCE, rule="F1")
    await run.state(wire.IN_SYNC, wire.SEQUENCE, wire.MAP, rule="F1")


@_check("M1", "the longest encodings of numbers, texts, bytes, arrays and maps")
async def _wide(run: Run) -> None:
    link, _ = await run.greeted()
    hello = {"version": 1, "feed": run.options.feed, "incarnation": bytes(16), "ping_interval_ms": 10_000}
    link.send(wire.PREFACE, wire.framed(_widely([wire.SERVER_HELLO, hello])))
    for index, (key, value) in enumerate(wire.MAP.items()):
        part = {key: value}
        if index == 0:
            link.send(wire.framed(_widely([wire.BEGIN, wire.SEQUENCE, 2, 2])))
        updates = [[key, value, "1", 1, "", 0]]
        link.send(wire.framed(_widely([wire.CHUNK, index, wire.digest(part), False, updates])))
    link.send(wire.framed(_widely([wire.END, wire.SEQUENCE, 2, wire.digest(wire.MAP)])))
    link.send(wire.framed(_widely([wire.STATUS, wire.SEQUENCE, wire.IN_SYNC])))
    await run.reaches(link, wire.SEQUENCE, rule="M1")
    await run.state(wire.IN_SYNC, wire.SEQUENCE, wire.MAP, rule="M1")


def _widely(value: object) -> bytes:
    match value:
        case bool() | None:
            return wire.payload(value)
        case int():
            return b"\xcf" + struct.pack(">Q", value)
        case str():
            return b"\xdb" + struct.pack(">I", len(value.encode())) + value.encode()
        case bytes():
            return b"\xc6" + struct.pack(">I", len(value)) + value
        case list():
            return b"\xdd" + struct.pack(">I", len(value)) + b"".join(map(_widely, value))
        case dict():
            parts = [_widely(part) for pair in value.items() for part in pair]
            return b"\xdf" + struct.pack(">I", len(value)) + b"".join(parts)
    raise TypeError(f"{value!r} is not in the protocol")


@_check("M3", "additional elements and members, nested 90 deep")
async def _extended(run: Run) -> None:
    more: object = 7
    for _ in range(90):
        more = [more, {}]
    link, _ = await run.greeted()
    link.send(wire.PREFACE, wire.server_hello(run.options.feed, from_the_future=more, aaa={"b": [b"", None, 1.5]}))
    link.send(wire.frame(wire.PING, more))
    await run.pong(link)
    updates = [[key, value, "1", 1, "", 0, more] for key, value in wire.MAP.items()]
    link.send(
        wire.frame(wire.BEGIN, wire.SEQUENCE, 2, 1, more),
        wire.frame(wire.CHUNK, 0, wire.digest(wire.MAP), False, updates, more),
        wire.frame(wire.END, wire.SEQUENCE, 2, wire.digest(wire.MAP), more),
        wire.frame(wire.STATUS, wire.SEQUENCE, wire.IN_SYNC, more),
        wire.frame(wire.UPDATES, wire.SEQUENCE, 41, [[wire.POD, b"x", "2", 2, "", 0, more]], more),
        wire.status(41),
    )
    await run.reaches(link, 41, rule="M3")
    await run.state(wire.IN_SYNC, wire.SEQUENCE, wire.MAP, rule="M3")
    await run.state(wire.IN_SYNC, 41, {**wire.MAP, wire.POD: b"x"}, rule="M3")


@_check("M5", "nil for what a hello may leave out")
async def _nil(run: Run) -> None:
    link, _ = await run.greeted()
    optional = ("features", "not_supported", "software", "connection_id", "ping_interval_ms", "max_frame_bytes")
    hello = {"version": 1, "feed": run.options.feed, "incarnation": bytes(16)} | dict.fromkeys(optional)
    link.send(wire.PREFACE, wire.frame(wire.SERVER_HELLO, hello))
    await run.reaches(link, 0, rule="M5")


@_check("E3 E4", "a hello that declines every feature")
async def _declined(run: Run) -> None:
    link, hello = await run.greeted()
    link.send(wire.PREFACE, wire.server_hello(run.options.feed, not_supported=list(hello.features)))
    link.send(wire.snapshot(wire.SEQUENCE, wire.MAP), wire.status(wire.SEQUENCE))
    await run.reaches(link, wire.SEQUENCE, rule="E4")
    await run.state(wire.IN_SYNC, wire.SEQUENCE, wire.MAP, rule="E4")


@_check("F7", "compressed frames", rejected.ZSTD)
async def _compressed(run: Run) -> None:
    link, _ = await run.ready()
    content = {f"/key/{number}": b"the same again and again " * 200 for number in range(200)}
    updates = [wire.update(key, value, 1) for key, value in content.items()]
    link.send(
        bytes.fromhex("0000000c0128b52ffd20021100009108"),
        wire.compressed(wire.BEGIN, 50, len(content), 1),
        wire.compressed(wire.CHUNK, 0, wire.digest(content), False, updates),
        wire.frame(wire.END, 50, len(content), wire.digest(content)),
        wire.compressed(wire.STATUS, 50, wire.IN_SYNC),
    )
    if await run.pong(link) != 0:
        raise Broken("K3", "the pong before the first snapshot does not name 0")
    await run.reaches(link, 50, rule="F7")
    await run.state(wire.IN_SYNC, 50, content, rule="F7")


@_check("L1", "a frame of exactly the announced size, and a key of 4,096 characters")
async def _largest(run: Run) -> None:
    limit = 65_536
    link = await run.following(max_frame_bytes=limit)
    key = "\N{GRINNING FACE}" * 4096
    short = len(wire.frame(wire.UPDATES, wire.SEQUENCE, 41, [wire.update(key, bytes(40_000), 1)])) - 4
    value = bytes(40_000 + limit - short)
    link.send(wire.frame(wire.UPDATES, wire.SEQUENCE, 41, [wire.update(key, value, 1)]), wire.status(41))
    await run.reaches(link, 41, rule="L1")
    await run.state(wire.IN_SYNC, 41, {**wire.MAP, key: value}, rule="L1")


# Snapshots.


@_check("O2 K3", "pings before there is data")
async def _no_data_yet(run: Run) -> None:
    link, _ = await run.ready()
    for _ in range(3):
        await run.reaches(link, 0)


@_check("O3 O6", "a snapshot with empty chunks and one in several frames, and a ping in its middle")
async def _snapshot(run: Run) -> None:
    link, _ = await run.ready()
    link.send(
        wire.frame(wire.BEGIN, wire.SEQUENCE, 2, 4),
        wire.chunk(0, {}),
        wire.chunk(1, {wire.POD: wire.POD_VALUE}, more=True, of=wire.MAP),
        wire.chunk(1, {}, more=True, of=wire.MAP),
    )
    await run.reaches(link, 0, rule="O6")
    link.send(
        wire.chunk(1, {wire.NODE: wire.NODE_VALUE}, of=wire.MAP),
        wire.chunk(2, {}),
        wire.chunk(3, {}),
        wire.frame(wire.END, wire.SEQUENCE, 2, wire.digest(wire.MAP)),
    )
    await run.reaches(link, wire.SEQUENCE, rule="O6")
    link.send(wire.status(wire.SEQUENCE))
    await run.state(wire.IN_SYNC, wire.SEQUENCE, wire.MAP, rule="O3")
    run.check_changes("O8", *(f"put {key}" for key in wire.MAP))


@_check("O3", "an empty map without chunks")
async def _empty(run: Run) -> None:
    link, _ = await run.ready()
    link.send(wire.snapshot(7, {}, chunks=0), wire.status(7))
    await run.reaches(link, 7, rule="O3")
    await run.state(wire.IN_SYNC, 7, {}, rule="O3")


@_check("O6 O8 O9 O10", "a snapshot that is older than the map takes over at the status, and not before")
async def _takes_over(run: Run) -> None:
    link = await run.following()
    run.check_changes("O8", *(f"put {key}" for key in wire.MAP))
    link.close()
    link, _ = await run.ready(RECONNECT_SECONDS)
    old = {wire.POD: b"old", "/gone": b"x"}
    link.send(
        wire.snapshot(5, old),
        wire.frame(wire.UPDATES, 5, 8, [wire.update(key, value) for key, value in wire.MAP.items()]),
        wire.frame(wire.UPDATES, 8, 9, [wire.update("/gone", None, 3), wire.update("/new", b"", 1)]),
        wire.status(9, wire.CATCHING_UP),
    )
    await run.reaches(link, 9, rule="O10")
    link.send(wire.status(9))
    await run.reaches(link, 9, rule="O10")
    await run.state(wire.IN_SYNC, 9, {**wire.MAP, "/new": b""}, rule="O6")
    run.check_changes("O6", "put /new")


async def _returns_to_the_map(run: Run, sequence: int, *, rule: str) -> None:
    """The client connects again and is sent the map that it has: it changes nothing."""
    link, _ = await run.ready(RECONNECT_SECONDS)
    link.send(wire.snapshot(sequence, wire.MAP), wire.status(sequence))
    await run.reaches(link, sequence)
    await run.state(wire.IN_SYNC, sequence, wire.MAP, rule=rule)
    run.check_changes(rule)


@_check("O9", "a connection that ends inside a snapshot, or before the status, changes nothing")
async def _cut(run: Run) -> None:
    link = await run.following()
    run.check_changes("O8", *(f"put {key}" for key in wire.MAP))
    link.send(wire.frame(wire.BEGIN, 60, 1, 1), wire.chunk(0, {"/other": b""}))
    await run.reaches(link, wire.SEQUENCE, rule="O9")
    link.close()
    link, _ = await run.ready(RECONNECT_SECONDS)
    link.send(wire.snapshot(60, {"/other": b""}))
    await run.reaches(link, 60, rule="O6")
    link.close()
    await _returns_to_the_map(run, 61, rule="O9")


@_check("O7 O8", "another snapshot on the same connection")
async def _again(run: Run) -> None:
    link = await run.following()
    run.check_changes("O8", *(f"put {key}" for key in wire.MAP))
    content = {wire.POD: wire.POD_VALUE, "/new": b"n"}
    link.send(wire.snapshot(30, content))
    await run.reaches(link, 30, rule="O7")
    link.send(wire.status(30))
    await run.state(wire.IN_SYNC, 30, content, rule="O7")
    run.check_changes("O8", f"delete {wire.NODE}", "put /new")


# Updates and statuses.


@_check("D1 D2 D3 O11", "values decide, nothing becomes absent twice, updates apply in order, sequences skip")
async def _updates(run: Run) -> None:
    link = await run.following()
    link.send(
        wire.frame(
            wire.UPDATES,
            40,
            47,
            [
                wire.update(wire.POD, None, 1),
                wire.update("/never", None, 3),
                wire.update("/empty", b"", 3),
                wire.update("/twice", b"1", 1),
                wire.update("/twice", b"2", 2),
                wire.update("/short-lived", b"1", 0),
                wire.update("/short-lived", None, 2),
            ],
        ),
        wire.frame(wire.UPDATES, 47, 47, []),
        wire.status(47),
    )
    await run.reaches(link, 47, rule="O11")
    content = {wire.NODE: wire.NODE_VALUE, "/empty": b"", "/twice": b"2"}
    await run.state(wire.IN_SYNC, 47, content, rule="D1")


@_check("O12 O13", "catching up: a lower sequence, newest values, keys that the client never had")
async def _caught_up(run: Run) -> None:
    link = await run.following()
    link.send(
        wire.status(38, wire.CATCHING_UP),
        wire.frame(wire.UPDATES, 38, 55, [wire.update(wire.NODE, b"new"), wire.update("/never", None, 3)]),
        wire.frame(wire.UPDATES, 55, 70, [wire.update(wire.POD, wire.POD_VALUE)]),
    )
    await run.reaches(link, 70, rule="O12")
    link.send(wire.status(70))
    await run.state(wire.IN_SYNC, 70, {**wire.MAP, wire.NODE: b"new"}, rule="O13")


@_check("O13 O7", "a catch-up that ends with another snapshot")
async def _caught_up_by_snapshot(run: Run) -> None:
    link = await run.following()
    link.send(
        wire.status(40, wire.CATCHING_UP),
        wire.frame(wire.UPDATES, 40, 45, [wire.update("/half", b"")]),
        wire.snapshot(80, wire.MAP),
        wire.status(80),
    )
    await run.reaches(link, 80, rule="O13")
    await run.state(wire.IN_SYNC, 80, wire.MAP, rule="O13")


@_check("O14 O15", "the server loses its backend: the map stays, and updates go on")
async def _lost(run: Run) -> None:
    link = await run.following()
    run.check_changes("O8", *(f"put {key}" for key in wire.MAP))
    for sequence, status in ((40, wire.WAITING), (40, wire.RESYNC)):
        link.send(wire.status(sequence, status))
        await run.state(status, sequence, wire.MAP, rule="O15")
    link.send(wire.frame(wire.UPDATES, 40, 41, [wire.update("/new", b"1")]), wire.status(41))
    await run.reaches(link, 41, rule="O15")
    await run.state(wire.IN_SYNC, 41, {**wire.MAP, "/new": b"1"}, rule="O15")
    run.check_changes("O15", "put /new")


@_check("O15", "a newcomer gets an old map")
async def _newcomer(run: Run) -> None:
    link, _ = await run.ready()
    link.send(wire.snapshot(wire.SEQUENCE, wire.MAP), wire.status(wire.SEQUENCE, wire.WAITING))
    await run.reaches(link, wire.SEQUENCE)
    await run.state(wire.WAITING, wire.SEQUENCE, wire.MAP, rule="O15")


# Keeping in touch.


@_check("K3", "one pong for each ping, and no other")
async def _pongs(run: Run) -> None:
    link = await run.following()
    link.send(wire.frame(wire.PING) * 5)
    for _ in range(5):
        if await run.pong(link) != wire.SEQUENCE:
            raise Broken("K3", "a pong names another sequence")
    if not await link.silent(1.0):
        raise Broken("K3", "something follows the last pong, or the client has closed")


@_check("K2", "a silent server is left after three ping intervals, and not before")
async def _silence(run: Run) -> None:
    link = await run.following(ping_interval_ms=FAST_PING_MILLISECONDS)
    loop = asyncio.get_running_loop()
    begun = loop.time()
    await run.rejects(link, "K2", "three ping intervals of silence", seconds=SLACK_SECONDS + 1.2)
    if loop.time() - begun < 2 * FAST_PING_MILLISECONDS / 1000:
        raise Broken("K2", f"the client leaves after {loop.time() - begun:.1f} s")


@_check("H5", "a server without a hello is left after 10 s")
async def _no_hello(run: Run) -> None:
    link, _ = await run.greeted()
    if not await link.closed(HELLO_TIMEOUT_SECONDS + SLACK_SECONDS):
        raise Broken("H5", "the client still waits")


# Coming back.


@_check("G2 B3", "a goodbye with an unknown reason, and a time to wait")
async def _goodbye(run: Run) -> None:
    link = await run.following()
    loop = asyncio.get_running_loop()
    link.send(wire.frame(wire.GOODBYE, "from-the-future", "later", 2000))
    link.end_sending()
    said_at = loop.time()
    await run.rejects(link, "G2", "a goodbye")
    await run.link(RECONNECT_SECONDS)
    if run.accepted_at[-1] - said_at < 1.9:
        raise Broken("B3", f"the client is back after {run.accepted_at[-1] - said_at:.1f} s instead of 2 s")


@_check("G1 G2 B1", "a refusal instead of the hello")
async def _refusal(run: Run) -> None:
    link, _ = await run.greeted()
    link.send(wire.PREFACE, wire.frame(wire.GOODBYE, "unknown-feed", "no such feed", 1000))
    said_at = asyncio.get_running_loop().time()
    await run.rejects(link, "G2", "a refusal")
    await run.link(RECONNECT_SECONDS)
    if run.accepted_at[-1] - said_at < 0.9:
        raise Broken("B3", f"the client is back after {run.accepted_at[-1] - said_at:.1f} s instead of 1 s")


@_check("B1", "failures in a row make the client wait longer")
async def _back_off(run: Run) -> None:
    for _ in range(ATTEMPTS):
        (await run.link(RECONNECT_SECONDS)).close()
    waited_seconds = run.accepted_at[-1] - run.accepted_at[0]
    if waited_seconds < ATTEMPTS_SECONDS_MIN:
        raise Broken("B1", f"{ATTEMPTS} attempts within {waited_seconds:.2f} s")


@_check("B2", "a hello alone does not end the back-off")
async def _back_off_goes_on(run: Run) -> None:
    for _ in range(ATTEMPTS):
        link, _ = await run.ready(RECONNECT_SECONDS)
        await run.reaches(link, 0)
        link.close()
    waited_seconds = run.accepted_at[-1] - run.accepted_at[0]
    if waited_seconds < ATTEMPTS_SECONDS_MIN:
        raise Broken("B2", f"{ATTEMPTS} connections within {waited_seconds:.2f} s")


@_check("B1 B5 O9", "the map survives a lost connection")
async def _survives(run: Run) -> None:
    link = await run.following()
    run.check_changes("O8", *(f"put {key}" for key in wire.MAP))
    link.close()
    await _returns_to_the_map(run, 90, rule="B5")


@_check("H6", "the end of the server's direction is the end of the connection")
async def _half_closed(run: Run) -> None:
    link = await run.following()
    link.end_sending()
    await run.rejects(link, "H6", "the end of the stream")


# Positions.


async def _reporting(run: Run, seconds: float | None = None) -> Link:
    """The next connection, on which the client may report positions; it has no data yet."""
    link, hello = await run.ready(seconds, features=[rejected.POSITIONS])
    if rejected.POSITIONS not in hello.features:
        raise Broken("P1", "the client does not offer `positions` again")
    return link


async def _applied(run: Run, link: Link, sequence: int, *, rule: str) -> None:
    """The client must say that it has applied this sequence, and nothing else."""
    try:
        message = await link.message(limit=LATER_LIMIT_BYTES)
    except TimeoutError:
        raise Broken(rule, f"no `applied` within {run.options.patience_seconds:g} s") from None
    if message[0] != wire.APPLIED:
        raise Broken(rule, f"message {message[0]} where `applied` is due")
    found = check_count(check_fields(message, 1, "applied")[0], "the applied sequence")
    if found != sequence:
        raise Broken("P2", f"the client has applied {found} instead of {sequence}")


@_check("P1 E4", "no `applied` from a client whose `positions` are not in force", rejected.POSITIONS)
async def _not_in_force(run: Run) -> None:
    link, _ = await run.ready(not_supported=[rejected.POSITIONS])
    link.send(wire.snapshot(wire.SEQUENCE, wire.MAP), wire.status(wire.SEQUENCE))
    if not await link.silent(1.5):
        raise Broken("P1", "something follows the hello, or the client has closed")


@_check("P2 P5", "a snapshot is applied with its status, and again on the next connection", rejected.POSITIONS)
async def _applies_a_snapshot(run: Run) -> None:
    link = await _reporting(run)
    link.send(wire.snapshot(wire.SEQUENCE, wire.MAP), wire.frame(wire.UPDATES, wire.SEQUENCE, wire.SEQUENCE + 1, []))
    if not await link.silent(1.5):
        raise Broken("P2", "something comes before the status, or the client has closed")
    link.send(wire.status(wire.SEQUENCE + 1))
    await _applied(run, link, wire.SEQUENCE + 1, rule="P2")
    link.close()
    link = await _reporting(run, RECONNECT_SECONDS)
    link.send(wire.snapshot(7, wire.MAP), wire.status(7))
    await _applied(run, link, 7, rule="P5")


@_check("P3 P2", "many changes, one `applied` a second, and the last one names the newest", rejected.POSITIONS)
async def _applies_changes(run: Run) -> None:
    link = await _reporting(run)
    link.send(wire.snapshot(wire.SEQUENCE, wire.MAP), wire.status(wire.SEQUENCE))
    await _applied(run, link, wire.SEQUENCE, rule="P3")
    sent, found = wire.SEQUENCE, [wire.SEQUENCE]
    deadline = asyncio.get_running_loop().time() + run.options.patience_seconds
    while sent < wire.SEQUENCE + CHANGES or found[-1] < sent:
        if sent < wire.SEQUENCE + CHANGES:
            link.send(wire.frame(wire.UPDATES, sent, sent + 1, [wire.update(wire.POD, b"%d" % sent)]))
            sent += 1
            deadline = asyncio.get_running_loop().time() + run.options.patience_seconds
        elif asyncio.get_running_loop().time() > deadline:
            raise Broken("P3", f"the client has applied {found[-1]}, and was sent {sent}")
        try:
            message = await link.message(limit=LATER_LIMIT_BYTES, seconds=CHANGE_SECONDS)
        except TimeoutError:
            continue
        if message[0] != wire.APPLIED:
            raise Broken("O1", f"message {message[0]} is unexpected")
        one = check_count(check_fields(message, 1, "applied")[0], "the applied sequence")
        if not found[-1] < one <= sent:
            raise Broken("P2", f"the client has applied {one} after {found[-1]}, and was sent {sent}")
        found.append(one)
    if len(found) > CHANGES * CHANGE_SECONDS + SLACK_SECONDS + 1:
        raise Broken("P3", f"{len(found)} times `applied` within {CHANGES * CHANGE_SECONDS:g} s")


# Resume.

_ANOTHER = b"another replica."
_PUT_MAP = [f"put {key}" for key in wire.MAP]


async def _has_the_map(run: Run) -> None:
    """The client has the kit's map, and no connection."""
    link = await run.following()
    run.check_changes("O8", *_PUT_MAP)
    link.close()


async def _back(
    run: Run, sequence: int | None, content: Mapping[str, bytes] | None, *, incarnation: bytes = wire.INCARNATION
) -> Link:
    """The client comes back and says that it has this map, or None; every feature is in force."""
    link, hello = await run.greeted(RECONNECT_SECONDS)
    _check_position(hello, sequence)
    _check_digests(hello, content)
    features = [one for one in hello.features if one in (rejected.ZSTD, rejected.RESUME, rejected.DIGESTS)]
    link.send(wire.PREFACE, wire.server_hello(run.options.feed, features=features, incarnation=incarnation))
    return link


def _check_position(hello: Hello, sequence: int | None) -> None:
    found = hello.content.get("resume")
    if rejected.RESUME not in hello.features:
        return
    wanted = None if sequence is None else [wire.INCARNATION, sequence]
    if found != wanted:
        raise Broken("R8" if sequence is None else "R1", f"`resume` is {found!r:.100} instead of {wanted!r:.100}")


def _check_digests(hello: Hello, content: Mapping[str, bytes] | None) -> None:
    found = hello.content.get("chunk_digests")
    if rejected.DIGESTS not in hello.features:
        return
    if content is None:
        if found is not None:
            raise Broken("R8", "the client tells digests of a map that is not to be trusted")
        return
    if not isinstance(found, list) or not 1 <= len(found) <= MAX_CHUNK_DIGESTS or len(found) & (len(found) - 1):
        raise Broken("R2", f"`chunk_digests` is {found!r:.100}")
    if found != wire.chunk_digests(content, len(found)):
        raise Broken("R2", "`chunk_digests` are not those of the map")


@_check("R1 R4", "the client continues from its position", rejected.RESUME)
async def _continues(run: Run) -> None:
    await _has_the_map(run)
    link = await _back(run, wire.SEQUENCE, wire.MAP)
    await run.reaches(link, wire.SEQUENCE, rule="R4")
    updates = [wire.update(wire.POD, b"x"), wire.update("/never", None, 3)]
    link.send(wire.frame(wire.UPDATES, wire.SEQUENCE, 43, updates), wire.status(43))
    await run.reaches(link, 43, rule="R4")
    content = {**wire.MAP, wire.POD: b"x"}
    await run.state(wire.IN_SYNC, 43, content, rule="R4")
    run.check_changes("R4", f"put {wire.POD}")
    link.send(wire.frame(wire.UPDATES, 43, 44, [wire.update(wire.NODE, None, 3)]))
    link.send(wire.status(44))
    await run.state(wire.IN_SYNC, 44, {wire.POD: b"x"}, rule="R4")
    run.check_changes("R4", f"delete {wire.NODE}")
    link.close()
    link = await _back(run, 44, {wire.POD: b"x"})
    link.send(wire.status(44))
    await run.state(wire.IN_SYNC, 44, {wire.POD: b"x"}, rule="R4")
    run.check_changes("R4")


@_check("R4 O12 O13 R1", "the client is caught up from its position, and has none meanwhile", rejected.RESUME)
async def _returns(run: Run) -> None:
    await _has_the_map(run)
    link = await _back(run, wire.SEQUENCE, wire.MAP)
    link.send(
        wire.status(38, wire.CATCHING_UP),
        wire.frame(wire.UPDATES, 38, 45, [wire.update("/new", b"1"), wire.update(wire.POD, wire.POD_VALUE)]),
    )
    await run.reaches(link, 45, rule="R4")
    link.close()
    content = {**wire.MAP, "/new": b"1"}
    link, hello = await run.greeted(RECONNECT_SECONDS)
    if hello.content.get("resume") is not None:
        raise Broken("R1", "the client has a position although it was being caught up")
    _check_digests(hello, content)
    link.send(wire.PREFACE, wire.server_hello(run.options.feed))
    link.send(wire.snapshot(50, content), wire.status(50))
    await run.state(wire.IN_SYNC, 50, content, rule="R4")
    run.check_changes("R4", "put /new")


@_check("R4 R3", "a server of another incarnation cannot continue", rejected.RESUME)
async def _cannot_continue(run: Run) -> None:
    await _has_the_map(run)
    link = await _back(run, wire.SEQUENCE, wire.MAP, incarnation=_ANOTHER)
    await run.reaches(link, 0, rule="R4")
    link.send(wire.status(wire.SEQUENCE))
    await run.rejects(link, "R4", "a status of another incarnation without a snapshot")


@_check("R4 R3 O10", "a snapshot all the same", rejected.RESUME)
async def _snapshot_all_the_same(run: Run) -> None:
    await _has_the_map(run)
    link = await _back(run, wire.SEQUENCE, wire.MAP)
    link.send(wire.snapshot(7, {wire.NODE: wire.NODE_VALUE}), wire.status(7))
    await run.reaches(link, 7, rule="O10")
    await run.state(wire.IN_SYNC, 7, {wire.NODE: wire.NODE_VALUE}, rule="O10")
    run.check_changes("O8", f"delete {wire.POD}")


@_check("R2 R6 R7 O6", "the client keeps chunks, and the map changes at the status", rejected.DIGESTS)
async def _keeps(run: Run) -> None:
    await _has_the_map(run)
    link = await _back(run, wire.SEQUENCE, wire.MAP, incarnation=_ANOTHER)
    content = {wire.POD: wire.POD_VALUE, "/new": b"n"}  # the pod is in chunk 0 of 2, the node in chunk 1
    chunk = wire.chunk_of("/new", 4)
    kept = 0b1111 & ~(1 << chunk) & ~(1 << wire.chunk_of(wire.NODE, 4))
    sent = sorted({chunk, wire.chunk_of(wire.NODE, 4)})
    link.send(wire.frame(wire.RESUME, 9, 2, 4, bytes([kept])))
    link.send(*(wire.chunk(number, {"/new": b"n"} if number == chunk else {}) for number in sent))
    link.send(wire.frame(wire.PING))
    await run.pong(link)
    link.send(wire.frame(wire.END, 9, 2, wire.digest(content)))
    await run.reaches(link, 9, rule="R7")
    run.check_changes("O6")
    link.send(wire.frame(wire.UPDATES, 9, 10, [wire.update("/new", b"newer")]), wire.status(10))
    content["/new"] = b"newer"
    await run.state(wire.IN_SYNC, 10, content, rule="R7")
    run.check_changes("R7", f"delete {wire.NODE}", "put /new")


@_check("R7", "the client keeps all of 1,024 chunks", rejected.DIGESTS)
async def _keeps_all(run: Run) -> None:
    await _has_the_map(run)
    link = await _back(run, wire.SEQUENCE, wire.MAP, incarnation=_ANOTHER)
    link.send(
        wire.frame(wire.RESUME, 9, 2, 1024, b"\xff" * 128),
        wire.frame(wire.END, 9, 2, wire.digest(wire.MAP)),
        wire.status(9),
    )
    await run.reaches(link, 9, rule="R7")
    await run.state(wire.IN_SYNC, 9, wire.MAP, rule="R7")
    run.check_changes("R7")


async def _refuses(run: Run, what: str, *frames: bytes) -> None:
    """The client must reject what contradicts its map, and say nothing of the map until it has a whole one."""
    await _has_the_map(run)
    link = await _back(run, wire.SEQUENCE, wire.MAP, incarnation=_ANOTHER)
    link.send(*frames)
    await run.rejects(link, "R7", what)
    link = await _back(run, None, None)
    link.send(wire.snapshot(60, wire.MAP), wire.status(60))
    await run.reaches(link, 60, rule="R8")
    await run.state(wire.IN_SYNC, 60, wire.MAP, rule="R8")
    run.check_changes("R8")
    link.close()
    link = await _back(run, 60, wire.MAP)


@_check("R7 R8", "rejects a frame of a chunk that is kept, and then wants everything", rejected.DIGESTS)
async def _kept_and_sent(run: Run) -> None:
    number = wire.chunk_of(wire.POD, 2)
    await _refuses(run, "a frame of a kept chunk", wire.frame(wire.RESUME, 9, 2, 2, b"\x03"), wire.chunk(number, {}))


@_check("R7 R8", "rejects three chunks, and then wants everything", rejected.DIGESTS)
async def _three_chunks(run: Run) -> None:
    await _refuses(run, "three chunks", wire.frame(wire.RESUME, 9, 2, 3, b"\x07"))


@_check("R7 R8", "rejects too many bits, and then wants everything", rejected.DIGESTS)
async def _too_many_bits(run: Run) -> None:
    await _refuses(run, "two bytes for eight chunks", wire.frame(wire.RESUME, 9, 2, 8, b"\xff\xff"))


@_check("R8 V2", "rejects a map whose kept part makes its digest wrong, and then wants everything", rejected.DIGESTS)
async def _wrong_map(run: Run) -> None:
    other = {**wire.MAP, wire.POD: b"another"}
    await _refuses(
        run,
        "a map without its digest",
        wire.frame(wire.RESUME, 9, 2, 2, b"\x03"),
        wire.frame(wire.END, 9, 2, wire.digest(other)),
    )


# What a client must reject.


async def _reject(case: rejected.ToClient, run: Run) -> None:
    if case.after == "nothing":
        link, _ = await run.greeted()
    elif case.after == "preface":
        link, _ = await run.greeted()
        link.send(wire.PREFACE)
    elif case.after == "hello":
        link, _ = await run.ready()
        await run.reaches(link, 0)
    else:
        link = await run.following()
    link.send(case.data)
    await run.rejects(link, case.rule, case.name)


CHECKS.extend(
    Check((case.rule,), f"rejects {case.name} (after {case.after})", functools.partial(_reject, case), case.needs)
    for case in rejected.TO_CLIENTS
)


async def _perform(check: Check, options: Options, *, features: Collection[str]) -> Result:
    if check.needs == rejected.VERIFYING and not options.is_verifying:
        return Result(check.rules, check.name, Outcome.NOT_APPLICABLE, "for verifying clients")
    if check.needs not in ("", rejected.VERIFYING, *features):
        return Result(check.rules, check.name, Outcome.NOT_APPLICABLE, f"for clients that offer {check.needs}")

    async def script() -> None:
        async with Run(options).started() as run:
            await check.script(run)

    return await checks.result_of(check, script(), ended="the client has closed the connection")


async def run_checks(options: Options, *, jobs: int = 4, only: str = "") -> list[Result]:
    """Tests the client. `only` selects the checks of a rule, such as O6.

    Raises:
        Broken: the client does not even connect and greet.
        OSError: the program cannot be started.
    """
    async with Run(options).started() as run:
        _, hello = await run.greeted()

    async def perform(check: Check) -> Result:
        return await _perform(check, options, features=hello.features)

    return await checks.perform_all(CHECKS, perform, jobs=jobs, only=only)
