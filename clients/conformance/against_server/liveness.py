"""Rules K and G: keeping in touch, and goodbyes."""

from typing import Final

from clients.conformance import wire
from clients.conformance.against_server.session import Session
from clients.conformance.checks import Checks
from clients.conformance.link import Ended
from clients.conformance.report import Broken, NotApplicable

LONGEST_WAIT_SECONDS = 30.0
"""A server with a longer ping interval is not tested for it."""
PONGS_TOO_MANY = 200
CHECKS: Final = Checks[Session]()


@CHECKS.add("K1 K6", "something comes within each ping interval, and a pong from the future is ignored")
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


@CHECKS.add("K4", "pongs without pings do not go on for ever")
async def _pong_flood(session: Session) -> None:
    link, _ = await session.greeted()
    for _ in range(PONGS_TOO_MANY):
        link.send(wire.frame(wire.PONG, 0))
    if not await link.closed():
        raise NotApplicable("the server allows it, as it may")


@CHECKS.add("G5", "a client's goodbye")
async def _leaves(session: Session) -> None:
    link, _ = await session.greeted()
    link.send(wire.frame(wire.GOODBYE, "client-closed", "", 0))
    if not await link.closed():
        raise Broken("G5", "the server does not close the connection")


@CHECKS.add("G3 F2", "a goodbye arrives, although the client goes on sending")
async def _keeps_sending(session: Session) -> None:
    link = await session.connected()
    link.send(wire.PREFACE, (65_537).to_bytes(4), bytes(65_536))
    said = await session.goodbye(link)
    if said is None:
        raise Broken("G3", "no goodbye has arrived")
