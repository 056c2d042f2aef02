"""Rules O and D: snapshots, updates and statuses."""

from typing import Final

from clients.conformance import wire
from clients.conformance.against_client.run import RECONNECT_SECONDS, Run
from clients.conformance.checks import Checks

CHECKS: Final = Checks[Run]()


@CHECKS.add("O2 K3", "pings before there is data")
async def _no_data_yet(run: Run) -> None:
    link, _ = await run.ready()
    for _ in range(3):
        await run.reaches(link, 0)


@CHECKS.add("O3 O6", "a snapshot with empty chunks and one in several frames, and a ping in its middle")
async def _snapshot(run: Run) -> None:
    link, _ = await run.ready()
    link.send(
        wire.frame(wire.BEGIN, wire.SEQUENCE, 2, 4),
        wire.chunk(0, {}),
        wire.chunk(1, {wire.POD: wire.POD_VALUE}, more=True, of=wire.MAP),
        wire.chunk(1, {}, more=True, of=wire.MAP),
    )
    await run.reaches(link, 0, rule="O6")
    link.send(
        wire.chunk(1, {wire.NODE: wire.NODE_VALUE}, of=wire.MAP),
        wire.chunk(2, {}),
        wire.chunk(3, {}),
        wire.frame(wire.END, wire.SEQUENCE, 2, wire.digest(wire.MAP)),
    )
    await run.reaches(link, wire.SEQUENCE, rule="O6")
    link.send(wire.status(wire.SEQUENCE))
    await run.state(wire.IN_SYNC, wire.SEQUENCE, wire.MAP, rule="O3")
    run.check_changes("O8", *(f"put {key}" for key in wire.MAP))


@CHECKS.add("O3", "an empty map without chunks")
async def _empty(run: Run) -> None:
    link, _ = await run.ready()
    link.send(wire.snapshot(7, {}, chunks=0), wire.status(7))
    await run.reaches(link, 7, rule="O3")
    await run.state(wire.IN_SYNC, 7, {}, rule="O3")


@CHECKS.add("O6 O8 O9 O10", "a snapshot that is older than the map takes over at the status, and not before")
async def _takes_over(run: Run) -> None:
    link = await run.following()
    run.check_changes("O8", *(f"put {key}" for key in wire.MAP))
    link.close()
    link, _ = await run.ready(RECONNECT_SECONDS)
    old = {wire.POD: b"old", "/gone": b"x"}
    link.send(
        wire.snapshot(5, old),
        wire.frame(wire.UPDATES, 5, 8, [wire.update(key, value) for key, value in wire.MAP.items()]),
        wire.frame(wire.UPDATES, 8, 9, [wire.update("/gone", None, 3), wire.update("/new", b"", 1)]),
        wire.status(9, wire.CATCHING_UP),
    )
    await run.reaches(link, 9, rule="O10")
    link.send(wire.status(9))
    await run.reaches(link, 9, rule="O10")
    await run.state(wire.IN_SYNC, 9, {**wire.MAP, "/new": b""}, rule="O6")
    run.check_changes("O6", "put /new")


async def returns_to_the_map(run: Run, sequence: int, *, rule: str) -> None:
    """The client connects again and is sent the map that it has: it changes nothing."""
    link, _ = await run.ready(RECONNECT_SECONDS)
    link.send(wire.snapshot(sequence, wire.MAP), wire.status(sequence))
    await run.reaches(link, sequence)
    await run.state(wire.IN_SYNC, sequence, wire.MAP, rule=rule)
    run.check_changes(rule)


@CHECKS.add("O9", "a connection that ends inside a snapshot, or before the status, changes nothing")
async def _cut(run: Run) -> None:
    link = await run.following()
    run.check_changes("O8", *(f"put {key}" for key in wire.MAP))
    link.send(wire.frame(wire.BEGIN, 60, 1, 1), wire.chunk(0, {"/other": b""}))
    await run.reaches(link, wire.SEQUENCE, rule="O9")
    link.close()
    link, _ = await run.ready(RECONNECT_SECONDS)
    link.send(wire.snapshot(60, {"/other": b""}))
    await run.reaches(link, 60, rule="O6")
    link.close()
    await returns_to_the_map(run, 61, rule="O9")


@CHECKS.add("O7 O8", "another snapshot on the same connection")
async def _again(run: Run) -> None:
    link = await run.following()
    run.check_changes("O8", *(f"put {key}" for key in wire.MAP))
    content = {wire.POD: wire.POD_VALUE, "/new": b"n"}
    link.send(wire.snapshot(30, content))
    await run.reaches(link, 30, rule="O7")
    link.send(wire.status(30))
    await run.state(wire.IN_SYNC, 30, content, rule="O7")
    run.check_changes("O8", f"delete {wire.NODE}", "put /new")


# Updates and statuses.


@CHECKS.add("D1 D2 D3 O11", "values decide, nothing becomes absent twice, updates apply in order, sequences skip")
async def _updates(run: Run) -> None:
    link = await run.following()
    link.send(
        wire.frame(
            wire.UPDATES,
            40,
            47,
            [
                wire.update(wire.POD, None, 1),
                wire.update("/never", None, 3),
                wire.update("/empty", b"", 3),
                wire.update("/twice", b"1", 1),
                wire.update("/twice", b"2", 2),
                wire.update("/short-lived", b"1", 0),
                wire.update("/short-lived", None, 2),
            ],
        ),
        wire.frame(wire.UPDATES, 47, 47, []),
        wire.status(47),
    )
    await run.reaches(link, 47, rule="O11")
    content = {wire.NODE: wire.NODE_VALUE, "/empty": b"", "/twice": b"2"}
    await run.state(wire.IN_SYNC, 47, content, rule="D1")


@CHECKS.add("O12 O13", "catching up: a lower sequence, newest values, keys that the client never had")
async def _caught_up(run: Run) -> None:
    link = await run.following()
    link.send(
        wire.status(38, wire.CATCHING_UP),
        wire.frame(wire.UPDATES, 38, 55, [wire.update(wire.NODE, b"new"), wire.update("/never", None, 3)]),
        wire.frame(wire.UPDATES, 55, 70, [wire.update(wire.POD, wire.POD_VALUE)]),
    )
    await run.reaches(link, 70, rule="O12")
    link.send(wire.status(70))
    await run.state(wire.IN_SYNC, 70, {**wire.MAP, wire.NODE: b"new"}, rule="O13")


@CHECKS.add("O13 O7", "a catch-up that ends with another snapshot")
async def _caught_up_by_snapshot(run: Run) -> None:
    link = await run.following()
    link.send(
        wire.status(40, wire.CATCHING_UP),
        wire.frame(wire.UPDATES, 40, 45, [wire.update("/half", b"")]),
        wire.snapshot(80, wire.MAP),
        wire.status(80),
    )
    await run.reaches(link, 80, rule="O13")
    await run.state(wire.IN_SYNC, 80, wire.MAP, rule="O13")


@CHECKS.add("O14 O15", "the server loses its backend: the map stays, and updates go on")
async def _lost(run: Run) -> None:
    link = await run.following()
    run.check_changes("O8", *(f"put {key}" for key in wire.MAP))
    for sequence, status in ((40, wire.WAITING), (40, wire.RESYNC)):
        link.send(wire.status(sequence, status))
        await run.state(status, sequence, wire.MAP, rule="O15")
    link.send(wire.frame(wire.UPDATES, 40, 41, [wire.update("/new", b"1")]), wire.status(41))
    await run.reaches(link, 41, rule="O15")
    await run.state(wire.IN_SYNC, 41, {**wire.MAP, "/new": b"1"}, rule="O15")
    run.check_changes("O15", "put /new")


@CHECKS.add("O15", "a newcomer gets an old map")
async def _newcomer(run: Run) -> None:
    link, _ = await run.ready()
    link.send(wire.snapshot(wire.SEQUENCE, wire.MAP), wire.status(wire.SEQUENCE, wire.WAITING))
    await run.reaches(link, wire.SEQUENCE)
    await run.state(wire.WAITING, wire.SEQUENCE, wire.MAP, rule="O15")
