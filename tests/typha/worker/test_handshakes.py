"""TLS clients on real sockets: which get in, which do not, and that neither disturbs the others."""

import asyncio
import contextlib
import functools
import importlib
import os
import pathlib
import socket
import ssl
import struct
import time
from collections.abc import Mapping

import msgspec
import pytest
import structlog
import trustme
from cryptography.x509.oid import ExtendedKeyUsageOID

from clients import connection, errors
from protocol import messages
from protocol.native import frames
from tests.harness import certificates, tls_records, typha_peer, worker_stand
from tests.harness.certificates import AGENT, AGENT_URI
from tests.harness.worker_stand import FAST, HUB_LIMITS, Peer, WorkerStand, eventually, pod
from tests.typha.conftest import OpenStage, OpenTlsStage
from typha import clock
from typha.ipc import messages as ipc
from typha.worker import handshake_steps, tls, tls_transport, transport

pytestmark = pytest.mark.slow


async def refused(stage: WorkerStand, reasons: dict[str, int], context: ssl.SSLContext | None) -> None:
    """Connects with this context, and waits until connections have ended for these reasons, this often each."""
    stage.peers_tls = None
    peer = await stage.connect()
    end: socket.socket = peer.socket
    try:
        if context is not None:
            end = peer.socket = await certificates.shake(peer.socket, context)
        while not peer.ended:
            peer.read()
            await asyncio.sleep(0.002)
    except (ssl.SSLError, ConnectionError):
        pass  # with TLS 1.3 a client hears of its refusal only after the handshake
    finally:
        end.close()
    await eventually(lambda: stage.disconnects == reasons)


async def follow(stage: WorkerStand, kind: type[Peer], *, receive_buffer_bytes: int | None = None) -> Peer:
    """A client of the protocol that this kind of peer speaks."""
    if kind is Peer:
        return await stage.subscribe(receive_buffer_bytes=receive_buffer_bytes)
    return await typha_peer.join(stage, receive_buffer_bytes=receive_buffer_bytes)


async def pinged(peer: Peer) -> None:
    """Reads until some pings have arrived."""
    await peer.read_until(lambda: peer.pings > 2)


@pytest.mark.parametrize("kind", [Peer, typha_peer.TyphaPeer])
@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
async def test_both_protocols_through_both_versions(
    open_tls: OpenTlsStage, files: certificates.Files, version: ssl.TLSVersion, kind: type[Peer]
) -> None:
    stage = await open_tls(feed_name="felix")
    stage.peers_tls = certificates.client_context(files.authority)
    stage.peers_tls.maximum_version = version
    peers = [await follow(stage, kind) for _ in range(3)]
    await stage.converged(*peers)
    for number in range(20):
        stage.put(pod("d", str(number) * 60_000, version=number + 2))
    stage.delete("a")
    await stage.converged(*peers)
    await asyncio.gather(*(pinged(peer) for peer in peers))
    assert {peer.socket.version() for peer in peers if isinstance(peer.socket, ssl.SSLSocket)} == {
        "TLSv1.2" if version is ssl.TLSVersion.TLSv1_2 else "TLSv1.3"
    }
    assert stage.disconnects == {}


@pytest.mark.parametrize("kind", [Peer, typha_peer.TyphaPeer])
async def test_readers_that_stall_get_everything_in_the_end(
    open_tls: OpenTlsStage, kind: type[Peer], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tls_transport, "UNASKED_BYTES", 1 << 30)  # as if the kernel could not say what it takes
    limits = msgspec.structs.replace(FAST, notsent_lowat_bytes=16 * 1024, ping_interval_seconds=30.0)
    stage = await open_tls(limits, feed_name="felix")
    stalled = [await follow(stage, kind, receive_buffer_bytes=4096) for _ in range(3)]
    reader = await follow(stage, kind)
    await stage.converged(reader, *stalled)
    version = 0
    blocked = [await stage.client_of(peer) for peer in stalled]
    while not all(one.waiting and one.offset < stage.channel.log.end for one in blocked):
        version += 1
        stage.put(pod("d", str(version).rjust(700_000, "y"), version=version + 2))
        await stage.converged(reader)
    assert any(stage.server.transport.owed(one.fd) for one in blocked)
    assert not any(one.at_frame_end(stage.server.transport) for one in blocked)
    stage.put(*(pod(f"small{number}", "z", version=2) for number in range(500)))
    await stage.converged(reader, *stalled)
    assert stage.disconnects == {}


async def test_a_pong_is_read_while_bytes_are_owed(open_tls: OpenTlsStage, monkeypatch: pytest.MonkeyPatch) -> None:
    """The client takes slowly what the worker has sealed. Its pong is read meanwhile."""
    monkeypatch.setattr(tls_transport, "UNASKED_BYTES", 1 << 30)  # as if the kernel could not say what it takes
    # Long enough for the pong of this busy process. The clock runs fast while the client reads slowly.
    patient = msgspec.structs.replace(FAST, pong_timeout_seconds=120.0, no_progress_timeout_seconds=3600.0)
    stage = await open_tls(msgspec.structs.replace(patient, ping_interval_seconds=0.2, notsent_lowat_bytes=16 * 1024))
    slow = await stage.subscribe(receive_buffer_bytes=4096)
    await stage.converged(slow)
    slow.answers_pings = False
    server_end = await stage.client_of(slow)
    server_end.liveness.excuse_pong()
    await slow.read_until(lambda: server_end.liveness.pinged_at)
    stage.put(*(pod(f"p{number}", "y" * 50_000) for number in range(60)))
    await eventually(lambda: stage.server.transport.owed(server_end.fd))
    pongs = stage.server.stats.pongs_received
    slow.say(messages.Pong(1))
    await eventually(lambda: stage.server.stats.pongs_received == pongs + 1)
    assert stage.server.transport.owed(server_end.fd)
    ahead = 0.0
    with clock.replaced(monotonic=lambda: time.monotonic() + ahead, time_ns=time.time_ns, cpu_seconds=time.thread_time):
        for _ in range(10):
            slow.read(100)
            ahead += 15.0
            ticks = stage.server.keepalive._next_at
            await eventually(functools.partial(_has_ticked, stage, ticks + stage.limits.ping_interval_seconds))
        assert stage.disconnects == {}
        slow.answers_pings = True
        await stage.converged(slow)
        pongs = stage.server.stats.pongs_received
        await slow.read_until(lambda: stage.server.stats.pongs_received > pongs + 1)


def _has_ticked(stage: WorkerStand, until: float) -> bool:
    """Whether each client's turn has come since."""
    return stage.server.keepalive._next_at >= until


async def test_clients_that_fall_out_of_the_log_catch_up(open_tls: OpenTlsStage) -> None:
    limits = msgspec.structs.replace(FAST, notsent_lowat_bytes=16 * 1024)
    hub_limits = msgspec.structs.replace(HUB_LIMITS, log_budget_bytes=1 << 20, segment_bytes=1 << 18)
    stage = await open_tls(limits, hub_limits=hub_limits)
    slow = [await stage.subscribe(receive_buffer_bytes=4096) for _ in range(4)]
    await stage.converged(*slow)
    for number in range(200):
        stage.put(pod(f"p{number % 7}", str(number).rjust(30_000, "x"), version=number + 2))
        slow[number % 3].read(3_000)
        await asyncio.sleep(0.001)
    await stage.converged(*slow)
    assert stage.server.stats.counts.catch_ups > 0
    assert stage.disconnects == {}


async def test_a_good_common_name_or_a_good_uri_san(open_tls: OpenTlsStage, files: certificates.Files) -> None:
    stage = await open_tls(client_tls=files.settings(uri_san=AGENT_URI))
    for context in (
        certificates.client_context(files.authority),
        certificates.client_context(files.authority, uris=("spiffe://x", AGENT_URI), cn="other"),
        certificates.client_context(files.authority, uris=(AGENT_URI,), cn=""),
    ):
        stage.peers_tls = context
        await stage.converged(await stage.subscribe())
    assert stage.disconnects == {}


async def test_which_certificates_are_refused(open_tls: OpenTlsStage, files: certificates.Files) -> None:
    stage = await open_tls(client_tls=files.settings(uri_san=AGENT_URI))
    good = await stage.subscribe()
    await stage.converged(good)
    trusted, stranger = files.authority, trustme.CA()
    old = certificates.client_context(trusted)
    with pytest.warns(DeprecationWarning, match="TLSv1"):
        old.minimum_version, old.maximum_version = ssl.TLSVersion.TLSv1, ssl.TLSVersion.TLSv1_1
    old.set_ciphers("DEFAULT:@SECLEVEL=0")
    contexts = [
        certificates.client_context(trusted, cn="other"),
        certificates.client_context(trusted, uris=(f"{AGENT_URI}x",), cn=""),
        certificates.client_context(trusted, hosts=(AGENT,), cn=""),  # a DNS name is no common name
        certificates.client_context(trusted, usage=ExtendedKeyUsageOID.SERVER_AUTH),
        certificates.client_context(trusted, issuer=stranger),
        certificates.client_context(trusted, expired=True),
        certificates.client_context(trusted, anonymous=True),
        certificates.client_context(stranger, issuer=trusted),  # the client refuses the server
        old,
    ]
    for number, context in enumerate(contexts, start=1):
        await refused(stage, {"tls-failed": number}, context)
    stage.put(pod("a", "new", version=2))
    await stage.converged(good)


@pytest.mark.parametrize(
    "first",
    [
        frames.PREFACE + b"\x00" * 40,
        typha_peer.encoded(typha_peer.HELLO),
        b"GET / HTTP/1.1\r\nHost: x\r\n\r\n",
        b"\x16\x03\x01\x00\x05hello and more",
    ],
)
async def test_what_is_not_tls_ends_at_once(open_tls: OpenTlsStage, first: bytes) -> None:
    stage = await open_tls()
    stage.peers_tls = None
    peer = await stage.connect()
    peer.send(first)
    await eventually(lambda: stage.disconnects == {"tls-failed": 1})
    await eventually(lambda: not stage.server.poller.clients)


async def test_a_probe_that_connects_and_closes_is_no_failure(open_tls: OpenTlsStage) -> None:
    stage = await open_tls()
    stage.peers_tls = None
    for linger in (None, struct.pack("ii", 1, 0)):
        peer = await stage.connect()
        await eventually(lambda: len(stage.server.poller.clients) == 1)
        if linger is not None:
            peer.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
        peer.close()
        await eventually(lambda: not stage.server.poller.clients)
    assert stage.disconnects == {"client-closed": 2}


async def test_many_handshakes_at_once(open_tls: OpenTlsStage, files: certificates.Files) -> None:
    stage = await open_tls(msgspec.structs.replace(FAST, handshake_timeout_seconds=120.0))
    context = stage.peers_tls
    stage.peers_tls = None
    stalled = [await stage.connect() for _ in range(40)]
    for number, peer in enumerate(stalled):
        peer.send(b"\x16\x03\x01\x02\x00\x01"[: number % 7])
    stage.peers_tls = context
    peers = await asyncio.gather(*(stage.subscribe() for _ in range(300)))
    await stage.converged(*peers)
    assert stage.disconnects == {}
    assert len(stage.server.connections.handshaking) == 40


class DefectiveTls(tls.ClientTls, frozen=True, kw_only=True):
    """Fails on certificates with the common name "x", with an error that is no refusal."""

    def check_peer(self, certificate: Mapping[str, object]) -> None:
        """As for any certificate, or the defect."""
        if "('commonName', 'x')" in str(certificate["subject"]):
            raise ZeroDivisionError("a defect")
        super().check_peer(certificate)


async def test_a_defect_ends_that_connection(open_tls: OpenTlsStage, files: certificates.Files) -> None:
    stage = await open_tls(client_tls=DefectiveTls(**msgspec.structs.asdict(files.settings())))
    await refused(stage, {"server-error": 1}, certificates.client_context(files.authority, cn="x"))
    stage.peers_tls = certificates.client_context(files.authority)
    await stage.converged(await stage.subscribe())


@certificates.needs_rustls
async def test_a_panic_of_rust_in_a_step_ends_its_connections_and_not_the_worker(
    open_stage: OpenStage, tmp_path: pathlib.Path
) -> None:
    """A real one: no memory is as large as what is asked for."""
    files = certificates.make(tmp_path, tls.RUSTLS)
    module = importlib.import_module("typha_rustls")
    panics = 0

    def take_steps(batch: list[handshake_steps.Handshake], client_tls: tls.ClientTls) -> list[handshake_steps.Verdict]:
        nonlocal panics
        if not panics:
            panics += 1
            module.take_steps([], 1 << 63)
        return handshake_steps.take_steps(batch, client_tls)

    stage = await open_stage(FAST, client_tls=files.settings(), take_steps=take_steps)
    stage.in_sync()
    with structlog.testing.capture_logs() as lines:
        await refused(stage, {"server-error": 1}, certificates.client_context(files.authority))
    [defect] = [line for line in lines if line["event"] == "Defect in a TLS handshake"]
    assert "capacity overflow" in str(defect["exc_info"])
    assert not isinstance(defect["exc_info"], Exception)
    stage.peers_tls = certificates.client_context(files.authority)
    await stage.converged(await stage.subscribe())


async def test_new_certificates_are_for_new_connections(open_tls: OpenTlsStage, files: certificates.Files) -> None:
    stage = await open_tls(tls_look_seconds=0.0)
    before = await stage.subscribe()
    await stage.converged(before)
    (files.folder / "server.pem").write_text("half a certif")
    await eventually(lambda: stage.server.stats.counts.tls_reload_failures == 1)
    await stage.converged(await stage.subscribe())
    contexts = stage.contexts
    assert contexts is not None
    old = contexts.current
    renewed = trustme.CA()
    files.write(renewed)
    stage.peers_tls = certificates.client_context(renewed, issuer=files.authority)
    await eventually(lambda: contexts.current is not old)
    await stage.converged(before, await stage.subscribe())
    assert stage.server.stats.counts.tls_reload_failures == 1
    assert stage.disconnects == {}


async def test_our_client_resumes_its_session_until_the_files_change(
    open_tls: OpenTlsStage, files: certificates.Files
) -> None:
    stage = await open_tls(tls_look_seconds=0.0)
    sessions = certificates.WatchedSessions(certificates.client_context(files.authority))
    hello = messages.ClientHello(feed=stage.feed.name, agent="test")

    async def connect() -> None:
        address = f"127.0.0.1:{stage.address[1]}"
        stream = connection.stream(address, hello=hello, tls=sessions, server_name="localhost")
        async with asyncio.timeout(worker_stand.TIMEOUT_SECONDS), contextlib.aclosing(stream) as received:
            assert any([isinstance(await anext(received), messages.Status) for _ in range(5)])

    for _ in range(3):
        await connect()
    assert sessions.resumed == [False] + [files.engine == tls.RUSTLS] * 2
    contexts = stage.contexts
    assert contexts is not None
    before = contexts.current
    files.write()
    await eventually(lambda: contexts.current is not before)
    await connect()
    assert sessions.resumed[3:] == [False]
    contexts.client_tls = files.settings(cn="another")  # names are looked at each time
    with pytest.raises(errors.ClientError):
        await connect()
    await eventually(lambda: stage.disconnects.get("tls-failed") == 1)


async def test_goodbye_and_close_notify(open_tls: OpenTlsStage) -> None:
    stage = await open_tls()
    peer = await stage.subscribe()
    await stage.converged(peer)
    stage.handle.send(ipc.Drain(0.1, 0.1))
    stage.handle.flush()
    await peer.read_to_end()
    assert peer.goodbye is not None
    assert peer.goodbye.reason == "shutting-down"
    assert peer.ended_well


async def test_clients_hang_up_with_and_without_a_close_notify(open_tls: OpenTlsStage) -> None:
    stage = await open_tls()
    peers = [await stage.subscribe() for _ in range(3)]
    await stage.converged(*peers)
    first = peers[0].socket
    assert isinstance(first, ssl.SSLSocket)
    with pytest.raises(ssl.SSLWantReadError):
        first.unwrap()
    peers[1].close()
    peers[2].socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    peers[2].close()
    await eventually(lambda: stage.disconnects == {"client-closed": 3})
    await eventually(lambda: not stage.server.poller.clients)


async def test_a_broken_record_ends_that_connection(open_tls: OpenTlsStage) -> None:
    stage = await open_tls()
    peer, other = await stage.subscribe(), await stage.subscribe()
    await stage.converged(peer, other)
    raw = socket.socket(fileno=peer.socket.detach())
    raw.send(b"\x17\x03\x03\x00\x20" + b"x" * 32)
    await eventually(lambda: stage.disconnects == {"tls-failed": 1})
    raw.close()
    stage.put(pod("a", "new", version=2))
    await stage.converged(other)


class Flooder(Peer):
    """Sends records of its own making after its handshake."""

    maker: tls_records.RecordMaker

    def send(self, data: bytes) -> None:
        """In one record."""
        self.send_records(self.maker.record(tls_records.DATA, data))

    def send_records(self, records: bytes) -> int:
        """Past Python's TLS; returns how many bytes the socket took."""
        return os.write(self.socket.fileno(), records)


async def test_a_flood_of_key_updates_ends_and_others_are_served_meanwhile(
    open_tls: OpenTlsStage, files: certificates.Files, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stage = await open_tls()
    other = await stage.subscribe()
    stage.peers_tls = certificates.client_context(files.authority)
    stage.peers_tls.keylog_filename = str(tmp_path / "keys")
    flooder = await stage.join(Flooder)
    flooder.maker = tls_records.RecordMaker(tmp_path / "keys")
    flooder.say(messages.ClientHello(feed=stage.feed.name, agent="flooder"))
    await stage.converged(other, flooder)
    flooder.answers_pings = False
    records = b"".join(flooder.maker.key_update() for _ in range(20_000))
    received: list[int] = []  # bytes that other clients had been sent when the flooder was read from
    receive = stage.server.transport.receive

    def receive_observed(connection: transport.Connection, count: int, /) -> bytes:
        received.append(stage.server.stats.feeds[stage.feed.name].counts.bytes_sent)
        return receive(connection, count)

    monkeypatch.setattr(stage.server.transport, "receive", receive_observed)
    with structlog.testing.capture_logs() as lines:
        sent = version = 0
        while not stage.disconnects:
            with contextlib.suppress(BlockingIOError):
                sent += flooder.send_records(records[sent : sent + 20_000])
            version += 1
            stage.put(pod("a", str(version), version=version + 2))
            await asyncio.sleep(0)
    await stage.converged(other)
    if files.engine == tls.RUSTLS:  # which itself allows 32 in a row
        expected = ("tls-failed", "peer misbehaved: TooManyKeyUpdateRequests")
    else:
        expected = ("protocol-error", "too many TLS records without data")
        assert len(received) > 8  # 2 KiB at a time
        assert len(set(received)) > 1
    assert stage.disconnects == {expected[0]: 1}
    [line] = [line for line in lines if line["event"] == "Connection ended"]
    assert (line["agent"], line["detail"]) == ("flooder", expected[1])
