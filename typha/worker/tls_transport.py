"""Sending and receiving through TLS, on the same non-blocking sockets.

A record that has been sealed must be sent, whole and before all others. If the socket takes only a part of what was
sealed, the rest is kept, and none of its data counts as sent: what is `owed` must be offered again, and is not sealed
again.
"""

import contextlib
import errno
import socket
import ssl
from collections.abc import Mapping

from protocol import errors
from typha import clock
from typha.worker import tls_session, transport

RECORD_BYTES = tls_session.RECORD_BYTES
OFFER_BYTES = 2 * RECORD_BYTES
"""What is sealed and sent in one call: a call for each record cost a tenth of a storm."""
TURN_BYTES = 16 * OFFER_BYTES
"""The most that one call of `write` seals: with rustls some 0.2 ms, in which no other thread of Python runs."""
_RECORD_OVERHEAD_BYTES = 96
"""More than the header, the tag and the padding of a record take, with any suite. native/src/room.rs has the same."""
UNASKED_BYTES = 4 * 1024
"""More is sealed only if the kernel says that it takes it: what is sealed and not taken must be kept, for each client
that does not read. Deliveries have less, and asking costs 0.3 to 2 us."""
RECEIVED_BYTES = 2 * 1024
"""What OpenSSL gets in one read: at most 93 records. Key updates cost most, 75 of them 0.8 ms."""
_OVERHEAD_BYTES = 32
"""What a record needs beside its data."""
_WITHOUT_DATA_BYTES = 32 * 1024
"""What a peer may send in `_WITHOUT_DATA_SECONDS` beside its data: twice the largest record, of which the beginning may
have arrived. An agent sends nothing without data; the smallest record without it has 27 bytes."""
_WITHOUT_DATA_SECONDS = 60.0
_ANSWERS_BYTES = 16 * 1024
"""What is kept of OpenSSL's own answers while the socket is full."""


class _Secured:
    """A connection after its handshake."""

    __slots__ = ("connection", "counted_since", "has_hung_up", "kept", "owed", "session", "without_data_bytes")

    def __init__(self, connection: transport.Connection, session: tls_session.AnySession) -> None:
        self.connection = connection
        self.session = session
        self.kept = b""
        """Sealed, and not taken by the socket yet."""
        self.owed = 0
        """How many bytes of data that is, apart from OpenSSL's answers."""
        self.has_hung_up = False
        """The peer's stream has ended without a word."""
        self.without_data_bytes = 0
        self.counted_since = 0.0


class TlsTransport:
    """Knows connections from the end of their handshake (`opened`) to their close (`release`)."""

    send_file = None
    acked_bytes = staticmethod(transport.kernel_acked_bytes)
    window_bytes = staticmethod(transport.kernel_window_bytes)

    def __init__(self) -> None:
        self.stepping: frozenset[int] = frozenset()
        """Descriptors of connections whose handshake takes a step in another thread."""
        self.freed_pieces = 0
        """Pieces that were kept for clients with a full socket, and are not any more."""
        self._secured: dict[int, _Secured] = {}

    def opened(self, connection: transport.Connection, session: tls_session.AnySession) -> None:
        """The handshake is done."""
        self._secured[connection.fileno()] = _Secured(connection, session)

    def certificate(self, descriptor: int) -> Mapping[str, object]:
        """The names of the peer's certificate; empty without a handshake that is done."""
        secured = self._secured.get(descriptor)
        return {} if secured is None else secured.session.certificate()

    def write(self, descriptor: int, data: bytes | memoryview, /) -> int:
        """Seals and sends until the socket is full or a turn is over."""
        secured = self._secured[descriptor]
        sent = self._send_kept(secured, len(data)) if secured.kept else 0
        if secured.session.send is not None:
            return sent + self._send_at_once(secured, descriptor, data, sent)
        if not sent and len(data) <= UNASKED_BYTES and len(data) <= OFFER_BYTES:
            return self._send(secured, data)
        share_bytes = TURN_BYTES if len(data) - sent <= UNASKED_BYTES else _share_of_turn(secured.connection)
        offer = memoryview(data)[sent : sent + share_bytes]
        for position in range(0, len(offer), OFFER_BYTES):
            try:
                sent += self._send(secured, offer[position : position + OFFER_BYTES])
            except BlockingIOError:
                if not sent:
                    raise
                break
        return sent

    def write_ahead(self, connection: transport.Connection, data: bytes, /) -> int:
        """A record of its own, in one packet with those that follow."""
        secured = self._secured[connection.fileno()]
        if secured.kept or len(data) > UNASKED_BYTES:
            return self.write(connection.fileno(), data)
        return self._send(secured, data, socket.MSG_MORE)

    def _send_at_once(self, secured: _Secured, descriptor: int, data: bytes | memoryview, begin: int) -> int:
        """Seals and sends all of a turn in one call. BlockingIOError if the whole turn has sent nothing."""
        offer = data if not begin and len(data) <= TURN_BYTES else memoryview(data)[begin : begin + TURN_BYTES]
        send = secured.session.send
        assert send is not None
        try:
            sent, secured.kept, secured.owed = send(descriptor, offer, OFFER_BYTES, UNASKED_BYTES)
        except ssl.SSLError:
            self._break(secured)
            raise
        if secured.kept and not begin + sent:
            raise BlockingIOError
        return sent

    def _send_kept(self, secured: _Secured, offered: int) -> int:
        """Sends what is kept; returns how many of the offered bytes that was. BlockingIOError if something is left."""
        if secured.owed > offered:
            raise OSError(errno.EPROTO, f"{offered} bytes offered where {secured.owed} are sealed")
        secured.kept = secured.kept[secured.connection.send(secured.kept) :]
        if secured.kept:
            raise BlockingIOError
        self.freed_pieces += 1
        owed, secured.owed = secured.owed, 0
        return owed

    def _send(self, secured: _Secured, offer: bytes | memoryview, flags: int = 0) -> int:
        try:
            sealed = secured.session.seal(offer)
        except ssl.SSLError:
            # Only a hostile peer makes a write wait, for the rest of a message that it cut in pieces.
            self._break(secured)
            raise
        try:
            sent = secured.connection.send(sealed, flags)
        except BlockingIOError:
            sent = 0
        if sent != len(sealed):
            secured.kept, secured.owed = sealed[sent:], len(offer)
            raise BlockingIOError
        return len(offer)

    def receive(self, connection: transport.Connection, count: int, /) -> bytes:
        """All data of the records that have arrived, whatever the count: epoll cannot see what is left inside TLS."""
        secured = self._secured[connection.fileno()]
        received = connection.recv(RECEIVED_BYTES)
        if not received:
            secured.has_hung_up = True
            return b""
        opened = secured.session.open(received)
        if opened.answer:
            self._answer(secured, opened.answer)
        if opened.error is not None:
            self._break(secured)
            raise opened.error
        self._count(secured, len(received) - len(opened.data) - opened.records * _OVERHEAD_BYTES)
        if opened.ended:
            if not opened.data:
                return b""
            connection.shutdown(socket.SHUT_RD)  # the next read says so, too, and there is one
        if not opened.data:
            raise BlockingIOError
        return opened.data

    @staticmethod
    def _answer(secured: _Secured, answer: bytes) -> None:
        """OpenSSL's own answers go out now, or behind what is kept."""
        if not secured.kept:
            try:
                answer = answer[secured.connection.send(answer) :]
            except BlockingIOError:
                pass
            except OSError:
                return  # the next read or write fails, too
        secured.kept += answer
        if len(secured.kept) > OFFER_BYTES + _ANSWERS_BYTES:
            raise errors.RemoteProtocolError("too many TLS records that want an answer, of which none is read")

    @staticmethod
    def _count(secured: _Secured, without_data_bytes: int) -> None:
        now = clock.monotonic()
        if now - secured.counted_since > _WITHOUT_DATA_SECONDS:
            secured.counted_since, secured.without_data_bytes = now, 0
        secured.without_data_bytes = max(0, secured.without_data_bytes + without_data_bytes)
        if secured.without_data_bytes > _WITHOUT_DATA_BYTES:
            raise errors.RemoteProtocolError("too many TLS records without data")

    def owed(self, descriptor: int, /) -> int:
        """Bytes of data that are sealed and kept."""
        secured = self._secured.get(descriptor)
        return secured.owed if secured is not None else 0

    def _break(self, secured: _Secured) -> None:
        """OpenSSL must not be called for this connection any more."""
        self._secured.pop(secured.connection.fileno(), None)

    def release(self, descriptor: int, /) -> bool:
        """Sends the end of the stream if possible, and forgets the descriptor; False while a handshake step runs.

        A peer that has hung up without a word reads nothing more: its host would answer with a reset.
        """
        if descriptor in self.stepping:
            return False
        secured = self._secured.pop(descriptor, None)
        if secured is not None and secured.kept:
            self.freed_pieces += 1
        elif secured is not None and not secured.has_hung_up:
            with contextlib.suppress(OSError):  # it goes without
                secured.connection.send(secured.session.end())
        return True


def _share_of_turn(connection: transport.Connection) -> int:
    """Bytes to be sealed for this connection at once. A socket that takes less has been full a moment ago."""
    room_bytes = transport.kernel_room_bytes(connection)
    if room_bytes is None:
        return TURN_BYTES
    data_bytes = room_bytes - (room_bytes // RECORD_BYTES + 1) * _RECORD_OVERHEAD_BYTES
    return min(max(data_bytes, UNASKED_BYTES), TURN_BYTES)
