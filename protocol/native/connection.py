"""Internal: one end of a native connection, client or server, without I/O. `protocol` exports `Connection` and `Role`.

The caller passes received bytes to `receive_data` (and the end of the stream to `receive_eof`), calls `next_event`
until it returns None, and writes what `data_to_send` returns. The rules:

1. Each side sends the preface and then its hello. The server sends its hello only after the client's.
2. `_TRANSITIONS` lists every message that may arrive: (role, state, message) -> next state. Any other message is a
   protocol error.
3. Data is contiguous: `Updates.previous_sequence` and `Status.sequence` equal the sequence that the client has reached.
   With a subscription they may be higher: what lies between is not for this client.
   A snapshot may begin between any two messages and replaces everything. A status catching-up may reduce the sequence:
   the server then sends again what has changed since, as newest values.
   A client that resumes has reached the sequence of its hello once a server of the same incarnation has agreed.
4. After an error, a goodbye or the end of the stream, the connection returns no more events.
"""

import enum
from collections.abc import Callable

from protocol import errors, messages, reasons
from protocol.native import codec, dictionary, frames

VERSION = 1


class Role(enum.Enum):
    """Which end of the connection this is."""

    CLIENT = "client"
    SERVER = "server"


class State(enum.Enum):
    """What this end has received so far."""

    PREFACE = "preface"
    HELLO = "hello"
    READY = "ready"
    """The handshake is complete. A client has no data yet."""
    RESUMING = "resuming"
    """The same for a client whose map is as in its hello, and may be continued or kept in part."""
    SNAPSHOT = "snapshot"
    FOLLOWING = "following"
    CLOSED = "closed"
    ERROR = "error"


_C, _S = Role.CLIENT, Role.SERVER

_TRANSITIONS: dict[tuple[Role, State, type[messages.Message]], State] = {
    (_S, State.HELLO, messages.ClientHello): State.READY,
    (_S, State.READY, messages.Pong): State.READY,
    (_S, State.READY, messages.Applied): State.READY,
    (_S, State.READY, messages.Goodbye): State.CLOSED,
    (_C, State.HELLO, messages.ServerHello): State.READY,
    (_C, State.HELLO, messages.Goodbye): State.CLOSED,
    (_C, State.READY, messages.Ping): State.READY,
    (_C, State.READY, messages.Dictionary): State.READY,
    (_C, State.READY, messages.SnapshotBegin): State.SNAPSHOT,
    (_C, State.READY, messages.Goodbye): State.CLOSED,
    (_C, State.RESUMING, messages.Ping): State.RESUMING,
    (_C, State.RESUMING, messages.Status): State.RESUMING,
    (_C, State.RESUMING, messages.Dictionary): State.RESUMING,
    (_C, State.RESUMING, messages.Updates): State.FOLLOWING,
    (_C, State.RESUMING, messages.SnapshotBegin): State.SNAPSHOT,
    (_C, State.RESUMING, messages.SnapshotResume): State.SNAPSHOT,
    (_C, State.RESUMING, messages.Goodbye): State.CLOSED,
    (_C, State.SNAPSHOT, messages.SnapshotChunk): State.SNAPSHOT,
    (_C, State.SNAPSHOT, messages.Ping): State.SNAPSHOT,
    (_C, State.SNAPSHOT, messages.SnapshotEnd): State.FOLLOWING,
    (_C, State.SNAPSHOT, messages.Goodbye): State.CLOSED,
    (_C, State.FOLLOWING, messages.Updates): State.FOLLOWING,
    (_C, State.FOLLOWING, messages.Status): State.FOLLOWING,
    (_C, State.FOLLOWING, messages.Ping): State.FOLLOWING,
    (_C, State.FOLLOWING, messages.Dictionary): State.FOLLOWING,
    (_C, State.FOLLOWING, messages.SnapshotBegin): State.SNAPSHOT,
    (_C, State.FOLLOWING, messages.Goodbye): State.CLOSED,
}


class Connection:
    """The state of the native protocol at one end of a connection.

    Pass received bytes to `receive_data` and the end of the stream to `receive_eof`. Then call `next_event` until it
    returns None, and write what `data_to_send` returns. A client answers pings on its own.
    """

    __slots__ = (
        "_continues",
        "_decompress",
        "_hello",
        "_is_selection",
        "_keeps",
        "_next_sequence",
        "_out",
        "_preface_sent",
        "_splitter",
        "_takes_dictionaries",
        "role",
        "sequence",
        "state",
    )

    def __init__(self, role: Role, *, max_frame_bytes: int | None = None) -> None:
        default = frames.MAX_FRAME_BYTES if role is Role.CLIENT else frames.MAX_HELLO_FRAME_BYTES
        self.role = role
        self.state = State.PREFACE
        self.sequence = 0
        """The sequence that a client has reached; 0 before the end of its first snapshot if it does not resume."""
        self._hello: messages.ClientHello | None = None
        """What a client has said, until it is answered."""
        self._continues = self._keeps = False
        """What the server may do with the client's map while it is RESUMING."""
        self._next_sequence = 0
        self._is_selection = False
        """A subscription is in force."""
        self._takes_dictionaries = False
        """`zstd-dictionary` is in force."""
        self._decompress: Callable[[bytes | memoryview], bytes] | None = None
        """For frames that name the newest dictionary."""
        self._splitter = frames.FrameSplitter(max_frame_bytes=max_frame_bytes or default)
        self._out: list[bytes] = []
        self._preface_sent = False

    def __repr__(self) -> str:
        return f"<Connection {self.role.value} {self.state.value} sequence={self.sequence}>"

    def next_bytes(self, count: int) -> bytes:
        """Up to `count` bytes received and not yet consumed. A server uses them to recognise the protocol."""
        return self._splitter.peek(count)

    @property
    def pending_bytes(self) -> int:
        """Number of buffered bytes of an incomplete frame."""
        return self._splitter.pending_bytes

    def send(self, message: messages.Message) -> None:
        """Queues a message. The first one, a hello or a refusal, goes out after the preface.

        Raises:
            LocalProtocolError: the connection is closed or has failed.
        """
        if not isinstance(message, messages.Goodbye):
            self._check_open()
        if isinstance(message, messages.ClientHello):
            self._hello = message
        self._queue(codec.encode(message))

    def send_hello(self, hello: messages.ServerHello, connection_id: int) -> None:
        """Server: queues its hello with this connection id. Cheap for a hello that differs only in the id.

        Raises:
            LocalProtocolError: the connection is closed or has failed.
        """
        self._check_open()
        self._queue(codec.encode_server_hello(hello, connection_id))

    def _check_open(self) -> None:
        if self.state in (State.CLOSED, State.ERROR):
            raise errors.LocalProtocolError(f"cannot send on a connection that is {self.state.value}")

    def _queue(self, payload: bytes) -> None:
        if not self._preface_sent:
            self._preface_sent = True
            self._out.append(frames.PREFACE)
        self._out.append(frames.pack_frame(payload))

    def data_to_send(self) -> bytes:
        """Returns the queued bytes and empties the queue."""
        data = b"".join(self._out)
        self._out.clear()
        return data

    def receive_data(self, data: bytes) -> None:
        """Accepts bytes from the peer. Drops them if the connection is closed or has failed."""
        if self.state not in (State.CLOSED, State.ERROR):
            self._splitter.receive(data)

    def receive_eof(self) -> None:
        """Records that the peer has closed its end.

        Raises:
            RemoteProtocolError: the stream ended inside a preface or frame.
        """
        if self.state in (State.CLOSED, State.ERROR):
            return
        held = self._splitter.pending_bytes
        self.state = State.CLOSED
        if held:
            raise errors.RemoteProtocolError(
                f"stream ended inside a frame, after {held} of its bytes", reason=reasons.DisconnectReason.CLIENT_CLOSED
            )

    def next_event(self) -> messages.Message | None:
        """Returns the next message, or None if more bytes are needed or the connection has ended.

        Raises:
            RemoteProtocolError: the peer violated the protocol. The state is ERROR from then on.
        """
        try:
            return self._next_event()
        except errors.RemoteProtocolError:
            self.state = State.ERROR
            raise

    def _next_event(self) -> messages.Message | None:
        if self.state is State.PREFACE and not self._receive_preface():
            return None
        if self.state in (State.CLOSED, State.ERROR):
            return None
        frame = self._splitter.next_frame()
        if frame is None:
            return None
        flags, body = frame
        if flags and self.role is Role.SERVER:
            raise errors.RemoteProtocolError(
                f"a frame to a server has flags (0x{flags:02x}), but only a server compresses"
            )
        if self.role is Role.SERVER:
            message = codec.decode_from_client(body)
        else:
            payload = frames.unpack_payload(
                flags, body, max_payload_bytes=self._splitter.max_frame_bytes, decompress=self._decompress
            )
            message = codec.decode(payload)
        self._step(message)
        return message

    def _receive_preface(self) -> bool:
        received = self._splitter.peek(len(frames.PREFACE))
        if not frames.PREFACE.startswith(received):
            raise errors.RemoteProtocolError(
                f"not the native protocol: the first bytes are {received.hex(' ')}",
                reason=reasons.DisconnectReason.BAD_PREFACE,
            )
        if len(received) < len(frames.PREFACE):
            return False
        self._splitter.skip(len(received))
        self.state = State.HELLO
        return True

    def _resumed(self, answer: messages.ServerHello) -> State:
        """The client's state after the server's hello."""
        asked, self._hello = self._hello, None
        if asked is None:
            return State.READY
        in_force = asked.features & answer.features
        position = asked.resume if messages.Feature.RESUME in in_force else None
        self._continues = position is not None and position.incarnation == answer.incarnation
        if position is not None and self._continues:
            self.sequence = position.sequence
        self._keeps = messages.Feature.CHUNK_DIGESTS in in_force and asked.chunk_digests is not None
        return State.RESUMING if self._continues or self._keeps else State.READY

    def _check_resumption(self, message: messages.Message) -> None:
        match message:
            case messages.Updates() | messages.Status() if not self._continues:
                raise errors.RemoteProtocolError("the server continues a position that it cannot know")
            case messages.SnapshotResume() if not self._keeps:
                raise errors.RemoteProtocolError("the server keeps chunks whose digests it has not been told")

    def _step(self, message: messages.Message) -> None:
        state = _TRANSITIONS.get((self.role, self.state, type(message)))
        if state is None:
            name = codec.message_name(type(message))
            raise errors.RemoteProtocolError(f"message {name} is not allowed in state {self.state.value}")
        if self.state is State.RESUMING:
            self._check_resumption(message)
        match message:
            case messages.ClientHello():
                self._splitter.max_frame_bytes = frames.MAX_CLIENT_FRAME_BYTES
            case messages.ServerHello():
                self._is_selection = messages.Feature.SUBSCRIPTIONS in message.features
                self._takes_dictionaries = messages.Feature.ZSTD_DICTIONARY in message.features
                if message.max_frame_bytes:
                    self._splitter.max_frame_bytes = min(self._splitter.max_frame_bytes, message.max_frame_bytes)
                state = self._resumed(message)
            case messages.Updates():
                is_continued = self._is_continued_by(message.previous_sequence)
                if not is_continued or message.sequence < message.previous_sequence:
                    raise errors.RemoteProtocolError(
                        f"updates from {message.previous_sequence} to {message.sequence} "
                        f"do not continue {self.sequence}"
                    )
                self.sequence = message.sequence
            case messages.Status(status=messages.SyncStatus.CATCHING_UP) if message.sequence < self.sequence:
                self.sequence = message.sequence
            case messages.Status():
                if not self._is_continued_by(message.sequence):
                    raise errors.RemoteProtocolError(
                        f"a status at {message.sequence} does not continue {self.sequence}"
                    )
                self.sequence = message.sequence
            case messages.SnapshotBegin() | messages.SnapshotResume():
                self._next_sequence = message.sequence
            case messages.SnapshotEnd():
                if message.sequence != self._next_sequence:
                    raise errors.RemoteProtocolError(
                        f"a snapshot at {self._next_sequence} ends with sequence {message.sequence}"
                    )
                self.sequence = message.sequence
            case messages.Dictionary():
                if not self._takes_dictionaries:
                    raise errors.RemoteProtocolError("a dictionary, but zstd-dictionary is not in force")
                self._decompress = dictionary.Decompression(message).decompress
            case messages.Ping():
                self.send(messages.Pong(self.sequence))
        self.state = state

    def _is_continued_by(self, sequence: int) -> bool:
        """Whether what begins at a sequence may come next."""
        return sequence == self.sequence or (self._is_selection and sequence > self.sequence)
