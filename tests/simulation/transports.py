"""Transports of simulated workers: plain text, or TLS records as in OpenSSL.

For TLS, the real transport of the service runs on sockets that behave like OpenSSL. A record is sealed when its bytes
are first offered. If the socket does not accept the whole record, the caller must wait and offer at least the same
bytes again. In OpenSSL, other bytes would be lost without an error, and fewer bytes are an error that ends the
connection. Here, both end the run.
"""

import os
import ssl
import struct
from typing import Any, cast

from tests.simulation import sockets
from tests.simulation import world as worlds
from typha.worker import tls_transport, transport

_HEADER = struct.Struct(">BHH")
_TAG = bytes(16)
_APPLICATION_DATA = (23, 0x0303)


class PlainTransport:
    """Plain text: calls the socket directly."""

    acked_bytes = staticmethod(transport.kernel_acked_bytes)
    window_bytes = staticmethod(transport.kernel_window_bytes)

    def __init__(self, host: sockets.Host) -> None:
        self._host = host

    def write(self, descriptor: int, data: bytes | memoryview, /) -> int:
        """Send some of the bytes."""
        return self._host.sockets[descriptor].send(data)

    def write_ahead(self, connection: transport.Connection, data: bytes, /) -> int:
        """The same as `write`."""
        return self.write(connection.fileno(), data)

    def send_file(self, descriptor: int, file_descriptor: int, position: int, count: int, /) -> int:
        """Send some bytes of a file. Beyond the written part it has zeros, as with the kernel."""
        return self.write(descriptor, os.pread(file_descriptor, count, position))

    def receive(self, connection: transport.Connection, count: int, /) -> bytes:
        """Read bytes that have arrived."""
        return connection.recv(count)

    def owed(self, descriptor: int, /) -> int:
        """Always 0: no record is ever sent in part."""
        return 0

    def release(self, descriptor: int, /) -> bool:
        """Always True."""
        return True


class _Sealed:
    """Sealed records that the socket has not accepted completely."""

    def __init__(self, plain: bytes) -> None:
        self.plain = plain
        size = tls_transport.RECORD_BYTES
        parts = [plain[start : start + size] for start in range(0, len(plain), size)]
        self.rest = b"".join(_HEADER.pack(*_APPLICATION_DATA, len(part) + len(_TAG)) + part + _TAG for part in parts)


class TlsSocket(sockets.ServerSocket):
    """A socket after the TLS handshake. Bytes from the client to the server stay plain."""

    _sealed: _Sealed | None = None

    def send(self, data: Any, flags: int = 0, /) -> int:
        """Seal the bytes, or continue with the sealed records."""
        if self._sealed is None:
            self._sealed = _Sealed(bytes(data))
        plain = self._sealed.plain
        if len(data) < len(plain):
            raise worlds.Violation(f"TLS: {len(data)} bytes are offered, {len(plain)} are sealed")
        if bytes(data[: len(plain)]) != plain:
            raise worlds.Violation("TLS: other bytes are offered than were sealed")
        try:
            while self._sealed.rest:
                self._sealed.rest = self._sealed.rest[super().send(self._sealed.rest) :]
        except BlockingIOError as error:
            raise ssl.SSLWantWriteError from error
        self._sealed = None
        return len(plain)

    def recv(self, bufsize: int, flags: int = 0, /) -> bytes:
        """Read bytes that have arrived."""
        try:
            return super().recv(bufsize)
        except BlockingIOError as error:
            raise ssl.SSLWantReadError from error

    def unwrap(self) -> None:
        """Do not wait for the peer's answer."""
        raise ssl.SSLWantReadError


class TlsTransport(tls_transport.TlsTransport):
    """The transport of the service, for connections without a handshake."""

    def accepted(self, connection: sockets.ServerSocket) -> None:
        """Register an accepted connection."""
        self.opened(cast("ssl.SSLSocket", connection))


class RecordReader:
    """The client's end: unpacks complete records."""

    def __init__(self) -> None:
        self._buffer = bytearray()

    def receive(self, data: bytes) -> bytes:
        """Process received bytes. Returns the contents of complete records."""
        self._buffer += data
        plain = bytearray()
        while len(self._buffer) >= _HEADER.size:
            _, _, length = _HEADER.unpack_from(self._buffer)
            end = _HEADER.size + length
            if len(self._buffer) < end:
                break
            plain += self._buffer[_HEADER.size : end - len(_TAG)]
            del self._buffer[:end]
        return bytes(plain)
