"""TLS on non-blocking sockets, with a peer that reads only when the test says so."""

import os
import pathlib
import random
import select
import socket
import ssl
import struct
from collections.abc import Iterator

import pytest

from tests.harness import certificates
from typha.worker import client, tls_transport, transport

RECORD = tls_transport.RECORD_BYTES
OFFER = tls_transport.OFFER_BYTES


class Pair:
    """A server's end with small buffers, and its client, after their handshake."""

    def __init__(self, files: certificates.Files, ends: tuple[socket.socket, socket.socket] | None = None) -> None:
        near, far = ends or socket.socketpair()
        near.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 40_000)
        self.near = (
            files.settings()
            .make_context()
            .wrap_socket(near, server_side=True, do_handshake_on_connect=False, suppress_ragged_eofs=True)
        )
        context = certificates.client_context(files.authority)
        self.client = context.wrap_socket(
            far, server_hostname="localhost", do_handshake_on_connect=False, suppress_ragged_eofs=False
        )
        for end in (self.near, self.client):
            end.setblocking(False)
        done = [False, False]
        while not all(done):
            for number, end in enumerate((self.client, self.near)):
                try:
                    end.do_handshake()
                    done[number] = True
                except (ssl.SSLWantReadError, ssl.SSLWantWriteError):
                    pass
        self.transport = tls_transport.TlsTransport()
        self.transport.opened(self.near)
        self.fd = self.near.fileno()
        self.read = bytearray()

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
def pair(tmp_path: pathlib.Path) -> Iterator[Pair]:
    """Closed after the test."""
    made = Pair(certificates.make(tmp_path))
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
    data = os.urandom(40 * RECORD)
    sent = pair.fill(data)
    assert pair.transport.owed(pair.fd) == OFFER
    with pytest.raises(BlockingIOError):
        pair.transport.write(pair.fd, data[sent:])
    assert pair.transport.owed(pair.fd) == OFFER
    with pytest.raises(OSError, match=r"10 bytes offered where 65536 are sealed"):
        pair.transport.write(pair.fd, data[sent : sent + 10])
    pair.drain()
    assert pair.transport.write(pair.fd, data[sent : sent + OFFER]) == OFFER
    assert pair.transport.owed(pair.fd) == 0
    pair.drain()
    assert bytes(pair.read) == data[: sent + OFFER]


def test_a_file_may_continue_what_a_view_began_and_the_other_way_round(pair: Pair) -> None:
    source = random.Random(5)
    data = source.randbytes(4_000_000)
    file = os.memfd_create("log")
    os.write(file, data)
    sent = 0
    while sent < len(data):
        reach = min(len(data), sent + source.randrange(OFFER, 300_000))
        try:
            if source.random() < 0.5:
                sent += pair.transport.write(pair.fd, memoryview(data)[sent:reach])
            else:
                sent += pair.transport.send_file(pair.fd, file, sent, reach - sent)
        except BlockingIOError:
            assert pair.transport.owed(pair.fd) > 0
            if source.random() < 0.7:
                pair.drain()
    pair.drain()
    os.close(file)
    assert bytes(pair.read) == data


def test_a_file_shorter_than_what_is_sealed_is_refused(pair: Pair) -> None:
    sent = pair.fill(os.urandom(40 * RECORD))
    assert sent > 0
    with pytest.raises(OSError, match=r"5 bytes offered"):
        pair.transport.send_file(pair.fd, 0, 0, 5)


def test_a_connection_that_owes_bytes_is_at_no_frames_end(pair: Pair) -> None:
    one = client.Client(pair.near, "", number=1, slot=0, now=0.0)
    assert one.at_frame_end(pair.transport)
    pair.fill(os.urandom(40 * RECORD))
    assert not one.waiting
    assert not one.at_frame_end(pair.transport)


def test_a_whole_record_is_received_whatever_is_asked_for(pair: Pair) -> None:
    with pytest.raises(BlockingIOError):
        pair.transport.receive(pair.near, 10)
    pair.client.send(b"x" * RECORD)
    pair.client.send(b"more")
    assert pair.transport.receive(pair.near, 10) == b"x" * RECORD
    assert pair.near.pending() == 0
    assert pair.transport.receive(pair.near, 10) == b"more"


def test_nothing_is_read_while_bytes_are_owed(pair: Pair) -> None:
    """A key update of the peer would make OpenSSL write at once, while it owes a record: it fails with "bad length"."""
    data = os.urandom(40 * RECORD)
    sent = pair.fill(data)
    pair.client.send(b"pong")
    for _ in range(3):
        with pytest.raises(transport.WriteFirst):
            pair.transport.receive(pair.near, 10)
    pair.drain()
    assert pair.transport.write(pair.fd, data[sent : sent + OFFER]) == OFFER
    assert pair.transport.receive(pair.near, 10) == b"pong"


def test_a_reset_is_seen_while_bytes_are_owed(tmp_path: pathlib.Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        far = socket.create_connection(listener.getsockname())
        near, _ = listener.accept()
        made = Pair(certificates.make(tmp_path), (near, far))
        made.fill(os.urandom(1000 * RECORD))
        far_end = socket.socket(fileno=made.client.detach())
        far_end.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        far_end.close()
        select.select([near_fd := made.fd], [], [], 5)
        assert near_fd == made.near.fileno()
        with pytest.raises(ConnectionResetError):
            made.transport.receive(made.near, 10)
        made.near.close()


class Answering:
    """A connection on which OpenSSL reports this error."""

    def __init__(self, error: ssl.SSLError) -> None:
        self.error = error

    def fileno(self) -> int:
        """Any number."""
        return 7

    def recv(self, count: int, /) -> bytes:
        """Fails."""
        raise self.error

    def send(self, data: bytes, flags: int = 0, /) -> int:
        """Fails."""
        raise self.error

    def getsockopt(self, level: int, option: int, length: int, /) -> bytes:
        """No option is set."""
        return bytes(length)

    def setsockopt(self, level: int, option: int, value: int | bytes, /) -> None:
        """Sets nothing."""

    def close(self) -> None:
        """Closes nothing."""


def test_a_read_that_must_write_first_says_so() -> None:
    through = tls_transport.TlsTransport()
    with pytest.raises(transport.WriteFirst):
        through.receive(Answering(ssl.SSLWantWriteError()), 10)
    with pytest.raises(BlockingIOError) as caught:
        through.receive(Answering(ssl.SSLWantReadError()), 10)
    assert not isinstance(caught.value, transport.WriteFirst)
    with pytest.raises(ssl.SSLError):
        through.receive(Answering(ssl.SSLError(1, "bad record mac")), 10)


def test_a_write_that_must_read_first_ends_the_connection(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    def cut_in_pieces(data: object) -> int:
        raise ssl.SSLWantReadError

    monkeypatch.setattr(pair.near, "send", cut_in_pieces)
    with pytest.raises(ssl.SSLWantReadError):
        pair.transport.write(pair.fd, b"x")
    assert pair.transport.release(pair.fd)


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
    pair.fill(os.urandom(40 * RECORD))
    assert pair.transport.release(pair.fd)
    assert pair.transport.owed(pair.fd) == 0
    assert pair.transport.release(pair.fd)
