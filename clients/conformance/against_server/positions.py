"""Rules P: what a client says that it has applied."""

import contextlib
from typing import Final

from clients.conformance import wire
from clients.conformance.against_server.reader import Reader
from clients.conformance.against_server.session import Session
from clients.conformance.checks import Checks
from clients.conformance.link import Link
from clients.conformance.report import Broken, NotApplicable

POSITIONS_AT_ONCE = 100
"""How many positions a server must take together (rule P4)."""
CHECKS: Final = Checks[Session]()


async def _reporting(session: Session) -> tuple[Link, Reader]:
    """A connection whose client may report positions, and has read everything."""
    link, hello = await session.greeted(features=["positions"])
    if "positions" not in (hello.get("features") or []):
        raise NotApplicable("the server does not support positions")
    reader = Reader(session, hello)
    with contextlib.suppress(TimeoutError):  # it has no data yet
        await reader.read(link)
    return link, reader


@CHECKS.add("P4", "positions that repeat or go back are ignored, and a hundred may come together")
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


@CHECKS.add("P4", "a position that the feed has not reached is rejected")
async def _position_ahead(session: Session) -> None:
    link, _ = await _reporting(session)
    link.send(wire.frame(wire.APPLIED, 2**63))
    said = await session.last_words(link)
    if said is not None and said[0] != "protocol-error":
        raise Broken("P4", f"the goodbye has reason {said[0]}")
