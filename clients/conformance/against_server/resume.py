"""Rules R: clients that come back."""

import contextlib
from collections.abc import Mapping
from typing import Final

from clients.conformance import wire
from clients.conformance.against_server.reader import Reader
from clients.conformance.against_server.session import Session
from clients.conformance.checks import Checks
from clients.conformance.link import Ended
from clients.conformance.report import Broken, NotApplicable

CHECKS: Final = Checks[Session]()


RESUMING = ["resume", "chunk-digests"]


async def _resumed(
    session: Session, content: Mapping[str, bytes], position: list[object] | None, digests: list[int] | None
) -> Reader:
    """A client that has this map, by its own words, and what the server has made of it."""
    link, hello = await session.greeted(features=RESUMING, resume=position, chunk_digests=digests)
    in_force = hello.get("features") or []
    reader = Reader(session, hello, content if "chunk-digests" in in_force else None)
    if "resume" in in_force and position is not None and position[0] == hello["incarnation"]:
        assert isinstance(position[1], int)
        reader.content, reader.sequence, reader.continues = dict(content), position[1], True
    try:
        await reader.read(link)
    except (TimeoutError, Ended):
        raise Broken("R5", "the server does not serve a client that resumes") from None
    return reader


async def _served(session: Session) -> tuple[Reader, list[object]]:
    """A newcomer's map, and its position."""
    link, hello = await session.greeted(features=RESUMING)
    if not set(RESUMING) & set(hello.get("features") or []):
        raise NotApplicable("the server does not support it")
    reader = Reader(session, hello)
    try:
        await reader.read(link)
    except (TimeoutError, Ended):
        raise NotApplicable("the feed has no data yet") from None
    return reader, [hello["incarnation"], reader.sequence]


def _check_same(one: Reader, other: Reader, rule: str) -> None:
    """Two clients that have reached the same sequence have the same map."""
    if one.sequence == other.sequence and one.content != other.content:
        raise Broken(rule, f"the map of a client that resumes differs from that of a newcomer at {one.sequence}")


@CHECKS.add("R5 O5", "a client resumes by its position")
async def _by_position(session: Session) -> None:
    first, position = await _served(session)
    resumed = await _resumed(session, first.content, position, None)
    again, _ = await _served(session)
    _check_same(resumed, first, "R5")
    _check_same(resumed, again, "R5")


@CHECKS.add("R6", "a client of another incarnation resumes by digests, of any number of chunks")
async def _by_digests(session: Session) -> None:
    first, position = await _served(session)
    for count in (1, 2, 64, 4096):
        digests = wire.chunk_digests(first.content, count)
        resumed = await _resumed(session, first.content, [bytes(16), position[1]], digests)
        _check_same(resumed, first, "R6")


@CHECKS.add("R6 R3", "digests that are none of the server's")
async def _foreign_digests(session: Session) -> None:
    first, _ = await _served(session)
    content = {"/conformance/kit": b"not in any feed", **dict(list(first.content.items())[:100])}
    for count in (1, 1024):
        resumed = await _resumed(session, content, None, wire.chunk_digests(content, count))
        _check_same(resumed, first, "R6")


@CHECKS.add("R3", "positions of the future and of nobody are no errors")
async def _wrong_positions(session: Session) -> None:
    first, position = await _served(session)
    for wrong in ([position[0], 2**64 - 1], [bytes(16), 0], [b"", 5], [bytes(1000), 2**63]):
        resumed = await _resumed(session, first.content, wrong, wire.chunk_digests(first.content, 16))
        _check_same(resumed, first, "R3")


@CHECKS.add("R3", "positions and digests without their features")
async def _not_offered(session: Session) -> None:
    link, hello = await session.greeted(features=[], resume=[bytes(16), 5], chunk_digests=[1, 2, 3])
    if hello.get("features"):
        raise Broken("E2", f"the features {hello['features']} are in force")
    reader = Reader(session, hello)
    with contextlib.suppress(TimeoutError):  # it has no data yet
        await reader.read(link)
