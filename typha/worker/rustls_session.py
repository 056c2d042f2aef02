"""One connection's TLS by rustls, where the extension module of `native/` is installed (docs/decisions/tls-engines.md).

The same operations as those of `tls_session.Session`. rustls keeps the beginning of a record itself, and no more.
"""

import importlib
import os
import ssl
from collections.abc import Mapping, Sequence
from typing import NamedTuple, Protocol

from typha.worker import tls_session

_MODULE = "typha_rustls"
_Problem = tuple[str, str] | None
"""A word for what is wrong, or an empty one, and the text."""
_CLOSED = "CLOSED"
_DEFECT = "DEFECT"
NOT_TLS = "NOT_TLS"
"""The word for first bytes that are not TLS."""


class Unavailable(Exception):
    """rustls cannot be used as configured; the message is the reason."""


class Stepped(NamedTuple):
    """What a step of a handshake has brought."""

    received_bytes: int | None = None
    """None if there was nothing to read; 0 if the peer has closed."""
    unsent: bytes = b""
    """Answers that the socket has not taken. The last one of a handshake is not offered to it."""
    done: bool = False
    error: Exception | None = None


class Config(Protocol):
    """What sessions have in common."""


class NativeSession(Protocol):
    """The extension module's."""

    def shake(self, received: bytes, /) -> tuple[int, bytes, bool, _Problem]: ...

    def names(self) -> tuple[list[str], list[str]]: ...

    def seal(self, data: bytes | memoryview, /) -> bytes: ...

    def send(
        self, socket: int, data: bytes | memoryview, piece_bytes: int, unasked_bytes: int, /
    ) -> tuple[int, bytes, int]: ...

    def open(self, received: bytes, /) -> tuple[bytes, int, bytes, bool, _Problem]: ...

    def end(self) -> bytes: ...


class Session:
    """The server's end."""

    __slots__ = ("native", "seal", "send")

    def __init__(self, native: NativeSession) -> None:
        self.native = native
        self.seal = native.seal
        """As `tls_session.Session.seal`, without a call in between."""
        self.send = native.send
        """As `tls_session.Send`. It keeps the interpreter's lock for a turn's 0.1 ms: to get it back may take 5 ms."""

    def shake(self, received: bytes, /) -> tls_session.Shaken:
        """Goes on with the handshake."""
        used_bytes, answer, done, problem = self.native.shake(received)
        return tls_session.Shaken(used_bytes, answer, done, _error(problem))

    def certificate(self) -> Mapping[str, object]:
        """Names of the peer's certificate, as `ssl.SSLObject.getpeercert` gives them."""
        common_names, uris = self.native.names()
        subject = tuple((("commonName", name),) for name in common_names)
        return {"subject": subject, "subjectAltName": tuple(("URI", uri) for uri in uris)}

    def open(self, received: bytes, /) -> tls_session.Opened:
        """All data of the records that end in these bytes."""
        data, records, answer, ended, problem = self.native.open(received)
        return tls_session.Opened(data, records, answer, ended, _error(problem))

    def end(self) -> bytes:
        """The last record, which tells the peer that nothing more comes."""
        return self.native.end()


class Sessions:
    """Makes sessions of one configuration.

    Raises:
        Unavailable: the module is not installed, or rustls cannot do what OpenSSL would do with these files.
    """

    def __init__(
        self, *, chain: Sequence[bytes], key: bytes, trusted: Sequence[bytes], old_suites: Sequence[str]
    ) -> None:
        """Takes certificates and key in DER, and the names of the suites of TLS 1.2: none for TLS 1.3 alone."""
        try:
            self._module = importlib.import_module(_MODULE)
        except ImportError as error:
            raise Unavailable(f"the module {_MODULE} is not installed") from error
        try:
            self._config: Config = self._module.Config(list(chain), key, list(trusted), list(old_suites))
        except ValueError as error:
            raise Unavailable(str(error)) from error

    def make(self) -> Session:
        """The server's end of a new connection."""
        return Session(self._module.Session(self._config))


def take_steps(batch: Sequence[tuple[Session, int, bytes]], *, step_bytes: int) -> list[Stepped]:
    """A step of each of these handshakes, without the interpreter's lock: to give it back and get it again for each of
    them cost more than their system calls.

    Args:
        batch: session, descriptor, and the first record if it has been read already.
        step_bytes: what is read in a step.
    """
    module = importlib.import_module(_MODULE)
    steps = module.take_steps([(session.native, descriptor, first) for session, descriptor, first in batch], step_bytes)
    return [
        Stepped(received_bytes, unsent, done, _error_of_step(problem, number))
        for received_bytes, unsent, done, problem, number in steps
    ]


def _error_of_step(problem: _Problem, number: int) -> Exception | None:
    """What TLS finds wrong goes before the socket's error."""
    if problem is not None and problem[0] == _DEFECT:
        return RuntimeError(problem[1])
    return _error(problem) or (OSError(number, os.strerror(number)) if number else None)


def _error(problem: _Problem) -> ssl.SSLError | None:
    """As OpenSSL's, so that the transport knows one kind of error."""
    if problem is None:
        return None
    reason, text = problem
    if reason == _CLOSED:
        return ssl.SSLZeroReturnError(ssl.SSL_ERROR_ZERO_RETURN, text)
    error = ssl.SSLError(ssl.SSL_ERROR_SSL, text)
    error.reason = reason
    return error
