"""Starts the client program, and plays the server that it connects to."""

import asyncio
import contextlib
import shlex
from collections.abc import AsyncIterator, Mapping
from typing import Any, NamedTuple

from clients.conformance import wire
from clients.conformance.link import Ended, Link, check_count, check_fields, check_text
from clients.conformance.report import Broken

HELLO_LIMIT_BYTES = 64 * 1024
LATER_LIMIT_BYTES = 2 * 1024
MAX_LINE_BYTES = 64 * 1024
MAX_LINES = 10_000
STARTUP_SECONDS = 30.0
"""For a program that loads much before it connects, on a busy machine."""
RECONNECT_SECONDS = 40.0
"""The longest back-off is 30 s."""


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
    slack_seconds: float = 3.0
    """How late a client on a busy machine may act, where the page gives a time."""
    subscribing: str = ""
    """A command as above, of the same client with a subscription."""
    host: str = "127.0.0.1"
    """The kit's own address, where it listens on free ports."""


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
        self.accepted_ports: list[int] = []
        self.process: asyncio.subprocess.Process | None = None
        self._servers: list[asyncio.Server] = []
        self._opened: list[Link] = []

    @contextlib.asynccontextmanager
    async def started(self) -> AsyncIterator["Run"]:
        """Starts the program, and ends it with the block."""
        address = await self.listen()
        words = [
            word.replace("{address}", address).replace("{feed}", self.options.feed)
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
            for server in self._servers:
                server.close()
            for link in self._opened:
                link.close()

    async def listen(self) -> str:
        """Listens at one more address, and returns it."""
        server = await asyncio.start_server(self._accepted, self.options.host, 0, limit=1 << 20)
        self._servers.append(server)
        return f"{self.options.host}:{server.sockets[0].getsockname()[1]}"

    def _accepted(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.accepted_at.append(asyncio.get_running_loop().time())
        self.accepted_ports.append(writer.get_extra_info("sockname")[1])
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
        found = await self.pong(link, rule=rule)
        if found != sequence:
            raise Broken(rule, f"the pong names sequence {found} instead of {sequence}")

    async def pong(self, link: Link, *, rule: str = "K3") -> int:
        """The sequence of the pong that comes next."""
        try:
            message = await link.message(limit=LATER_LIMIT_BYTES)
        except TimeoutError:
            raise Broken(rule, f"no pong within {self.options.patience_seconds:g} s") from None
        except Ended:
            raise Broken(rule, "the client has closed the connection") from None
        if message[0] == wire.GOODBYE:
            raise Broken(rule, f"the client has said goodbye: {message[1:3]!r:.200}")
        if message[0] != wire.PONG:
            raise Broken("O1", f"message {message[0]} where a pong is due")
        if link.is_compressed:
            raise Broken("F6", "the pong is compressed")
        return check_count(check_fields(message, 1, "the pong")[0], "the pong's sequence")

    async def state(self, status: int, sequence: int, content: Mapping[str, bytes] | None, *, rule: str) -> None:
        """The client must print this state, and no other before it. Without a map, it may be any."""
        if not self.options.is_observed:
            return
        content_words = ("*", "*") if content is None else (str(len(content)), f"{wire.digest(content):016x}")
        wanted = (wire.STATUS_NAMES[status], str(sequence), *content_words)
        try:
            async with asyncio.timeout(self.options.patience_seconds):
                found = await self._states.get()
        except TimeoutError:
            raise Broken(rule, f"the client does not print `state {' '.join(wanted)}`") from None
        if len(found) != len(wanted) or any(
            one not in (other, "-") and other != "*" for one, other in zip(found, wanted, strict=True)
        ):
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
