"""The limits of an HTTP port, on real sockets: how many connections, for how long, and what they can make it do.

Limits that a test is not about are off, so that no test depends on the machine's speed.
"""

import asyncio
import collections
import contextlib
import errno
import pathlib
import socket
import ssl
from collections.abc import AsyncIterator
from typing import Any

import pytest
import structlog
from aiohttp import web

from tests.harness import certificates, worker_stand
from typha.observability import http_connections

NEVER = 10_000.0
"""Seconds. No test lives for so long."""
PATIENT = http_connections.Limits(
    head_seconds=NEVER,
    answer_seconds=NEVER,
    step_seconds=0.0,
    grace_seconds=0.0,
    accept_seconds=0.0,
    unsent_bytes=1 << 40,
    log_seconds=NEVER,
)
TIMEOUT_SECONDS = 180.0
GET = b"GET /page HTTP/1.1\r\nHost: a\r\n\r\n"


class Port:
    """A port of this process, and peers of it."""

    def __init__(self, limits: http_connections.Limits, body: bytes, tls: ssl.SSLContext | None) -> None:
        self.requests: list[str] = []
        self.refused: collections.Counter[str] = collections.Counter()
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.listener.setblocking(False)
        self.address: tuple[str, int] = self.listener.getsockname()
        self.connections = http_connections.HttpConnections("test", web.Server(self._handle), self.refused, limits)
        self.connections.tls = tls
        self._body = body
        self._peers: list[socket.socket] = []

    async def _handle(self, request: web.BaseRequest) -> web.Response:
        self.requests.append(request.raw_path)
        return http_connections.answer(200, self._body)

    async def connect(self, said: bytes = b"", *, source: str = "127.0.0.1", receive_buffer: int = 0) -> socket.socket:
        """A peer that has said something."""
        peer = socket.socket()
        self._peers.append(peer)
        if receive_buffer:
            peer.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
        peer.bind((source, 0))
        peer.setblocking(False)
        loop = asyncio.get_running_loop()
        await loop.sock_connect(peer, self.address)
        if said:
            await loop.sock_sendall(peer, said)
        return peer

    async def ask(self, said: bytes = GET) -> bytes:
        """The whole answer to a new connection that says this."""
        return await heard(await self.connect(said))

    async def close(self) -> None:
        for peer in self._peers:
            peer.close()
        await self.connections.close()
        self.listener.close()


async def heard(peer: socket.socket) -> bytes:
    """All that the port says until it closes the connection."""
    loop, said = asyncio.get_running_loop(), b""
    async with asyncio.timeout(TIMEOUT_SECONDS):
        with contextlib.suppress(ConnectionResetError):
            while part := await loop.sock_recv(peer, 65536):
                said += part
    return said


async def send_for_ever(peer: socket.socket, data: bytes, *, pause_seconds: float = 0.0) -> None:
    """Send a thousand times. Raises ConnectionError once the port has closed the connection."""
    async with asyncio.timeout(TIMEOUT_SECONDS):
        for _ in range(1000):
            await asyncio.get_running_loop().sock_sendall(peer, data)
            await asyncio.sleep(pause_seconds)


@contextlib.asynccontextmanager
async def opened(
    limits: http_connections.Limits = PATIENT,
    *,
    body: bytes = b"fine",
    tls: ssl.SSLContext | None = None,
    listens: bool = True,
) -> AsyncIterator[Port]:
    port = Port(limits, body, tls)
    if listens:
        port.connections.listen([port.listener])
    try:
        yield port
    finally:
        await port.close()


async def test_one_request_is_answered_and_the_connection_is_closed() -> None:
    async with opened() as port:
        head, _, body = (await port.ask()).partition(b"\r\n\r\n")
        assert body == b"fine"
        lines = head.decode().splitlines()
        assert lines[0] == "HTTP/1.1 200 OK"
        assert "Connection: close" in lines
        assert "Server: typha" in lines
        assert not any(word in head for word in (b"Python", b"aiohttp"))
        await worker_stand.eventually(lambda: len(port.connections) == 0)
        assert port.refused.total() == 0


async def test_requests_that_are_pipelined_behind_the_first_are_not_answered() -> None:
    async with opened() as port:
        assert (await port.ask(GET * 200)).count(b"HTTP/1.1") == 1
        assert port.requests == ["/page"]
        assert (await port.ask(GET + b"\x00\xff\r\n\r\n")).endswith(b"fine")  # nor parsed


async def test_idle_connections_give_way_oldest_first_and_a_scrape_gets_in() -> None:
    async with opened(PATIENT._replace(connections=4)) as port:
        idle = [await port.connect(source="127.0.0.1") for _ in range(100)]
        assert (await port.ask()).endswith(b"fine")
        assert [await heard(peer) for peer in idle[:96]] == [b""] * 96
        assert port.refused == {http_connections.TOO_MANY: 97}
        assert len(port.connections) <= 4


async def test_the_address_with_the_most_connections_gives_way() -> None:
    async with opened(PATIENT._replace(connections=4)) as port:
        slow = await port.connect(GET[:10], source="127.0.0.2")
        await worker_stand.eventually(lambda: len(port.connections) == 1)
        for _ in range(50):
            await port.connect(source="127.0.0.3")
        await worker_stand.eventually(lambda: port.refused[http_connections.TOO_MANY] == 47)
        await asyncio.get_running_loop().sock_sendall(slow, GET[10:])
        assert (await heard(slow)).endswith(b"fine")


async def test_a_connection_that_does_not_read_its_answer_gives_way_after_the_idle_ones() -> None:
    async with opened(PATIENT._replace(connections=3), body=b"x" * 32_000_000) as port:
        unread = await port.connect(GET, receive_buffer=4096)
        await worker_stand.eventually(lambda: len(port.requests) == 1)
        idle = [await port.connect(), await port.connect()]
        await worker_stand.eventually(lambda: len(port.connections) == 3)
        await port.connect()
        assert await heard(idle[0]) == b""
        assert len(port.connections) == 3
        for _ in range(2):  # these ask, so that nobody is idle
            await port.connect(GET, receive_buffer=4096)
        await worker_stand.eventually(lambda: len(port.requests) == 3)
        await port.connect(GET, receive_buffer=4096)
        await worker_stand.eventually(lambda: len(port.requests) == 4)
        assert len(await heard(unread)) < 32_000_000


async def test_answers_that_nobody_takes_have_a_limit_together_and_the_newest_is_given() -> None:
    async with opened(PATIENT._replace(unsent_bytes=40_000_000), body=b"x" * 32_000_000) as port:
        unread = await port.connect(GET, receive_buffer=4096)
        await worker_stand.eventually(lambda: len(port.requests) == 1)
        assert len(await port.ask()) > 32_000_000
        assert len(await heard(unread)) < 32_000_000
        assert port.refused == {http_connections.TOO_MANY: 1}
        assert len(await port.ask()) > 32_000_000  # alone, there is room
        assert port.refused == {http_connections.TOO_MANY: 1}


async def test_a_connection_that_has_just_spoken_keeps_its_place() -> None:
    async with opened(PATIENT._replace(connections=2, step_seconds=0.001, grace_seconds=NEVER)) as port:
        slow = await port.connect(GET[:10])
        await worker_stand.eventually(lambda: port.connections.steps == 1)
        for _ in range(20):
            await port.connect()
        await worker_stand.eventually(lambda: port.refused[http_connections.TOO_MANY] == 19)
        await port.connect(GET[:10])
        await worker_stand.eventually(lambda: port.connections.steps == 2)
        late = await port.connect(GET)
        for _ in range(100):
            await asyncio.sleep(0)
        await asyncio.get_running_loop().sock_sendall(slow, GET[10:])
        assert (await heard(slow)).endswith(b"fine")
        assert (await heard(late)).endswith(b"fine")
        assert port.refused[http_connections.TOO_MANY] == 20


async def test_peers_that_drip_do_not_keep_their_places() -> None:
    limits = PATIENT._replace(connections=2, grace_seconds=NEVER, grace_steps=2)
    async with opened(limits) as port:
        loop = asyncio.get_running_loop()
        drips = [await port.connect(b"G"), await port.connect(b"G")]
        await worker_stand.eventually(lambda: port.connections.steps == 2)
        await port.connect()  # waits in the kernel
        await loop.sock_sendall(drips[1], b"E")
        assert await heard(drips[1]) == b""
        assert len(port.connections) == 2


async def test_an_address_with_many_connections_does_not_keep_its_places() -> None:
    async with opened(PATIENT._replace(connections=4, grace_seconds=NEVER, grace_share=2)) as port:
        crowd = [await port.connect(GET[:9], source="127.0.0.3") for _ in range(3)]
        few = await port.connect(GET[:9], source="127.0.0.2")
        await worker_stand.eventually(lambda: port.connections.steps == 4)
        assert (await port.ask()).endswith(b"fine")
        assert await heard(crowd[0]) == b""
        await asyncio.get_running_loop().sock_sendall(few, GET[9:])
        assert (await heard(few)).endswith(b"fine")


async def test_a_head_that_does_not_end_is_given_up() -> None:
    async with opened(PATIENT._replace(head_seconds=0.05)) as port:
        assert await port.ask(GET[:-2]) == b""
        assert await port.ask(b"") == b""
        assert port.refused == {http_connections.TIMEOUT: 2}


async def test_bytes_that_trickle_in_do_not_extend_the_deadline() -> None:
    async with opened(PATIENT._replace(head_seconds=0.2)) as port:
        peer = await port.connect()
        with pytest.raises(ConnectionError):
            await send_for_ever(peer, b"G", pause_seconds=0.001)
        assert port.refused == {http_connections.TIMEOUT: 1}


async def test_an_answer_that_is_not_read_is_given_up() -> None:
    async with opened(PATIENT._replace(answer_seconds=0.05), body=b"x" * 32_000_000) as port:
        peer = await port.connect(GET, receive_buffer=4096)
        await worker_stand.eventually(lambda: port.refused[http_connections.TIMEOUT] == 1)
        assert len(await heard(peer)) < 32_000_000
        assert len(port.connections) == 0


async def test_a_head_that_is_too_large_is_refused() -> None:
    async with opened() as port:
        for line in (b"X: " + b"x" * 9000, b"X: x\r\n" * 1500):
            assert (await port.ask(b"GET / HTTP/1.1\r\n" + line + b"\r\n\r\n")).startswith(b"HTTP/1.1 431 ")
        assert port.requests == []
        assert port.refused == {http_connections.BAD_REQUEST: 2}


async def test_a_body_is_not_read() -> None:
    async with opened() as port:
        said = GET.replace(b"GET", b"POST").replace(b"\r\n\r\n", b"\r\nContent-Length: 1000000000\r\n\r\n")
        peer = await port.connect(said)
        with pytest.raises(ConnectionError):
            await send_for_ever(peer, b"x" * 1_000_000)
        assert len(port.requests) == 1


async def test_malformed_requests_get_one_line_and_no_traceback() -> None:
    async with opened() as port:
        with structlog.testing.capture_logs() as lines:
            for said in (
                b"\x00\xff\r\n\r\n",
                b"GET / HTTP/1.1\r\nbad\r\n\r\n",
                b"GET\r\n\r\n",
                b"GET / HTTP/9\r\n\r\n",
            ) * 25:
                answer = await port.ask(said)
                assert answer[8:].startswith(b" 400 ")
                assert not any(word in answer for word in (b"Python", b"aiohttp"))
    assert port.refused == {http_connections.BAD_REQUEST: 100}
    [line] = lines
    assert line["event"] == "Closed an HTTP connection"
    assert "exc_info" not in line


async def test_one_step_is_made_at_a_time() -> None:
    async with opened(PATIENT._replace(step_seconds=NEVER)) as port:
        peers = [await port.connect(GET) for _ in range(10)]
        await worker_stand.eventually(lambda: len(port.connections) >= 9 and port.requests != [])
        for _ in range(100):
            await asyncio.sleep(0)
        assert port.requests == ["/page"]
        peers[0].close()


async def test_connections_that_come_and_go_use_up_no_steps() -> None:
    async with opened(PATIENT._replace(step_seconds=NEVER)) as port:
        for _ in range(20):
            (await port.connect()).close()
        assert (await port.ask()).endswith(b"fine")
        assert port.refused.total() == 0


async def test_accepting_pauses_after_a_few() -> None:
    async with opened(PATIENT._replace(accept_seconds=NEVER, accepts_per_turn=3), listens=False) as port:
        for _ in range(10):
            await port.connect()
        port.connections.listen([port.listener])
        await worker_stand.eventually(lambda: len(port.connections) > 0)
        for _ in range(100):
            await asyncio.sleep(0)
        assert len(port.connections) == 3


class OutOfDescriptors(socket.socket):
    """A listening socket that fails a few times."""

    failures = 2

    def accept(self) -> tuple[socket.socket, Any]:
        if self.failures:
            self.failures -= 1
            raise OSError(errno.EMFILE, "Too many open files")
        return super().accept()


async def test_a_port_without_descriptors_gives_one_back_and_goes_on() -> None:
    async with opened(PATIENT._replace(out_of_resources_seconds=0.01)) as port:
        idle = await port.connect()
        await worker_stand.eventually(lambda: len(port.connections) == 1)
        poor = OutOfDescriptors(fileno=socket.create_server(("127.0.0.1", 0)).detach())
        poor.setblocking(False)
        port.address = poor.getsockname()
        port.connections.listen([poor])
        with structlog.testing.capture_logs() as lines:
            assert (await port.ask()).endswith(b"fine")
        assert await heard(idle) == b""
        assert port.refused == {http_connections.OUT_OF_RESOURCES: 2}
        assert len(lines) == 1


class TlsPeer:
    """A TLS client in memory, which shows how many bytes and records it sends."""

    def __init__(self, port: Port, context: ssl.SSLContext) -> None:
        self._port = port
        self._incoming, self._outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self.session = context.wrap_bio(self._incoming, self._outgoing, server_hostname="127.0.0.1")

    async def open(self) -> None:
        self._socket = await self._port.connect()
        while True:
            with contextlib.suppress(ssl.SSLWantReadError):
                self.session.do_handshake()
                await self.flush()
                return
            await self.flush()
            self._incoming.write(await asyncio.get_running_loop().sock_recv(self._socket, 65536))

    async def flush(self) -> None:
        await asyncio.get_running_loop().sock_sendall(self._socket, self._outgoing.read())

    async def heard(self) -> bytes:
        """What the port says until it ends the session."""
        self._incoming.write(await heard(self._socket))
        with contextlib.suppress(ssl.SSLError):
            return self.session.read(65536)
        return b""


@pytest.fixture
def contexts(tmp_path: pathlib.Path) -> tuple[ssl.SSLContext, ssl.SSLContext]:
    """Those of a port and of a peer."""
    files = certificates.make(tmp_path)
    server = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    server.load_cert_chain(tmp_path / "server.pem", tmp_path / "server.key")
    return server, certificates.client_context(files.authority)


async def test_tls_in_one_or_many_records(contexts: tuple[ssl.SSLContext, ssl.SSLContext]) -> None:
    async with opened(tls=contexts[0]) as port:
        for pieces in ([GET], [bytes([byte]) for byte in GET]):
            peer = TlsPeer(port, contexts[1])
            await peer.open()
            for piece in pieces:
                peer.session.write(piece)
            await peer.flush()
            assert (await peer.heard()).endswith(b"fine")
        assert port.refused.total() == 0


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
async def test_a_flood_of_tls_records_is_cut(
    contexts: tuple[ssl.SSLContext, ssl.SSLContext], version: ssl.TLSVersion
) -> None:
    contexts[1].maximum_version = version
    async with opened(tls=contexts[0]) as port:
        peer = TlsPeer(port, contexts[1])
        await peer.open()
        for _ in range(PATIENT.tls_records):
            peer.session.write(b"G")
        await peer.flush()
        assert await peer.heard() == b""
        assert port.refused == {http_connections.TLS_FAILED: 1}
        assert port.requests == []


async def test_a_tls_record_that_never_ends_is_cut(contexts: tuple[ssl.SSLContext, ssl.SSLContext]) -> None:
    async with opened(PATIENT._replace(tls_bytes=1000), tls=contexts[0]) as port:
        assert len(await port.ask(b"\x16\x03\x01\x40\x00" + b"\x01" * 1000)) < 100
        assert port.refused == {http_connections.TLS_FAILED: 1}


async def test_stalled_handshakes_are_connections(contexts: tuple[ssl.SSLContext, ssl.SSLContext]) -> None:
    async with opened(PATIENT._replace(connections=4), tls=contexts[0]) as port:
        for _ in range(50):
            await port.connect(b"\x16\x03\x01")
        await worker_stand.eventually(lambda: port.refused[http_connections.TOO_MANY] == 46)
        peer = TlsPeer(port, contexts[1])
        await peer.open()
        peer.session.write(GET)
        await peer.flush()
        assert (await peer.heard()).endswith(b"fine")
    async with opened(PATIENT._replace(head_seconds=0.05), tls=contexts[0]) as port:
        assert await port.ask(b"\x16\x03\x01") == b""
        assert port.refused == {http_connections.TIMEOUT: 1}


async def test_plain_text_to_a_tls_port_is_refused(contexts: tuple[ssl.SSLContext, ssl.SSLContext]) -> None:
    async with opened(tls=contexts[0]) as port:
        assert b"HTTP" not in await port.ask()
        assert port.refused == {http_connections.TLS_FAILED: 1}
