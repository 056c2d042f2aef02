"""Internal: one end of a connection in Typha's protocol, client or server, without I/O.

The caller passes received bytes to `receive_data` (and the end of the stream to `receive_eof`), calls `next_event`
until it returns None, and writes what `data_to_send` returns. The rules:

1. The client begins with the definitions of its types and its hello. It sends a single plain gob stream.
2. The server sends nothing and returns no further events until `accept`. It refuses a client by closing the connection
   (see `refusal`).
3. A client that supports snappy gets the hello and a "restart" in one write. After its ack follows a compressed stream,
   which begins with the definitions. Any other client gets the definitions and the hello, and continues in the same
   plain stream. Then follow frames from `protocol.typha.encoder` for `wire_format`.
4. `_TRANSITIONS` lists every message that may arrive: (role, state, message) -> next state. Any other message is a
   protocol error. The original restarts clients twice, so a client may send a second ack in advance.
5. A client acks every restart and continues with a new decoder. It answers pings. It ignores messages that it can
   decode but does not expect, as the Go client does.
6. After an error or the end of the stream, the connection returns no more events.
"""

import enum
import functools
from collections.abc import Container
from typing import Any

from protocol import errors, reasons
from protocol.gob import decoder, scalars
from protocol.typha import codec, encoder, messages, snappy


class Role(enum.Enum):
    """Which end of the connection this is."""

    CLIENT = "client"
    SERVER = "server"


class State(enum.Enum):
    """What this end has received so far."""

    HELLO = "hello"
    HELLO_RECEIVED = "hello received"
    """Server: `accept` comes next."""
    RESTARTING = "restarting"
    """Server: asked the client to restart its decoder."""
    RESTARTED = "restarted"
    """Server: the client follows the compressed stream. One more ack may arrive."""
    FOLLOWING = "following"
    CLOSED = "closed"
    ERROR = "error"


_C, _S = Role.CLIENT, Role.SERVER

_TRANSITIONS: dict[tuple[Role, State, type[messages.Message]], State] = {
    (_S, State.HELLO, messages.ClientHello): State.HELLO_RECEIVED,
    (_S, State.RESTARTING, messages.Ack): State.RESTARTED,
    (_S, State.RESTARTED, messages.Ack): State.FOLLOWING,
    (_S, State.RESTARTED, messages.Pong): State.RESTARTED,
    (_S, State.FOLLOWING, messages.Pong): State.FOLLOWING,
    (_C, State.HELLO, messages.ServerHello): State.FOLLOWING,
    (_C, State.FOLLOWING, messages.DecoderRestart): State.FOLLOWING,
    (_C, State.FOLLOWING, messages.KeyValues): State.FOLLOWING,
    (_C, State.FOLLOWING, messages.SyncStatus): State.FOLLOWING,
    (_C, State.FOLLOWING, messages.Ping): State.FOLLOWING,
}
_REFUSED_BY_CLIENTS = messages.ServerHello
"""A second hello ends a Go client. It ignores all other messages that are not in the table."""

RESTART = messages.DecoderRestart("enable compression: snappy", messages.SNAPPY)
PREAMBLE = snappy.IDENTIFIER + snappy.compress(codec.SERVER.definitions)
"""The start of every compressed stream."""
_ENCODED_RESTART = codec.encode(RESTART, types=codec.SERVER)
_LONG_ID_BITS = 32
"""Ids with more bits, such as those of the service, have a cached answer."""


def _answer(version: str, feed: str, connection_id: int) -> bytes:
    """The server's answer to a hello. Encoding it for each client would cost a tenth of the CPU time in a storm."""
    if connection_id < 1 << _LONG_ID_BITS:
        answer = messages.ServerHello(version, feed, True, connection_id)
        return codec.SERVER.definitions + codec.encode(answer, types=codec.SERVER)
    encoded = scalars.encode_uint(connection_id)
    before, after = _answer_around_id(version, feed, len(encoded) - 1)
    return before + encoded + after


@functools.lru_cache(maxsize=64)
def _answer_around_id(version: str, feed: str, id_bytes: int) -> tuple[bytes, bytes]:
    """The bytes of the answer before and after the connection id, for ids of `id_bytes` bytes."""
    stand_in = 1 << 8 * id_bytes - 1
    answer = messages.ServerHello(version, feed, True, stand_in)
    encoded = codec.encode(answer, types=codec.SERVER)
    before, _, after = encoded.rpartition(scalars.encode_uint(stand_in))
    return codec.SERVER.definitions + before, after


def refusal(hello: messages.ClientHello, feeds: Container[str]) -> tuple[reasons.DisconnectReason, str] | None:
    """Why a well-formed hello is refused, or None. Refused clients retry immediately: delay the close."""
    if hello.feed not in feeds:
        return reasons.DisconnectReason.UNKNOWN_FEED, f"no syncer type {hello.feed[: messages.MAX_AGENT_CHARS]!r} here"
    return None


class Connection:
    """The state of Typha's protocol at one end of a connection.

    The attributes `role`, `state` and `wire_format` are public. `wire_format` is set by a server's `accept`; it is ""
    before, and for clients.
    """

    __slots__ = ("_chunks", "_decoder", "_hello", "_out", "role", "state", "wire_format")

    def __init__(self, role: Role, *, limits: decoder.Limits | None = None) -> None:
        self.role = role
        self.state = State.HELLO
        self.wire_format = ""
        if role is _C:
            self._decoder = codec.make_client_decoder(limits or codec.SERVER_LIMITS)
        else:
            self._decoder = codec.make_server_decoder(limits or decoder.HELLO_LIMITS)
        self._chunks: snappy.ChunkReader | None = None
        self._hello: messages.ClientHello | None = None
        """A client's own hello. For a server, the client's hello until it is accepted."""
        self._out = b""

    def __repr__(self) -> str:
        return f"<Connection {self.role.value} {self.state.value} {self.wire_format or 'no format'}>"

    @property
    def pending_bytes(self) -> int:
        """Number of buffered bytes of an incomplete message or chunk."""
        return self._decoder.pending_bytes + (self._chunks.pending_bytes if self._chunks else 0)

    # Sending.

    def send_hello(self, hello: messages.ClientHello) -> None:
        """Client: queues the definitions and the hello.

        Raises:
            LocalProtocolError: this is a server, or the hello was sent before.
        """
        if self.role is not _C or self._hello is not None:
            raise errors.LocalProtocolError("only a client sends a hello, and only one")
        self._hello = hello
        self._out += codec.CLIENT.definitions + codec.encode(hello, types=codec.CLIENT)

    def accept(self, *, version: str = "", connection_id: int = 0) -> str:
        """Server: queues the answer to the hello, and returns the wire format.

        In the plain format, frames may follow immediately. In the compressed format, they must wait for the ack.

        Raises:
            LocalProtocolError: there is no hello to accept.
        """
        hello = self._hello
        if self.state is not State.HELLO_RECEIVED or hello is None:
            raise errors.LocalProtocolError(f"there is no hello to accept while {self.state.value}")
        self._hello = None
        self._out += _answer(version, hello.feed, connection_id)
        if hello.takes_snappy:
            self.wire_format, self.state = encoder.SNAPPY, State.RESTARTING
            self._out += _ENCODED_RESTART
        else:
            self.wire_format, self.state = encoder.PLAIN, State.FOLLOWING
        return self.wire_format

    def data_to_send(self) -> bytes:
        """Returns the queued bytes and empties the queue."""
        data, self._out = self._out, b""
        return data

    # Receiving.

    def receive_data(self, data: bytes) -> None:
        """Accepts bytes from the peer. Drops them if the connection is closed or has failed."""
        if self.state not in (State.CLOSED, State.ERROR):
            (self._chunks or self._decoder).receive(data)

    def receive_eof(self) -> None:
        """Records that the peer has closed its end.

        Raises:
            RemoteProtocolError: the stream ended inside a message or chunk.
        """
        if self.state in (State.CLOSED, State.ERROR):
            return
        is_inside = self._decoder.is_inside_value or (self._chunks is not None and self._chunks.pending_bytes > 0)
        self.state = State.CLOSED
        if is_inside:
            raise errors.RemoteProtocolError(
                "stream ended inside a message", reason=reasons.DisconnectReason.CLIENT_CLOSED
            )

    def next_event(self) -> messages.Message | None:
        """Returns the next message, or None if more bytes are needed or the connection has ended.

        Raises:
            RemoteProtocolError: the peer violated the protocol. The state is ERROR from then on.
        """
        try:
            while self.state not in (State.HELLO_RECEIVED, State.CLOSED, State.ERROR):
                value = self._next_value()
                if value is decoder.NEED_DATA:
                    return None
                if self._step(value):
                    message: messages.Message = value
                    return message
            return None
        except errors.RemoteProtocolError:
            self.state = State.ERROR
            raise

    def _next_value(self) -> Any:
        """Returns a message or any other registered value, None for an empty envelope, or NEED_DATA."""
        value = self._decoder.next_value()
        while value is decoder.NEED_DATA and self._chunks is not None:
            content = self._chunks.next_content()
            if content is None:
                return value
            self._decoder.receive(content)
            value = self._decoder.next_value()
        return value

    def _step(self, message: Any) -> bool:
        """Handles a message. Returns False if it is to be ignored."""
        state = _TRANSITIONS.get((self.role, self.state, type(message)))
        if state is None:
            if self.role is _C and self.state is State.FOLLOWING and not isinstance(message, _REFUSED_BY_CLIENTS):
                return False
            raise errors.RemoteProtocolError(f"unexpected {type(message).__name__} while {self.state.value}")
        match message:
            case messages.ClientHello():
                self._hello = message
                self._decoder.limits = decoder.CLIENT_LIMITS
            case messages.Ack() if self.state is State.RESTARTING:
                self._out += PREAMBLE
            case messages.ServerHello():
                self._check_hello(message)
            case messages.DecoderRestart():
                self._restart(message)
            case messages.Ping():
                self._out += codec.encode(messages.Pong(message.timestamp), types=codec.CLIENT)
        self.state = state
        return True

    def _check_hello(self, hello: messages.ServerHello) -> None:
        asked = self._hello
        if asked is None:
            raise errors.RemoteProtocolError("the server sent a hello before the client")
        if not hello.supports_node_resource_updates:
            raise errors.RemoteProtocolError("the server is too old: it does not support node resources")
        served = hello.syncer_type or messages.FELIX
        if served != asked.feed:
            raise errors.RemoteProtocolError(f"the server serves syncer type {served[:100]!r}, not {asked.feed!r}")

    def _restart(self, restart: messages.DecoderRestart) -> None:
        """Begins a new stream after this message. Drops the rest of the message's chunk, as the Go client does."""
        if self._hello is None or not self._hello.supports_decoder_restart:
            raise errors.RemoteProtocolError("the server asked for a decoder restart, which the hello did not offer")
        self._out += codec.encode(messages.Ack(), types=codec.CLIENT)
        if restart.compression_algorithm not in ("", messages.SNAPPY):
            return  # The Go client keeps its decoder then.
        rest = (self._chunks or self._decoder).take_rest()
        self._decoder = codec.make_client_decoder(self._decoder.limits)
        self._chunks = snappy.ChunkReader() if restart.compression_algorithm else None
        self.receive_data(rest)
