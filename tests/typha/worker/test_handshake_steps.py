"""What one handshake may cost: bytes, steps, and the length of the first message. Plain sockets, and one thread."""

import contextlib
import select
import socket
import ssl
import struct
from collections.abc import Iterator

import pytest

from protocol.reasons import DisconnectReason
from tests.harness import certificates
from typha.worker import handshake_steps, tls, tls_session


class Ends:
    """Both ends of a connection; the server's takes a step when the test says so."""

    def __init__(self, files: certificates.Files, version: ssl.TLSVersion = ssl.TLSVersion.TLSv1_3) -> None:
        self.near, self.far = socket.socketpair()
        self.near.setblocking(False)
        self.settings = files.settings()
        self.contexts = tls.Contexts(self.settings)
        self.sessions = 0
        self.handshake = handshake_steps.Handshake(self.near, self._make_session)
        self.incoming, self.outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        context = certificates.client_context(files.authority)
        context.maximum_version = version
        self.client = context.wrap_bio(self.incoming, self.outgoing, server_hostname="localhost")

    def _make_session(self) -> tls_session.NewSession:
        self.sessions += 1
        return self.contexts.make_session()

    def step(self) -> handshake_steps.Verdict:
        """As in the thread."""
        [verdict] = handshake_steps.take_steps([self.handshake], self.settings)
        return verdict

    def client_step(self) -> bytes:
        """The client's next bytes."""
        with contextlib.suppress(ssl.SSLWantReadError):
            self.client.do_handshake()
        return self.outgoing.read()


@pytest.fixture
def ends(files: certificates.Files) -> Iterator[Ends]:
    """Closed after the test."""
    made = Ends(files)
    yield made
    made.near.close()
    made.far.close()


def test_data_behind_the_handshake_stays_in_the_socket(ends: Ends) -> None:
    ends.far.send(ends.client_step())
    assert ends.step() == handshake_steps.Verdict()
    ends.incoming.write(ends.far.recv(1 << 16))
    last = ends.client_step()
    ends.client.write(b"hello")
    hello = ends.outgoing.read()
    ends.far.send(last + hello)
    assert ends.step() == handshake_steps.Verdict(done=True)
    assert ends.near.recv(1 << 16) == hello
    assert ends.handshake.session is not None
    assert ends.handshake.session.open(hello).data == b"hello"


def test_a_handshake_in_pieces_makes_a_session_for_the_first_whole_record(ends: Ends) -> None:
    hello = ends.client_step()
    for position in range(100):
        ends.far.send(hello[position : position + 1])
        assert ends.step() == handshake_steps.Verdict()
    ends.far.send(hello[100:-1])
    assert ends.step() == handshake_steps.Verdict()
    assert ends.sessions == 0
    ends.far.send(hello[-1:])
    assert ends.step() == handshake_steps.Verdict()
    assert ends.sessions == 1
    assert ends.far.recv(10)[:1] == b"\x16"


def test_more_steps_than_any_agent_needs_end_it(ends: Ends) -> None:
    verdicts = []
    ends.far.send(b"\x16\x03\x01\x04\x00")
    for _ in range(300):
        ends.far.send(b"x")
        verdicts.append(ends.step())
    assert verdicts[:256] == [handshake_steps.Verdict()] * 256
    assert verdicts[256].reason is DisconnectReason.TLS_FAILED
    assert verdicts[256].detail == "no end of the TLS handshake after 261 bytes in 256 pieces"
    assert ends.sessions == 0


def test_more_bytes_than_any_agent_needs_end_it(ends: Ends) -> None:
    ends.far.send(ends.client_step())
    assert ends.step() == handshake_steps.Verdict()
    ends.handshake.received_bytes = 128 * 1024 + 1
    ends.far.send(b"x")
    assert ends.step().reason is DisconnectReason.TLS_FAILED


@pytest.mark.parametrize(
    ("first", "detail"),
    [
        (b"\x16\x03\x01\x00\xc8\x01" + (131_000).to_bytes(3) + bytes(196), "a ClientHello of 131000 bytes"),
        (b"\x16\x03\x01\x00\x03\x01\x00\x00", "a ClientHello in too small pieces"),
        (b"\x16\x03\x01\xff\xff" + bytes(17_000), None),
        (b"GET / HTTP/1.1\r\n\r\n", "the first bytes are not TLS"),
        (b"\x15\x03\x01\x00\x02\x02\x28", None),
    ],
)
def test_first_bytes_that_end_it(ends: Ends, first: bytes, detail: str | None) -> None:
    ends.far.send(first)
    verdict = handshake_steps.Verdict()
    while verdict == handshake_steps.Verdict():
        verdict = ends.step()
    assert verdict.reason is DisconnectReason.TLS_FAILED
    if detail is not None:
        assert verdict.detail == detail


def test_each_handshake_of_a_batch_gets_its_own_verdict(files: certificates.Files) -> None:
    """Those that are good go on whatever the others in the same call do."""
    batch = [Ends(files) for _ in range(6)]
    good, closed, silent, broken, late, other = batch
    for ends in batch:
        ends.far.send(ends.client_step())
    settings = files.settings()
    handshakes = [ends.handshake for ends in batch]
    assert handshake_steps.take_steps(handshakes, settings) == [handshake_steps.Verdict()] * 6
    for ends in (good, broken, late, other):
        ends.incoming.write(ends.far.recv(1 << 16))
    good.far.send(good.client_step())
    closed.far.close()
    broken.far.send(broken.client_step()[:-5] + b"other")
    piece = late.client_step()
    late.far.send(piece[:-1])
    other.far.send(other.client_step() + b"GET /")
    verdicts = handshake_steps.take_steps(handshakes, settings)
    assert [verdict.done for verdict in verdicts] == [True, False, False, False, False, True]
    reasons = [verdict.reason for verdict in verdicts]
    assert reasons == [None, DisconnectReason.CLIENT_CLOSED, None, DisconnectReason.TLS_FAILED, None, None]
    assert [verdict.defect for verdict in verdicts] == [None] * 6
    assert other.near.recv(100) == b"GET /"
    late.far.send(piece[-1:])
    assert [one.done for one in handshake_steps.take_steps([late.handshake, silent.handshake], settings)] == [
        True,
        False,
    ]
    assert broken.far.recv(1 << 16)  # the server's own messages, and an alert
    for ends in batch:
        ends.near.close()
        ends.far.close()


def test_a_reset_in_a_handshake_is_no_defect(files: certificates.Files) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        far = socket.create_connection(listener.getsockname())
        near, _ = listener.accept()
    near.setblocking(False)
    handshake = handshake_steps.Handshake(near, tls.Contexts(files.settings()).make_session)
    ends = Ends(files)
    far.send(ends.client_step())
    select.select([near], [], [], 5)
    assert handshake_steps.take_steps([handshake], files.settings()) == [handshake_steps.Verdict()]
    far.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    far.close()
    select.select([near], [], [], 5)
    [verdict] = handshake_steps.take_steps([handshake], files.settings())
    assert (verdict.reason, verdict.defect) == (DisconnectReason.CLIENT_CLOSED, None)
    for end in (near, ends.near, ends.far):
        end.close()


@pytest.mark.parametrize("full_in_step", [1, 2])
def test_an_answer_that_the_socket_does_not_take_waits_for_it(files: certificates.Files, full_in_step: int) -> None:
    """Also the last one, without which a client of TLS 1.2 says nothing."""
    ends = Ends(files, ssl.TLSVersion.TLSv1_2)
    ends.near.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1)
    for step in (1, 2):
        filled = 0
        with contextlib.suppress(BlockingIOError):
            while step == full_in_step:
                filled += ends.near.send(bytes(1_000))
        ends.far.send(ends.client_step())
        if filled:
            assert [ends.step(), ends.step()] == [handshake_steps.Verdict(wants_write=True)] * 2
        while filled:
            filled -= len(ends.far.recv(min(filled, 1 << 16)))
        assert ends.step() == handshake_steps.Verdict(done=step == 2)
        ends.incoming.write(ends.far.recv(1 << 16))
    ends.client_step()
    assert ends.client.version() == "TLSv1.2"
    assert ends.handshake.session is not None
    assert ends.client.write(b"hello") == 5
    ends.near.close()
    ends.far.close()
