"""What peers say: good hellos, and every bad one, which ends that connection for one reason and no other."""

import asyncio
import contextlib
import itertools
import random
import socket
import time
from collections.abc import Callable, Iterator

import msgspec
import pytest
from structlog import testing

from protocol import messages, subscriptions
from protocol.native import codec, frames
from protocol.reasons import DisconnectReason
from tests.harness import full_transport, repository
from tests.harness.worker_stand import FAST, FEED, Peer, WorkerStand, eventually, pod
from tests.typha.conftest import OpenStage
from typha.ipc import messages as ipc
from typha.worker import client, connections, protocol_adapters, transport

TYPHA_HELLO = (repository.DATA / "typha-client-hello.bin").read_bytes()
"""The first bytes of a Go client of Calico, recorded."""
TLS_HELLO = bytes.fromhex("16030100c8010000c40303") + bytes(range(190))
HELLO = frames.PREFACE + frames.pack_frame(codec.encode(messages.ClientHello(feed=FEED, agent="test")))


async def ends(stage: WorkerStand, peer: Peer, reason: str) -> None:
    """The server closes the connection for this one reason, and still serves others."""
    await peer.read_to_end()
    await eventually(lambda: not stage.server.poller.clients)
    assert stage.disconnects == {reason: 1}
    assert not stage.server.connections.handshaking
    assert not stage.server.connections.closing
    good = await stage.subscribe()
    await stage.converged(good)


async def disconnected(stage: WorkerStand, reasons: dict[str, int]) -> None:
    """Waits until connections have ended for these reasons, this often each."""
    await eventually(lambda: stage.disconnects == reasons)


async def test_what_the_servers_hello_says(stage: WorkerStand) -> None:
    peer = await stage.connect()
    peer.say(
        messages.ClientHello(
            feed=FEED,
            agent="test",
            versions=(9, 1),
            features=frozenset({"zstd", "positions", "telepathy"}),
            resume=messages.ResumePosition(bytes(16), 5),
            chunk_digests=(1, 2),
            subscription=subscriptions.Subscription(own_node=True),
        )
    )
    await stage.converged(peer)
    hello = peer.hello
    assert hello is not None
    assert hello.version == 1
    assert hello.features == {"positions", "zstd"}
    assert hello.not_supported == {"telepathy", "resume", "chunk-digests", "subscriptions"}
    assert hello.incarnation == bytes(16)
    assert hello.software == protocol_adapters.SOFTWARE
    assert hello.ping_interval_milliseconds == 400
    assert hello.max_frame_bytes == FAST.max_frame_bytes
    adapter = (await stage.client_of(peer)).adapter
    assert adapter is not None
    assert adapter.agent == "test"


@pytest.mark.looptime
@pytest.mark.usefixtures("virtual_time")
async def test_an_answer_leaves_with_the_snapshot_or_soon_without_one(stage: WorkerStand) -> None:
    stage.put(pod("a"))
    stage.in_sync()
    stage.holds_snapshots = True
    peer = await stage.subscribe()
    await peer.read_until(lambda: peer.hello, seconds=2.0)
    assert peer.snapshots == 0
    stage.holds_snapshots = False
    stage.make_snapshots()
    await stage.converged(peer)
    other = await stage.subscribe()
    await eventually(lambda: other.read(1 << 16))
    assert other.snapshots == 1


async def test_a_hello_in_single_bytes(stage: WorkerStand) -> None:
    peer = await stage.connect()
    peer.connection.send(messages.ClientHello(feed=FEED, agent="slow typist"))
    data = peer.connection.data_to_send()
    for position in range(len(data)):
        peer.send(data[position : position + 1])
        if position + 1 < len(data):
            await asyncio.sleep(0.001)  # so that the server most likely reads every byte alone
    await stage.converged(peer)


@pytest.mark.parametrize(
    ("hello", "reason"),
    [
        (messages.ClientHello(feed="nowhere", agent="x"), "unknown-feed"),
        (messages.ClientHello(feed=FEED, agent="x", versions=(2, 3)), "unsupported-version"),
    ],
)
async def test_a_refused_hello_gets_a_goodbye(stage: WorkerStand, hello: messages.ClientHello, reason: str) -> None:
    peer = await stage.connect()
    peer.say(hello)
    await ends(stage, peer, reason)
    assert peer.goodbye is not None
    assert peer.goodbye.reason == reason
    assert peer.goodbye.text
    assert (peer.goodbye.retry_after_milliseconds > 0) == (reason == "unknown-feed")
    assert peer.hello is None


@pytest.mark.parametrize(
    "first",
    [b"GET / HTTP/1.1\r\nHost: x\r\n\r\n", b"\x00TYPHO\r\n", b"\x99" * 16, b"\x00\x01"],
)
async def test_bytes_of_no_protocol_are_closed_at_once(stage: WorkerStand, first: bytes) -> None:
    peer = await stage.connect()
    peer.send(first)
    await ends(stage, peer, "bad-preface")


async def test_random_bytes(stage: WorkerStand) -> None:
    choose = random.Random(7)
    peers = [await stage.connect() for _ in range(50)]
    for peer in peers:
        peer.send(choose.choice([b"", frames.PREFACE]) + choose.randbytes(choose.randrange(16, 4000)))
    await asyncio.gather(*(peer.read_to_end() for peer in peers))
    await eventually(lambda: not stage.server.poller.clients)
    assert sum(stage.disconnects.values()) == 50
    assert stage.disconnects.keys() <= {"bad-preface", "protocol-error", "message-too-large", "unsupported-protocol"}


@pytest.mark.parametrize(("first", "reason"), [(TYPHA_HELLO, "unknown-feed"), (TLS_HELLO, "unsupported-protocol")])
async def test_a_refused_client_whose_protocol_has_no_goodbye_is_held_in_silence_then_closed(
    open_stage: OpenStage, first: bytes, reason: str
) -> None:
    # A busy test must see the client that is held.
    stage = await open_stage(msgspec.structs.replace(FAST, refusal_hold_seconds=3.0))
    stage.in_sync()
    peer = await stage.connect()
    peer.send(first)
    await eventually(lambda: stage.disconnects == {reason: 1})
    assert len(stage.server.connections.closing) == 1
    assert not peer.read()
    assert not peer.ended
    await ends(stage, peer, reason)
    assert not peer.received


async def test_a_typha_client_whose_first_bytes_come_in_pieces(stage: WorkerStand) -> None:
    peer = await stage.connect()
    server_end = await stage.client_of(peer)
    peer.send(TYPHA_HELLO[:3])
    await eventually(lambda: server_end.adapter and server_end.adapter.pending_bytes)
    assert stage.disconnects == {}
    peer.send(TYPHA_HELLO[3:])
    await ends(stage, peer, "unknown-feed")


async def test_held_refusals_are_limited(open_stage: OpenStage) -> None:
    stage = await open_stage(msgspec.structs.replace(FAST, max_held_refusals=3, refusal_hold_seconds=30.0))
    peers = [await stage.connect() for _ in range(5)]
    for number, peer in enumerate(peers):
        peer.send(TYPHA_HELLO)
        await disconnected(stage, {"unknown-feed": number + 1})
    await peers[0].read_to_end()
    await peers[1].read_to_end()
    assert len(stage.server.poller.clients) == 3
    peers[3].close()
    await eventually(lambda: len(stage.server.poller.clients) == 2)
    assert stage.disconnects == {"unknown-feed": 5}


async def test_a_hello_of_100_megabytes_is_refused_by_its_length(stage: WorkerStand) -> None:
    peer = await stage.connect()
    peer.send(frames.PREFACE + frames.HEADER.pack(100_000_000, 0) + b"\x92")
    await ends(stage, peer, "message-too-large")
    assert peer.goodbye is not None
    assert "100000000" in peer.goodbye.text


async def test_a_refused_peer_that_goes_on_sending_is_not_read(stage: WorkerStand) -> None:
    peer = await stage.connect()
    peer.send(frames.PREFACE + frames.HEADER.pack(100_000_000, 0))
    await eventually(lambda: stage.disconnects == {"message-too-large": 1})
    sent = 0
    while not peer.ended:
        try:
            sent += peer.socket.send(bytes(65536))
        except (BlockingIOError, BrokenPipeError, ConnectionResetError):
            peer.read()
            await asyncio.sleep(0.01)
    assert sent < 16_000_000
    assert stage.disconnects == {"message-too-large": 1}


@pytest.mark.parametrize(
    "frame",
    [
        frames.HEADER.pack(0, 0),
        frames.HEADER.pack(2, 1) + b"x",
        frames.pack_frame(b"\xc1"),
        frames.pack_frame(codec.encode(messages.Ping())),
        frames.pack_frame(codec.encode(messages.Pong(3))),
        frames.pack_frame(b"\x92\x01\x80"),
    ],
)
async def test_a_frame_that_breaks_the_protocol(stage: WorkerStand, frame: bytes) -> None:
    peer = await stage.connect()
    peer.send(frames.PREFACE + frame)
    await ends(stage, peer, "protocol-error")
    assert peer.goodbye is not None
    assert peer.goodbye.reason == "protocol-error"


async def test_a_second_hello_ends_a_client_that_was_served(stage: WorkerStand) -> None:
    peer = await stage.subscribe()
    await stage.converged(peer)
    peer.say(messages.ClientHello(feed=FEED, agent="again"))
    await ends(stage, peer, "protocol-error")
    assert peer.goodbye is not None
    assert peer.goodbye.text == "message client-hello is not allowed in state ready"


async def test_clients_hang_up_in_every_way(stage: WorkerStand) -> None:
    for number, how in enumerate(("close", "half", "reset", "goodbye", "before hello"), start=1):
        peer = await (stage.connect() if how == "before hello" else stage.subscribe())
        if how != "before hello":
            await stage.converged(peer)
        else:
            await stage.client_of(peer)
        if how == "half":
            peer.socket.shutdown(socket.SHUT_WR)
        elif how == "goodbye":
            peer.say(messages.Goodbye("client-closed"))
        else:
            if how == "reset":
                peer.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\x01\0\0\0\0\0\0\0")
            peer.close()
        await disconnected(stage, {"client-closed": number})
    await eventually(lambda: not stage.server.poller.clients)


PONG = frames.pack_frame(codec.encode(messages.Pong(3)))


async def test_a_client_that_sends_more_pongs_than_it_was_sent_pings_is_closed(stage: WorkerStand) -> None:
    flooder, peer = await stage.subscribe(), await stage.subscribe()
    await stage.converged(flooder, peer)
    received = stage.server.stats.pongs_received
    flooder.socket.send(PONG * 20_000)
    await eventually(lambda: stage.disconnects == {"protocol-error": 1})
    assert stage.server.stats.pongs_received - received <= flooder.pings + 5
    await flooder.read_to_end()
    assert flooder.goodbye is not None
    assert flooder.goodbye.text == "more pongs than pings"
    stage.put(pod("a", "new", version=9))
    await stage.converged(peer)


async def test_a_flood_right_after_the_hello_is_closed_before_anything_is_served(stage: WorkerStand) -> None:
    peer = await stage.connect()
    peer.send(HELLO + PONG * 1000)
    await ends(stage, peer, "protocol-error")
    assert peer.snapshots == 0


async def test_pongs_may_come_late_and_all_together(open_stage: OpenStage) -> None:
    stage = await open_stage(msgspec.structs.replace(FAST, ping_interval_seconds=0.05))
    stage.in_sync()
    peer = await stage.subscribe()
    peer.answers_pings = False
    await peer.read_until(lambda: peer.pings >= 20)
    peer.send(PONG * peer.pings)
    peer.answers_pings = True
    pings, received = peer.pings, stage.server.stats.pongs_received
    await peer.read_until(lambda: peer.pings > pings + 10)
    await eventually(lambda: stage.server.stats.pongs_received > received + pings + 10)
    assert stage.disconnects == {}


class SipTransport(full_transport.FullTransport):
    """Plain sockets, of which a few bytes are read at a time; remembers whose."""

    def __init__(self) -> None:
        super().__init__()
        self.sips: list[int] = []
        self.bytes_each = 1 << 20

    def receive(self, connection: transport.Connection, limit: int, /) -> bytes:
        """The next few bytes."""
        self.sips.append(connection.fileno())
        return transport.PlainTransport.receive(connection, min(limit, self.bytes_each))


@pytest.mark.parametrize("is_greeted", [False, True])
async def test_a_message_in_too_many_pieces_is_not_waited_for(open_stage: OpenStage, is_greeted: bool) -> None:
    """A read costs more than the byte that it brings costs its sender."""
    sips = SipTransport()
    stage = await open_stage(bytes_through=sips)
    stage.in_sync()
    peer = await (stage.subscribe() if is_greeted else stage.connect())
    if is_greeted:
        await stage.converged(peer)
    else:
        await stage.client_of(peer)
    sips.bytes_each = 1
    peer.send((b"" if is_greeted else frames.PREFACE) + frames.HEADER.pack(1000, 0) + bytes(500))
    await eventually(lambda: stage.disconnects == {"protocol-error": 1})
    assert len(sips.sips) < 200
    await peer.read_to_end()
    assert peer.goodbye is not None
    assert peer.goodbye.text == "too many pieces of a message"


def counted_each_turn(stage: WorkerStand, monkeypatch: pytest.MonkeyPatch, count: Callable[[], int]) -> list[int]:
    """The count at the beginning of each turn, which is when the poller is asked."""
    counts: list[int] = []
    poll = stage.server.poller.poll

    def counting_poll() -> tuple[list[tuple[client.Client, int]], bool]:
        counts.append(count())
        return poll()

    monkeypatch.setattr(stage.server.poller, "poll", counting_poll)
    return counts


async def test_a_turn_reads_for_a_while_and_the_next_one_goes_on_where_it_ended(
    open_stage: OpenStage, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Otherwise the first of the poller's list would be read again and again, and the last one never."""
    sips = SipTransport()
    limits = msgspec.structs.replace(FAST, read_seconds=-1.0, ping_interval_seconds=30.0)  # one client a turn
    stage = await open_stage(limits, bytes_through=sips)
    stage.in_sync()
    peers = [await stage.subscribe() for _ in range(5)]
    await stage.converged(*peers)
    clients = [await stage.client_of(peer) for peer in peers]
    sips.sips.clear()
    sips.bytes_each = 3
    counts = counted_each_turn(stage, monkeypatch, lambda: len(sips.sips))
    for peer in peers:  # the worker has no turn in between
        peer.send(PONG * 2)
    sips_each = -(-2 * len(PONG) // 3)
    await eventually(lambda: len(sips.sips) == len(peers) * sips_each)
    rounds = [set(sips.sips[start : start + len(peers)]) for start in range(0, len(sips.sips), len(peers))]
    assert rounds == [{one.fd for one in clients}] * sips_each
    assert max(after - before for before, after in itertools.pairwise(counts)) == 1
    assert stage.disconnects == {}


async def test_a_turn_accepts_for_a_while(open_stage: OpenStage, monkeypatch: pytest.MonkeyPatch) -> None:
    stage = await open_stage(msgspec.structs.replace(FAST, accept_seconds=-1.0))  # one connection a turn
    accepted = stage.server.stats.counts
    counts = counted_each_turn(stage, monkeypatch, lambda: accepted.accepted)
    with contextlib.ExitStack() as stack:
        for _ in range(10):
            end = stack.enter_context(socket.socket())
            end.setblocking(False)
            end.connect_ex(stage.address)
        await eventually(lambda: accepted.accepted == 10)
    assert max(after - before for before, after in itertools.pairwise(counts)) == 1


async def test_refused_connections_are_closed_a_few_at_a_time_and_keep_no_bytes(open_stage: OpenStage) -> None:
    stage = await open_stage(msgspec.structs.replace(FAST, refusal_hold_seconds=600.0, expired_at_a_time=7))
    peers = [await stage.connect() for _ in range(20)]
    for peer in peers:
        peer.send(TYPHA_HELLO)
    held = stage.server.connections.closing
    await eventually(lambda: len(held) == 20)
    assert {one.adapter for one in held} == {None}
    for left in (13, 6, 0):
        stage.server.connections.close_overdue(time.monotonic() + 700.0)
        assert len(held) == left


async def test_a_goodbye_that_does_not_fit_keeps_its_reason(open_stage: OpenStage) -> None:
    full = full_transport.FullTransport()
    stage = await open_stage(bytes_through=full)
    stage.in_sync()
    peer = await stage.subscribe()
    await stage.converged(peer)
    server_end = await stage.client_of(peer)
    full.full.add(server_end.fd)
    stage.server.connections.farewell(server_end, DisconnectReason.REBALANCED, text="elsewhere")
    assert stage.disconnects == {"rebalanced": 1}
    await peer.read_to_end()
    assert peer.goodbye is None


async def test_a_client_inside_a_frame_is_closed_without_a_goodbye(open_stage: OpenStage) -> None:
    stage = await open_stage(msgspec.structs.replace(FAST, notsent_lowat_bytes=16384, ping_interval_seconds=30.0))
    stage.in_sync()
    slow = await stage.subscribe(receive_buffer_bytes=4096)
    await stage.converged(slow)
    server_end = await stage.block(slow)
    assert not server_end.at_frame_end(stage.server.transport)
    stage.server.connections.farewell(server_end, DisconnectReason.REBALANCED, text="elsewhere")
    await ends(stage, slow, "rebalanced")
    assert slow.goodbye is None


@pytest.fixture
def ended() -> Iterator[client.Client]:
    """A client without a hello."""
    near, far = socket.socketpair()
    with near, far:
        yield client.Client(near, "peer", number=7, slot=0, now=990.0)


def test_connections_that_end_are_logged_up_to_a_number_a_second(ended: client.Client) -> None:
    now = 1000.0
    log = connections.ConnectionLog(now=lambda: now)

    def end(count: int, reason: DisconnectReason = DisconnectReason.BAD_PREFACE) -> list[int]:
        with testing.capture_logs() as lines:
            for _ in range(count):
                log.write_end(ended, reason, "GET")
        assert {(line["event"], line["reason"], line["detail"]) for line in lines} <= {
            ("Connection ended", "bad-preface", "GET")
        }
        return [line["other_ends_not_logged"] for line in lines]

    assert end(15) == [0] * 15
    now = 1000.9
    assert end(45) == [0] * 5
    assert log.suppressed == 40
    now = 1001.0  # the first line of the next second says how many are missing
    assert end(2) == [40, 0]
    assert log.suppressed == 0
    for quiet in ("client-closed", "shutting-down", "rebalanced"):
        assert end(30, DisconnectReason(quiet)) == []  # of clients that never said hello
    assert end(19) == [0] * 18  # the quiet ones do not count
    assert log.suppressed == 1


def test_hellos_and_usual_ends_are_logged_up_to_a_number_and_the_others_counted(ended: client.Client) -> None:
    now = 1000.0
    log = connections.ConnectionLog(now=lambda: now)
    offer = protocol_adapters.Offer(frozenset(), bytes(16), ping_interval_seconds=1.0, max_frame_bytes=1 << 20)
    adapter = protocol_adapters.begin(frames.PREFACE, offer, 7)
    assert isinstance(adapter, protocol_adapters.NativeAdapter)
    adapter.agent = "an agent"  # as after its hello
    ended.adapter = adapter
    said = protocol_adapters.Introduction("typha", "felix", "felix", "n1", "v3.31.0")
    with testing.capture_logs() as lines:
        for _ in range(10_000):
            log.write_hello(ended, said)
            log.write_end(ended, DisconnectReason.CLIENT_CLOSED, "")
        log.write_end(ended, DisconnectReason.NO_PROGRESS, "")  # has its own limit
        log.write_left_out()  # not yet: there may be more
    assert [line["event"] for line in lines] == ["Client connected", "Connection ended"] * 200 + ["Connection ended"]
    assert lines[-1]["reason"] == "no-progress"
    now = 1010.0
    with testing.capture_logs() as lines:
        log.write_left_out()
        log.write_left_out()
        log.write_hello(ended, said)
    assert lines[0] == {
        "event": "Connections that were not logged",
        "log_level": "info",
        "hellos": 9800,
        "usual_ends": 9800,
    }
    assert [line["event"] for line in lines[1:]] == ["Client connected"]


def test_what_a_client_says_is_cut_in_the_log(ended: client.Client) -> None:
    with testing.capture_logs() as lines:
        said = protocol_adapters.Introduction("typha", "felix", "felix", "n" * 10_000, "v" * 10_000)
        connections.ConnectionLog().write_hello(ended, said)
    assert (len(lines[0]["node"]), len(lines[0]["version"])) == (200, 200)


async def test_a_clients_hello_and_its_end_have_a_line_each(stage: WorkerStand) -> None:
    with testing.capture_logs() as lines:
        peer = await stage.subscribe()
        await stage.converged(peer)
        own = peer.socket.getsockname()
        peer.close()
        await disconnected(stage, {"client-closed": 1})
    [hello] = [line for line in lines if line["event"] == "Client connected"]
    [end] = [line for line in lines if line["event"] == "Connection ended"]
    assert hello == {
        "event": "Client connected",
        "log_level": "info",
        "client": f"127.0.0.1:{own[1]}",
        "connection": hello["connection"],
        "agent": "test",
        "protocol": "native",
        "syncer": FEED,
        "feed": FEED,
    }
    assert (end["reason"], end["client"], end["connection"]) == ("client-closed", hello["client"], hello["connection"])
    assert end["agent"] == "test"
    assert end["bytes_sent"] > 100
    assert end["seconds"] >= 0


async def test_a_peer_that_says_nothing_and_leaves_has_no_line(stage: WorkerStand) -> None:
    with testing.capture_logs() as lines:
        peer = await stage.connect()
        peer.close()
        await disconnected(stage, {"client-closed": 1})
    assert lines == []


def test_a_line_of_the_close_log(ended: client.Client) -> None:
    log = connections.ConnectionLog(now=lambda: 1000.0)
    with testing.capture_logs() as lines:
        log.write_end(ended, DisconnectReason.NO_PROGRESS, "slow")
    assert lines == [
        {
            "event": "Connection ended",
            "log_level": "info",
            "reason": "no-progress",
            "detail": "slow",
            "client": "peer",
            "agent": "",
            "feed": "",
            "connection": 7,
            "seconds": 10.0,
            "bytes_sent": 0,
            "other_ends_not_logged": 0,
        }
    ]


async def test_every_connection_that_ends_is_logged_or_counted(stage: WorkerStand) -> None:
    begun = time.monotonic()
    with testing.capture_logs() as lines:
        for _ in range(60):
            peer = await stage.connect()
            peer.send(b"GET / HTTP/1.1\r\n")
        await eventually(lambda: stage.disconnects == {"bad-preface": 60})
    seconds = int(time.monotonic()) - int(begun) + 1
    logged = [line for line in lines if line["event"] == "Connection ended"]
    counted = sum(line["other_ends_not_logged"] for line in logged) + stage.server.connections.log.suppressed
    assert len(logged) + counted == 60
    assert len(logged) <= 20 * seconds


async def test_nothing_is_left_of_clients_that_came_and_went(stage: WorkerStand) -> None:
    peers = [await stage.subscribe() for _ in range(50)]
    await stage.converged(*peers)
    channel = (await stage.client_of(peers[0])).channel
    assert channel is not None
    for peer in peers:
        peer.close()
    await eventually(lambda: not stage.server.poller.clients)
    assert channel.all_clients() == []
    assert stage.disconnects == {"client-closed": 50}
    await eventually(lambda: not any(stage.server.keepalive._slots))


async def test_the_hub_learns_of_the_newest_ends(stage: WorkerStand) -> None:
    stage.in_sync()
    good = await stage.subscribe()
    await stage.converged(good)
    for _ in range(3):
        probe = await stage.connect()
        probe.close()  # as a kubelet's TCP probe: nobody's business
    strange = await stage.connect()
    strange.send(b"GET / HTTP/1.1\r\n\r\n")
    await strange.read_to_end()
    good.close()
    await eventually(lambda: len(stage.hub.recent.ends) == 2)
    bad, left = stage.hub.recent.ends
    assert (bad.reason, bad.node, bad.feed) == (DisconnectReason.BAD_PREFACE, "", "")
    assert (left.reason, left.node, left.feed, left.worker) == (DisconnectReason.CLIENT_CLOSED, "test", FEED, 1)
    assert left.address.startswith("127.0.0.1:")


async def test_of_a_storm_of_ends_the_hub_gets_the_newest_and_the_totals(stage: WorkerStand) -> None:
    ended = [end_of(number) for number in range(120)]
    stage.server.stats.ends.extend(ended)
    report = stage.server.stats.take_recent()
    assert report is not None
    assert report.ends == ended[-ipc.ENDS_REPORTED_MAX :]
    assert stage.server.stats.take_recent() is None


def end_of(number: int) -> ipc.End:
    """The end of some connection."""
    return ipc.End(1.0, f"n{number}", "", "", DisconnectReason.PONG_TIMEOUT, 1.0)


async def test_the_latency_of_deliveries_is_reported_once(stage: WorkerStand) -> None:
    stage.in_sync()
    peers = [await stage.subscribe() for _ in range(3)]
    await stage.converged(*peers)
    stage.hub.recent.take_latency()
    stage.put(pod("a"))
    await stage.converged(*peers)
    deliveries = 0

    def all_reported() -> bool:
        nonlocal deliveries
        deliveries += stage.hub.recent.take_latency().count
        return deliveries >= 3

    await eventually(all_reported)
    await asyncio.sleep(3 * FAST.stats_interval_seconds)
    assert not all_reported() or deliveries == 3
