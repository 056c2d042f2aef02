"""One end of a connection in Typha's protocol, client or server, without any I/O.

The caller feeds what it read into `receive_data` (and `receive_eof`), takes messages from `next_event` until it gives
None, and writes whatever `data_to_send` returns. The rules:

1. The client speaks first: definitions of its types, then its hello. What it sends is one plain gob stream for ever.
2. The server answers nothing until `accept` (or never: a refusal is a close; see `refusal`), and gives no event either.
3. To a client that takes snappy it then says hello and "restart" in one write, and waits for the ack; behind that goes
   a compressed stream, which begins with the definitions. Any other client gets definitions and hello, and goes on in
   the same plain stream. Then follow frames of `protocol.typha.encoder`, made for `wire_format`.
4. `_TRANSITIONS` lists every message that may be received: (role, state, message) -> next state. A message that is not
   in the table is a protocol error. The original restarts a client twice, so it may have sent a second ack in advance.
5. A client acks every restart, and goes on reading with new decoders; it answers pings. What it does not understand,
   but could decode, it ignores, as the Go client does.
6. After an error or the end of the stream the connection gives no more events, whatever arrives.
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
    """What has been received so far."""

    HELLO = "hello"
    ASKED = "asked"
    """Server: the client's hello is there, and `accept` is due."""
    RESTARTING = "restarting"
    """Server: told the client to restart its decoder."""
    RESTARTED = "restarted"
    """Server: the client follows the compressed stream, and may have acked one restart more."""
    FOLLOWING = "following"
    CLOSED = "closed"
    ERROR = "error"


_C, _S = Role.CLIENT, Role.SERVER

_TRANSITIONS: dict[tuple[Role, State, type[messages.Message]], State] = {
    (_S, State.HELLO, messages.ClientHello): State.ASKED,
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
"""A second one ends a Go client; anything else that is not in the table is ignored."""

_BEHIND_HELLO = decoder.Limits(message_bytes=64 * 1024, skipped_values=16 * 1024)
"""What a client may send behind its hello, which has a time limit: acks and pongs, 300 bytes with all definitions."""

RESTART = messages.DecoderRestart("enable compression: snappy", messages.SNAPPY)
PREAMBLE = snappy.IDENTIFIER + snappy.compress(codec.SERVER.definitions)
"""The start of every compressed stream."""


_SAID_RESTART = codec.encode(RESTART, types=codec.SERVER)
_SHARED_ID_BITS = 32
"""Ids from here on, as a service's are, have answers of one mould."""


def _answer(version: str, feed: str, connection_id: int) -> bytes:
    """What a server says to a hello. In a storm encoding it for each client would cost a tenth of all work."""
    if connection_id < 1 << _SHARED_ID_BITS:
        answer = messages.ServerHello(version, feed, True, connection_id)
        return codec.SERVER.definitions + codec.encode(answer, types=codec.SERVER)
    said = scalars.encode_uint(connection_id)
    before, behind = _answer_around_id(version, feed, len(said) - 1)
    return before + said + behind


@functools.lru_cache(maxsize=64)
def _answer_around_id(version: str, feed: str, id_bytes: int) -> tuple[bytes, bytes]:
    """The answer before and behind the connection's id: its last field, and so many bytes long with any id of these."""
    stand_in = 1 << 8 * id_bytes - 1
    answer = messages.ServerHello(version, feed, True, stand_in)
    said = codec.encode(answer, types=codec.SERVER)
    before, _, behind = said.rpartition(scalars.encode_uint(stand_in))
    return codec.SERVER.definitions + before, behind


def refusal(hello: messages.ClientHello, feeds: Container[str]) -> tuple[reasons.DisconnectReason, str] | None:
    """Why a well-formed hello is not accepted, or None. Such clients come back at once: hold them before closing."""
    if hello.feed not in feeds:
        return reasons.DisconnectReason.UNKNOWN_FEED, f"no syncer type {hello.feed[: messages.MAX_AGENT_CHARS]!r} here"
    if not hello.supports_modern_policy_keys:
        return reasons.DisconnectReason.UNSUPPORTED_VERSION, "the client does not know today's policy keys"
    return None


class Connection:
    """The protocol's state on one end; see the module's text for the caller's duties.

    `role`, `state` and `wire_format` (of `encoder`, for a server once it has accepted, "" before) may be read.
    """

    __slots__ = ("_chunks", "_decoder", "_hello", "_out", "role", "state", "wire_format")

    def __init__(self, role: Role, *, limits: decoder.Limits | None = None) -> None:
        self.role = role
        self.state = State.HELLO
        self.wire_format = ""
        if role is _C:
            self._decoder = codec.make_client_decoder(limits or codec.SERVER_MESSAGES)
        else:
            self._decoder = codec.make_server_decoder(limits or decoder.CLIENT_MESSAGES)
        self._chunks: snappy.ChunkReader | None = None
        self._hello: messages.ClientHello | None = None
        """The client's own, or, until it is accepted, that of the peer."""
        self._out = b""

    def __repr__(self) -> str:
        return f"<Connection {self.role.value} {self.state.value} {self.wire_format or 'no format'}>"

    @property
    def pending_bytes(self) -> int:
        """Bytes that are held for what is not complete."""
        return self._decoder.pending_bytes + (self._chunks.pending_bytes if self._chunks else 0)

    # What is sent.

    def send_hello(self, hello: messages.ClientHello) -> None:
        """Client: queues the definitions and the hello, as the first thing.

        Raises:
            LocalProtocolError: this is a server, or has said hello.
        """
        if self.role is not _C or self._hello is not None:
            raise errors.LocalProtocolError("a client says hello, and once")
        self._hello = hello
        self._out += codec.CLIENT.definitions + codec.encode(hello, types=codec.CLIENT)

    def accept(self, *, version: str = "", connection_id: int = 0) -> str:
        """Server: queues the answer to the hello, and gives the wire format.

        Nothing may be sent behind it before the ack in the compressed format; in the plain one, frames may.

        Raises:
            LocalProtocolError: there is no hello to answer.
        """
        hello = self._hello
        if self.state is not State.ASKED or hello is None:
            raise errors.LocalProtocolError(f"no hello to accept on a connection that is {self.state.value}")
        self._hello = None
        self._out += _answer(version, hello.feed, connection_id)
        if hello.takes_snappy:
            self.wire_format, self.state = encoder.SNAPPY, State.RESTARTING
            self._out += _SAID_RESTART
        else:
            self.wire_format, self.state = encoder.PLAIN, State.FOLLOWING
        return self.wire_format

    def data_to_send(self) -> bytes:
        """Everything queued, once."""
        data, self._out = self._out, b""
        return data

    # What is received.

    def receive_data(self, data: bytes) -> None:
        """Takes bytes from the peer; dropped when the connection is closed or has failed."""
        if self.state not in (State.CLOSED, State.ERROR):
            (self._chunks or self._decoder).receive(data)

    def receive_eof(self) -> None:
        """The peer sends no more.

        Raises:
            RemoteProtocolError: it ended inside a message or chunk.
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
        """The next message, or None for "not yet" (and for ever after the end).

        Raises:
            RemoteProtocolError: what came is not the protocol; the connection is in ERROR from then on.
        """
        try:
            while self.state not in (State.ASKED, State.CLOSED, State.ERROR):
                value = self._next_value()
                if value is decoder.NOT_YET:
                    return None
                if self._step(value):
                    message: messages.Message = value
                    return message
            return None
        except errors.RemoteProtocolError:
            self.state = State.ERROR
            raise

    def _next_value(self) -> Any:
        """A message, None for an empty envelope, any other registered value, or NOT_YET."""
        value = self._decoder.next_value()
        while value is decoder.NOT_YET and self._chunks is not None:
            content = self._chunks.next_content()
            if content is None:
                return value
            self._decoder.receive(content)
            value = self._decoder.next_value()
        return value

    def _step(self, message: Any) -> bool:
        """Does what a message calls for; False if it is to be ignored."""
        state = _TRANSITIONS.get((self.role, self.state, type(message)))
        if state is None:
            if self.role is _C and self.state is State.FOLLOWING and not isinstance(message, _REFUSED_BY_CLIENTS):
                return False
            raise errors.RemoteProtocolError(f"unexpected {type(message).__name__} while {self.state.value}")
        match message:
            case messages.ClientHello():
                self._hello = message
                self._decoder.limits = _BEHIND_HELLO
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
            raise errors.RemoteProtocolError("the server spoke before it was asked")
        if not hello.supports_node_resource_updates:
            raise errors.RemoteProtocolError("the server is too old: it does not send node resources")
        if (hello.syncer_type or messages.FELIX) != asked.feed:
            raise errors.RemoteProtocolError(f"asked for {asked.feed!r}, the server has {hello.syncer_type[:100]!r}")

    def _restart(self, restart: messages.DecoderRestart) -> None:
        """A new stream begins behind this message; what its chunk may still hold is lost, as with the Go client."""
        if self._hello is None or not self._hello.supports_decoder_restart:
            raise errors.RemoteProtocolError("told to restart the decoder, after a hello that did not offer it")
        self._out += codec.encode(messages.Ack(), types=codec.CLIENT)
        if restart.compression_algorithm not in ("", messages.SNAPPY):
            return  # the Go client keeps its decoder then
        rest = (self._chunks or self._decoder).take_rest()
        self._decoder = codec.make_client_decoder(self._decoder.limits)
        self._chunks = snappy.ChunkReader() if restart.compression_algorithm else None
        self.receive_data(rest)
