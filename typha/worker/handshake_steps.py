"""One step of a TLS handshake, in the thread for handshakes: what has arrived, up to some bytes, and its answer."""

import contextlib
import errno
import socket
import ssl
from collections.abc import Callable
from typing import NamedTuple, TypeAlias

from protocol.reasons import DisconnectReason
from typha.worker import rustls_session, tls, tls_session

_STEP_BYTES = 16 * 1024
"""What a step reads."""
_STEPS_MAX = 256
"""Of one handshake. An agent's takes two or three, and one for each packet of a large chain of certificates."""
_HANDSHAKE_BYTES = 128 * 1024
"""What a peer may send before the handshake is done. OpenSSL accepts 100 kB of certificates."""
_CLIENT_HELLO_BYTES = 16 * 1024
"""An agent's has 0.3 to 2 kB. OpenSSL makes room for the length that the peer announces, up to 131 kB."""
_RECORD_HEADER_BYTES = 5
_MESSAGE_HEADER_BYTES = 4
_HANDSHAKE_RECORD = 22
_CLIENT_HELLO = 1
_NOT_TLS = {"WRONG_VERSION_NUMBER", "HTTP_REQUEST", "HTTPS_PROXY_REQUEST", rustls_session.NOT_TLS}
"""What OpenSSL and rustls find when the first bytes are not TLS."""


class Verdict(NamedTuple):
    """How far a step has brought a handshake."""

    wants_write: bool = False
    done: bool = False
    reason: DisconnectReason | None = None
    detail: str = ""
    defect: Exception | None = None
    """An error that no peer should be able to cause."""


class Handshake:
    """One connection's. Only the thread uses it while a step runs, only the loop between steps."""

    __slots__ = ("connection", "done", "first", "make_session", "received_bytes", "session", "steps", "unsent")

    def __init__(self, connection: socket.socket, make_session: Callable[[], tls_session.NewSession]) -> None:
        self.connection = connection
        self.make_session = make_session
        self.session: tls_session.NewSession | None = None
        """Made for the first whole record: until then a peer costs nothing but its own bytes."""
        self.first = b""
        """The beginning of the first record."""
        self.unsent = b""
        """Answers that the socket has not taken."""
        self.done = False
        """Apart from what is unsent."""
        self.received_bytes = 0
        self.steps = 0

    def take(self, count: int) -> bytes:
        """Reads bytes that are known to have arrived."""
        taken = self.connection.recv(count) if count else b""
        self.received_bytes += len(taken)
        return taken

    def send(self) -> bool:
        """Whether the socket has taken all that is unsent."""
        with contextlib.suppress(BlockingIOError):
            if self.unsent:
                self.unsent = self.unsent[self.connection.send(self.unsent) :]
        return not self.unsent


Step: TypeAlias = Callable[[Handshake, tls.ClientTls], Verdict]


def take_step(handshake: Handshake, client_tls: tls.ClientTls) -> Verdict:
    """In the thread: as much of the handshake as is possible without waiting, up to some bytes."""
    try:
        return _take_step(handshake, client_tls)
    except BlockingIOError:  # there is nothing to read
        return Verdict()
    except (ssl.SSLZeroReturnError, ConnectionError) as error:
        return Verdict(reason=DisconnectReason.CLIENT_CLOSED, detail=f"in the TLS handshake: {error}")
    except (OSError, tls.PeerRefused) as error:
        if isinstance(error, OSError) and error.errno == errno.ENOTCONN:  # reset before it was accepted
            return Verdict(reason=DisconnectReason.CLIENT_CLOSED)
        return Verdict(reason=DisconnectReason.TLS_FAILED, detail=_describe(error))
    except Exception as error:  # one connection's defect must not harm the others (docs/architecture.md, rule 4)
        return Verdict(reason=DisconnectReason.SERVER_ERROR, detail=str(error), defect=error)


def _take_step(handshake: Handshake, client_tls: tls.ClientTls) -> Verdict:
    """As `take_step`.

    What is read of the socket belongs to the handshake. Data after it stays there, where epoll can see it.
    """
    connection = handshake.connection
    if handshake.unsent and not handshake.send():
        return Verdict(wants_write=True)
    if handshake.done:
        return Verdict(done=True)
    received = connection.recv(_STEP_BYTES, socket.MSG_PEEK)
    if not received:
        return Verdict(reason=DisconnectReason.CLIENT_CLOSED, detail="in the TLS handshake")
    handshake.steps += 1
    if handshake.steps > _STEPS_MAX or handshake.received_bytes > _HANDSHAKE_BYTES:
        detail = f"no end of the TLS handshake after {handshake.received_bytes} bytes in {handshake.steps - 1} pieces"
        return Verdict(reason=DisconnectReason.TLS_FAILED, detail=detail)
    if handshake.session is None:
        handshake.first += handshake.take(len(received))
        if not _is_whole_record(handshake.first):
            return Verdict()
        if problem := _problem_of_hello(handshake.first):
            return Verdict(reason=DisconnectReason.TLS_FAILED, detail=problem)
        received, handshake.first = handshake.first, b""
        handshake.session = handshake.make_session()
        shaken = handshake.session.shake(received)
    else:
        shaken = handshake.session.shake(received)
        handshake.take(shaken.used_bytes)
    handshake.unsent = shaken.answer
    if shaken.error is not None:
        with contextlib.suppress(OSError):
            handshake.send()
        raise shaken.error
    if shaken.done:
        client_tls.check_peer(handshake.session.certificate())
        handshake.done = True
    is_sent = handshake.send()
    return Verdict(wants_write=not is_sent, done=handshake.done and is_sent)


def _is_whole_record(first: bytes) -> bool:
    """Whether OpenSSL can say something about it: a whole record, or what cannot be one."""
    if len(first) < _RECORD_HEADER_BYTES:
        return False
    length = int.from_bytes(first[3:_RECORD_HEADER_BYTES])
    return first[0] != _HANDSHAKE_RECORD or len(first) >= _RECORD_HEADER_BYTES + min(length, _CLIENT_HELLO_BYTES)


def _problem_of_hello(first: bytes) -> str:
    """What is wrong with the first record though OpenSSL accepts it; empty for nothing."""
    if first[0] != _HANDSHAKE_RECORD:
        return ""
    if int.from_bytes(first[3:_RECORD_HEADER_BYTES]) < _MESSAGE_HEADER_BYTES:
        return "a ClientHello in too small pieces"
    kind, *length = first[_RECORD_HEADER_BYTES : _RECORD_HEADER_BYTES + _MESSAGE_HEADER_BYTES]
    if kind == _CLIENT_HELLO and int.from_bytes(length) > _CLIENT_HELLO_BYTES:
        return f"a ClientHello of {int.from_bytes(length)} bytes"
    return ""


def _describe(error: Exception) -> str:
    if isinstance(error, ssl.SSLError) and error.reason in _NOT_TLS:
        return "the first bytes are not TLS"
    return str(error)
