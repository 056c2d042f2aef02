"""Rules P: what the client has applied."""

import asyncio
from typing import Final

from clients.conformance import rejected, wire
from clients.conformance.against_client.run import LATER_LIMIT_BYTES, RECONNECT_SECONDS, Run
from clients.conformance.checks import Checks
from clients.conformance.link import Link, check_count, check_fields
from clients.conformance.report import Broken

CHANGES = 40
CHANGE_SECONDS = 0.1
"""Between two of them: a client that reports each one sends forty, and a good one five."""
CHECKS: Final = Checks[Run]()


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


@CHECKS.add("P1 E4", "no `applied` from a client whose `positions` are not in force", rejected.POSITIONS)
async def _not_in_force(run: Run) -> None:
    link, _ = await run.ready(not_supported=[rejected.POSITIONS])
    link.send(wire.snapshot(wire.SEQUENCE, wire.MAP), wire.status(wire.SEQUENCE))
    if not await link.silent(1.5):
        raise Broken("P1", "something follows the hello, or the client has closed")


@CHECKS.add("P2 P5", "a snapshot is applied with its status, and again on the next connection", rejected.POSITIONS)
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


@CHECKS.add("P2 O13", "a catch-up is applied with the status after it", rejected.POSITIONS)
async def _applies_a_catch_up(run: Run) -> None:
    link = await _reporting(run)
    link.send(wire.snapshot(wire.SEQUENCE, wire.MAP), wire.status(wire.SEQUENCE))
    await _applied(run, link, wire.SEQUENCE, rule="P3")
    link.send(
        wire.status(wire.SEQUENCE, wire.CATCHING_UP),
        wire.frame(wire.UPDATES, wire.SEQUENCE, 45, [wire.update(wire.POD, b"newer")]),
        wire.frame(wire.UPDATES, 45, 55, [wire.update(wire.NODE, None, 3)]),
    )
    if not await link.silent(2.0):
        raise Broken("P2", "something comes before the status, or the client has closed")
    link.send(wire.status(55))
    await _applied(run, link, 55, rule="P2")


@CHECKS.add("P3 P2", "many changes, one `applied` a second, and the last one names the newest", rejected.POSITIONS)
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
    if len(found) > CHANGES * CHANGE_SECONDS + run.options.slack_seconds + 1:
        raise Broken("P3", f"{len(found)} times `applied` within {CHANGES * CHANGE_SECONDS:g} s")
