"""Streams of Typha's protocol as the swarm needs them: what their pieces change, decoded once for all agents. Pure.

A piece is what a stream consists of below gob: a snappy chunk, or without compression a gob message. All clients of a
format are sent the same pieces. A `Place` is where a stream stands behind a piece: the types that it has defined, and
the bytes of a message that is not complete. What a piece is at a place is decoded once and found again by the piece's
bytes, compared in full; so two agents share what was decoded if and only if they received the same stream.

Unlike the original's clients this one takes no definition in the midst of a value: the service sends all of them first.
"""

import enum
from typing import Final, NamedTuple

from loadtest.swarm import frames
from protocol import errors
from protocol.gob import decoder, scalars
from protocol.typha import codec, messages, snappy

PIECES_BYTES: Final = 32 * 1024 * 1024
READS_BYTES: Final = 8 * 1024 * 1024
MAX_DEFINITIONS_BYTES: Final = 64 * 1024
MAX_CLEAN_PLACES: Final = 64
_SNAPPY_HEADER_BYTES: Final = 4


class Form(enum.Enum):
    """What the pieces of a stream are."""

    PLAIN = "plain"
    SNAPPY_START = "snappy-start"
    """Snappy's stream identifier is due."""
    SNAPPY = "snappy"


class Message(frames.Content):
    """One decoded message. Equal only to itself, so that it can stand for its bytes as a dictionary's key."""

    __slots__ = ("answer", "serial")

    def __init__(self, message: messages.Message | None, serial: int) -> None:
        super().__init__()
        self.message = message
        """Without its updates, which are in `changes`; None for what clients ignore."""
        self.serial = 0
        """Of key-values: their place in the order in which the process saw them first; 0 for every other message."""
        self.answer = b""
        """What a client sends back."""
        match message:
            case messages.KeyValues(updates=updates):
                self.take(updates)
                self.message = messages.KeyValues()
                self.serial = serial
            case messages.Ping(timestamp=timestamp):
                self.answer = codec.encode(messages.Pong(timestamp), types=codec.CLIENT)
            case messages.DecoderRestart():
                self.answer = codec.encode(messages.Ack(), types=codec.CLIENT)


class Step(NamedTuple):
    """What a piece is at a place: whole messages, and where the stream stands behind it."""

    messages: tuple[Message, ...]
    place: "Place"


class Place:
    """Where a stream stands. Equal only to itself."""

    __slots__ = ("_expected", "_steps", "definitions", "form", "reads", "tail")

    def __init__(self, form: Form, definitions: bytes, tail: bytes = b"") -> None:
        self.form = form
        self.definitions = definitions
        self.tail = tail
        self.reads: frames.BoundedCache[tuple[Message, ...]] = frames.BoundedCache(READS_BYTES)
        """Whole reads from a socket that were whole pieces, and behind which the stream stands here again."""
        self._steps: frames.BoundedCache[Step] = frames.BoundedCache(PIECES_BYTES)
        self._expected: tuple[bytes, Step] | None = None

    def known(self, piece: bytes) -> Step | None:
        """What the piece was for another agent; the one that came last is compared without a hash."""
        expected = self._expected
        if expected is not None and expected[0] == piece:
            return expected[1]
        step = self._steps.get(piece)
        if step is not None:
            self._expected = piece, step
        return step

    def remember(self, piece: bytes, step: Step) -> None:
        """For `known`."""
        self._steps.put(piece, step)
        self._expected = piece, step


class Places:
    """All places of a process."""

    def __init__(self) -> None:
        self.start = Place(Form.PLAIN, b"")
        self.distinct = 0
        """Messages decoded so far."""
        self._clean: dict[tuple[Form, bytes], Place] = {(Form.PLAIN, b""): self.start}
        self._decoders: dict[bytes, decoder.Decoder] = {}

    def step(self, place: Place, piece: bytes) -> Step:
        """What a piece is at a place. Raises RemoteProtocolError."""
        step = place.known(piece)
        if step is None:
            step = self._decode(place, piece)
            place.remember(piece, step)
        return step

    def _decode(self, place: Place, piece: bytes) -> Step:
        if place.form is Form.SNAPPY_START:
            if piece != snappy.IDENTIFIER:
                raise errors.RemoteProtocolError(f"snappy: the stream begins with {piece[:10].hex()}")
            return Step((), self._place(Form.SNAPPY, place.definitions, b""))
        data = place.tail + (piece if place.form is Form.PLAIN else _content(piece))
        definitions, found, position = place.definitions, list[Message](), 0
        while (message := _first_message(data, position)) is not None:
            raw, body_at, position = message
            type_id = scalars.Scanner(raw, body_at).signed()
            if type_id < 0:
                definitions += raw
                if len(definitions) > MAX_DEFINITIONS_BYTES:
                    raise errors.RemoteProtocolError(f"gob: {len(definitions)} bytes of definitions")
                continue
            found.append(self._message(definitions, raw))
            restart = found[-1].message
            if isinstance(restart, messages.DecoderRestart):
                if place.form is not Form.PLAIN or restart.compression_algorithm != messages.SNAPPY:
                    raise errors.RemoteProtocolError(f"a restart that the service never asks for: {restart}")
                return Step(tuple(found), self._place(Form.SNAPPY_START, b"", b""))
        return Step(tuple(found), self._place(place.form, definitions, data[position:]))

    def _place(self, form: Form, definitions: bytes, tail: bytes) -> Place:
        if tail:
            return Place(form, definitions, tail)
        place = self._clean.get((form, definitions))
        if place is None:
            while len(self._clean) >= MAX_CLEAN_PLACES:
                del self._clean[next(iter(self._clean))]
            place = self._clean[form, definitions] = Place(form, definitions)
        return place

    def _message(self, definitions: bytes, raw: bytes) -> Message:
        reader = self._decoders.pop(definitions, None)
        if reader is None:
            reader = codec.make_client_decoder()
            reader.receive(definitions)
            while len(self._decoders) >= MAX_CLEAN_PLACES:
                del self._decoders[next(iter(self._decoders))]
        reader.receive(raw)
        value = reader.next_value()
        if value is decoder.NEED_DATA:
            raise errors.RemoteProtocolError("gob: a value that goes on in a second message")
        self._decoders[definitions] = reader
        self.distinct += 1
        return Message(value if isinstance(value, messages.Message) else None, self.distinct)


def first_piece_bytes(place: Place, buffer: bytearray) -> int:
    """Length of the piece that a buffer begins with, 0 if it is not complete. Raises RemoteProtocolError."""
    if place.form is Form.PLAIN:
        split = scalars.split_uint(buffer, 0)
        if split is None:
            return 0
        length, start = split
        limit = codec.SERVER_LIMITS.message_bytes
    else:
        start, limit = _SNAPPY_HEADER_BYTES, snappy.CHUNK_BODY_BYTES
        length = int.from_bytes(buffer[1:start], "little") if len(buffer) >= start else 0
    if length > limit:
        raise errors.RemoteProtocolError(f"{place.form.value}: a piece of {length} bytes")
    return start + length if start + length <= len(buffer) else 0


def _first_message(data: bytes, position: int) -> tuple[bytes, int, int] | None:
    """The gob message at `position`, where its body begins in it, and the position behind it; None if incomplete."""
    split = scalars.split_uint(data, position)
    if split is None:
        return None
    length, body = split
    if not 0 < length <= codec.SERVER_LIMITS.message_bytes:
        raise errors.RemoteProtocolError(f"gob: message of {length} bytes")
    if body + length > len(data):
        return None
    return data[position : body + length], body - position, body + length


def _content(chunk: bytes) -> bytes:
    """A chunk's content. Raises RemoteProtocolError."""
    reader = snappy.ChunkReader()
    reader.receive(snappy.IDENTIFIER + chunk)
    return reader.next_content() or b""
