"""A client that believes nothing of what a server sends."""

import asyncio
from collections.abc import Mapping
from typing import Any

from clients.conformance import wire
from clients.conformance.against_server.session import Session
from clients.conformance.link import Ended, Link, check_count, check_fields, check_text
from clients.conformance.report import Broken, NotApplicable

MAX_KEYS = 5_000_000
MAX_CHUNKS = 1 << 20


class Reader:
    """Follows a server as a client that believes nothing, and stops at the first status."""

    def __init__(self, session: Session, hello: Mapping[str, Any], resumed: Mapping[str, bytes] | None = None) -> None:
        """`resumed` is the map of a client that has told what it has."""
        self.limit = hello.get("max_frame_bytes") or wire.MAX_FRAME_BYTES
        self.seconds = session.options.snapshot_seconds
        self.resumed = resumed
        self.content: dict[str, bytes] = dict(resumed or {})
        self.sequence = 0
        self.continues = False
        """The server may go on from the position, which is `sequence`."""
        self.kept = -1
        """How many chunks the client keeps, if the server says so."""
        self.is_selection = "subscriptions" in (hello.get("features") or [])
        """A subscription is in force: sequences may skip what is not for this client."""
        self.status: int | None = None
        self.pings = 0

    async def read(self, link: Link) -> None:
        """Reads to the first status that is not catching-up.

        Raises:
            Broken, Ended, TimeoutError.
        """
        async with asyncio.timeout(self.seconds):
            await self._read(link)

    async def _read(self, link: Link) -> None:
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


async def read_snapshot(session: Session, features: list[str]) -> Link:
    link, hello = await session.greeted(features=features)
    reader = Reader(session, hello)
    try:
        await reader.read(link)
    except TimeoutError:
        if reader.status is None and not reader.content:
            raise NotApplicable("the feed has no data yet") from None
        raise Broken("O5", f"no status within {session.options.snapshot_seconds:g} s") from None
    except Ended:
        raise Broken("O5", "the server closes the connection before the first status") from None
    return link
