"""What `typha check` says of the replicas that are to feed this one."""

import pathlib
import socket
from typing import Any

import pytest

from tests.harness import replica_answers
from typha import settings
from typha.preflight import replicas
from typha.preflight.findings import Finding, Status

FEED = "felix"


async def look(*upstreams: str, **more: Any) -> list[Finding]:
    return await replicas.upstreams(settings.Settings(upstream=",".join(upstreams), **more))


def said(*features: str, **more: Any) -> bytes:
    return replica_answers.hello("freshness", *features, feed=FEED, **more)


async def test_nothing_is_said_without_upstreams() -> None:
    assert await look() == []
    assert await look("127.0.0.1:1", calico_feeds="false") == []  # and no feed at all


async def test_upstreams_that_can_be_followed() -> None:
    fed = said("tiers", upstreams=(bytes([1]) * 16, bytes([2]) * 16))
    async with replica_answers.answering(said("tiers")) as root, replica_answers.answering(fed) as follower:
        found = await look(root, follower)
    assert [finding.status for finding in found] == [Status.OK, Status.OK]
    assert found[0].found == f"{root} answers, and watches the API server"
    assert found[1].found == f"{follower} answers, and is fed through 2 other replicas"


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (said(), "cannot feed replicas"),
        (replica_answers.hello(feed=FEED), "older release"),
        (said("tiers", milliseconds=None), "does not confirm"),
        (said("tiers", upstreams=()), "no upstream now"),
        (b"HTTP/1.1 400 Bad Request\r\n\r\n", "not the native protocol"),
    ],
)
async def test_upstreams_that_cannot_be_followed(answer: bytes, words: str) -> None:
    async with replica_answers.answering(answer) as other, replica_answers.answering(said("tiers")) as good:
        [alone] = await look(other)
        bad, fine = await look(other, good)
    for finding in (alone, bad):
        assert finding.status is Status.WARNING
        assert finding.found.startswith(f"{other}: ")
        assert words in finding.found
    assert "the API server is watched instead" in alone.advice
    assert "another one is followed" in bad.advice
    assert fine.status is Status.OK


async def test_a_name_without_an_address() -> None:
    [finding] = await look("host.invalid:5473")
    assert finding.found.startswith("host.invalid:5473: cannot resolve the name")


async def test_a_replica_cannot_follow_itself_and_may_be_on_its_list() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        port = taken.getsockname()[1]
        own = f"127.0.0.1:{port}"
        [finding] = await look(own, server_port=port)
        assert finding.found == f"{own}: this is the replica itself"
        assert finding.status is Status.WARNING
        async with replica_answers.answering(said("tiers")) as root:
            assert [finding.status for finding in await look(own, root, server_port=port)] == [Status.OK]


async def test_certificates_that_cannot_be_used(tmp_path: pathlib.Path) -> None:
    missing = str(tmp_path / "missing")
    [finding] = await look("127.0.0.1:1", server_key_file=missing, server_cert_file=missing, ca_file=missing)
    assert finding.status is Status.WARNING
    assert "upstreams cannot be asked: CAFile" in finding.found


async def test_an_elected_fleet_needs_to_know_its_replicas() -> None:
    [finding] = await look("elected")
    assert "ConnectionRebalancingMode" in finding.advice
    assert await look("elected", connection_rebalancing_mode="kubernetes") == []
    assert await look("elected", peer_addresses="a:1") == []
