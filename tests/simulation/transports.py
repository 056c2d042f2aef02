"""Transports of simulated workers: plain text, or TLS records as in OpenSSL.

For TLS, the real transport of the service runs with sessions that only add headers and tags. Records are sealed when
their bytes are first offered. If the socket does not accept all of them, the caller must wait and offer at least the
same bytes again. In the service, other bytes would be lost without an error, and fewer bytes are an error that ends the
connection. Here, both end the run.
"""

import os
import struct
from collections.abc import Mapping

from tests.simulation import sockets
from tests.simulation import world as worlds
from typha.worker import tls_session, tls_transport, transport

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


class Session:
    """The TLS session of a connection. Bytes from the client to the server stay plain."""

    def __init__(self) -> None:
        self.plain = b""
        """What was sealed last."""

    send = None
    """As with OpenSSL."""

    def seal(self, data: bytes | memoryview, /) -> bytes:
        """Seal the bytes."""
        self.plain = bytes(data)
        size = tls_transport.RECORD_BYTES
        parts = [self.plain[start : start + size] for start in range(0, len(self.plain), size)]
        return b"".join(_HEADER.pack(*_APPLICATION_DATA, len(part) + len(_TAG)) + part + _TAG for part in parts)

    def open(self, received: bytes, /) -> tls_session.Opened:
        """The same bytes."""
        return tls_session.Opened(received, 1, b"")

    def end(self) -> bytes:
        """Nothing: the client does not expect it."""
        return b""

    def certificate(self) -> Mapping[str, object]:
        """No names."""
        return {}


class TlsTransport(tls_transport.TlsTransport):
    """The transport of the service, for connections without a handshake. It checks that what is owed comes again."""

    def __init__(self) -> None:
        super().__init__()
        self._sessions: dict[int, Session] = {}

    def accepted(self, connection: sockets.ServerSocket) -> None:
        """Register an accepted connection."""
        session = self._sessions[connection.fileno()] = Session()
        self.opened(connection, session)

    def write(self, descriptor: int, data: bytes | memoryview, /) -> int:
        """Seal and send."""
        self._check(descriptor, data)
        return super().write(descriptor, data)

    def _check(self, descriptor: int, data: bytes | memoryview) -> None:
        owed = self.owed(descriptor)
        if len(data) < owed:
            raise worlds.Violation(f"TLS: {len(data)} bytes are offered, {owed} are sealed")
        if owed and bytes(data[:owed]) != self._sessions[descriptor].plain:
            raise worlds.Violation("TLS: other bytes are offered than were sealed")


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
