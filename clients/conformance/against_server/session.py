"""Connections to the server under test."""

import asyncio
import ssl
from typing import Any, NamedTuple

from clients import addresses
from clients.conformance import wire
from clients.conformance.link import Ended, Link, check_count, check_fields, check_text
from clients.conformance.report import Broken

SMALLEST_LIMIT_BYTES = 65_536
MAX_PING_INTERVAL_MILLISECONDS = 600_000


class Options(NamedTuple):
    """What the user says of the server."""

    address: str
    feed: str = "workloads"
    patience_seconds: float = 5.0
    """How soon a server must act, where the page gives no time."""
    tls: ssl.SSLContext | None = None
    server_name: str = ""
    snapshot_seconds: float = 60.0
    """How soon a snapshot must be complete."""
    closing_seconds: float = 20.0
    """How soon the server must close a connection without a hello: twice its usual timeout."""


class Session:
    """Connections to the server under test."""

    def __init__(self, options: Options) -> None:
        self.options = options
        self._opened: list[Link] = []

    async def connected(self, *, is_plain: bool = False) -> Link:
        """A connection on which nothing has been sent; without TLS in any case if it is plain."""
        host, port = addresses.parse(self.options.address)
        tls = None if is_plain else self.options.tls
        name = None if tls is None else self.options.server_name or host
        try:
            async with asyncio.timeout(self.options.patience_seconds):
                reader, writer = await asyncio.open_connection(host, port, ssl=tls, server_hostname=name, limit=1 << 20)
        except OSError as error:
            raise Broken("T1", f"no connection to {self.options.address}: {error}") from error
        link = Link(reader, writer, patience_seconds=self.options.patience_seconds)
        self._opened.append(link)
        return link

    async def greeted(self, **members: Any) -> tuple[Link, dict[str, Any]]:
        """A connection whose hello, with these members, the server has accepted."""
        link = await self.connected()
        link.send(wire.PREFACE, wire.client_hello(self.options.feed, **members))
        return link, await self.accepted(link, members.get("features") or [])

    async def accepted(self, link: Link, offered: list[str]) -> dict[str, Any]:
        """The server's hello, which must be a good one."""
        try:
            await link.preface()
            message = await link.message()
        except (Ended, TimeoutError):
            hint = "" if self.options.tls is not None else ", perhaps because its port has TLS (see --ca-file)"
            raise Broken("O2", f"the server does not answer a good hello{hint}") from None
        if message[0] == wire.GOODBYE:
            raise Broken("O2", f"the server refuses a good hello: {message[1:]!r:.200}")
        if message[0] != wire.SERVER_HELLO:
            raise Broken("O2", f"the first message is {message[0]} and no hello")
        return self._check_hello(check_fields(message, 1, "the hello")[0], offered)

    def _check_hello(self, hello: object, offered: list[str]) -> dict[str, Any]:
        if not isinstance(hello, dict):
            raise Broken("M2", "the hello has no map")
        if hello.get("version") != 1:
            raise Broken("E1", f"the server chose version {hello.get('version')!r:.60}")
        if hello.get("feed") != self.options.feed:
            raise Broken("E5", f"the server names feed {hello.get('feed')!r:.60}")
        incarnation = hello.get("incarnation")
        if not isinstance(incarnation, bytes) or len(incarnation) != 16:
            raise Broken("M2", "`incarnation` is not 16 bytes")
        features = [check_text(one, "a feature") for one in hello.get("features") or []]
        if not set(features) <= set(offered):
            raise Broken("E2", f"features {features} are in force, and {offered} were offered")
        if (
            not 0
            <= check_count(hello.get("ping_interval_ms") or 0, "ping_interval_ms")
            <= MAX_PING_INTERVAL_MILLISECONDS
        ):
            raise Broken("K1", f"`ping_interval_ms` is {hello['ping_interval_ms']}")
        limit = check_count(hello.get("max_frame_bytes") or wire.MAX_FRAME_BYTES, "max_frame_bytes")
        if not SMALLEST_LIMIT_BYTES <= limit <= wire.MAX_FRAME_BYTES:
            raise Broken("L2", f"`max_frame_bytes` is {limit}")
        return hello

    async def goodbye(self, link: Link) -> list[Any] | None:
        """Like `last_words`, before the server's hello: with its preface, unless the stream ends at once."""
        try:
            await link.preface()
        except Ended:
            return None
        except TimeoutError:
            raise Broken("G1", "neither a goodbye nor the end of the connection") from None
        return await self.last_words(link)

    async def last_words(self, link: Link) -> list[Any] | None:
        """Reads to the server's goodbye, after which the stream must end. None if the stream ends without one."""
        try:
            while True:
                message = await link.message()
                if message[0] == wire.GOODBYE:
                    break
        except Ended:
            return None
        except TimeoutError:
            raise Broken("G1", "neither a goodbye nor the end of the connection") from None
        reason, text, retry = check_fields(message, 3, "the goodbye")
        check_text(reason, "the reason")
        check_text(text, "the text of the goodbye")
        check_count(retry, "retry_after_ms")
        try:
            following = await link.message()
        except (Ended, TimeoutError):
            following = None
        if following is not None:
            raise Broken("G1", f"message {following[0]} follows the goodbye")
        if not await link.closed():
            raise Broken("G3", "the stream does not end after the goodbye")
        return message[1:]

    def close(self) -> None:
        """Closes all connections."""
        for link in self._opened:
            link.close()
