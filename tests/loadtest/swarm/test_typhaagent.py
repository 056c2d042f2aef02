"""Tests of loadtest.swarm.typhaagent: the server's side is the real connection and encoder."""

import random

import pytest

from loadtest import WRITTEN_AT
from loadtest.swarm import agent
from protocol import digest, errors, messages
from protocol.gob import decoder
from protocol.typha import codec
from protocol.typha import messages as typha_messages
from tests.harness.gob_peers import Server, give, make
from tests.harness.swarm_peers import NOW_NS, value

FORMATS = pytest.mark.parametrize("compress", [False, True])


def population(count: int, *, size: int = 10) -> dict[str, bytes]:
    dice = random.Random(count)
    return {
        f"/calico/resources/v3/x/p{number}": value("u") + dice.randbytes(size).hex().encode() for number in range(count)
    }


def endpoint(written_at_ns: int) -> bytes:
    """Like one of Calico's workload endpoints: labels of the pod, no metadata."""
    return b'{"state":"active","labels":{"%b":"%d"}}' % (WRITTEN_AT.encode(), written_at_ns)


@FORMATS
@pytest.mark.parametrize("step", [None, 1, 7, 1000])
def test_holds_the_servers_map_whatever_the_reads(compress: bool, step: int | None) -> None:
    server = Server(population(250, size=100))
    one = make(agent.Shared())
    server.greet(one, compress=compress, step=step)
    give(one, server.snapshot(compress=compress) + server.status(compress=compress), step=step)
    assert (one.map.digest, one.map.keys, one.in_sync) == (server.digest, 250, True)
    first, *_ = server.content
    give(one, server.change((first, None), ("new", b"n"), compress=compress), step=step)
    assert (one.map.digest, one.map.keys) == (server.digest, 250)
    assert (one.group.snapshots, one.group.updates, one.deletions) == (1, 2, 1)


@FORMATS
def test_a_snapshot_of_many_chunks_is_decoded_once_for_all(compress: bool) -> None:
    shared = agent.Shared()
    server = Server(population(700, size=1000))
    stream = server.snapshot(compress=compress) + server.status(compress=compress)
    assert len(stream) > 1_000_000
    agents = [make(shared, f"a-{number}") for number in range(4)]
    for number, one in enumerate(agents):
        server.greet(one, compress=compress, serial=number)
        give(one, stream, step=50_000 + number)
        if not number:
            decoded = shared.distinct_frames
    assert shared.distinct_frames == decoded + 3, "beside the hellos, nothing is decoded twice"
    assert len({id(one.map) for one in agents}) == 1
    assert agents[0].map.digest == server.digest


@FORMATS
def test_an_agent_with_other_bytes_has_another_map(compress: bool) -> None:
    shared = agent.Shared()
    server = Server(population(5))
    good, bad = make(shared), make(shared)
    stream = server.snapshot(compress=compress) + server.status(compress=compress)
    for one in (good, bad):
        server.greet(one, compress=compress)
        give(one, stream)
    twin = Server(server.content)
    give(good, server.change(("k", b"v"), compress=compress))
    give(bad, twin.change(("k", b"w"), compress=compress))
    assert good.map.digest == server.digest
    assert bad.map.digest == twin.digest != server.digest


@FORMATS
def test_pings_are_answered_with_their_time(compress: bool) -> None:
    server = Server(population(3))
    one = make(agent.Shared())
    said = server.greet(one, compress=compress)
    ping = server.encoders[compress].make_ping(NOW_NS)
    answers = give(one, ping + server.snapshot(compress=compress) + server.status(compress=compress))
    answers += give(one, ping)
    answers += give(one, ping)
    reader = codec.make_server_decoder()
    reader.receive(said + answers)
    received = []
    while (message := reader.next_value()) is not decoder.NEED_DATA:
        received.append(message)
    pongs = [message for message in received if isinstance(message, typha_messages.Pong)]
    assert len(pongs) == 3
    assert isinstance(received[0], typha_messages.ClientHello)


@FORMATS
def test_the_map_is_replaced_at_the_first_in_sync(compress: bool) -> None:
    shared = agent.Shared()
    one = make(shared)
    server = Server(population(5))
    server.greet(one, compress=compress)
    give(one, server.snapshot(compress=compress) + server.status(compress=compress))
    before = one.map
    one.disconnected(NOW_NS)
    gone, *_ = server.content
    del server.content[gone]
    server.greet(one, compress=compress)
    waiting = server.status(messages.SyncStatus.RESYNC, compress=compress)
    give(one, waiting + server.snapshot(compress=compress))
    assert (one.phase, one.in_sync, one.map) == (agent.Phase.RETURNING, False, before)
    give(one, server.status(compress=compress), now_ns=NOW_NS + 5)
    assert (one.in_sync, one.map.digest) == (True, server.digest)
    assert shared.table.deletions == {(gone, ""): NOW_NS + 5}


@FORMATS
def test_latency_counts_what_was_written_while_in_sync(compress: bool) -> None:
    one = make(agent.Shared())
    server = Server()
    server.greet(one, compress=compress)
    give(one, server.status(compress=compress))
    give(one, server.change(("old", endpoint(NOW_NS - 10**9)), compress=compress))
    assert one.group.latency.total == 0
    give(one, server.change(("new", endpoint(NOW_NS + 1)), compress=compress), now_ns=NOW_NS + 5_000_001)
    quantile = one.group.latency.quantile(1.0)
    assert quantile is not None
    assert abs(quantile - 0.005) < 0.0003


def test_the_longest_time_between_two_reads_is_kept() -> None:
    one = make(agent.Shared())
    server = Server()
    server.greet(one, compress=True)
    assert one.group.read_gap_ns == 0
    give(one, server.status(compress=True), now_ns=NOW_NS + 7)
    give(one, server.change(("k", b"v"), compress=True), now_ns=NOW_NS + 9)
    assert (one.group.read_gap_ns, one.heard_ns) == (7, NOW_NS + 9)


def test_coming_back_counts_from_the_loss_of_a_connection_in_sync_with_all_attempts() -> None:
    one = make(agent.Shared())
    server = Server()
    server.greet(one, compress=True)
    one.disconnected(NOW_NS)
    assert one.group.back_after.total == 0, "it was not in sync yet"
    server.greet(one, compress=True)
    give(one, server.status(compress=True))
    assert one.group.back_after.total == 0, "nothing had been lost"
    one.disconnected(NOW_NS)
    server.greet(one, compress=True)
    one.disconnected(NOW_NS + 10**9)
    server.greet(one, compress=True)
    give(one, server.status(compress=True), now_ns=NOW_NS + 3 * 10**9)
    assert one.group.back_after.total == 1
    assert one.group.back_after.quantile(1.0) == pytest.approx(3.0, rel=0.02)


def test_both_formats_give_the_same_map_as_the_digest_of_the_pairs() -> None:
    shared = agent.Shared()
    server = Server(population(120))
    agents = [make(shared), make(shared)]
    for compress, one in zip((False, True), agents, strict=True):
        server.greet(one, compress=compress)
        give(one, server.snapshot(compress=compress) + server.status(compress=compress))
    assert {one.map.digest for one in agents} == {digest.state_digest(server.content.items())}


@pytest.mark.parametrize(
    ("damage", "problem"),
    [
        (lambda data: data[:8] + bytes([data[8] ^ 1]) + data[9:], "checksum|snappy|gob"),
        (lambda data: b"\x02" + data[1:], "unsupported chunk"),
        (lambda data: b"\x00\xff\xff\xff" + data, "a frame of 16777215 bytes"),
    ],
)
def test_a_broken_stream_is_refused(damage: object, problem: str) -> None:
    assert callable(damage)
    server = Server(population(5))
    one = make(agent.Shared())
    server.greet(one, compress=True)
    with pytest.raises(errors.RemoteProtocolError, match=problem):
        give(one, damage(server.snapshot(compress=True)))


def test_a_server_of_another_feed_is_refused() -> None:
    one = make(agent.Shared())
    one.connected(feed="bgp", compressed=False, now_ns=NOW_NS)
    hello = typha_messages.ServerHello("v", "felix", True, 1)
    with pytest.raises(errors.RemoteProtocolError, match="asked for bgp"):
        give(one, codec.SERVER.definitions + codec.encode(hello, types=codec.SERVER))


def test_data_before_the_hello_is_refused() -> None:
    one = make(agent.Shared())
    one.connected(feed="felix", compressed=False, now_ns=NOW_NS)
    status = codec.encode(typha_messages.SyncStatus(2), types=codec.SERVER)
    with pytest.raises(errors.RemoteProtocolError, match="unexpected SyncStatus while hello"):
        give(one, codec.SERVER.definitions + status)
