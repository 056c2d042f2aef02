"""A connection's TLS, driven by the bytes of an input: operations of both engines, in any order, on any pieces.

Each pair of bytes is an operation and its argument: of a real client, of the worker's end, or of somebody who changes
what is on its way between them.
"""

import contextlib
import functools
import os
import pathlib
import socket
import ssl
import tempfile
from collections.abc import Callable
from typing import Final

from tests.fuzz import mutation
from tests.harness import certificates, tls_probe
from typha.worker import rustls_session, tls

NEEDED: Final = {tls.OPENSSL: "ssl", tls.RUSTLS: "typha_rustls"}
"""The module of each engine."""
_DATA = b"data of the agent"
_STEP_BYTES = 16 * 1024
_MAX_OPERATIONS = 200
_KINDS = (20, 21, 22, 23, 24, 99)


@functools.cache
def _contexts(engine: str, process: int) -> tuple[tls.Contexts, dict[ssl.TLSVersion, ssl.SSLContext]]:
    """What sessions of this process are made of: a server's, and a client's for each version."""
    with tempfile.TemporaryDirectory() as folder:
        files = certificates.make(pathlib.Path(folder), engine)
        server = tls.Contexts(files.settings())
    clients = {}
    for version in (ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3):
        clients[version] = certificates.client_context(files.authority)
        clients[version].maximum_version = version
    return server, clients


_sessions: Final[dict[tuple[str, ssl.TLSVersion], ssl.SSLSession]] = {}
"""The last one of each kind, to be resumed."""


class Link:
    """A client, the worker's end of its connection, and what is on the way to it. Operations raise ssl.SSLError."""

    def __init__(self, engine: str, version: ssl.TLSVersion, *, resumes: bool) -> None:
        self._kind = engine, version
        server, clients = _contexts(engine, os.getpid())
        self.session = server.make_session()
        self._incoming, self._outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self.client = clients[version].wrap_bio(
            self._incoming,
            self._outgoing,
            server_hostname="localhost",
            session=_sessions.get(self._kind) if resumes else None,
        )
        self.wire = b""
        """What the client has said, and the worker's end has not got."""
        self.said = b""
        """The client's data."""
        self.heard = b""
        self.is_done = self.has_failed = False

    def client_step(self, argument: int) -> None:
        """It goes on with its handshake, or reads."""
        with contextlib.suppress(ssl.SSLError):
            self.client.do_handshake()
            self.client.read()
        self.wire += self._outgoing.read()

    def client_data(self, argument: int) -> None:
        """It sends some."""
        with contextlib.suppress(ssl.SSLError):
            self.client.write(_DATA)
            self.said += _DATA
            if self.client.session is not None:
                _sessions[self._kind] = self.client.session
        self.wire += self._outgoing.read()

    def feed(self, count: int) -> None:
        """The worker's end gets so many bytes; 0 for all."""
        piece = self.wire[: count or len(self.wire)]
        self.wire = self.wire[len(piece) :]
        self.wire = self.receive(piece) + self.wire

    def receive(self, piece: bytes) -> bytes:
        """It works on these bytes, as the transport lets it. Returns those that belong to nothing yet."""
        if self.is_done:
            opened = self.session.open(piece)
            assert not (self.has_failed and opened.data)
            self.heard += opened.data
            self._note(opened.answer, opened.error)
            return b""
        shaken = self.session.shake(piece)
        assert 0 <= shaken.used_bytes <= len(piece)
        assert not (shaken.done and shaken.error)
        self.is_done = shaken.done
        self._note(shaken.answer, shaken.error)
        return piece[shaken.used_bytes :] if shaken.error is None else b""

    def _note(self, answer: bytes, error: Exception | None) -> None:
        self._incoming.write(answer)
        if error is not None:
            assert isinstance(error, ssl.SSLError), error
            self.has_failed = True

    def spoil(self, argument: int) -> None:
        """A bit on the way changes."""
        if self.wire:
            changed = bytearray(self.wire)
            changed[argument * len(changed) // 256] ^= 1 << argument % 8
            self.wire = bytes(changed)

    def lose(self, argument: int) -> None:
        """The first bytes on the way are gone."""
        self.wire = self.wire[argument:]

    def repeat(self, argument: int) -> None:
        """They come twice."""
        self.wire = self.wire[: argument * 8] + self.wire

    def insert(self, argument: int) -> None:
        """A record of somebody else's comes first."""
        self.wire = bytes([_KINDS[argument % len(_KINDS)], 3, 3, 0, argument % 7]) + bytes(argument % 7) + self.wire

    def resize(self, argument: int) -> None:
        """The first record says another length."""
        self.wire = self.wire[:3] + bytes([argument % 65, argument]) + self.wire[5:]

    def seal(self, argument: int) -> None:
        """The worker sends data."""
        sealed = self.session.seal(bytes(argument * 150))
        assert not (self.has_failed and argument)
        self._incoming.write(sealed)

    def end(self, argument: int) -> None:
        """The worker closes."""
        self._incoming.write(self.session.end())

    def names(self, argument: int) -> None:
        """Those of the client's certificate."""
        if self.is_done and not self.has_failed:
            assert b"calico-node" in repr(self.session.certificate()).encode()

    def send(self, argument: int) -> None:
        """rustls seals and sends to a socket that may be full, or closed."""
        if self.session.send is None:
            return
        near, far = socket.socketpair()
        with near, far:
            near.setblocking(False)
            near.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
            if argument % 5 == 0:
                far.close()
            data = bytes(argument * 300)
            try:
                sent, kept, owed = self.session.send(near.fileno(), data, 1 + argument * 50, argument % 7 * 1000)
            except (BrokenPipeError, ConnectionResetError):
                return
            assert not (self.has_failed and argument)
            assert sent + owed <= len(data)
            assert bool(owed) == bool(kept)
            self._incoming.write(far.recv(1 << 20) if sent or kept else b"")
            self._incoming.write(kept)

    def step(self, argument: int) -> None:
        """rustls takes a step of the handshake from a socket, as often in one call as there are sessions."""
        if not isinstance(self.session, rustls_session.Session) or self.is_done:
            return
        near, far = socket.socketpair()
        with near, far:
            near.setblocking(False)
            far.sendall(self.wire[:_STEP_BYTES])
            first = self.wire if argument % 2 and self.wire else b""
            [stepped] = rustls_session.take_steps([(self.session, near.fileno(), first)], step_bytes=_STEP_BYTES)
            assert not isinstance(stepped.error, RuntimeError), stepped.error
            self.is_done = stepped.done
            far.setblocking(False)
            with contextlib.suppress(BlockingIOError):
                self._incoming.write(far.recv(1 << 20))
            self._note(stepped.unsent, stepped.error)
            self.wire = self.wire[stepped.received_bytes or 0 :]

    def out_of_turn(self, argument: int) -> None:
        """rustls is asked for what the transport never asks for: it may say no, and nothing else."""
        if isinstance(self.session, rustls_session.Session):
            if argument % 2:
                self.has_failed |= self.session.open(self.wire[:argument]).error is not None
            else:
                shaken = self.session.shake(self.wire[:argument])
                self.has_failed |= shaken.error is not None
                self.is_done = self.is_done or shaken.done
            self.wire = b""


OPERATIONS: Final[tuple[Callable[[Link, int], None], ...]] = (
    *(Link.client_step, Link.feed, Link.client_data, Link.seal, Link.send, Link.step, Link.names, Link.end),
    *(Link.spoil, Link.lose, Link.repeat, Link.insert, Link.resize, Link.out_of_turn),
)
"""By number."""


def run(engine: str, data: bytes) -> str:
    """The first byte says which version, and whether a session is resumed. Returns how it ended."""
    if not data:
        return ""
    version = ssl.TLSVersion.TLSv1_2 if data[0] & 1 else ssl.TLSVersion.TLSv1_3
    link = Link(engine, version, resumes=bool(data[0] & 2))
    pairs = zip(data[1 : 2 * _MAX_OPERATIONS : 2], data[2 : 2 * _MAX_OPERATIONS : 2], strict=False)
    refusals = 0
    for operation, argument in pairs:
        try:
            OPERATIONS[operation % len(OPERATIONS)](link, argument)
        except ssl.SSLError:  # seal and send, before the handshake or after an error
            refusals += 1
        assert link.said.startswith(link.heard), "data that the client has not sent"
    return f"{link.is_done} {link.has_failed} {len(link.heard)} {min(refusals, 3)} {link.client.session_reused}"


def first(engine: str, data: bytes) -> str:
    """The first bytes of a connection, as they may arrive. Returns what is wrong with them."""
    server, _ = _contexts(engine, os.getpid())
    session = server.make_session()
    answered = 0
    for piece in mutation.pieces(data):
        shaken = session.shake(piece)
        answered += len(shaken.answer)
        assert not shaken.done
        assert 0 <= shaken.used_bytes <= len(piece)
        if shaken.error is not None:
            assert isinstance(shaken.error, ssl.SSLError), shaken.error
            assert session.end() == b"" or engine == tls.OPENSSL
            return str(shaken.error)
    return str(answered > 7)


def firsts() -> list[bytes]:
    """First messages of both versions, with and without a key share, and in several records."""
    share = b"\0\x24\0\x1d\0\x20" + bytes(31) + b"\x09"
    hellos = [tls_probe.Hello(), tls_probe.Hello(tls_probe.TLS_1_2), tls_probe.Hello(key_share=share)]
    ticket = b"\0\x26\0\x20" + bytes(36) + b"\0\x21\x20" + bytes(32)
    hellos.append(tls_probe.Hello(key_share=share, more=[(41, ticket)]))
    message = hellos[0].message()
    cut = [tls_probe.record(tls_probe.HANDSHAKE, part) for part in (message[:60], message[60:200], message[200:])]
    return [*[one.records() for one in hellos], b"".join(cut), hellos[2].records() + cut[0]]


def seeds() -> list[bytes]:
    """Handshakes that get through, in both versions, at once, in pieces, by sockets, and resumed; and what follows."""
    step, feed, data, seal, send, by_socket, names, end = range(8)
    shake = [step, 1, feed, 0] * 3
    after = [data, 1, feed, 0, seal, 9, step, 0, send, 7, send, 200, names, 0, data, 0, feed, 5, feed, 0, end, 0]
    small = [step, 1, *[feed, 99] * 12, *[step, 1, *[feed, 200] * 9, feed, 0] * 2]
    scripts = [[*shake, *after], [*small, *after], [step, 1, by_socket, 1, step, 1, by_socket, 0, step, 1, *after]]
    return [bytes([kind, *script]) for kind in range(4) for script in scripts]
