"""A scripted client that tests a server. It changes nothing there, and needs a feed that the server has."""

import asyncio
import contextlib
import functools
import ssl
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, NamedTuple

from clients import addresses
from clients.conformance import checks, rejected, wire
from clients.conformance.link import Ended, Link, check_count, check_fields, check_text
from clients.conformance.report import Broken, NotApplicable, Result

SMALLEST_LIMIT_BYTES = 65_536
MAX_PING_INTERVAL_MILLISECONDS = 600_000
LONGEST_WAIT_SECONDS = 30.0
"""A server with a longer ping interval is not tested for it."""
PONGS_TOO_MANY = 200
POSITIONS_AT_ONCE = 100
"""How many positions a server must take together (rule P4)."""
SNAPSHOT_SECONDS = 60.0
MAX_KEYS = 5_000_000
RESOURCE_KEY_PARTS = 6
"""Of the key of a Kubernetes resource; the first is empty."""
MAX_CHUNKS = 1 << 20


class Options(NamedTuple):
    """What the user says of the server."""

    address: str
    feed: str = "workloads"
    patience_seconds: float = 5.0
    """How soon a server must act, where the page gives no time."""
    tls: ssl.SSLContext | None = None
    server_name: str = ""


class Session:
    """Connections to the server under test."""

    def __init__(self, options: Options) -> None:
        self.options = options
        self._opened: list[Link] = []

    async def connected(self) -> Link:
        """A connection on which nothing has been sent."""
        host, port = addresses.parse(self.options.address)
        name = (self.options.server_name or host) if self.options.tls is not None else None
        try:
            async with asyncio.timeout(self.options.patience_seconds):
                reader, writer = await asyncio.open_connection(
                    host, port, ssl=self.options.tls, server_hostname=name, limit=1 << 20
                )
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
        """Reads to the server's goodbye, after which the stream must end. None if the stream ends without one."""
        try:
            await link.preface()
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


Script = Callable[[Session], Awaitable[None]]


class Check(NamedTuple):
    """One check, and the rules that it is about."""

    rules: tuple[str, ...]
    name: str
    script: Script


CHECKS: list[Check] = []


def _check(rules: str, name: str) -> Callable[[Script], Script]:
    def add(script: Script) -> Script:
        CHECKS.append(Check(tuple(rules.split()), name, script))
        return script

    return add


class _Reader:
    """Follows a server as a client that believes nothing, and stops at the first status."""

    def __init__(self, limit: int, resumed: Mapping[str, bytes] | None = None) -> None:
        """`resumed` is the map of a client that has told what it has."""
        self.limit = limit
        self.resumed = resumed
        self.content: dict[str, bytes] = dict(resumed or {})
        self.sequence = 0
        self.continues = False
        """The server may go on from the position, which is `sequence`."""
        self.kept = -1
        """How many chunks the client keeps, if the server says so."""
        self.is_selection = False
        """A subscription is in force: sequences may skip what is not for this client."""
        self.status: int | None = None
        self.pings = 0

    async def read(self, link: Link) -> None:
        """Reads to the first status that is not catching-up."""
        chunk: dict[str, bytes] = {}
        is_changed = False
        index, is_open, begun, is_complete = -1, False, [0, 0, 0], self.continues
        wanted: list[int] = []
        while self.status in (None, wire.CATCHING_UP):
            message = await link.message(limit=self.limit)
            match message[0]:
                case wire.PING:
                    self.pings += 1
                    link.send(wire.frame(wire.PONG, self.sequence))
                case wire.BEGIN:
                    begun = [
                        check_count(field, "snapshot-begin") for field in check_fields(message, 3, "snapshot-begin")
                    ]
                    self.content, index, is_open, is_complete = {}, -1, False, False
                    wanted = list(range(min(begun[2], MAX_CHUNKS)))
                case wire.RESUME if self.resumed is not None and not is_changed:
                    begun, wanted = self._keep(message, self.resumed)
                    index, is_open, is_complete = -1, False, False
                case wire.CHUNK:
                    number, digest, more, updates = check_fields(message, 4, "snapshot-chunk")
                    if number != (index if is_open else wanted.pop(0) if wanted else None) or is_complete:
                        raise Broken("O3", f"chunk {number} after chunk {index}")
                    chunk = chunk if is_open else {}
                    index, is_open = number, more is True
                    for key, value in map(_update, updates):
                        if value is None:
                            raise Broken("O3", f"a nil value in a snapshot: {key:.100}")
                        if key in self.content:
                            raise Broken("O3", f"key {key:.100} twice in a snapshot")
                        self.content[key] = chunk[key] = value
                    if not is_open and wire.digest(chunk) != digest:
                        raise Broken("V1", f"chunk {number} does not have its digest")
                case wire.END:
                    sequence, keys, digest = check_fields(message, 3, "snapshot-end")
                    if is_open or wanted:
                        raise Broken("O3", f"{len(wanted)} chunks of {begun[2]} are missing")
                    if sequence != begun[0] or not keys == begun[1] == len(self.content):
                        raise Broken("O3", f"a snapshot of {begun[:2]} ends as {[sequence, keys]}")
                    if wire.digest(self.content) != digest:
                        raise Broken("V2", "the map does not have its digest")
                    self.sequence, is_complete = sequence, True
                case wire.UPDATES:
                    previous, sequence, updates = check_fields(message, 3, "updates")
                    if not is_complete or not self._is_continued_by(previous) or sequence < previous:
                        raise Broken("O11", f"updates from {previous} to {sequence} after {self.sequence}")
                    is_changed = True
                    for key, value in map(_update, updates):
                        if value is None:
                            self.content.pop(key, None)
                        else:
                            self.content[key] = value
                    self.sequence = sequence
                case wire.STATUS:
                    sequence, self.status = check_fields(message, 2, "status")
                    if not is_complete or not (self._is_continued_by(sequence) or self.status == wire.CATCHING_UP):
                        raise Broken("O11", f"a status at {sequence} after {self.sequence}")
                    self.sequence = sequence
                case _:
                    raise Broken("O1", f"message {message[0]} is unexpected")
            if len(self.content) > MAX_KEYS:
                raise Broken("O3", "there is no end of keys")

    def _is_continued_by(self, sequence: object) -> bool:
        known = check_count(sequence, "a sequence")
        return known == self.sequence or (self.is_selection and known > self.sequence)

    def _keep(self, message: list[Any], resumed: Mapping[str, bytes]) -> tuple[list[int], list[int]]:
        """Begins a snapshot with the kept chunks: what it announces, and the chunks that must come."""
        sequence, keys, chunks, kept = check_fields(message, 4, "snapshot-resume")
        begun = [check_count(field, "snapshot-resume") for field in (sequence, keys, chunks)]
        if not 1 <= chunks <= MAX_CHUNKS or chunks & (chunks - 1):
            raise Broken("R6", f"a snapshot of {chunks} chunks")
        if not isinstance(kept, bytes) or len(kept) != (chunks + 7) // 8:
            raise Broken("R6", "`kept` does not have a bit for each chunk")
        keeps = [bool(kept[number >> 3] & 1 << (number & 7)) for number in range(chunks)]
        self.content = {key: value for key, value in resumed.items() if keeps[wire.chunk_of(key, chunks)]}
        self.kept = sum(keeps)
        return begun, [number for number in range(chunks) if not keeps[number]]


def _update(update: object) -> tuple[str, bytes | None]:
    if not isinstance(update, list) or len(update) < 4:
        raise Broken("M2", "an update has less than four elements")
    key, value, revision, kind = update[:4]
    check_text(key, "a key", 4096)
    if value is not None and not isinstance(value, bytes):
        raise Broken("M2", "a value is neither bytes nor nil")
    if not isinstance(revision, str) or not isinstance(kind, int):
        raise Broken("M2", "a revision or an update type is of the wrong kind")
    return key, value


async def _snapshot(session: Session, features: list[str]) -> Link:
    link, hello = await session.greeted(features=features)
    reader = _Reader(hello.get("max_frame_bytes") or wire.MAX_FRAME_BYTES)
    try:
        async with asyncio.timeout(SNAPSHOT_SECONDS):
            await reader.read(link)
    except TimeoutError:
        if reader.status is None and not reader.content:
            raise NotApplicable("the feed has no data yet") from None
        raise Broken("O5", f"no status within {SNAPSHOT_SECONDS:g} s") from None
    except Ended:
        raise Broken("O5", "the server closes the connection before the first status") from None
    return link


@_check("H2 O2 E1", "a good hello is answered with one")
async def _answers(session: Session) -> None:
    await session.greeted(software="kit/1", node="n1", features=[])


@_check("H2", "the server says nothing before the hello")
async def _waits(session: Session) -> None:
    link = await session.connected()
    link.send(wire.PREFACE)
    if not await link.silent(0.5):
        raise Broken("H2", "something comes before the hello, or the server has closed")


@_check("F1", "a hello in pieces of a byte")
async def _pieces(session: Session) -> None:
    link = await session.connected()
    await link.send_in_pieces(wire.PREFACE + wire.client_hello(session.options.feed), 1)
    await session.accepted(link, [])


@_check("O3 O5 V1 V2 L2 F5", "snapshot, updates and status, without compression")
async def _plain(session: Session) -> None:
    link = await _snapshot(session, [])
    if link.is_compressed:
        raise Broken("F5", "a frame is compressed, although zstd was not offered")


@_check("O3 V1 V2 L2 F5", "the same with zstd")
async def _zstd(session: Session) -> None:
    await _snapshot(session, ["zstd"])


@_check("E2 E3", "unknown features, and members of reserved ones")
async def _features(session: Session) -> None:
    asked = ["telepathy", "zstd"]
    _, hello = await session.greeted(
        features=asked, resume=[bytes(16), 5], chunk_digests=[1, 2**64 - 1], subscription={"node": "n1"}
    )
    named = set(hello.get("features") or []) | set(hello.get("not_supported") or [])
    missing = {*asked, "resume", "chunk-digests", "subscriptions"} - named
    if missing:
        raise Broken("E3", f"the server says nothing of {sorted(missing)}")
    if "telepathy" in (hello.get("features") or []):
        raise Broken("E2", "an unknown feature is in force")


RESUMING = ["resume", "chunk-digests"]


async def _resumed(
    session: Session, content: Mapping[str, bytes], position: list[object] | None, digests: list[int] | None
) -> _Reader:
    """A client that has this map, by its own words, and what the server has made of it."""
    link, hello = await session.greeted(features=RESUMING, resume=position, chunk_digests=digests)
    in_force = hello.get("features") or []
    reader = _Reader(
        hello.get("max_frame_bytes") or wire.MAX_FRAME_BYTES, content if "chunk-digests" in in_force else None
    )
    if "resume" in in_force and position is not None and position[0] == hello["incarnation"]:
        assert isinstance(position[1], int)
        reader.content, reader.sequence, reader.continues = dict(content), position[1], True
    try:
        async with asyncio.timeout(SNAPSHOT_SECONDS):
            await reader.read(link)
    except (TimeoutError, Ended):
        raise Broken("R5", "the server does not serve a client that resumes") from None
    return reader


async def _served(session: Session) -> tuple[_Reader, list[object]]:
    """A newcomer's map, and its position."""
    link, hello = await session.greeted(features=RESUMING)
    if not set(RESUMING) & set(hello.get("features") or []):
        raise NotApplicable("the server does not support it")
    reader = _Reader(hello.get("max_frame_bytes") or wire.MAX_FRAME_BYTES)
    try:
        async with asyncio.timeout(SNAPSHOT_SECONDS):
            await reader.read(link)
    except (TimeoutError, Ended):
        raise NotApplicable("the feed has no data yet") from None
    return reader, [hello["incarnation"], reader.sequence]


def _check_same(one: _Reader, other: _Reader, rule: str) -> None:
    """Two clients that have reached the same sequence have the same map."""
    if one.sequence == other.sequence and one.content != other.content:
        raise Broken(rule, f"the map of a client that resumes differs from that of a newcomer at {one.sequence}")


@_check("R5 O5", "a client resumes by its position")
async def _by_position(session: Session) -> None:
    first, position = await _served(session)
    resumed = await _resumed(session, first.content, position, None)
    again, _ = await _served(session)
    _check_same(resumed, first, "R5")
    _check_same(resumed, again, "R5")


@_check("R6", "a client of another incarnation resumes by digests, of any number of chunks")
async def _by_digests(session: Session) -> None:
    first, position = await _served(session)
    for count in (1, 2, 64, 4096):
        digests = wire.chunk_digests(first.content, count)
        resumed = await _resumed(session, first.content, [bytes(16), position[1]], digests)
        _check_same(resumed, first, "R6")


@_check("R6 R3", "digests that are none of the server's")
async def _foreign_digests(session: Session) -> None:
    first, _ = await _served(session)
    content = {"/conformance/kit": b"not in any feed", **dict(list(first.content.items())[:100])}
    for count in (1, 1024):
        resumed = await _resumed(session, content, None, wire.chunk_digests(content, count))
        _check_same(resumed, first, "R6")


@_check("R3", "positions of the future and of nobody are no errors")
async def _wrong_positions(session: Session) -> None:
    first, position = await _served(session)
    for wrong in ([position[0], 2**64 - 1], [bytes(16), 0], [b"", 5], [bytes(1000), 2**63]):
        resumed = await _resumed(session, first.content, wrong, wire.chunk_digests(first.content, 16))
        _check_same(resumed, first, "R3")


@_check("R3", "positions and digests without their features")
async def _not_offered(session: Session) -> None:
    link, hello = await session.greeted(features=[], resume=[bytes(16), 5], chunk_digests=[1, 2, 3])
    if hello.get("features"):
        raise Broken("E2", f"the features {hello['features']} are in force")
    reader = _Reader(hello.get("max_frame_bytes") or wire.MAX_FRAME_BYTES)
    with contextlib.suppress(TimeoutError):  # it has no data yet
        async with asyncio.timeout(SNAPSHOT_SECONDS):
            await reader.read(link)


async def _selected(session: Session, **members: Any) -> _Reader:
    """The map of a client with a subscription, which must be in force."""
    link, hello = await session.greeted(features=["subscriptions"], **members)
    if "subscriptions" not in (hello.get("features") or []):
        raise NotApplicable("the server does not put it in force")
    reader = _Reader(hello.get("max_frame_bytes") or wire.MAX_FRAME_BYTES)
    reader.is_selection = True
    try:
        async with asyncio.timeout(SNAPSHOT_SECONDS):
            await reader.read(link)
    except (TimeoutError, Ended):
        raise NotApplicable("the feed has no data yet") from None
    return reader


@_check("S2 S3 S4", "a subscription by prefix, kind and namespace")
async def _by_subscription(session: Session) -> None:
    link = await _snapshot(session, [])
    link.close()
    whole = await _selected(session, subscription={})
    if not whole.content:
        raise NotApplicable("the feed is empty")
    key = max(whole.content)
    parts = key.split("/")
    wanted: list[tuple[dict[str, Any], Callable[[str], bool]]] = [
        ({"prefixes": [key[: len(key) // 2 + 1], "/none/"]}, lambda other: other.startswith(key[: len(key) // 2 + 1])),
        ({"prefixes": ["no key begins so"]}, lambda other: False),
    ]
    if len(parts) == RESOURCE_KEY_PARTS:
        kind, namespace = "/".join(parts[1:4]), parts[4]
        wanted += [
            ({"kinds": [kind]}, lambda other: other.startswith(f"/{kind}/")),
            ({"namespaces": [namespace, ""]}, lambda other: other.split("/")[4] in (namespace, "")),
        ]
    for subscription, selects in wanted:
        part = await _selected(session, subscription=subscription)
        again = await _selected(session, subscription={})
        if whole.sequence == again.sequence and part.content != dict(
            item for item in whole.content.items() if selects(item[0])
        ):
            raise Broken("S3", f"{subscription} gives {len(part.content)} keys, and not those that it selects")
        if any(not selects(other) for other in part.content):
            raise Broken("S3", f"{subscription} gives keys that it does not select")


@_check("S2", "own_node without a node is not in force")
async def _nameless(session: Session) -> None:
    _, hello = await session.greeted(features=["subscriptions"], subscription={"own_node": True})
    if "subscriptions" in (hello.get("features") or []):
        raise Broken("S2", "a client that names no node has those of its node")
    if "subscriptions" not in (hello.get("not_supported") or []):
        raise Broken("E3", "`subscriptions` is in neither list")


@_check("E2", "a subscription without its feature")
async def _unnamed(session: Session) -> None:
    _, hello = await session.greeted(features=[], subscription={"prefixes": ["/"]})
    if hello.get("features"):
        raise Broken("E2", f"the features {hello['features']} are in force")


@_check("M3", "unknown members and elements of a hello, nested 90 deep")
async def _extended(session: Session) -> None:
    more: object = 7
    for _ in range(90):
        more = [more, {}]
    link = await session.connected()
    content = {
        "versions": [1],
        "feed": session.options.feed,
        "agent": "kit",
        "aaa": more,
        "zzz": {"b": [b"", None, 1.5]},
    }
    link.send(wire.PREFACE, wire.frame(wire.HELLO_TYPE, content, more))
    await session.accepted(link, [])


@_check("M5", "nil for what a hello may leave out")
async def _nil(session: Session) -> None:
    link = await session.connected()
    optional = ("features", "software", "node", "subscription", "resume", "chunk_digests")
    content = {"versions": [1], "feed": session.options.feed, "agent": "kit"} | dict.fromkeys(optional)
    link.send(wire.PREFACE, wire.frame(wire.HELLO_TYPE, content))
    hello = await session.accepted(link, [])
    if hello.get("not_supported"):
        raise Broken("M5", f"the server takes nil for {hello['not_supported']}")


@_check("E1", "the highest version in common")
async def _versions(session: Session) -> None:
    await session.greeted(versions=[9, 1, 2**64 - 1])


@_check("K1 K6", "something comes within each ping interval, and a pong from the future is ignored")
async def _pings(session: Session) -> None:
    link, hello = await session.greeted()
    interval_seconds = (hello.get("ping_interval_ms") or 10_000) / 1000
    if interval_seconds > LONGEST_WAIT_SECONDS:
        raise NotApplicable(f"the ping interval is {interval_seconds:g} s")
    pings = 0
    while pings < 2:
        try:
            message = await link.message(seconds=interval_seconds + 2.0)
        except TimeoutError:
            raise Broken("K1", f"nothing for {interval_seconds + 2.0:g} s") from None
        except Ended:
            raise Broken("K6", "the server closes after a pong from the future") from None
        if message[0] == wire.GOODBYE:
            raise Broken("K6", f"a goodbye after a pong from the future: {message[1:]!r:.200}")
        if message[0] == wire.PING:
            pings += 1
            link.send(wire.frame(wire.PONG, 2**64 - 1))


async def _reporting(session: Session) -> tuple[Link, _Reader]:
    """A connection whose client may report positions, and has read everything."""
    link, hello = await session.greeted(features=["positions"])
    if "positions" not in (hello.get("features") or []):
        raise NotApplicable("the server does not support positions")
    reader = _Reader(hello.get("max_frame_bytes") or wire.MAX_FRAME_BYTES)
    with contextlib.suppress(TimeoutError):  # it has no data yet
        async with asyncio.timeout(SNAPSHOT_SECONDS):
            await reader.read(link)
    return link, reader


@_check("P4", "positions that repeat or go back are ignored, and a hundred may come together")
async def _positions(session: Session) -> None:
    link, reader = await _reporting(session)
    for number in range(POSITIONS_AT_ONCE):
        link.send(wire.frame(wire.APPLIED, reader.sequence if number % 2 else 0))
    with contextlib.suppress(TimeoutError):
        while (message := await link.message())[0] != wire.GOODBYE:
            if message[0] == wire.PING:
                link.send(wire.frame(wire.PONG, reader.sequence))
                return
        raise Broken("P4", f"a goodbye after good positions: {message[1:]!r:.200}")


@_check("P4", "a position that the feed has not reached is rejected")
async def _position_ahead(session: Session) -> None:
    link, _ = await _reporting(session)
    link.send(wire.frame(wire.APPLIED, 2**63))
    said = await _last_words(session, link, is_accepted=True)
    if said is not None and said[0] != "protocol-error":
        raise Broken("P4", f"the goodbye has reason {said[0]}")


@_check("E6", "how fresh the feed is, for those who ask")
async def _freshness(session: Session) -> None:
    _, hello = await session.greeted(features=["freshness"])
    if "freshness" not in (hello.get("features") or []):
        raise NotApplicable("the server does not support freshness")
    if hello.get("confirmed_ms") is not None:
        check_count(hello["confirmed_ms"], "confirmed_ms")


@_check("K4", "pongs without pings do not go on for ever")
async def _pong_flood(session: Session) -> None:
    link, _ = await session.greeted()
    for _ in range(PONGS_TOO_MANY):
        link.send(wire.frame(wire.PONG, 0))
    if not await link.closed():
        raise NotApplicable("the server allows it, as it may")


@_check("G5", "a client's goodbye")
async def _leaves(session: Session) -> None:
    link, _ = await session.greeted()
    link.send(wire.frame(wire.GOODBYE, "client-closed", "", 0))
    if not await link.closed():
        raise Broken("G5", "the server does not close the connection")


@_check("H6", "the end of the client's direction is the end of the connection")
async def _half_closed(session: Session) -> None:
    link, _ = await session.greeted()
    if session.options.tls is not None:
        raise NotApplicable("not with TLS")
    link.end_sending()
    if not await link.closed():
        raise Broken("H6", "the server does not close the connection")


@_check("G3 F2", "a goodbye arrives, although the client goes on sending")
async def _keeps_sending(session: Session) -> None:
    link = await session.connected()
    link.send(wire.PREFACE, (65_537).to_bytes(4), bytes(65_536))
    said = await session.goodbye(link)
    if said is None:
        raise Broken("G3", "no goodbye has arrived")


async def _idle(session: Session) -> Link:
    """A connection on which the server is not inside a frame: there it may close without a goodbye (G4)."""
    link, hello = await session.greeted()
    with contextlib.suppress(TimeoutError):  # it has no data yet
        async with asyncio.timeout(SNAPSHOT_SECONDS):
            await _Reader(hello.get("max_frame_bytes") or wire.MAX_FRAME_BYTES).read(link)
    return link


async def _reject(case: rejected.ToServer, session: Session) -> None:
    feed = session.options.feed
    if case.after == "hello":
        link = await _idle(session)
    else:
        link = await session.connected()
        link.send(b"" if case.after == "nothing" else wire.PREFACE)
    link.send(case.data)
    said = await _last_words(session, link, is_accepted=case.after == "hello")
    reason = said[0] if said else ""
    if reason != case.reason:
        raise Broken(
            case.rule, f"the goodbye has reason {reason or '(none)'} instead of {case.reason or '(none)'} ({feed})"
        )


async def _last_words(session: Session, link: Link, *, is_accepted: bool) -> list[Any] | None:
    if not is_accepted:
        return await session.goodbye(link)
    try:
        while (message := await link.message())[0] != wire.GOODBYE:
            pass
    except Ended:
        return None
    except TimeoutError:
        raise Broken("G1", "neither a goodbye nor the end of the connection") from None
    if not await link.closed():
        raise Broken("G3", "the stream does not end after the goodbye")
    return message[1:]


CHECKS.extend(
    Check((case.rule,), f"rejects {case.name} (after {case.after})", functools.partial(_reject, case))
    for case in rejected.TO_SERVERS
)


async def _perform(check: Check, options: Options) -> Result:
    session = Session(options)
    try:
        return await checks.result_of(
            check, check.script(session), ended="the server has closed the connection, or is silent"
        )
    finally:
        session.close()


async def run_checks(options: Options, *, jobs: int = 4, only: str = "") -> list[Result]:
    """Tests the server. `only` selects the checks of a rule, such as O3.

    Raises:
        Broken: there is no server, or it refuses the feed.
    """
    session = Session(options)
    try:
        await session.greeted()
    finally:
        session.close()
    return await checks.perform_all(CHECKS, functools.partial(_perform, options=options), jobs=jobs, only=only)
