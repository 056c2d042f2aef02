"""First messages of TLS that no agent sends: bytes on a real socket, and what each engine answers."""

import asyncio
import contextlib
import os
import random
import select
import socket
from collections.abc import Iterator
from typing import Final

import msgspec
import pytest

from tests.harness import certificates, tls_probe
from tests.harness.tls_probe import (
    ALERT,
    ALERTS,
    HANDSHAKE,
    TLS_1_0,
    TLS_1_1,
    TLS_1_2,
    TLS_1_3,
    Answer,
    Hello,
    record,
)
from tests.harness.worker_stand import FAST, WorkerStand, connected_from, eventually, pod
from tests.typha.conftest import OpenTlsStage
from typha.worker import tls

pytestmark = pytest.mark.slow

CHANGE_CIPHER_SPEC, DATA, HEARTBEAT = 20, 23, 24
SERVERS_ENDS: Final = frozenset({"tls-failed", "client-closed", "handshake-timeout", "too-many-connections"})
"""How such connections may end. A defect would be `server-error`."""
SHARE = b"\0\x24\0\x1d\0\x20" + bytes(31) + b"\x09"
"""A key share of X25519: any number is one."""


async def ask(stage: WorkerStand, *pieces: bytes) -> Answer:
    """What the worker says to these bytes."""
    return await asyncio.to_thread(tls_probe.say, stage.address, *pieces)


def heard(stage: WorkerStand, data: bytes) -> bytes:
    """All that the worker says to these bytes, until it closes, after the end of the stream."""
    said = b""
    connection = socket.create_connection(stage.address, timeout=tls_probe.TIMEOUT_SECONDS)
    with connection, contextlib.suppress(ConnectionError):
        connection.sendall(data)
        connection.shutdown(socket.SHUT_WR)
        while received := connection.recv(1 << 16):
            said += received
    return said


async def has_ended(stage: WorkerStand, count: int) -> None:
    """So many connections have."""
    await eventually(lambda: sum(stage.disconnects.values()) == count)


async def is_unharmed(stage: WorkerStand) -> None:
    """The worker has no defect, and serves an agent."""
    assert set(stage.disconnects) <= SERVERS_ENDS
    peer = await stage.subscribe()
    stage.put(pod("a", os.urandom(4).hex(), version=len(stage.content) + 100 + stage.server.stats.counts.accepted))
    await stage.converged(peer)
    assert not stage.task.done()


# What TLS allows, and no agent says.

OLD = Hello(TLS_1_2)
CHOSEN: Final = {
    "a name that is none of the server's": Hello(name=b"another.example"),
    "no name": Hello(name=None),
    "a name of 253 characters": Hello(name=b"a" * 63 + b"." + b"b" * 63 + b"." + b"c" * 63 + b"." + b"d" * 61),
    "protocols of HTTP": Hello(more=[(16, b"\0\x0c\2h2\x08http/1.1")]),
    "an extension that nobody knows": Hello(more=[(0xFAFA, bytes(900))]),
    "more suites than there are": Hello(suites=[*range(0x6A6A, 0x6B00), 0x1301]),
    "a heartbeat is offered": Hello(more=[(15, b"\1")]),
    "a heartbeat is offered, TLS 1.2": OLD._replace(more=[(15, b"\1")]),
    "compression is offered, TLS 1.2": OLD._replace(compressions=b"\1\0"),
    "tickets are wanted, TLS 1.2": OLD._replace(more=[(35, b"")]),
    "an unknown ticket, TLS 1.2": OLD._replace(more=[(35, bytes(180))]),
    "early data is announced": Hello(more=[(42, b"")], key_share=SHARE),
}


@pytest.mark.parametrize("case", CHOSEN)
async def test_what_is_odd_and_right_gets_an_answer(open_tls: OpenTlsStage, case: str) -> None:
    """Without compression, and without a word of heartbeats."""
    stage = await open_tls()
    answer = await ask(stage, CHOSEN[case].records())
    assert answer.version == CHOSEN[case].version
    assert answer.compression == 0
    assert 15 not in answer.extensions
    await is_unharmed(stage)


@pytest.mark.parametrize(
    "name", [b"", b"\0", b"a\0b", b"caf\xc3\xa9.example", b"\xff\xfe", b"127.0.0.1", b"::1", b"a" * 300]
)
async def test_names_that_are_no_names_of_hosts(open_tls: OpenTlsStage, name: bytes) -> None:
    """Refused or ignored: the worker has one certificate."""
    stage = await open_tls()
    answer = await ask(stage, Hello(name=name).records())
    assert answer.version == TLS_1_3 or answer.alert in (47, 50, 112), answer.text()
    two = b"\0\x10" + b"\0\0\5first" + b"\0\0\5other"
    answer = await ask(stage, Hello(name=None, more=[(0, two)]).records())
    assert answer.version == TLS_1_3 or answer.alert in (47, 50, 112), answer.text()
    await is_unharmed(stage)


async def test_a_client_that_could_have_had_more_is_told(open_tls: OpenTlsStage) -> None:
    """The random number ends with a word for it, so nobody between the two can take TLS 1.3 away (RFC 8446, 4.1.3)."""
    stage = await open_tls()
    assert (await ask(stage, OLD.records())).random.endswith(b"DOWNGRD\1")


async def test_a_client_that_has_fallen_back(open_tls: OpenTlsStage, files: certificates.Files) -> None:
    """It says so with a suite of its own (RFC 7507). rustls does not know it; TLS 1.3 has its own way, see above."""
    stage = await open_tls()
    answer = await ask(stage, OLD._replace(suites=[*OLD.suites, 0x5600]).records())
    if files.engine == tls.OPENSSL:
        assert answer.alert is not None
        assert ALERTS[answer.alert] == "inappropriate_fallback"
    else:
        assert answer.version == TLS_1_2


# What TLS forbids.


def with_length(message: bytes, place: int, change: int, size: int = 2) -> bytes:
    """Another length at this place of a message."""
    length = int.from_bytes(message[place : place + size]) + change
    return message[:place] + length.to_bytes(size) + message[place + size :]


_MESSAGE = Hello().message()
_SUITES = 39
"""The place of their length, behind the version, the random number and an empty session."""
_EXTENSIONS = _SUITES + 2 + int.from_bytes(_MESSAGE[_SUITES : _SUITES + 2]) + 2
GOODBYE: Final = "an alert first"
FORBIDDEN: Final = {
    "SSL 2": b"\x80\x2e\1\0\2\0\x15\0\0\0\x10\1\0\x80\2\0\x80\3\0\x80\4\0\x80\5\0\x80\6\0\x40\7\0\xc0" + bytes(16),
    "SSL 2 that offers TLS 1.2": b"\x80\x1f\1\3\3\0\6\0\0\0\x10\0\0\x2f\0\xc0\x2b" + bytes(16),
    "TLS 1.0": Hello(TLS_1_0).records(),
    "TLS 1.1": Hello(TLS_1_1).records(),
    "no suite": Hello(suites=[]).records(),
    "no suite in common": Hello(suites=[0x1304]).records(),
    "suites of odd length": record(HANDSHAKE, with_length(_MESSAGE, _SUITES, -1)),
    "suites beyond the end": record(HANDSHAKE, with_length(_MESSAGE, _SUITES, 1000)),
    "extensions beyond the end": record(HANDSHAKE, with_length(_MESSAGE, _EXTENSIONS, 1)),
    "extensions that end too early": record(HANDSHAKE, with_length(_MESSAGE, _EXTENSIONS, -1)),
    "an extension twice": Hello(more=[(10, b"\0\2\0\x1d")]).records(),
    "no group in common": Hello(groups=[30000]).records(),
    "compression in TLS 1.3": Hello(compressions=b"\1").records(),
    "only compression in TLS 1.2": OLD._replace(compressions=b"\1").records(),
    "no kind of compression": OLD._replace(compressions=b"").records(),
    "a session of 33 bytes": record(HANDSHAKE, _MESSAGE[:38] + b"\x21" + bytes(33) + _MESSAGE[39:]),
    "an empty message": record(HANDSHAKE, b"\1\0\0\0"),
    "an end of the handshake": record(HANDSHAKE, b"\x14\0\0\x0c" + bytes(12)),
    "a server's hello": record(HANDSHAKE, b"\2\0\0\x26\3\3" + bytes(36)),
    "a certificate": record(HANDSHAKE, b"\x0b\0\0\4\0\0\0\0"),
    "an unknown message": record(HANDSHAKE, b"\xfe\0\0\0"),
    "a message of 16 MB": record(HANDSHAKE, b"\1\xff\xff\xff" + bytes(100)),
    "an empty record": record(HANDSHAKE, b""),
    "a record of 18 kB": record(HANDSHAKE, Hello(more=[(0xFAFA, bytes(18_000))]).message()),
    "a change of ciphers first": record(CHANGE_CIPHER_SPEC, b"\1") + Hello().records(),
    "data first": record(DATA, bytes(100)),
    "a heartbeat first": record(HEARTBEAT, b"\1\xff\xff" + bytes(16)),
    GOODBYE: record(ALERT, b"\1\0"),
    "an unknown record": record(99, bytes(20)),
    "a record of version 9.9": record(HANDSHAKE, _MESSAGE, version=0x0909),
    "a preface of ours": b"TYPHA\x00\x00\x01" + bytes(60),
}
"""Whole first records. What follows them is never read."""


@pytest.mark.parametrize("case", FORBIDDEN)
async def test_what_is_forbidden_ends_the_connection(
    open_tls: OpenTlsStage, files: certificates.Files, case: str
) -> None:
    stage = await open_tls()
    said = await asyncio.to_thread(heard, stage, FORBIDDEN[case])
    await has_ended(stage, 1)
    answer = tls_probe.read_answer(said) or Answer()
    assert not answer.version, answer.text()
    expected = "client-closed" if case == GOODBYE and files.engine == tls.RUSTLS else "tls-failed"
    assert stage.disconnects == {expected: 1}
    await is_unharmed(stage)


def cut(message: bytes, source: random.Random) -> Iterator[bytes]:
    """A message in records of any size."""
    while message:
        count = source.choice([1, 3, 50, len(message)])
        yield record(HANDSHAKE, message[:count])
        message = message[count:]


async def test_one_message_in_several_records(open_tls: OpenTlsStage) -> None:
    """Allowed if the first record has the beginning of the message. What follows may be in any pieces."""
    stage = await open_tls()
    first, rest = _MESSAGE[:10], _MESSAGE[10:]
    for seed in range(10):
        records = list(cut(rest, random.Random(seed)))
        answer = await ask(stage, record(HANDSHAKE, first), *records)
        assert answer.version == TLS_1_3, answer.text()
    several = [record(HANDSHAKE, first), *[record(HANDSHAKE, rest[place : place + 9]) for place in range(0, 300, 9)]]
    for wrong in (several[::-1], [*several[:3], several[1], *several[3:]], [several[0], record(ALERT, b"\1\x5a")] * 9):
        assert (await ask(stage, b"".join(wrong) + bytes(1 << 14))).version == 0
    await is_unharmed(stage)


async def test_nothing_but_the_handshake_may_follow_the_first_message(open_tls: OpenTlsStage) -> None:
    """Heartbeats, data in plain text, another first message, a change of ciphers over and over."""
    stage = await open_tls()
    followers = {
        "a heartbeat": record(HEARTBEAT, b"\1\xff\xff" + bytes(16)),
        "data": record(DATA, bytes(64)),
        "the same again": Hello(TLS_1_2).records(),
        "a thousand changes of ciphers": record(CHANGE_CIPHER_SPEC, b"\1") * 1000,
        "an empty record": record(HANDSHAKE, b"") * 100,
        "a fatal alert": record(ALERT, b"\2\x28"),
    }
    for hello in (Hello(key_share=SHARE), OLD):
        for number, (what, follower) in enumerate(followers.items()):
            ends = sum(stage.disconnects.values())
            said = await asyncio.to_thread(heard, stage, hello.records() + follower)
            await has_ended(stage, ends + 1)
            assert said, (what, number)
    await is_unharmed(stage)


async def test_changed_first_messages(open_tls: OpenTlsStage) -> None:
    """Some bytes differ, are missing or are there twice, on sockets: what no list has thought of."""
    stage = await open_tls()
    source = random.Random(1)
    answers: set[str] = set()
    for number in range(300):
        data = bytearray(source.choice([Hello(), OLD, Hello(key_share=SHARE)]).records())
        for _ in range(source.randrange(1, 4)):
            place = source.randrange(len(data))
            match source.randrange(4):
                case 0:
                    data[place] ^= 1 << source.randrange(8)
                case 1:
                    data[place] = source.choice([0, 1, 0x7F, 0xFF])
                case 2:
                    del data[place : place + source.choice([1, 2, 9])]
                case _:
                    data[place:place] = data[place : place + source.choice([1, 2, 9])]
        said = await asyncio.to_thread(heard, stage, bytes(data))
        await has_ended(stage, number + 1)
        answers.add((tls_probe.read_answer(said) or Answer()).text().split(",")[0])
    assert {"TLS 1.2", "TLS 1.3", "decode_error", "closed"} <= answers
    await is_unharmed(stage)


async def test_a_thousand_half_open_handshakes_keep_no_agent_out(
    open_tls: OpenTlsStage, files: certificates.Files
) -> None:
    """From other addresses: silent ones, beginnings of a first message, and whole ones that never go on."""
    stage = await open_tls(msgspec.structs.replace(FAST, handshake_timeout_seconds=600.0))
    first = Hello(key_share=SHARE).records()
    held = []
    answered = select.poll()
    with contextlib.ExitStack() as open_ones:
        for number in range(1_200):
            end = connected_from(f"127.0.0.{2 + number % 3}", stage.address)
            open_ones.enter_context(end)
            held.append(end)
            if number % 3 == 0:
                answered.register(end, select.POLLIN)
            end.send((first, first[:100], b"")[number % 3] or b"\x16")
            if number % 100 == 0:
                await asyncio.sleep(0)
        await eventually(lambda: len(answered.poll(0)) == len(held) // 3)
        await is_unharmed(stage)
        assert stage.disconnects.get("tls-failed", 0) == 0
    await eventually(lambda: sum(stage.disconnects.values()) >= len(held))
    await is_unharmed(stage)
