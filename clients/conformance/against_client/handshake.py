"""Rules H, E, F, M and L: handshake, frames and messages."""

from typing import Final

from clients.conformance import rejected, wire
from clients.conformance.against_client.run import Run
from clients.conformance.checks import Checks
from clients.conformance.report import Broken

HELLO_TIMEOUT_SECONDS = 10.0
CHECKS: Final = Checks[Run]()


@CHECKS.add("H1 E1", "preface and hello come at once, and are good")
async def _greets(run: Run) -> None:
    await run.greeted()


@CHECKS.add("H1", "the client sends nothing else before the server does")
async def _waits(run: Run) -> None:
    link, _ = await run.greeted()
    if not await link.silent(1.0):
        raise Broken("H1", "something follows the hello, or the client has closed")


@CHECKS.add("F1", "frames in pieces of a byte")
async def _pieces(run: Run) -> None:
    link, _ = await run.greeted()
    data = wire.PREFACE + wire.server_hello(run.options.feed) + wire.snapshot(wire.SEQUENCE, wire.MAP)
    await link.send_in_pieces(data + wire.status(wire.SEQUENCE), 1)
    await run.reaches(link, wire.SEQUENCE, rule="F1")
    await run.state(wire.IN_SYNC, wire.SEQUENCE, wire.MAP, rule="F1")


@CHECKS.add("M1", "the longest encodings of numbers, texts, bytes, arrays and maps")
async def _wide(run: Run) -> None:
    link, _ = await run.greeted()
    hello = {"version": 1, "feed": run.options.feed, "incarnation": bytes(16), "ping_interval_ms": 10_000}
    link.send(wire.PREFACE, wire.framed(wire.widely([wire.SERVER_HELLO, hello])))
    for index, (key, value) in enumerate(wire.MAP.items()):
        part = {key: value}
        if index == 0:
            link.send(wire.framed(wire.widely([wire.BEGIN, wire.SEQUENCE, 2, 2])))
        updates = [[key, value, "1", 1, "", 0]]
        link.send(wire.framed(wire.widely([wire.CHUNK, index, wire.digest(part), False, updates])))
    link.send(wire.framed(wire.widely([wire.END, wire.SEQUENCE, 2, wire.digest(wire.MAP)])))
    link.send(wire.framed(wire.widely([wire.STATUS, wire.SEQUENCE, wire.IN_SYNC])))
    await run.reaches(link, wire.SEQUENCE, rule="M1")
    await run.state(wire.IN_SYNC, wire.SEQUENCE, wire.MAP, rule="M1")


@CHECKS.add("M3", "additional elements and members, nested 90 deep")
async def _extended(run: Run) -> None:
    more: object = 7
    for _ in range(90):
        more = [more, {}]
    link, _ = await run.greeted()
    link.send(wire.PREFACE, wire.server_hello(run.options.feed, from_the_future=more, aaa={"b": [b"", None, 1.5]}))
    link.send(wire.frame(wire.PING, more))
    await run.pong(link)
    updates = [[key, value, "1", 1, "", 0, more] for key, value in wire.MAP.items()]
    link.send(
        wire.frame(wire.BEGIN, wire.SEQUENCE, 2, 1, more),
        wire.frame(wire.CHUNK, 0, wire.digest(wire.MAP), False, updates, more),
        wire.frame(wire.END, wire.SEQUENCE, 2, wire.digest(wire.MAP), more),
        wire.frame(wire.STATUS, wire.SEQUENCE, wire.IN_SYNC, more),
        wire.frame(wire.UPDATES, wire.SEQUENCE, 41, [[wire.POD, b"x", "2", 2, "", 0, more]], more),
        wire.status(41),
    )
    await run.reaches(link, 41, rule="M3")
    await run.state(wire.IN_SYNC, wire.SEQUENCE, wire.MAP, rule="M3")
    await run.state(wire.IN_SYNC, 41, {**wire.MAP, wire.POD: b"x"}, rule="M3")


@CHECKS.add("M5", "nil for what a hello may leave out")
async def _nil(run: Run) -> None:
    link, _ = await run.greeted()
    optional = ("features", "not_supported", "software", "connection_id", "ping_interval_ms", "max_frame_bytes")
    hello = {"version": 1, "feed": run.options.feed, "incarnation": bytes(16)} | dict.fromkeys(optional)
    link.send(wire.PREFACE, wire.frame(wire.SERVER_HELLO, hello))
    await run.reaches(link, 0, rule="M5")


@CHECKS.add("E3 E4", "a hello that declines every feature")
async def _declined(run: Run) -> None:
    link, hello = await run.greeted()
    link.send(wire.PREFACE, wire.server_hello(run.options.feed, not_supported=list(hello.features)))
    link.send(wire.snapshot(wire.SEQUENCE, wire.MAP), wire.status(wire.SEQUENCE))
    await run.reaches(link, wire.SEQUENCE, rule="E4")
    await run.state(wire.IN_SYNC, wire.SEQUENCE, wire.MAP, rule="E4")


@CHECKS.add("F7", "compressed frames", rejected.ZSTD)
async def _compressed(run: Run) -> None:
    link, _ = await run.ready()
    content = {f"/key/{number}": b"the same again and again " * 200 for number in range(200)}
    updates = [wire.update(key, value, 1) for key, value in content.items()]
    link.send(
        bytes.fromhex("0000000c0128b52ffd20021100009108"),
        wire.compressed(wire.BEGIN, 50, len(content), 1),
        wire.compressed(wire.CHUNK, 0, wire.digest(content), False, updates),
        wire.frame(wire.END, 50, len(content), wire.digest(content)),
        wire.compressed(wire.STATUS, 50, wire.IN_SYNC),
    )
    if await run.pong(link) != 0:
        raise Broken("K3", "the pong before the first snapshot does not name 0")
    await run.reaches(link, 50, rule="F7")
    await run.state(wire.IN_SYNC, 50, content, rule="F7")


@CHECKS.add("Z4 Z5 F7", "frames with a dictionary, with the next one, and without", rejected.DICTIONARIES)
async def _with_dictionary(run: Run) -> None:
    link, _ = await run.ready(features=[rejected.ZSTD, rejected.DICTIONARIES])
    number, first = wire.DICTIONARY_NUMBER, wire.DICTIONARY
    second = first[:4] + (number + 1).to_bytes(4, "little") + first[8:]
    content = dict(wire.MAP)
    link.send(wire.frame(wire.DICTIONARY_TYPE, number, first))
    link.send(wire.snapshot(wire.SEQUENCE, wire.MAP), wire.status(wire.SEQUENCE))
    await run.state(wire.IN_SYNC, wire.SEQUENCE, content, rule="Z5")
    sequence = wire.SEQUENCE
    for dictionary in (first, first, second, None, second):
        content[wire.POD] = b'{"kind":"Pod","x":%d}' % sequence
        message = wire.UPDATES, sequence, sequence + 1, [wire.update(wire.POD, content[wire.POD])]
        if dictionary is second and sequence == wire.SEQUENCE + 2:
            link.send(wire.frame(wire.DICTIONARY_TYPE, number + 1, second))
        link.send(wire.compressed(*message) if dictionary is None else wire.compressed_with(dictionary, *message))
        sequence += 1
        await run.reaches(link, sequence, rule="Z4")
    link.send(wire.status(sequence))
    await run.state(wire.IN_SYNC, sequence, content, rule="Z4")


@CHECKS.add("L1", "a frame of exactly the announced size, and a key of 4,096 characters")
async def _largest(run: Run) -> None:
    limit = 65_536
    link = await run.following(max_frame_bytes=limit)
    key = "\N{GRINNING FACE}" * 4096
    short = len(wire.frame(wire.UPDATES, wire.SEQUENCE, 41, [wire.update(key, bytes(40_000), 1)])) - 4
    value = bytes(40_000 + limit - short)
    link.send(wire.frame(wire.UPDATES, wire.SEQUENCE, 41, [wire.update(key, value, 1)]), wire.status(41))
    await run.reaches(link, 41, rule="L1")
    await run.state(wire.IN_SYNC, 41, {**wire.MAP, key: value}, rule="L1")


@CHECKS.add("H5", "a server without a hello is left after 10 s")
async def _no_hello(run: Run) -> None:
    link, _ = await run.greeted()
    if not await link.closed(HELLO_TIMEOUT_SECONDS + run.options.slack_seconds):
        raise Broken("H5", "the client still waits")


@CHECKS.add("H6", "the end of the server's direction is the end of the connection")
async def _half_closed(run: Run) -> None:
    link = await run.following()
    link.end_sending()
    await run.rejects(link, "H6", "the end of the stream")
