"""Asks servers how fresh a feed is: good ones, odd ones, and a worker of the service."""

import pathlib

import pytest
import trustme

from protocol import messages
from protocol.native import codec, frames
from tests.harness import certificates
from tests.harness.replica_answers import INCARNATION, answering, hello
from tests.harness.worker_stand import FAST, FEED, PODS, WorkerStand, eventually, pod
from typha import clock, settings
from typha.peers import inquiry

OWN = bytes(16)
ROUNDED_SECONDS = 0.002
"""The protocol tells ages in milliseconds."""


async def test_a_fresh_replica_and_a_stale_one() -> None:
    async with answering(hello("freshness")) as fresh, answering(hello("freshness", milliseconds=None)) as stale:
        found = await inquiry.ask_all([fresh, stale, fresh], FEED, context=None, incarnation=OWN)
    assert list(found) == [fresh, stale]
    assert found[stale].confirmed_at is None
    assert found[fresh].confirmed_at == found[fresh].asked_at - 2.0


@pytest.mark.parametrize(
    ("answer", "problem"),
    [
        (hello("freshness", incarnation=OWN), "this is the replica itself"),
        (hello(), "older release"),
        (b"HTTP/1.1 400 Bad Request\r\n\r\n", "protocol"),
        (frames.PREFACE + frames.pack_frame(codec.encode(messages.Goodbye("unknown-feed"))), "unknown-feed"),
        (frames.PREFACE + frames.pack_frame(codec.encode(messages.Goodbye("x", "x" * 900))), "x" * 100),
        (frames.PREFACE + b"\xff" * 5, "frame"),
        (hello("freshness", upstreams=(b"x",)), "upstreams"),
        (hello("freshness", upstreams=tuple(bytes([number] * 16) for number in range(9))), "upstreams"),
        (frames.PREFACE, "no answer within 0.3 s"),
        (b"", "no answer within 0.3 s"),
    ],
)
async def test_no_answers(answer: bytes, problem: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(inquiry, "ANSWER_SECONDS", 0.3)
    problems: dict[str, str] = {}
    async with answering(answer) as peer:
        assert await inquiry.ask_all([peer], FEED, context=None, incarnation=OWN, problems=problems) == {}
    assert problems.keys() == {peer}
    assert problem in problems[peer]
    assert len(problems[peer]) <= 200


@pytest.mark.parametrize("peer", ["127.0.0.1:1", "no host", "127.0.0.1:99999", "[::1"])
async def test_nobody_there(peer: str) -> None:
    assert await inquiry.ask_all([peer], FEED, context=None, incarnation=OWN) == {}


def test_no_tls_without_a_key() -> None:
    assert inquiry.make_context(settings.Settings()) is None


async def test_a_worker_answers_what_its_hub_knows(stage: WorkerStand) -> None:
    stage.put(pod("a"))
    host, port = stage.address
    peer = f"{host}:{port}"

    async def confirmed_at() -> float | None:
        found = await inquiry.ask_all([peer], FEED, context=None, incarnation=INCARNATION)
        return found[peer].confirmed_at

    stage.hub.look_after_channels()
    assert await confirmed_at() is None  # it has never been
    begun = clock.monotonic()
    stage.hub.set_unconfirmed(PODS, False, begun)
    stage.hub.look_after_channels()
    await eventually(lambda: FEED in stage.server.connections.offer.confirmed_at)
    asked = clock.monotonic()
    found = await confirmed_at()
    took_seconds = clock.monotonic() - asked
    assert found is not None
    assert begun - took_seconds - ROUNDED_SECONDS <= found <= begun + ROUNDED_SECONDS
    stage.hub.set_unconfirmed(PODS, True)
    stage.hub.look_after_channels()
    await eventually(lambda: FEED not in stage.server.connections.offer.confirmed_at)
    assert await confirmed_at() is None
    assert await inquiry.ask_all([peer], FEED, context=None, incarnation=OWN) == {}  # the stand's own


def replica_settings(folder: pathlib.Path, authority: trustme.CA, trusted: trustme.CA, name: str) -> settings.Settings:
    """Those of a replica that asks: its certificate, and the authorities that it trusts."""
    folder.mkdir()
    files = certificates.Files(authority, folder)
    issued = authority.issue_cert("192.0.2.1", common_name=name)  # as any replica's: not for the address that is asked
    files.renew("server.key", issued.private_key_pem.bytes())
    files.renew("server.pem", issued.cert_chain_pems[0].bytes())
    files.renew("ca.pem", trusted.cert_pem.bytes())
    return settings.Settings(
        server_key_file=str(folder / "server.key"),
        server_cert_file=str(folder / "server.pem"),
        ca_file=str(folder / "ca.pem"),
    )


@pytest.mark.parametrize("engine", certificates.ENGINES)
async def test_replicas_ask_each_other_over_mutual_tls(tmp_path: pathlib.Path, engine: str) -> None:
    own, another = trustme.CA(), trustme.CA()
    replica_settings(tmp_path / "peer", own, own, certificates.AGENT)
    peer = certificates.Files(own, tmp_path / "peer", engine)
    cases = {
        "good": replica_settings(tmp_path / "good", own, own, certificates.AGENT),
        "without the name": replica_settings(tmp_path / "name", own, own, "somebody"),
        "of another authority": replica_settings(tmp_path / "authority", another, own, certificates.AGENT),
        "that does not trust the peer": replica_settings(tmp_path / "trust", own, another, certificates.AGENT),
        "without TLS": settings.Settings(),
    }
    async with WorkerStand(FAST, client_tls=peer.settings(cn=certificates.AGENT)).running() as stand:
        stand.put(pod("a"))
        stand.in_sync()
        stand.hub.set_unconfirmed(PODS, False, clock.monotonic())
        stand.hub.look_after_channels()
        await eventually(lambda: FEED in stand.server.connections.offer.confirmed_at)
        host, port = stand.address
        heard = {}
        for name, configured in cases.items():
            context = inquiry.make_context(configured)
            found = await inquiry.ask_all([f"{host}:{port}"], FEED, context=context, incarnation=INCARNATION)
            heard[name] = [answer.confirmed_at for answer in found.values()]
        [confirmed_at] = heard.pop("good")
        assert confirmed_at is not None
        assert heard == {name: [] for name in heard}
