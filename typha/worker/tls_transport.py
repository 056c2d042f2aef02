"""Sending and receiving through TLS, on the same non-blocking sockets.

OpenSSL seals a record before it sends it. If the socket then takes only a part, none of the bytes count as sent. But
other bytes in their place would be lost without an error, and fewer are fatal: what is `owed` must be offered again.
Here nothing else is offered until it has been sent.
"""

import contextlib
import errno
import os
import socket
import ssl
import struct

from typha.worker import transport

RECORD_BYTES = 16 * 1024
"""The largest record of TLS."""
_NUMBER = struct.Struct("=i")
OFFER_BYTES = 4 * RECORD_BYTES
"""What OpenSSL gets in one call, and splits into records: a call for each record cost a tenth of a storm. If the socket
takes less, all of it counts as not sent, and is offered again."""
_OFFERS_AT_ONCE = 4
"""As much as `Policy.send_bytes`, which with TLS is also one client's turn in a snapshot."""


class TlsTransport:
    """Knows connections from the end of their handshake (`opened`) to their close (`release`)."""

    acked_bytes = staticmethod(transport.kernel_acked_bytes)
    window_bytes = staticmethod(transport.kernel_window_bytes)

    def __init__(self) -> None:
        self.stepping: frozenset[int] = frozenset()
        """Descriptors of connections whose handshake takes a step in another thread."""
        self._sockets: dict[int, ssl.SSLSocket] = {}
        self._owed: dict[int, int] = {}
        self._buffer = bytearray(OFFER_BYTES)
        self._view = memoryview(self._buffer)

    def opened(self, connection: ssl.SSLSocket) -> None:
        """The handshake is done."""
        self._sockets[connection.fileno()] = connection

    def write(self, descriptor: int, data: bytes | memoryview, /) -> int:
        """Seals and sends until the socket is full or a turn is over."""
        connection = self._sockets[descriptor]
        if len(data) <= OFFER_BYTES and descriptor not in self._owed:
            return self._send(connection, descriptor, data)
        view = memoryview(data)
        sent = 0
        for _ in range(_OFFERS_AT_ONCE):
            try:
                sent += self._send(connection, descriptor, self._next_offer(descriptor, view[sent:]))
            except BlockingIOError:
                if not sent:
                    raise
                break
            if sent == len(view):
                break
        return sent

    def write_ahead(self, connection: transport.Connection, data: bytes, /) -> int:
        """The same: a record of its own."""
        return self.write(connection.fileno(), data)

    def send_file(self, descriptor: int, file_descriptor: int, position: int, count: int, /) -> int:
        """The same with a file's bytes."""
        connection = self._sockets[descriptor]
        sent = 0
        for _ in range(_OFFERS_AT_ONCE):
            owed = self._owed.get(descriptor, 0)
            if owed > count - sent:
                raise _too_few(count - sent, owed)
            part = self._view[: owed or min(OFFER_BYTES, count - sent)]
            read = os.preadv(file_descriptor, [part], position + sent)
            try:
                sent += self._send(connection, descriptor, part[:read])
            except BlockingIOError:
                if not sent:
                    raise
                break
            if sent == count:
                break
        return sent

    def _next_offer(self, descriptor: int, view: memoryview) -> memoryview:
        owed = self._owed.get(descriptor, 0)
        if owed > len(view):
            raise _too_few(len(view), owed)
        return view[: owed or OFFER_BYTES]

    def _send(self, connection: ssl.SSLSocket, descriptor: int, offer: bytes | memoryview) -> int:
        try:
            sent = connection.send(offer)
        except ssl.SSLWantWriteError as error:
            self._owed[descriptor] = len(offer)
            raise BlockingIOError from error
        except ssl.SSLError:
            # Only a hostile peer makes a write wait, for the rest of a message that it cut in pieces.
            self._break(descriptor)
            raise
        if self._owed:
            self._owed.pop(descriptor, None)
        return sent

    def receive(self, connection: transport.Connection, count: int, /) -> bytes:
        """The next record's bytes, whatever the count: epoll cannot see a part that is left inside TLS.

        Nothing is read while bytes are owed: OpenSSL answers a key update inside the read, which fails if a record is
        in the way.
        """
        if connection.fileno() in self._owed:
            (number,) = _NUMBER.unpack(connection.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR, _NUMBER.size))
            if number:
                raise OSError(number, os.strerror(number))
            raise transport.WriteFirst
        try:
            return connection.recv(RECORD_BYTES)
        except ssl.SSLWantReadError as error:
            raise BlockingIOError from error
        except ssl.SSLWantWriteError as error:
            raise transport.WriteFirst from error
        except ssl.SSLError:
            self._break(connection.fileno())
            raise

    def owed(self, descriptor: int, /) -> int:
        """Bytes that OpenSSL was offered and has not sent completely."""
        return self._owed.get(descriptor, 0)

    def _break(self, descriptor: int) -> None:
        """OpenSSL must not be called for this connection any more."""
        self._sockets.pop(descriptor, None)
        self._owed.pop(descriptor, None)

    def release(self, descriptor: int, /) -> bool:
        """Sends the end of the stream if possible, and forgets the descriptor; False while a handshake step runs."""
        if descriptor in self.stepping:
            return False
        connection = self._sockets.pop(descriptor, None)
        if self._owed.pop(descriptor, 0) or connection is None:
            return True
        with contextlib.suppress(OSError, ValueError):  # it wants to wait for the peer's answer
            connection.unwrap()
        return True


def _too_few(offered: int, owed: int) -> OSError:
    return OSError(errno.EPROTO, f"{offered} bytes offered where {owed} are sealed")
