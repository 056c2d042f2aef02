"""Rules K, G and B: keeping in touch, goodbyes, and coming back."""

import asyncio
from typing import Final

from clients.conformance import wire
from clients.conformance.against_client.following import returns_to_the_map
from clients.conformance.against_client.run import RECONNECT_SECONDS, Run
from clients.conformance.checks import Checks
from clients.conformance.report import Broken

FAST_PING_MILLISECONDS = 400
ATTEMPTS = 8
ATTEMPTS_SECONDS_MIN = 0.5
"""Their pauses take 6 s on average, and less than this in one of 50,000 runs."""
CHECKS: Final = Checks[Run]()


@CHECKS.add("K3 F6", "one pong for each ping, and no other")
async def _pongs(run: Run) -> None:
    link = await run.following()
    link.send(wire.frame(wire.PING) * 5)
    for _ in range(5):
        if await run.pong(link) != wire.SEQUENCE:
            raise Broken("K3", "a pong names another sequence")
    if not await link.silent(1.0):
        raise Broken("K3", "something follows the last pong, or the client has closed")


@CHECKS.add("K2", "a silent server is left after three ping intervals, and not before")
async def _silence(run: Run) -> None:
    link = await run.following(ping_interval_ms=FAST_PING_MILLISECONDS)
    loop = asyncio.get_running_loop()
    begun = loop.time()
    await run.rejects(link, "K2", "three ping intervals of silence", seconds=run.options.slack_seconds + 1.2)
    if loop.time() - begun < 2 * FAST_PING_MILLISECONDS / 1000:
        raise Broken("K2", f"the client leaves after {loop.time() - begun:.1f} s")


@CHECKS.add("G2 B3", "a goodbye with an unknown reason, and a time to wait")
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


@CHECKS.add("G1 G2 B1", "a refusal instead of the hello")
async def _refusal(run: Run) -> None:
    link, _ = await run.greeted()
    link.send(wire.PREFACE, wire.frame(wire.GOODBYE, "unknown-feed", "no such feed", 1000))
    said_at = asyncio.get_running_loop().time()
    await run.rejects(link, "G2", "a refusal")
    await run.link(RECONNECT_SECONDS)
    if run.accepted_at[-1] - said_at < 0.9:
        raise Broken("B3", f"the client is back after {run.accepted_at[-1] - said_at:.1f} s instead of 1 s")


@CHECKS.add("G7", "a goodbye that names another server, and entries that no client can read")
async def _redirected(run: Run) -> None:
    link = await run.following()
    other = await run.listen()
    link.send(wire.frame(wire.GOODBYE, "rebalanced", "not here", 0, ["server:port", other, ":5473", "[::1"]))
    link.end_sending()
    await run.rejects(link, "G2", "a goodbye")
    (await run.link(RECONNECT_SECONDS)).close()
    await run.link(RECONNECT_SECONDS)
    first, second, third = run.accepted_ports[:3]
    if second == first:
        raise Broken("G7", "the client does not connect to the server that the goodbye names")
    if third != first:
        raise Broken("G7", "the client does not return to its own address")


@CHECKS.add("B1", "failures in a row make the client wait longer")
async def _back_off(run: Run) -> None:
    for _ in range(ATTEMPTS):
        (await run.link(RECONNECT_SECONDS)).close()
    waited_seconds = run.accepted_at[-1] - run.accepted_at[0]
    if waited_seconds < ATTEMPTS_SECONDS_MIN:
        raise Broken("B1", f"{ATTEMPTS} attempts within {waited_seconds:.2f} s")


@CHECKS.add("B2", "a hello alone does not end the back-off")
async def _back_off_goes_on(run: Run) -> None:
    for _ in range(ATTEMPTS):
        link, _ = await run.ready(RECONNECT_SECONDS)
        await run.reaches(link, 0)
        link.close()
    waited_seconds = run.accepted_at[-1] - run.accepted_at[0]
    if waited_seconds < ATTEMPTS_SECONDS_MIN:
        raise Broken("B2", f"{ATTEMPTS} connections within {waited_seconds:.2f} s")


@CHECKS.add("B1 B5 O9", "the map survives a lost connection")
async def _survives(run: Run) -> None:
    link = await run.following()
    run.check_changes("O8", *(f"put {key}" for key in wire.MAP))
    link.close()
    await returns_to_the_map(run, 90, rule="B5")
