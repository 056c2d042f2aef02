"""Rules H, E, F, M and O: hellos, and a first snapshot."""

import contextlib
import ssl
from typing import Final

from clients.conformance import wire
from clients.conformance.against_server.reader import read_snapshot
from clients.conformance.against_server.session import Session
from clients.conformance.checks import Checks
from clients.conformance.link import Link, check_count
from clients.conformance.report import Broken, NotApplicable

TLS_ALERT = 21
"""The first byte of its record."""
CHECKS: Final = Checks[Session]()


@CHECKS.add("H2 O2 E1", "a good hello is answered with one")
async def _answers(session: Session) -> None:
    await session.greeted(software="kit/1", node="n1", features=[])


@CHECKS.add("H2", "the server says nothing before the hello")
async def _waits(session: Session) -> None:
    link = await session.connected()
    link.send(wire.PREFACE)
    if not await link.silent(0.5):
        raise Broken("H2", "something comes before the hello, or the server has closed")


@CHECKS.add("F1", "a hello in pieces of a byte")
async def _pieces(session: Session) -> None:
    link = await session.connected()
    await link.send_in_pieces(wire.PREFACE + wire.client_hello(session.options.feed), 1)
    await session.accepted(link, [])


@CHECKS.add("M1", "the longest encodings of numbers, texts, bytes, arrays and maps")
async def _wide(session: Session) -> None:
    link = await session.connected()
    hello = {"versions": [1], "feed": session.options.feed, "agent": "kit", "resume": [bytes(16), 5]}
    link.send(wire.PREFACE, wire.framed(wire.widely([wire.HELLO_TYPE, hello])))
    await session.accepted(link, ["resume"])


@CHECKS.add("H4", "a connection without a whole hello is closed, without a goodbye")
async def _late_hello(session: Session) -> None:
    link = await session.connected()
    link.send(wire.PREFACE, wire.client_hello(session.options.feed)[:-1])
    await _is_dropped(link, session, "H4")


@CHECKS.add("T5", "a TLS hello on a port without TLS, or a preface on a port with it")
async def _other_security(session: Session) -> None:
    link = await session.connected(is_plain=True)
    link.send(_tls_hello() if session.options.tls is None else wire.PREFACE)
    await _is_dropped(link, session, "T5")


def _tls_hello() -> bytes:
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    with contextlib.suppress(ssl.SSLWantReadError):
        ssl.create_default_context().wrap_bio(incoming, outgoing, server_hostname="server.example").do_handshake()
    return outgoing.read()


async def _is_dropped(link: Link, session: Session, rule: str) -> None:
    """The server must say nothing, except perhaps by a TLS alert, and close."""
    said, has_ended = await link.rest(session.options.closing_seconds)
    if said and (session.options.tls is None or said[0] != TLS_ALERT):
        raise Broken(rule, f"the server says {said[:20].hex()}")
    if not has_ended:
        raise Broken(rule, f"the server has not closed within {session.options.closing_seconds:g} s")


@CHECKS.add("O3 O5 V1 V2 L2 F5", "snapshot, updates and status, without compression")
async def _plain(session: Session) -> None:
    link = await read_snapshot(session, [])
    if link.is_compressed:
        raise Broken("F5", "a frame is compressed, although zstd was not offered")


@CHECKS.add("O3 V1 V2 L2 F5", "the same with zstd")
async def _zstd(session: Session) -> None:
    await read_snapshot(session, ["zstd"])


@CHECKS.add("E2 E3", "unknown features, and members of reserved ones")
async def _features(session: Session) -> None:
    asked = ["telepathy", "zstd"]
    _, hello = await session.greeted(
        features=asked, resume=[bytes(16), 5], chunk_digests=[1, 2**64 - 1], subscription={"node": "n1"}
    )
    named = set(hello.get("features") or []) | set(hello.get("not_supported") or [])
    missing = {*asked, "resume", "chunk-digests", "subscriptions"} - named
    if missing:
        raise Broken("E3", f"the server says nothing of {sorted(missing)}")
    if "telepathy" in (hello.get("features") or []):
        raise Broken("E2", "an unknown feature is in force")


@CHECKS.add("E2", "a subscription without its feature")
async def _unnamed(session: Session) -> None:
    _, hello = await session.greeted(features=[], subscription={"prefixes": ["/"]})
    if hello.get("features"):
        raise Broken("E2", f"the features {hello['features']} are in force")


@CHECKS.add("M3", "unknown members and elements of a hello, nested 90 deep")
async def _extended(session: Session) -> None:
    more: object = 7
    for _ in range(90):
        more = [more, {}]
    link = await session.connected()
    content = {
        "versions": [1],
        "feed": session.options.feed,
        "agent": "kit",
        "aaa": more,
        "zzz": {"b": [b"", None, 1.5]},
    }
    link.send(wire.PREFACE, wire.frame(wire.HELLO_TYPE, content, more))
    await session.accepted(link, [])


@CHECKS.add("M5", "nil for what a hello may leave out")
async def _nil(session: Session) -> None:
    link = await session.connected()
    optional = ("features", "software", "node", "subscription", "resume", "chunk_digests")
    content = {"versions": [1], "feed": session.options.feed, "agent": "kit"} | dict.fromkeys(optional)
    link.send(wire.PREFACE, wire.frame(wire.HELLO_TYPE, content))
    hello = await session.accepted(link, [])
    if hello.get("not_supported"):
        raise Broken("M5", f"the server takes nil for {hello['not_supported']}")


@CHECKS.add("E1", "the highest version in common")
async def _versions(session: Session) -> None:
    await session.greeted(versions=[9, 1, 2**64 - 1])


@CHECKS.add("E6", "how fresh the feed is, for those who ask")
async def _freshness(session: Session) -> None:
    _, hello = await session.greeted(features=["freshness"])
    if "freshness" not in (hello.get("features") or []):
        raise NotApplicable("the server does not support freshness")
    if hello.get("confirmed_ms") is not None:
        check_count(hello["confirmed_ms"], "confirmed_ms")


@CHECKS.add("Z1", "no dictionaries without zstd")
async def _no_dictionary(session: Session) -> None:
    asked = ["zstd-dictionary"]
    _, hello = await session.greeted(features=asked)
    if hello.get("features") or sorted(hello.get("not_supported") or []) != asked:
        raise Broken("Z1", "the server puts zstd-dictionary in force without zstd")


@CHECKS.add("H6", "the end of the client's direction is the end of the connection")
async def _half_closed(session: Session) -> None:
    link, _ = await session.greeted()
    if session.options.tls is not None:
        raise NotApplicable("not with TLS")
    link.end_sending()
    if not await link.closed():
        raise Broken("H6", "the server does not close the connection")
