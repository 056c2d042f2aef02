"""Frames of Typha's protocol as the swarm needs them: what they change, decoded once for all agents. Pure.

A frame is a snappy chunk, or without compression a gob message. All clients of a format receive the same frames. A
`Position` is the state of a stream after a frame: the types defined so far, and the bytes of an incomplete message. A
frame at a position is decoded once, and found again by its bytes, compared in full. So two agents share a decoded frame
if and only if they received the same stream.

Unlike the original's clients, this decoder accepts no definition inside a value: the service sends definitions first.
"""

import enum
from typing import Final, NamedTuple

from loadtest.swarm import frames
from protocol import errors
from protocol.gob import decoder, scalars
from protocol.typha import codec, messages, snappy

FRAMES_BYTES: Final = 32 * 1024 * 1024
READS_BYTES: Final = 8 * 1024 * 1024
MAX_DEFINITIONS_BYTES: Final = 64 * 1024
MAX_CLEAN_POSITIONS: Final = 64
_SNAPPY_HEADER_BYTES: Final = 4


class Form(enum.Enum):
    """What the next frame of a stream is."""

    PLAIN = "plain"
    SNAPPY_START = "snappy-start"
    """Snappy's stream identifier."""
    SNAPPY = "snappy"


class Message(frames.Content):
    """A decoded message. Equal only to itself, so that it can stand for its bytes as a dictionary's key."""

    __slots__ = ("answer", "serial")

    def __init__(self, message: messages.Message | None, serial: int) -> None:
        super().__init__()
        self.message = message
        """Without its updates, which are in `changes`; None for messages that clients ignore."""
        self.serial = 0
        """Of key-values: their number in the order in which the process first saw them; 0 for other messages."""
        self.answer = b""
        """The client's answer."""
        match message:
            case messages.KeyValues(updates=updates):
                self.take(updates)
                self.message = messages.KeyValues()
                self.serial = serial
            case messages.Ping(timestamp=timestamp):
                self.answer = codec.encode(messages.Pong(timestamp), types=codec.CLIENT)
            case messages.DecoderRestart():
                self.answer = codec.encode(messages.Ack(), types=codec.CLIENT)


class StreamStep(NamedTuple):
    """A frame at a position: the messages that it completes, and the position after it."""

    messages: tuple[Message, ...]
    position: "Position"


class Position:
    """The state of a stream. Equal only to itself."""

    __slots__ = ("_expected", "_steps", "definitions", "form", "reads", "tail")

    def __init__(self, form: Form, definitions: bytes, tail: bytes = b"") -> None:
        self.form = form
        self.definitions = definitions
        self.tail = tail
        self.reads: frames.BoundedCache[tuple[Message, ...]] = frames.BoundedCache(READS_BYTES)
        """Whole reads from a socket that were complete frames and led back to this position."""
        self._steps: frames.BoundedCache[StreamStep] = frames.BoundedCache(FRAMES_BYTES)
        self._expected: tuple[bytes, StreamStep] | None = None

    def known(self, frame: bytes) -> StreamStep | None:
        """The step that another agent made with this frame. The latest one is compared without a hash."""
        expected = self._expected
        if expected is not None and expected[0] == frame:
            return expected[1]
        step = self._steps.get(frame)
        if step is not None:
            self._expected = frame, step
        return step

    def remember(self, frame: bytes, step: StreamStep) -> None:
        """Keep a step for `known`."""
        self._steps.put(frame, step)
        self._expected = frame, step


class Positions:
    """All positions of a process."""

    def __init__(self) -> None:
        self.start = Position(Form.PLAIN, b"")
        self.distinct = 0
        """Messages decoded so far."""
        self._clean: dict[tuple[Form, bytes], Position] = {(Form.PLAIN, b""): self.start}
        self._decoders: dict[bytes, decoder.Decoder] = {}

    def step(self, position: Position, frame: bytes) -> StreamStep:
        """The step that a frame makes at a position. Raises RemoteProtocolError."""
        step = position.known(frame)
        if step is None:
            step = self._decode(position, frame)
            position.remember(frame, step)
        return step

    def _decode(self, position: Position, frame: bytes) -> StreamStep:
        if position.form is Form.SNAPPY_START:
            if frame != snappy.IDENTIFIER:
                raise errors.RemoteProtocolError(f"snappy: the stream begins with {frame[:10].hex()}")
            return StreamStep((), self._position(Form.SNAPPY, position.definitions, b""))
        data = position.tail + (frame if position.form is Form.PLAIN else _chunk_content(frame))
        definitions, found, offset = position.definitions, list[Message](), 0
        while (message := _first_message(data, offset)) is not None:
            raw, body_at, offset = message
            type_id = scalars.Scanner(raw, body_at).signed()
            if type_id < 0:
                definitions += raw
                if len(definitions) > MAX_DEFINITIONS_BYTES:
                    raise errors.RemoteProtocolError(f"gob: {len(definitions)} bytes of definitions")
                continue
            found.append(self._message(definitions, raw))
            restart = found[-1].message
            if isinstance(restart, messages.DecoderRestart):
                if position.form is not Form.PLAIN or restart.compression_algorithm != messages.SNAPPY:
                    raise errors.RemoteProtocolError(f"a restart that the service never asks for: {restart}")
                return StreamStep(tuple(found), self._position(Form.SNAPPY_START, b"", b""))
        return StreamStep(tuple(found), self._position(position.form, definitions, data[offset:]))

    def _position(self, form: Form, definitions: bytes, tail: bytes) -> Position:
        if tail:
            return Position(form, definitions, tail)
        known = self._clean.get((form, definitions))
        if known is None:
            while len(self._clean) >= MAX_CLEAN_POSITIONS:
                del self._clean[next(iter(self._clean))]
            known = self._clean[form, definitions] = Position(form, definitions)
        return known

    def _message(self, definitions: bytes, raw: bytes) -> Message:
        reader = self._decoders.pop(definitions, None)
        if reader is None:
            reader = codec.make_client_decoder()
            reader.receive(definitions)
            while len(self._decoders) >= MAX_CLEAN_POSITIONS:
                del self._decoders[next(iter(self._decoders))]
        reader.receive(raw)
        value = reader.next_value()
        if value is decoder.NEED_DATA:
            raise errors.RemoteProtocolError("gob: a value that goes on in a second message")
        self._decoders[definitions] = reader
        self.distinct += 1
        return Message(value if isinstance(value, messages.Message) else None, self.distinct)


def first_frame_bytes(position: Position, buffer: bytearray) -> int:
    """Length of the frame that a buffer begins with, 0 if it is incomplete. Raises RemoteProtocolError."""
    if position.form is Form.PLAIN:
        split = scalars.split_uint(buffer, 0)
        if split is None:
            return 0
        length, start = split
        limit = codec.SERVER_LIMITS.message_bytes
    else:
        start, limit = _SNAPPY_HEADER_BYTES, snappy.CHUNK_BODY_BYTES
        length = int.from_bytes(buffer[1:start], "little") if len(buffer) >= start else 0
    if length > limit:
        raise errors.RemoteProtocolError(f"{position.form.value}: a frame of {length} bytes")
    return start + length if start + length <= len(buffer) else 0


def _first_message(data: bytes, offset: int) -> tuple[bytes, int, int] | None:
    """The gob message at `offset`, the start of its body within it, and the offset after it; None if incomplete."""
    split = scalars.split_uint(data, offset)
    if split is None:
        return None
    length, body = split
    if not 0 < length <= codec.SERVER_LIMITS.message_bytes:
        raise errors.RemoteProtocolError(f"gob: message of {length} bytes")
    if body + length > len(data):
        return None
    return data[offset : body + length], body - offset, body + length


def _chunk_content(chunk: bytes) -> bytes:
    """The content of a snappy chunk. Raises RemoteProtocolError."""
    reader = snappy.ChunkReader()
    reader.receive(snappy.IDENTIFIER + chunk)
    return reader.next_content() or b""
