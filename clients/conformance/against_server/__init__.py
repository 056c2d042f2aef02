"""A scripted client that tests a server. It changes nothing there, and needs a feed that the server has."""

import contextlib
import functools
from typing import Final

from clients.conformance import checks, rejected, wire
from clients.conformance.against_server import handshake, liveness, positions, resume, subscriptions
from clients.conformance.against_server.reader import Reader
from clients.conformance.against_server.session import Options, Session
from clients.conformance.checks import Check
from clients.conformance.link import Link
from clients.conformance.report import Broken, Result

__all__ = ["CHECKS", "Options", "run_checks"]


async def _idle(session: Session) -> Link:
    """A connection on which the server is not inside a frame: there it may close without a goodbye (G4)."""
    link, hello = await session.greeted()
    with contextlib.suppress(TimeoutError):  # it has no data yet
        await Reader(session, hello).read(link)
    return link


async def _reject(case: rejected.ToServer, session: Session) -> None:
    feed = session.options.feed
    if case.after == "hello":
        link = await _idle(session)
    else:
        link = await session.connected()
        link.send(b"" if case.after == "nothing" else wire.PREFACE)
    link.send(case.data)
    said = await (session.last_words(link) if case.after == "hello" else session.goodbye(link))
    reason = said[0] if said else ""
    if reason != case.reason:
        raise Broken(
            case.rule, f"the goodbye has reason {reason or '(none)'} instead of {case.reason or '(none)'} ({feed})"
        )


CHECKS: Final[tuple[Check[Session], ...]] = (
    *handshake.CHECKS,
    *liveness.CHECKS,
    *positions.CHECKS,
    *resume.CHECKS,
    *subscriptions.CHECKS,
    *(
        Check((case.rule,), f"rejects {case.name} (after {case.after})", functools.partial(_reject, case))
        for case in rejected.TO_SERVERS
    ),
)


async def _perform(check: Check[Session], options: Options) -> Result:
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
