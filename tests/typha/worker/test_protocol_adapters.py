"""Handshakes of both protocols and what follows them: by bytes alone, and with a worker on real sockets."""

import asyncio
import functools

import msgspec
import pytest

from cache.feeds.calico import releases
from clients import connection as client_connection
from clients import mirror
from protocol import errors, messages
from protocol.native import codec as native_codec
from protocol.native import encoder as native_encoder
from protocol.native import frames
from protocol.reasons import DisconnectReason
from protocol.typha import codec, connection, encoder, timestamps
from protocol.typha import messages as typha
from tests.harness import repository, typha_peer, worker_stand
from tests.harness.typha_peer import ACK, FELIX, HELLO, PLAIN_HELLO
from tests.harness.worker_stand import FAST, WorkerStand, eventually, pod
from tests.typha.conftest import OpenStage
from typha.ipc import messages as ipc
from typha.worker import protocol_adapters
from typha.worker.protocol_adapters import AckAwaited, Ponged, Refused, Subscribed

RECORDED_HELLO = (repository.DATA / "typha-client-hello.bin").read_bytes()
"""What a Go client of Calico without snappy sends: its hello, then two pongs."""
OFFER = protocol_adapters.Offer(
    feeds=frozenset({"felix", "bgp", "web", *releases.PROJECTIONS}),
    incarnation=b"\xab" * 16,
    ping_interval_seconds=FAST.ping_interval_seconds,
    max_frame_bytes=FAST.max_frame_bytes,
)
PONG = codec.encode(typha.Pong(timestamps.from_unix_nanoseconds(5)), types=codec.CLIENT)
NO_SNAPPY = msgspec.structs.replace(HELLO, supported_compression_algorithms=("lz4",))
OLD = msgspec.structs.replace(HELLO, version="v3.28.5", supports_modern_policy_keys=False)
STRANGER = msgspec.structs.replace(HELLO, syncer_type="web")
"""Asks for a feed that exists, but is none of Calico's."""
NOT_SERVED = msgspec.structs.replace(HELLO, syncer_type="node-status")


def begin(first: bytes) -> protocol_adapters.ProtocolAdapter:
    begun = protocol_adapters.begin(first, OFFER, 7)
    assert not isinstance(begun, Refused)
    return begun


def events(adapter: protocol_adapters.ProtocolAdapter, data: bytes) -> list[protocol_adapters.Event]:
    return list(adapter.receive(data))


def all_ponged(found: list[protocol_adapters.Event], count: int) -> bool:
    return [type(event) for event in found] == [Ponged] * count


def restarted_hello(data: bytes) -> typha.ServerHello:
    """Checks that the bytes are a server's hello and a decoder restart, and nothing else; returns the hello."""
    client = connection.Connection(connection.Role.CLIENT)
    client.send_hello(HELLO)
    client.receive_data(data)
    hello, restart, end = client.next_event(), client.next_event(), client.next_event()
    assert isinstance(hello, typha.ServerHello)
    assert isinstance(restart, typha.DecoderRestart)
    assert restart.compression_algorithm == typha.SNAPPY
    assert end is None
    return hello


@pytest.mark.parametrize(
    ("node", "identity"),
    [("n1", protocol_adapters.Identity(node="n1", info="me")), ("", protocol_adapters.Identity(node="me"))],
)
def test_a_native_client_is_known_by_its_node_or_else_by_its_name(
    node: str, identity: protocol_adapters.Identity
) -> None:
    hello = frames.PREFACE + frames.pack_frame(
        native_codec.encode(messages.ClientHello(feed="web", agent="me", node=node))
    )
    adapter = begin(hello)
    assert isinstance(events(adapter, hello)[0], Subscribed)
    assert isinstance(adapter, protocol_adapters.NativeAdapter)
    assert adapter.identity == identity


def test_the_first_byte_chooses_the_protocol() -> None:
    native = frames.PREFACE + frames.pack_frame(native_codec.encode(messages.ClientHello(feed="web", agent="me")))
    assert isinstance(begin(native[:1]), protocol_adapters.NativeAdapter)
    adapter = begin(native)
    [subscribed] = events(adapter, native)
    assert isinstance(subscribed, Subscribed)
    assert (subscribed.feed, subscribed.wire_format) == ("web", native_encoder.PLAIN)
    assert subscribed.introduction == protocol_adapters.Introduction("native", "web", "web")
    assert adapter.agent == "me"
    for length in range(1, len(RECORDED_HELLO) + 1):
        assert isinstance(begin(RECORDED_HELLO[:length]), protocol_adapters.TyphaAdapter)
    [subscribed, *pongs] = events(begin(RECORDED_HELLO), RECORDED_HELLO)
    assert isinstance(subscribed, Subscribed)
    assert (subscribed.feed, subscribed.wire_format) == (FELIX, encoder.PLAIN)
    assert subscribed.introduction is not None
    assert all_ponged(pongs, 2)
    tls = protocol_adapters.begin(b"\x16\x03\x01", OFFER, 7)
    assert isinstance(tls, Refused)
    assert tls.reason is DisconnectReason.UNSUPPORTED_PROTOCOL


@pytest.mark.parametrize("first", [b"GET / HTTP/1.1\r\n", b"\x99" * 16, b"\xf0", b"\x05\x02\xff", b"\x05\x7d\x01"])
def test_what_no_client_begins_with(first: bytes) -> None:
    refused = protocol_adapters.begin(first, OFFER, 7)
    assert isinstance(refused, Refused)
    assert refused.reason is DisconnectReason.BAD_PREFACE


def test_a_client_that_takes_snappy_is_told_to_restart_and_acks() -> None:
    encoded = typha_peer.encoded(HELLO)
    adapter = begin(encoded)
    [awaited] = events(adapter, encoded)
    assert isinstance(awaited, AckAwaited)
    said = protocol_adapters.Introduction("typha", FELIX, FELIX, HELLO.hostname, HELLO.version)
    assert awaited.introduction == said
    hello = restarted_hello(awaited.data)
    assert (hello.syncer_type, hello.server_connection_id) == (FELIX, 7)
    assert hello.version == protocol_adapters.SOFTWARE
    assert hello.supports_node_resource_updates
    assert adapter.agent
    [subscribed] = events(adapter, ACK)
    assert isinstance(subscribed, Subscribed)
    newest = protocol_adapters.AgentVersion(HELLO.version, releases.Release.NEWEST, "by its version")
    assert subscribed == Subscribed(connection.PREAMBLE, FELIX, encoder.SNAPPY, newest)
    assert events(adapter, ACK) == []
    assert all_ponged(events(adapter, PONG + PONG), 2)
    assert adapter.pending_bytes == 0
    assert events(adapter, PONG[:3]) == []
    assert adapter.pending_bytes == 3


def test_acks_may_come_in_advance_and_byte_by_byte() -> None:
    data = typha_peer.encoded(HELLO) + ACK + ACK + PONG
    whole = events(begin(data), data)
    awaited, subscribed, ponged = whole
    assert isinstance(awaited, AckAwaited)
    assert isinstance(subscribed, Subscribed)
    assert (subscribed.feed, subscribed.wire_format) == (FELIX, encoder.SNAPPY)
    assert isinstance(ponged, Ponged)
    adapter = begin(data[:1])
    bytewise = [event for byte in data for event in events(adapter, bytes([byte]))]
    assert bytewise == whole
    assert [type(event) for event in bytewise] == [type(event) for event in whole]


@pytest.mark.parametrize("hello", [PLAIN_HELLO, NO_SNAPPY])
def test_clients_without_snappy_are_served_at_once(hello: typha.ClientHello) -> None:
    hello = msgspec.structs.replace(hello, syncer_type="")
    [subscribed] = events(begin(typha_peer.encoded(hello)), typha_peer.encoded(hello))
    assert isinstance(subscribed, Subscribed)
    assert (subscribed.feed, subscribed.wire_format) == (FELIX, encoder.PLAIN)


@pytest.mark.parametrize(
    ("version", "is_modern", "syncer_type", "feed"),
    [
        ("v3.34.0-0.dev-67-g87c15906f20c", True, FELIX, "felix"),
        ("v3.32.1", True, FELIX, "felix-3.32"),
        ("v3.31.7", False, FELIX, "felix-3.31"),
        ("v3.30.7", False, "", "felix-3.30"),
        ("v3.29.7", False, FELIX, "felix-3.29"),
        ("", False, FELIX, "felix-3.31"),
        ("acme-7", False, FELIX, "felix-3.29"),
        ("v3.29.7", False, "bgp", "bgp"),
        ("v3.20.0", False, "bgp", "bgp"),
    ],
)
def test_an_agent_gets_the_feed_of_its_release(version: str, is_modern: bool, syncer_type: str, feed: str) -> None:
    hello = msgspec.structs.replace(
        PLAIN_HELLO, version=version, supports_modern_policy_keys=is_modern, syncer_type=syncer_type
    )
    said = typha_peer.encoded(hello)
    overriding = OFFER._replace(release_overrides=releases.parse_overrides("acme-*=3.29"))
    begun = protocol_adapters.begin(said, overriding, 7)
    assert not isinstance(begun, Refused)
    [subscribed] = events(begun, said)
    assert isinstance(subscribed, Subscribed)
    assert subscribed.feed == feed
    assert (subscribed.agent_version is not None) == (feed != "bgp")


def test_a_refusal_names_the_node_and_its_version() -> None:
    [refused] = events(begin(typha_peer.encoded(OLD)), typha_peer.encoded(OLD))
    assert isinstance(refused, Refused)
    assert refused.text.startswith("node 'node-1', version 'v3.28.5': agents before 3.29 ignore tiers")


def test_where_felix_has_no_older_releases_their_agents_are_refused() -> None:
    said = typha_peer.encoded(msgspec.structs.replace(OLD, version="v3.31.7"))
    begun = protocol_adapters.begin(said, OFFER._replace(feeds=frozenset({"felix"})), 7)
    assert not isinstance(begun, Refused)
    assert events(begun, said) == [Refused(DisconnectReason.UNKNOWN_FEED, "nothing for agents of 3.31 here")]


def test_native_clients_cannot_ask_for_a_projection() -> None:
    # Its sequences begin anew when it is made anew, so that a client could not resume.
    hello = native_codec.encode(messages.ClientHello(feed="felix-3.31", agent="me"))
    [refused] = events(begin(frames.PREFACE), frames.PREFACE + frames.pack_frame(hello))
    assert isinstance(refused, Refused)
    assert refused.reason is DisconnectReason.UNKNOWN_FEED


@pytest.mark.parametrize(
    ("hello", "reason"),
    [
        (OLD, DisconnectReason.UNSUPPORTED_VERSION),
        (STRANGER, DisconnectReason.UNKNOWN_FEED),
        (NOT_SERVED, DisconnectReason.UNKNOWN_FEED),
    ],
)
def test_a_refused_client_is_sent_nothing(hello: typha.ClientHello, reason: DisconnectReason) -> None:
    adapter = begin(typha_peer.encoded(hello))
    [refused] = events(adapter, typha_peer.encoded(hello))
    assert isinstance(refused, Refused)
    assert refused.reason is reason
    assert adapter.goodbye(refused) == b""


def test_a_native_goodbye_is_an_event_with_its_reason() -> None:
    hello = native_codec.encode(messages.ClientHello(feed="web", agent="me"))
    goodbye = native_codec.encode(messages.Goodbye("client-closed"))
    adapter = begin(frames.PREFACE)
    received = frames.PREFACE + frames.pack_frame(hello) + frames.pack_frame(goodbye)
    [_, left] = events(adapter, received)
    assert isinstance(left, protocol_adapters.Left)
    assert left.text == "goodbye: client-closed"


@pytest.mark.parametrize(
    ("hello", "then"),
    [
        (HELLO, PONG),
        (HELLO, ACK * 3),
        (HELLO, ACK + typha_peer.encoded(HELLO)),
        (PLAIN_HELLO, ACK),
        (PLAIN_HELLO, typha_peer.encoded(PLAIN_HELLO)),
        (PLAIN_HELLO, b"\x01\x00"),
    ],
    ids=["pong-for-ack", "three-acks", "hello-after-ack", "ack-of-nothing", "second-hello", "empty-type"],
)
async def test_what_must_not_follow_a_hello(felix: WorkerStand, hello: typha.ClientHello, then: bytes) -> None:
    peer = await typha_peer.join(felix, hello)
    peer.answers_pings = False
    await peer.read_until(lambda: peer.greeting)
    peer.send(then)
    await peer.read_to_end()
    assert felix.disconnects == {"protocol-error": 1}


@pytest.fixture
async def felix(open_stage: OpenStage) -> WorkerStand:
    """A worker whose feed has the name of one of Calico's syncers; in sync, with three objects."""
    stage = await open_stage(feed_name=FELIX)
    stage.put(*(pod(name, "x") for name in ("a", "b", "c")))
    stage.in_sync()
    return stage


@pytest.mark.parametrize("hello", [HELLO, PLAIN_HELLO, NO_SNAPPY])
async def test_a_snapshot_then_what_changes(felix: WorkerStand, hello: typha.ClientHello) -> None:
    felix.put(*(pod(f"more-{number}", number) for number in range(250)))
    peer = await typha_peer.join(felix, hello)
    await felix.converged(peer)
    assert peer.greeting is not None
    assert peer.greeting.syncer_type == FELIX
    assert peer.restarts == (hello == HELLO)
    assert peer.types == [messages.UpdateType.NEW] * 253
    assert (peer.statuses, peer.updates_at_status) == ([2], [253])
    felix.put(pod("a", "y", version=2), pod("new", "x"))
    felix.delete("b")
    await felix.converged(peer)
    assert peer.types[253:] == [messages.UpdateType.UPDATED, messages.UpdateType.NEW, messages.UpdateType.DELETED]
    for status in (messages.SyncStatus.RESYNC, messages.SyncStatus.IN_SYNC):
        felix.hub.status(worker_stand.PODS, status)
        felix.commit()
    await peer.read_until(lambda: len(peer.statuses) == 3)
    assert peer.statuses == [2, 1, 2]
    assert felix.disconnects == {}


async def test_an_empty_feed(open_stage: OpenStage) -> None:
    stage = await open_stage(feed_name=FELIX)
    stage.in_sync()
    peers = [await typha_peer.join(stage, hello) for hello in (HELLO, PLAIN_HELLO)]
    await stage.converged(*peers)
    assert [(peer.updates, peer.statuses) for peer in peers] == [(0, [2])] * 2


@pytest.mark.looptime
@pytest.mark.usefixtures("virtual_time")
async def test_pings_while_held_and_later_and_none_before_the_ack(open_stage: OpenStage) -> None:
    stage = await open_stage(feed_name=FELIX)
    stage.put(pod("a"))
    silent = await typha_peer.join(stage)
    silent.answers_pings = False
    await silent.read_until(lambda: silent.restarts)
    peers = [await typha_peer.join(stage, hello) for hello in (HELLO, PLAIN_HELLO)]
    for peer in peers:
        await peer.read_until(functools.partial(lambda peer: peer.pings >= 2, peer))
        assert (peer.updates, peer.statuses) == (0, [])
    assert not silent.read()
    stage.in_sync()
    await stage.converged(*peers)
    for peer in peers:
        seen = peer.pings
        await peer.read_until(functools.partial(lambda peer, seen: peer.pings >= seen + 2, peer, seen))
        assert peer.longest_silence_seconds < 2 * FAST.ping_interval_seconds
    await eventually(lambda: stage.server.stats.pongs_received == sum(peer.pings for peer in peers) >= 8)
    assert stage.disconnects == {}


async def test_without_an_ack_or_pongs_a_client_is_closed(open_stage: OpenStage) -> None:
    limits = msgspec.structs.replace(FAST, ping_interval_seconds=0.1, pong_timeout_seconds=0.5)
    stage = await open_stage(limits, feed_name=FELIX)
    stage.in_sync()
    peers = [await typha_peer.join(stage, hello) for hello in (HELLO, PLAIN_HELLO)]
    for peer in peers:
        peer.answers_pings = False
    await asyncio.gather(*(peer.read_to_end() for peer in peers))
    assert [peer.pings > 0 for peer in peers] == [False, True]
    assert stage.disconnects == {"pong-timeout": 2}


@pytest.mark.parametrize(
    ("hello", "reason"), [(OLD, "unsupported-version"), (STRANGER, "unknown-feed"), (NOT_SERVED, "unknown-feed")]
)
async def test_a_refused_client_is_held_in_silence(
    open_stage: OpenStage, hello: typha.ClientHello, reason: str
) -> None:
    # A busy test must see the client that is held.
    stage = await open_stage(msgspec.structs.replace(FAST, refusal_hold_seconds=3.0), feed_name=FELIX)
    stage.in_sync()
    peer = await typha_peer.join(stage, hello)
    await eventually(lambda: stage.disconnects == {reason: 1})
    assert not peer.read()
    assert not peer.ended
    assert len(stage.server.connections.closing) == 1
    await peer.read_to_end()
    assert not peer.received
    await eventually(lambda: not stage.server.poller.clients)


@pytest.mark.looptime
@pytest.mark.usefixtures("virtual_time")
async def test_no_protocol_is_closed_at_once(open_stage: OpenStage) -> None:
    stage = await open_stage(msgspec.structs.replace(FAST, refusal_hold_seconds=30.0), feed_name=FELIX)
    stage.in_sync()
    for first in (b"GET / HTTP/1.1\r\n\r\n", b"\x04\x7f\x03\x01\x02", b"\x07\xff\x81\x03\x01\x01\x08\x40" * 9):
        peer = await stage.connect()
        peer.send(first)
        await peer.read_to_end(seconds=5)
        assert not peer.received
    assert stage.disconnects == {"bad-preface": 3}


async def test_both_protocols_on_one_feed(felix: WorkerStand) -> None:
    newer = [await typha_peer.join(felix, hello) for hello in (HELLO, PLAIN_HELLO) * 3]
    native = [await felix.subscribe(features=features) for features in (frozenset[str](), frozenset({"zstd"}))]
    await felix.converged(*newer, *native)
    assert len(felix.hub.channels) == 4
    for number in range(50):
        felix.put(pod(f"p{number % 7}", number, version=number + 10))
        if number % 5 == 4:
            felix.delete(f"p{number % 7}")
        if number % 10 == 0:
            newer.append(await typha_peer.join(felix))
            await felix.converged(newer[-1])
    await felix.converged(*newer, *native)
    assert len(felix.content) > 3
    assert len({bytes(peer.received) for peer in newer}) > 1  # not all are of one format
    assert {peer.snapshots for peer in native} == {1}
    assert felix.disconnects == {}


async def test_our_client_library_follows_typhas_protocol(felix: WorkerStand) -> None:
    host, port = felix.address
    native = mirror.Mirror(f"{host}:{port}", feed=FELIX, agent="native")
    foreign = mirror.Mirror(f"{host}:{port}", feed=FELIX, agent="typha", protocol=client_connection.Protocol.TYPHA)
    async with native, foreign:
        for one in (native, foreign):
            await one.wait_in_sync(timeout_seconds=worker_stand.TIMEOUT_SECONDS)
            assert {key: entry.value for key, entry in one.items()} == felix.content
        felix.server.connections.close(next(iter(felix.server.poller.clients.values())), DisconnectReason.SERVER_ERROR)
        felix.put(pod("a", "y", version=2), *(pod(f"p{number}", number, version=number) for number in range(300)))
        felix.delete("b")
        await eventually(
            lambda: all(
                one.in_sync and {key: entry.value for key, entry in one.items()} == felix.content
                for one in (native, foreign)
            )
        )
        assert native.digest == foreign.digest
        assert dict(native) == dict(foreign)
    assert {wire_format for _, wire_format, _ in felix.hub.channels} == {
        native_encoder.ZSTD_DICTIONARY,
        encoder.SNAPPY,
    }


async def test_a_drain_closes_without_a_goodbye(felix: WorkerStand) -> None:
    peers = [await typha_peer.join(felix, hello) for hello in (HELLO, PLAIN_HELLO)]
    unacked = await typha_peer.join(felix)
    unacked.answers_pings = False
    await unacked.read_until(lambda: unacked.restarts)
    await felix.converged(*peers)
    felix.handle.send(ipc.Drain(0.3, 10.0))
    await asyncio.gather(*(peer.read_to_end() for peer in [*peers, unacked]))
    await asyncio.wait_for(felix.task, 180)
    assert felix.disconnects == {"shutting-down": 3}


async def test_a_client_that_acks_and_hangs_up_at_once(felix: WorkerStand) -> None:
    for data in (typha_peer.encoded(HELLO) + ACK, typha_peer.encoded(HELLO), typha_peer.encoded(PLAIN_HELLO)[:-1]):
        peer = await felix.connect()
        peer.send(data)
        peer.close()
    await eventually(lambda: felix.disconnects == {"client-closed": 3})
    await eventually(lambda: not felix.server.poller.clients)
    peer = await typha_peer.join(felix)
    await felix.converged(peer)


def test_errors_of_what_looked_right_are_protocol_errors() -> None:
    broken = RECORDED_HELLO[: 1 + RECORDED_HELLO[0]] + b"\x01\x00"
    adapter = begin(broken)
    with pytest.raises(errors.RemoteProtocolError) as caught:
        events(adapter, broken)
    assert caught.value.reason is DisconnectReason.PROTOCOL_ERROR
