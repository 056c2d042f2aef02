"""Rules R: what the client says that it has, and what it does with the answer."""

from collections.abc import Mapping
from typing import Final

from clients.conformance import rejected, wire
from clients.conformance.against_client.run import RECONNECT_SECONDS, Hello, Run
from clients.conformance.checks import Checks
from clients.conformance.link import Link
from clients.conformance.report import Broken

MAX_CHUNK_DIGESTS = 4096
_ANOTHER = b"another replica."
_PUT_MAP = [f"put {key}" for key in wire.MAP]
CHECKS: Final = Checks[Run]()


async def _has_the_map(run: Run) -> None:
    """The client has the kit's map, and no connection."""
    link = await run.following()
    run.check_changes("O8", *_PUT_MAP)
    link.close()


async def _back(
    run: Run, sequence: int | None, content: Mapping[str, bytes] | None, *, incarnation: bytes = wire.INCARNATION
) -> Link:
    """The client comes back and says that it has this map, or None; every feature is in force."""
    link, hello = await run.greeted(RECONNECT_SECONDS)
    _check_position(hello, sequence)
    _check_digests(hello, content)
    features = [one for one in hello.features if one in (rejected.ZSTD, rejected.RESUME, rejected.DIGESTS)]
    link.send(wire.PREFACE, wire.server_hello(run.options.feed, features=features, incarnation=incarnation))
    return link


def _check_position(hello: Hello, sequence: int | None) -> None:
    found = hello.content.get("resume")
    if rejected.RESUME not in hello.features:
        return
    wanted = None if sequence is None else [wire.INCARNATION, sequence]
    if found != wanted:
        raise Broken("R8" if sequence is None else "R1", f"`resume` is {found!r:.100} instead of {wanted!r:.100}")


def _check_digests(hello: Hello, content: Mapping[str, bytes] | None) -> None:
    found = hello.content.get("chunk_digests")
    if rejected.DIGESTS not in hello.features:
        return
    if content is None:
        if found is not None:
            raise Broken("R8", "the client tells digests of a map that is not to be trusted")
        return
    if not isinstance(found, list) or not 1 <= len(found) <= MAX_CHUNK_DIGESTS or len(found) & (len(found) - 1):
        raise Broken("R2", f"`chunk_digests` is {found!r:.100}")
    if found != wire.chunk_digests(content, len(found)):
        raise Broken("R2", "`chunk_digests` are not those of the map")


@CHECKS.add("R1 R4", "the client continues from its position", rejected.RESUME)
async def _continues(run: Run) -> None:
    await _has_the_map(run)
    link = await _back(run, wire.SEQUENCE, wire.MAP)
    await run.reaches(link, wire.SEQUENCE, rule="R4")
    updates = [wire.update(wire.POD, b"x"), wire.update("/never", None, 3)]
    link.send(wire.frame(wire.UPDATES, wire.SEQUENCE, 43, updates), wire.status(43))
    await run.reaches(link, 43, rule="R4")
    content = {**wire.MAP, wire.POD: b"x"}
    await run.state(wire.IN_SYNC, 43, content, rule="R4")
    run.check_changes("R4", f"put {wire.POD}")
    link.send(wire.frame(wire.UPDATES, 43, 44, [wire.update(wire.NODE, None, 3)]))
    link.send(wire.status(44))
    await run.state(wire.IN_SYNC, 44, {wire.POD: b"x"}, rule="R4")
    run.check_changes("R4", f"delete {wire.NODE}")
    link.close()
    link = await _back(run, 44, {wire.POD: b"x"})
    link.send(wire.status(44))
    await run.state(wire.IN_SYNC, 44, {wire.POD: b"x"}, rule="R4")
    run.check_changes("R4")


@CHECKS.add("R4 O12 O13 R1", "the client is caught up from its position, and has none meanwhile", rejected.RESUME)
async def _returns(run: Run) -> None:
    await _has_the_map(run)
    link = await _back(run, wire.SEQUENCE, wire.MAP)
    link.send(
        wire.status(38, wire.CATCHING_UP),
        wire.frame(wire.UPDATES, 38, 45, [wire.update("/new", b"1"), wire.update(wire.POD, wire.POD_VALUE)]),
    )
    await run.reaches(link, 45, rule="R4")
    link.close()
    content = {**wire.MAP, "/new": b"1"}
    link, hello = await run.greeted(RECONNECT_SECONDS)
    if hello.content.get("resume") is not None:
        raise Broken("R1", "the client has a position although it was being caught up")
    _check_digests(hello, content)
    link.send(wire.PREFACE, wire.server_hello(run.options.feed))
    link.send(wire.snapshot(50, content), wire.status(50))
    await run.state(wire.IN_SYNC, 50, content, rule="R4")
    run.check_changes("R4", "put /new")


@CHECKS.add("R4 R3", "a server of another incarnation cannot continue", rejected.RESUME)
async def _cannot_continue(run: Run) -> None:
    await _has_the_map(run)
    link = await _back(run, wire.SEQUENCE, wire.MAP, incarnation=_ANOTHER)
    await run.reaches(link, 0, rule="R4")
    link.send(wire.status(wire.SEQUENCE))
    await run.rejects(link, "R4", "a status of another incarnation without a snapshot")


@CHECKS.add("R4 R3 O10", "a snapshot all the same", rejected.RESUME)
async def _snapshot_all_the_same(run: Run) -> None:
    await _has_the_map(run)
    link = await _back(run, wire.SEQUENCE, wire.MAP)
    link.send(wire.snapshot(7, {wire.NODE: wire.NODE_VALUE}), wire.status(7))
    await run.reaches(link, 7, rule="O10")
    await run.state(wire.IN_SYNC, 7, {wire.NODE: wire.NODE_VALUE}, rule="O10")
    run.check_changes("O8", f"delete {wire.POD}")


@CHECKS.add("R2 R6 R7 O6", "the client keeps chunks, and the map changes at the status", rejected.DIGESTS)
async def _keeps(run: Run) -> None:
    await _has_the_map(run)
    link = await _back(run, wire.SEQUENCE, wire.MAP, incarnation=_ANOTHER)
    content = {wire.POD: wire.POD_VALUE, "/new": b"n"}  # the pod is in chunk 0 of 2, the node in chunk 1
    chunk = wire.chunk_of("/new", 4)
    kept = 0b1111 & ~(1 << chunk) & ~(1 << wire.chunk_of(wire.NODE, 4))
    sent = sorted({chunk, wire.chunk_of(wire.NODE, 4)})
    link.send(wire.frame(wire.RESUME, 9, 2, 4, bytes([kept])))
    link.send(*(wire.chunk(number, {"/new": b"n"} if number == chunk else {}) for number in sent))
    link.send(wire.frame(wire.PING))
    await run.pong(link)
    link.send(wire.frame(wire.END, 9, 2, wire.digest(content)))
    await run.reaches(link, 9, rule="R7")
    run.check_changes("O6")
    link.send(wire.frame(wire.UPDATES, 9, 10, [wire.update("/new", b"newer")]), wire.status(10))
    content["/new"] = b"newer"
    await run.state(wire.IN_SYNC, 10, content, rule="R7")
    run.check_changes("R7", f"delete {wire.NODE}", "put /new")


@CHECKS.add("R7", "the client keeps all of 1,024 chunks", rejected.DIGESTS)
async def _keeps_all(run: Run) -> None:
    await _has_the_map(run)
    link = await _back(run, wire.SEQUENCE, wire.MAP, incarnation=_ANOTHER)
    link.send(
        wire.frame(wire.RESUME, 9, 2, 1024, b"\xff" * 128),
        wire.frame(wire.END, 9, 2, wire.digest(wire.MAP)),
        wire.status(9),
    )
    await run.reaches(link, 9, rule="R7")
    await run.state(wire.IN_SYNC, 9, wire.MAP, rule="R7")
    run.check_changes("R7")


async def _refuses(run: Run, what: str, *frames: bytes) -> None:
    """The client must reject what contradicts its map, and say nothing of the map until it has a whole one."""
    await _has_the_map(run)
    link = await _back(run, wire.SEQUENCE, wire.MAP, incarnation=_ANOTHER)
    link.send(*frames)
    await run.rejects(link, "R7", what)
    link = await _back(run, None, None)
    link.send(wire.snapshot(60, wire.MAP), wire.status(60))
    await run.reaches(link, 60, rule="R8")
    await run.state(wire.IN_SYNC, 60, wire.MAP, rule="R8")
    run.check_changes("R8")
    link.close()
    link = await _back(run, 60, wire.MAP)


@CHECKS.add("R7 R8", "rejects a frame of a chunk that is kept, and then wants everything", rejected.DIGESTS)
async def _kept_and_sent(run: Run) -> None:
    number = wire.chunk_of(wire.POD, 2)
    await _refuses(run, "a frame of a kept chunk", wire.frame(wire.RESUME, 9, 2, 2, b"\x03"), wire.chunk(number, {}))


@CHECKS.add("R7 R8", "rejects three chunks, and then wants everything", rejected.DIGESTS)
async def _three_chunks(run: Run) -> None:
    await _refuses(run, "three chunks", wire.frame(wire.RESUME, 9, 2, 3, b"\x07"))


@CHECKS.add("R7 R8", "rejects too many bits, and then wants everything", rejected.DIGESTS)
async def _too_many_bits(run: Run) -> None:
    await _refuses(run, "two bytes for eight chunks", wire.frame(wire.RESUME, 9, 2, 8, b"\xff\xff"))


@CHECKS.add(
    "R8 V2", "rejects a map whose kept part makes its digest wrong, and then wants everything", rejected.DIGESTS
)
async def _wrong_map(run: Run) -> None:
    other = {**wire.MAP, wire.POD: b"another"}
    await _refuses(
        run,
        "a map without its digest",
        wire.frame(wire.RESUME, 9, 2, 2, b"\x03"),
        wire.frame(wire.END, 9, 2, wire.digest(other)),
    )
