"""TLS on non-blocking sockets, with a peer that reads only when the test says so."""

import contextlib
import fcntl
import itertools
import os
import pathlib
import random
import select
import socket
import ssl
import struct
import termios
from collections.abc import Iterator

import pytest

from cache.state import memfile
from protocol import errors
from tests.harness import certificates, tls_records
from typha.worker import client, handshake_steps, tls, tls_session, tls_transport

RECORD = tls_transport.RECORD_BYTES
OFFER = tls_transport.OFFER_BYTES


class Pair:
    """A server's end with small buffers, and its client, after their handshake."""

    def __init__(
        self,
        files: certificates.Files,
        *,
        sessions: tls_session.Sessions | None = None,
        version: ssl.TLSVersion = ssl.TLSVersion.TLSv1_3,
        key_log: pathlib.Path | None = None,
        ends: tuple[socket.socket, socket.socket] | None = None,
        send_buffer_bytes: int = 40_000,
    ) -> None:
        self.near, far = ends or socket.socketpair()
        self.near.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, send_buffer_bytes)
        context = certificates.client_context(files.authority)
        context.maximum_version = version
        if key_log is not None:
            context.keylog_filename = str(key_log)
        self.client = context.wrap_socket(
            far, server_hostname="localhost", do_handshake_on_connect=False, suppress_ragged_eofs=False
        )
        for end in (self.near, self.client):
            end.setblocking(False)
        settings = files.settings()
        contexts = tls.Contexts(settings)
        make_session = contexts.make_session if sessions is None else lambda: sessions.make(settings.make_context())
        shaking = handshake_steps.Handshake(self.near, make_session)
        self.server_hello = b""
        verdict, is_done = handshake_steps.Verdict(), False
        while not (is_done and verdict.done):
            assert verdict.reason is None
            with contextlib.suppress(ssl.SSLWantReadError):
                self.client.do_handshake()
                is_done = True
            if not verdict.done:
                [verdict] = handshake_steps.take_steps([shaking], settings)
            if not self.server_hello and shaking.session is not None:
                with socket.socket(fileno=os.dup(self.client.fileno())) as same:
                    select.select([same], [], [], 5)
                    self.server_hello = same.recv(100, socket.MSG_PEEK)
        self.transport = tls_transport.TlsTransport()
        assert shaking.session is not None
        self.transport.opened(self.near, shaking.session)
        self.fd = self.near.fileno()
        self.read = bytearray()

    def receive(self) -> bytes:
        """What the server's end receives next, at most a moment later."""
        select.select([self.near], [], [], 5)
        return self.transport.receive(self.near, 10)

    def drain(self) -> None:
        """The client reads everything that has arrived."""
        while True:
            try:
                data = self.client.recv(1 << 16)
            except ssl.SSLWantReadError:
                return
            if not data:
                return
            self.read += data

    def fill(self, data: bytes) -> int:
        """Sends from the beginning until the socket is full; returns how many bytes were sent."""
        sent = 0
        try:
            while sent < len(data):
                sent += self.transport.write(self.fd, memoryview(data)[sent:])
        except BlockingIOError:
            return sent
        raise AssertionError("it was never full")


@pytest.fixture
def pair(files: certificates.Files) -> Iterator[Pair]:
    """Closed after the test."""
    made = Pair(files)
    yield made
    made.near.close()
    made.client.close()


def test_small_and_large_writes_arrive(pair: Pair) -> None:
    assert isinstance(pair.transport, tls_transport.TlsTransport)
    data = os.urandom(3 * RECORD)
    sent = 0
    for size in (1, 700, 2 * RECORD, 3 * RECORD):
        part = memoryview(data)[:size]
        done = 0
        while done < size:
            try:
                done += pair.transport.write(pair.fd, part[done:])
            except BlockingIOError:
                pair.drain()
        sent += size
    pair.drain()
    assert bytes(pair.read) == data[:1] + data[:700] + data[: 2 * RECORD] + data


def test_sealed_bytes_are_owed_until_they_are_sent(pair: Pair) -> None:
    data = os.urandom(400 * RECORD)
    sent = pair.fill(data)
    assert pair.transport.owed(pair.fd) == OFFER
    with pytest.raises(BlockingIOError):
        pair.transport.write(pair.fd, data[sent:])
    assert pair.transport.owed(pair.fd) == OFFER
    with pytest.raises(OSError, match=f"10 bytes offered where {OFFER} are sealed"):
        pair.transport.write(pair.fd, data[sent : sent + 10])
    pair.drain()
    assert pair.transport.write(pair.fd, data[sent : sent + OFFER]) == OFFER
    assert pair.transport.owed(pair.fd) == 0
    pair.drain()
    assert bytes(pair.read) == data[: sent + OFFER]


def test_what_was_kept_and_is_not_any_more_is_counted(files: certificates.Files, pair: Pair) -> None:
    """By a client that reads again, and by one that goes."""
    data = os.urandom(1 << 22)
    sent = pair.fill(data)
    assert pair.transport.freed_pieces == 0
    pair.drain()
    pair.transport.write(pair.fd, memoryview(data)[sent:])
    assert pair.transport.freed_pieces == 1
    with contextlib.suppress(AssertionError):
        pair.fill(data)
    before = pair.transport.freed_pieces
    pair.transport.release(pair.fd)
    assert pair.transport.freed_pieces == before + 1


def test_a_file_may_continue_what_a_view_began_and_the_other_way_round(pair: Pair) -> None:
    source = random.Random(5)
    data = source.randbytes(4_000_000)
    file = os.memfd_create("log")
    os.write(file, data)
    mapped = memfile.map_readonly(file, len(data))
    sent = 0
    while sent < len(data):
        reach = min(len(data), sent + source.randrange(OFFER, 300_000))
        try:
            if source.random() < 0.5:
                sent += pair.transport.write(pair.fd, memoryview(data)[sent:reach])
            else:
                sent += pair.transport.write(pair.fd, mapped[sent:reach])
        except BlockingIOError:
            assert pair.transport.owed(pair.fd) > 0
            if source.random() < 0.7:
                pair.drain()
    pair.drain()
    os.close(file)
    assert bytes(pair.read) == data


def test_a_turn_ends_whatever_room_the_socket_has(files: certificates.Files) -> None:
    """The kernel must not decide for how long one call seals."""
    pair = Pair(files)
    pair.near.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4_000_000)
    assert pair.transport.write(pair.fd, bytes(3_000_000)) <= tls_transport.TURN_BYTES
    pair.near.close()
    pair.client.close()


def test_less_than_what_is_sealed_is_refused(pair: Pair) -> None:
    sent = pair.fill(os.urandom(400 * RECORD))
    assert sent > 0
    with pytest.raises(OSError, match=r"5 bytes offered"):
        pair.transport.write(pair.fd, b"short")


def test_a_connection_that_owes_bytes_is_at_no_frames_end(pair: Pair) -> None:
    one = client.Client(pair.near, "", number=1, slot=0, now=0.0)
    assert one.at_frame_end(pair.transport)
    pair.fill(os.urandom(400 * RECORD))
    assert not one.waiting
    assert not one.at_frame_end(pair.transport)


def test_all_data_that_has_arrived_is_received_whatever_is_asked_for(pair: Pair) -> None:
    with pytest.raises(BlockingIOError):
        pair.transport.receive(pair.near, 10)
    pair.client.send(b"x" * RECORD)
    pair.client.send(b"more")
    received, parts = b"", 0
    while len(received) < RECORD + 4:
        with contextlib.suppress(BlockingIOError):
            received += pair.receive()
        parts += 1
    assert received == b"x" * RECORD + b"more"
    assert parts >= RECORD / tls_transport.RECEIVED_BYTES  # OpenSSL gets no more at a time


def test_bytes_are_read_while_others_are_owed(pair: Pair) -> None:
    data = os.urandom(400 * RECORD)
    sent = pair.fill(data)
    pair.client.send(b"pong")
    assert pair.receive() == b"pong"
    pair.drain()
    assert pair.transport.write(pair.fd, data[sent : sent + OFFER]) == OFFER
    pair.drain()
    assert bytes(pair.read) == data[: sent + OFFER]


@pytest.mark.parametrize("unsent_bytes", [128 * 1024, 512 * 1024])
def test_little_is_kept_for_a_client_that_reads_slowly(files: certificates.Files, unsent_bytes: int) -> None:
    """What is sealed and not sent is memory, for each client that does not read."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        far = socket.create_connection(listener.getsockname())
        near, _ = listener.accept()
    near.setsockopt(socket.IPPROTO_TCP, socket.TCP_NOTSENT_LOWAT, unsent_bytes)
    pair = Pair(files, ends=(near, far), send_buffer_bytes=4_000_000)
    source = random.Random(unsent_bytes)
    data = source.randbytes(12_000_000)
    sent, most_kept, calls = 0, 0, 0
    with near, pair.client:
        while sent < len(data):
            if select.select([], [near], [], 0)[1]:
                calls += 1
                offer = memoryview(data)[sent : sent + source.randrange(OFFER, 1 << 20)]
                with contextlib.suppress(BlockingIOError):
                    sent += pair.transport.write(pair.fd, offer)
                most_kept = max(most_kept, pair.transport.owed(pair.fd))
            for _ in range(source.randrange(20)):
                with contextlib.suppress(ssl.SSLWantReadError):
                    pair.read += pair.client.recv(source.randrange(1, 100_000))
    assert most_kept <= tls_transport.UNASKED_BYTES
    assert sent / calls > 60_000  # and it is not sent in small pieces
    assert bytes(pair.read) == data[: len(pair.read)]


def test_a_reset_is_seen_while_bytes_are_owed(files: certificates.Files) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        far = socket.create_connection(listener.getsockname())
        near, _ = listener.accept()
    pair = Pair(files, ends=(near, far))
    pair.fill(os.urandom(1000 * RECORD))
    far_end = socket.socket(fileno=pair.client.detach())
    far_end.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    far_end.close()
    with pytest.raises(ConnectionResetError):
        pair.receive()
    pair.near.close()


def test_data_before_the_end_of_the_stream_is_received_and_then_the_end(pair: Pair) -> None:
    pair.client.send(b"last")
    with pytest.raises(ssl.SSLWantReadError):
        pair.client.unwrap()
    assert [pair.receive(), pair.receive()] == [b"last", b""]


def test_a_broken_record_ends_the_connection(pair: Pair) -> None:
    far = socket.socket(fileno=pair.client.detach())
    far.send(b"\x17\x03\x03\x00\x20" + b"x" * 32)
    with pytest.raises(ssl.SSLError, match=r"BAD_RECORD_MAC|bad record mac|cannot decrypt"):
        pair.receive()
    assert pair.transport.release(pair.fd)
    assert far.recv(100)  # the alert
    far.close()


def test_release_sends_a_close_notify(pair: Pair) -> None:
    pair.transport.write(pair.fd, b"last")
    assert pair.transport.release(pair.fd)
    pair.drain()  # without the close_notify this would raise
    assert bytes(pair.read) == b"last"
    assert pair.client.recv(10) == b""
    assert pair.transport.owed(pair.fd) == 0


def test_release_of_a_full_connection_and_of_one_in_a_step(pair: Pair) -> None:
    pair.transport.stepping = frozenset({pair.fd})
    assert not pair.transport.release(pair.fd)
    pair.transport.stepping = frozenset()
    pair.fill(os.urandom(400 * RECORD))
    assert pair.transport.release(pair.fd)
    assert pair.transport.owed(pair.fd) == 0
    assert pair.transport.release(pair.fd)


class Flood:
    """A client that sends records of its own making."""

    def __init__(self, files: certificates.Files, version: ssl.TLSVersion = ssl.TLSVersion.TLSv1_3) -> None:
        self.engine = files.engine
        self.pair = Pair(files, key_log=files.folder / "keys", version=version)
        if version is ssl.TLSVersion.TLSv1_3:
            self.maker = tls_records.RecordMaker(files.folder / "keys")
        self.far = socket.socket(fileno=self.pair.client.detach())
        self.far.setblocking(False)
        if version is ssl.TLSVersion.TLSv1_3 and files.engine == tls.RUSTLS:
            header = self.far.recv(5)  # of the record with the ticket
            self.far.recv(int.from_bytes(header[3:]))

    def send(self, records: bytes) -> None:
        """The server's end has all of them."""
        self.far.send(records)
        while self.unread() < len(records):
            pass

    def read(self, count: int) -> int:
        """Reads until as many bytes have come, or nothing more comes; returns how many have."""
        taken = 0
        while taken < count and select.select([self.far], [], [], 1)[0]:
            taken += len(self.far.recv(count - taken))
        return taken

    def unread(self) -> int:
        """Bytes that wait in the server's socket."""
        [count] = struct.unpack("i", fcntl.ioctl(self.pair.near, termios.FIONREAD, bytes(4)))
        return int(count)

    def close(self) -> None:
        """Closes both ends."""
        self.pair.near.close()
        self.far.close()


@pytest.fixture
def flood(files: certificates.Files) -> Iterator[Flood]:
    """Closed after the test."""
    made = Flood(files)
    yield made
    made.close()


def test_key_updates_are_read_a_few_at_a_time_and_not_for_long(flood: Flood) -> None:
    """rustls itself allows 32 in a row."""
    flood.send(b"".join(flood.maker.key_update() for _ in range(2_000)))
    unread = [flood.unread()]
    refusal = ""
    while not refusal:
        try:
            flood.pair.receive()
        except BlockingIOError:
            pass
        except (errors.RemoteProtocolError, ssl.SSLError) as error:
            refusal = str(error)
        unread.append(flood.unread())
    assert {before - after for before, after in itertools.pairwise(unread)} == {tls_transport.RECEIVED_BYTES}
    expected = {
        tls.OPENSSL: (32 * 1024 // tls_transport.RECEIVED_BYTES + 1, "too many TLS records without data"),
        tls.RUSTLS: (1, "peer misbehaved: TooManyKeyUpdateRequests"),
    }
    assert (len(unread) - 1, refusal) == expected[flood.engine]


def test_a_few_key_updates_are_fine_and_answered(flood: Flood) -> None:
    flood.send(flood.maker.key_update(wants_answer=True) + flood.maker.record(tls_records.DATA, b"pong"))
    assert flood.pair.receive() == b"pong"
    flood.pair.transport.write(flood.pair.fd, b"x")  # the answer goes before it
    assert flood.read(1 << 30) == 27 + 23
    for number in range(100):
        flood.send(flood.maker.key_update() + flood.maker.record(tls_records.DATA, bytes([number])))
        assert flood.pair.receive() == bytes([number])


def test_answers_to_a_client_that_reads_none_are_limited(flood: Flood) -> None:
    """rustls keeps one answer at most, so only the records themselves are too many."""
    flood.pair.fill(os.urandom(400 * RECORD))
    owed = flood.pair.transport.owed(flood.pair.fd)
    refusal = ""
    while not refusal:
        flood.send(flood.maker.key_update(wants_answer=True) + flood.maker.record(tls_records.DATA, b"x" * 30))
        try:
            assert flood.pair.receive() == b"x" * 30
        except errors.RemoteProtocolError as error:
            refusal = str(error)
    assert {tls.OPENSSL: "want an answer", tls.RUSTLS: "without data"}[flood.engine] in refusal
    assert flood.pair.transport.owed(flood.pair.fd) == owed


def test_answers_go_out_behind_what_is_owed(flood: Flood) -> None:
    data = os.urandom(400 * RECORD)
    sent = flood.pair.fill(data)
    updates = flood.maker.key_update(wants_answer=True) + flood.maker.key_update()  # which OpenSSL answers in the read
    flood.send(updates + flood.maker.record(tls_records.DATA, b"pong"))
    assert flood.pair.receive() == b"pong"
    sealed = sent + OFFER + (sent + OFFER) // RECORD * 22
    assert flood.read(sent) == sent
    assert flood.pair.transport.write(flood.pair.fd, data[sent : sent + OFFER]) == OFFER
    flood.pair.transport.write(flood.pair.fd, b"x")  # before which rustls answers
    assert flood.read(1 << 30) == sealed + 27 + 23 - sent


@pytest.mark.parametrize("kind", [tls_records.ALERT, tls_records.DATA])
def test_alerts_and_empty_records_end_the_connection(flood: Flood, kind: int) -> None:
    content = bytes([1, 90]) if kind == tls_records.ALERT else b""  # a warning: user_canceled
    flood.send(b"".join(flood.maker.record(kind, content) for _ in range(100)))
    with pytest.raises(ssl.SSLError, match=r"TOO_MANY|too many|RECORD_TOO_SMALL|too small|TooMany"):
        flood.pair.receive()


@pytest.mark.parametrize(
    ("kind", "content"),
    [
        (tls_records.ALERT, bytes([1, 90])),
        (tls_records.DATA, b""),
        (tls_records.HANDSHAKE, b"\x01\x00\x00\x28" + bytes(40)),  # once more, please
        (tls_records.HEARTBEAT, b"\x01\xff\xff" + bytes(20)),
    ],
)
def test_records_without_data_of_the_old_version_end_the_connection(
    files: certificates.Files, kind: int, content: bytes
) -> None:
    flood = Flood(files, ssl.TLSVersion.TLSv1_2)
    maker = tls_records.OldRecordMaker(files.folder / "keys", flood.pair.server_hello)
    flood.send(maker.record(tls_records.DATA, b"data"))
    assert flood.pair.receive() == b"data"
    flood.send(b"".join(maker.record(kind, content) for _ in range(1_000)))
    refused: Exception | None = None
    while refused is None:
        try:
            flood.pair.receive()
        except BlockingIOError:
            pass
        except (ssl.SSLError, errors.RemoteProtocolError) as failure:
            refused = failure
    ignored = files.engine == tls.OPENSSL and kind == tls_records.HANDSHAKE
    assert isinstance(refused, errors.RemoteProtocolError if ignored else ssl.SSLError)
    flood.close()


@pytest.mark.parametrize("kind", [tls_records.HANDSHAKE, tls_records.HEARTBEAT, tls_records.CHANGE_CIPHER_SPEC])
def test_what_no_agent_sends_after_its_handshake_ends_the_connection(flood: Flood, kind: int) -> None:
    """Another first message, a heartbeat, a change of ciphers that is sealed."""
    flood.send(flood.maker.record(kind, {tls_records.HANDSHAKE: b"\x01\x00\x00\x28" + bytes(40)}.get(kind, b"\x01")))
    with pytest.raises(ssl.SSLError):
        flood.pair.receive()


def test_padding_is_no_data(flood: Flood) -> None:
    for _ in range(2):
        flood.send(flood.maker.record(tls_records.DATA, b"x", padding=16_000))
        for _ in range(16_000 // tls_transport.RECEIVED_BYTES):
            with pytest.raises(BlockingIOError):
                flood.pair.receive()
        assert flood.pair.receive() == b"x"
    flood.send(flood.maker.record(tls_records.DATA, b"x", padding=16_000))
    with pytest.raises(errors.RemoteProtocolError, match="without data"):
        flood.pair.receive()


@pytest.mark.slow
def test_many_small_messages_are_no_flood(flood: Flood) -> None:
    for _ in range(2_000):
        flood.send(flood.maker.record(tls_records.DATA, b"x"))
        assert flood.pair.receive() == b"x"


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(8))
def test_connections_that_share_memory_never_see_each_others_bytes(tmp_path: pathlib.Path, seed: int) -> None:
    """One behaves, the others do anything: what OpenSSL leaves of their bytes must not come up anywhere else."""
    source = random.Random(seed)
    files = certificates.make(tmp_path)
    sessions = tls_session.Sessions(1)
    version = source.choice([ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
    good = Pair(files, sessions=sessions, version=version)
    for _ in range(4):
        bad = Pair(files, sessions=sessions, version=source.choice([version, ssl.TLSVersion.TLSv1_3]))
        far = socket.socket(fileno=bad.client.detach())
        for _ in range(source.randrange(1, 8)):
            junk = source.choice([b"\x17\x03\x03\x00\x20", b"\x16\x03\x01\x40\x00", b"\x15\x03\x03\x00\x02\x01\x00"])
            with contextlib.suppress(OSError):
                far.send((junk + source.randbytes(60))[: source.randrange(1, 66)])
            with contextlib.suppress(OSError, KeyError):
                bad.receive()
            with contextlib.suppress(OSError, KeyError):
                bad.transport.write(bad.fd, source.randbytes(source.choice([1, 900, 20_000])))
            said, told = source.randbytes(20), source.randbytes(300)
            good.client.send(said)
            assert good.receive() == said
            good.transport.write(good.fd, told)
            good.drain()
            assert bytes(good.read[-300:]) == told
        assert bad.transport.release(bad.fd)
        bad.near.close()
        far.close()
    good.near.close()
    good.client.close()
