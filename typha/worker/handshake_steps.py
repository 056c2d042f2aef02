"""Steps of TLS handshakes, in the thread for handshakes: what has arrived, up to some bytes, and the answers."""

import contextlib
import errno
import socket
import ssl
from collections.abc import Callable
from typing import NamedTuple, ParamSpec, TypeAlias

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
    defect: BaseException | None = None
    """An error that no peer should be able to cause."""


_CLOSED = Verdict(reason=DisconnectReason.CLIENT_CLOSED, detail="in the TLS handshake")


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

    def note_received(self, count: int) -> None:
        """A step has read this many bytes."""
        self.received_bytes += count
        self.steps += 1

    def send(self) -> bool:
        """Whether the socket has taken all that is unsent."""
        with contextlib.suppress(BlockingIOError):
            if self.unsent:
                self.unsent = self.unsent[self.connection.send(self.unsent) :]
        return not self.unsent


Steps: TypeAlias = Callable[[list[Handshake], tls.ClientTls], list[Verdict]]


def take_steps(batch: list[Handshake], client_tls: tls.ClientTls) -> list[Verdict]:
    """In the thread: as much of each handshake as is possible without waiting, up to some bytes.

    What is read of a socket belongs to the handshake. Data after it stays there, where epoll can see it.
    """
    verdicts = [_attempt(_prepare, handshake) for handshake in batch]
    in_turn = [handshake for handshake, verdict in zip(batch, verdicts, strict=True) if verdict is None]
    by_rustls = _step_by_rustls(in_turn)
    for position, handshake in enumerate(batch):
        if verdicts[position] is None:
            verdicts[position] = _attempt(_conclude, handshake, by_rustls.get(handshake), client_tls)
    return [verdict or Verdict() for verdict in verdicts]


_Arguments = ParamSpec("_Arguments")


def _attempt(
    action: Callable[_Arguments, Verdict | None], *args: _Arguments.args, **kwargs: _Arguments.kwargs
) -> Verdict | None:
    """What it returns, or what its failure means for the connection."""
    try:
        return action(*args, **kwargs)
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


def _prepare(handshake: Handshake) -> Verdict | None:
    """What comes before the work of TLS; None if that can be done now."""
    if handshake.unsent and not handshake.send():
        return Verdict(wants_write=True)
    if handshake.done:
        return Verdict(done=True)
    if handshake.steps == _STEPS_MAX or handshake.received_bytes > _HANDSHAKE_BYTES:
        detail = f"no end of the TLS handshake after {handshake.received_bytes} bytes in {handshake.steps} pieces"
        return Verdict(reason=DisconnectReason.TLS_FAILED, detail=detail)
    if handshake.session is not None:
        return None
    received = handshake.connection.recv(_STEP_BYTES)
    if not received:
        return _CLOSED
    handshake.note_received(len(received))
    handshake.first += received
    if not _is_whole_record(handshake.first):
        return Verdict()
    if problem := _problem_of_hello(handshake.first):
        return Verdict(reason=DisconnectReason.TLS_FAILED, detail=problem)
    handshake.session = handshake.make_session()
    return None


def _step_by_rustls(batch: list[Handshake]) -> dict[Handshake, rustls_session.Stepped]:
    """All that rustls can do for these, in one call."""
    work = {
        handshake: (handshake.session, handshake.connection.fileno(), handshake.first)
        for handshake in batch
        if isinstance(handshake.session, rustls_session.Session)
    }
    if not work:
        return {}
    return dict(zip(work, rustls_session.take_steps(list(work.values()), step_bytes=_STEP_BYTES), strict=True))


def _step(handshake: Handshake, session: tls_session.NewSession) -> rustls_session.Stepped:
    """The same by OpenSSL, for one."""
    received = handshake.first or handshake.connection.recv(_STEP_BYTES, socket.MSG_PEEK)
    if not received:
        return rustls_session.Stepped(0)
    shaken = session.shake(received)
    if not handshake.first:
        handshake.connection.recv(shaken.used_bytes)
    handshake.unsent = shaken.answer
    if not shaken.done:
        with contextlib.suppress(OSError):  # the next step fails, too
            handshake.send()
    return rustls_session.Stepped(len(received), handshake.unsent, shaken.done, shaken.error)


def _conclude(handshake: Handshake, stepped: rustls_session.Stepped | None, client_tls: tls.ClientTls) -> Verdict:
    """What the work of TLS has brought."""
    session = handshake.session
    assert session is not None
    if stepped is None:
        stepped = _step(handshake, session)
    if stepped.received_bytes is not None:
        if not stepped.received_bytes:
            return _CLOSED
        if not handshake.first:
            handshake.note_received(stepped.received_bytes)
        handshake.first = b""
    handshake.unsent = stepped.unsent
    if stepped.error is not None:
        raise stepped.error
    if stepped.done:
        client_tls.check_peer(session.certificate())
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
