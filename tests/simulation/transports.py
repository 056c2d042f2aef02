"""How a simulated worker's bytes get into its sockets: as they are, or sealed in records as OpenSSL does it.

Through TLS the service's own transport runs, on sockets that behave as OpenSSL's. A record is sealed when its bytes
are first offered. If the socket does not take all of it, the caller is told to wait, and must then offer the same
bytes again, and at least as many: other bytes would be lost without an error, fewer are an error that ends the
connection. Here both end the run.
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
    """The kernel's own calls."""

    acked_bytes = staticmethod(transport.kernel_acked_bytes)
    window_bytes = staticmethod(transport.kernel_window_bytes)

    def __init__(self, host: sockets.Host) -> None:
        self._host = host

    def write(self, descriptor: int, data: bytes | memoryview, /) -> int:
        """Sends some of the bytes."""
        return self._host.sockets[descriptor].send(data)

    def write_ahead(self, connection: transport.Connection, data: bytes, /) -> int:
        """As any other bytes."""
        return self.write(connection.fileno(), data)

    def send_file(self, descriptor: int, file_descriptor: int, position: int, count: int, /) -> int:
        """Sends some of a file's bytes; behind what was written there are zeros, as in the kernel's."""
        return self.write(descriptor, os.pread(file_descriptor, count, position))

    def receive(self, connection: transport.Connection, count: int, /) -> bytes:
        """Bytes that have come."""
        return connection.recv(count)

    def owed(self, descriptor: int, /) -> int:
        """Nothing is ever half sent."""
        return 0

    def release(self, descriptor: int, /) -> bool:
        """Nothing is in the way."""
        return True


class _Sealed:
    """What was offered, in records, and the socket has not taken whole."""

    def __init__(self, plain: bytes) -> None:
        self.plain = plain
        size = tls_transport.RECORD_BYTES
        parts = [plain[start : start + size] for start in range(0, len(plain), size)]
        self.rest = b"".join(_HEADER.pack(*_APPLICATION_DATA, len(part) + len(_TAG)) + part + _TAG for part in parts)


class TlsSocket(sockets.ServerSocket):
    """A socket behind a handshake that is done; the way to the server is left as it is."""

    _sealed: _Sealed | None = None

    def send(self, data: Any, flags: int = 0, /) -> int:
        """Seals what is offered, or goes on with what is sealed."""
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
        """What has come."""
        try:
            return super().recv(bufsize)
        except BlockingIOError as error:
            raise ssl.SSLWantReadError from error

    def unwrap(self) -> None:
        """The peer's answer is not waited for."""
        raise ssl.SSLWantReadError


class TlsTransport(tls_transport.TlsTransport):
    """The service's own, that takes connections without a handshake."""

    def accepted(self, connection: sockets.ServerSocket) -> None:
        """A connection has come."""
        self.opened(cast("ssl.SSLSocket", connection))


class RecordReader:
    """The client's end: whole records' contents."""

    def __init__(self) -> None:
        self._buffer = bytearray()

    def receive(self, data: bytes) -> bytes:
        """Takes bytes; gives what complete records hold."""
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
