"""One connection's TLS, without its socket: bytes in, bytes out.

One call into OpenSSL works on all that it can read, and some records bring no data: a peer could keep a call busy for
as long as it sends them. So OpenSSL works on memory here, and gets no more at a time than the caller has received.

OpenSSL's memory keeps the largest size that it ever had, some 27 kB for both directions. So connections share a few
pairs. Both ends of a pair are empty between two operations: OpenSSL itself keeps the beginning of a record, and what it
has not read by the end of an operation is dropped, so that no connection ever sees bytes of another one.
"""

import contextlib
import ssl
import threading
from collections.abc import Callable, Mapping
from typing import NamedTuple, Protocol, TypeAlias

from typha import clock

RECORD_BYTES = 16 * 1024
"""The data of the largest record of TLS."""
_EXPIRED = "the certificate of a resumed session has expired"
_PAIRS = 32
"""While a handshake step holds a pair, the loop cannot use it: the more pairs, the less often it waits."""


class Shaken(NamedTuple):
    """How far some bytes have brought a handshake."""

    used_bytes: int
    """Those that belong to the handshake. Data of the client may follow the last of them."""
    answer: bytes
    """To be sent, also after a failure."""
    done: bool = False
    error: ssl.SSLError | None = None


class Opened(NamedTuple):
    """What some bytes contained."""

    data: bytes
    records: int
    """Records that contained the data."""
    answer: bytes
    """To be sent, also after a failure."""
    ended: bool = False
    """The peer has said that it sends nothing more."""
    error: ssl.SSLError | None = None


Send: TypeAlias = Callable[[int, bytes | memoryview, int, int], tuple[int, bytes, int]]
"""Seals and sends to a descriptor, a piece of some bytes at a time, until the socket is full.

The last argument is a number of bytes: more than that is sealed only if the kernel says that it takes it. Returns how
much was sent, what is sealed and not sent, and how much of the data that is. Raises as `seal`, and OSError.
"""


class AnySession(Protocol):
    """What a transport needs of a connection's TLS after the handshake. `Session` documents each operation."""

    @property
    def send(self) -> Send | None: ...

    def seal(self, data: bytes | memoryview, /) -> bytes: ...

    def open(self, received: bytes, /) -> Opened: ...

    def end(self) -> bytes: ...

    def certificate(self) -> Mapping[str, object]: ...


class NewSession(AnySession, Protocol):
    """The same from the beginning of the handshake."""

    def shake(self, received: bytes, /) -> Shaken: ...


class _Pair:
    """What OpenSSL reads from and writes to, in memory; whoever holds the lock leaves both empty."""

    __slots__ = ("incoming", "lock", "outgoing")

    def __init__(self) -> None:
        self.incoming = ssl.MemoryBIO()
        self.outgoing = ssl.MemoryBIO()
        self.lock = threading.Lock()

    def empty(self) -> tuple[int, bytes]:
        """The number of bytes that OpenSSL has not read, which are dropped, and all that it has written."""
        unread = self.incoming.pending
        if unread:
            self.incoming.read()
        return unread, self.outgoing.read()


class Session:
    """The server's end. Each operation is whole: two threads may work on different sessions."""

    send = None
    """OpenSSL does no such thing."""

    __slots__ = ("_pair", "_tls")

    def __init__(self, context: ssl.SSLContext, pair: _Pair) -> None:
        self._pair = pair
        self._tls = context.wrap_bio(pair.incoming, pair.outgoing, server_side=True)

    def shake(self, received: bytes, /) -> Shaken:
        """Goes on with the handshake."""
        done, error, pair = False, None, self._pair
        with pair.lock:
            try:
                pair.incoming.write(received)
                self._tls.do_handshake()
                done = True
                if self._tls.session_reused and has_expired(self.certificate()):
                    done, error = False, ssl.SSLError(ssl.SSL_ERROR_SSL, _EXPIRED)
            except ssl.SSLWantReadError:
                pass
            except ssl.SSLError as failure:
                error = failure
            finally:
                unread, answer = pair.empty()
        return Shaken(len(received) - unread, answer, done, error)

    def certificate(self) -> Mapping[str, object]:
        """The peer's, after the handshake: what `ssl.SSLObject.getpeercert` gives."""
        return self._tls.getpeercert() or {}

    def seal(self, data: bytes | memoryview, /) -> bytes:
        """The records of this data, to be sent.

        Raises:
            ssl.SSLError: nothing can be sent through this session any more.
        """
        pair = self._pair
        pair.lock.acquire()  # costs half of what `with` costs, for each delivery
        try:
            try:
                self._tls.write(data)
            finally:
                sealed = pair.outgoing.read()
        finally:
            pair.lock.release()
        return sealed

    def open(self, received: bytes, /) -> Opened:
        """All data of the records that end in these bytes."""
        parts, ended, error, pair = [], False, None, self._pair
        with pair.lock:
            try:
                pair.incoming.write(received)
                while pair.incoming.pending:  # to find it empty here costs less than to let OpenSSL say so
                    part = self._tls.read(RECORD_BYTES)
                    if not part:
                        ended = True
                        break
                    parts.append(part)
            except ssl.SSLWantReadError:
                pass
            except ssl.SSLZeroReturnError:
                ended = True
            except ssl.SSLError as failure:
                error = failure
            finally:
                _, answer = pair.empty()
        return Opened(b"".join(parts), len(parts), answer, ended, error)

    def end(self) -> bytes:
        """The last record, which tells the peer that nothing more comes."""
        pair = self._pair
        with pair.lock:
            with contextlib.suppress(OSError, ValueError):  # it wants to wait for the peer's answer
                self._tls.unwrap()
            return pair.empty()[1]


def has_expired(certificate: Mapping[str, object]) -> bool:
    """Whether its time is over. OpenSSL verifies no chain again for a session of TLS 1.2 that a client resumes.

    Python's ssl cannot forbid that: without tickets OpenSSL keeps the sessions itself. Go looks at the time, too.
    """
    return ssl.cert_time_to_seconds(str(certificate["notAfter"])) * 10**9 < clock.time_ns()


class Sessions:
    """Makes sessions, which share pairs."""

    def __init__(self, pairs: int = _PAIRS) -> None:
        self._pairs = [_Pair() for _ in range(pairs)]
        self._made = 0

    def make(self, context: ssl.SSLContext) -> Session:
        """The server's end of a new connection. To be called in one thread."""
        self._made += 1
        return Session(context, self._pairs[self._made % len(self._pairs)])
