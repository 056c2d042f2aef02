"""What a client says and is answered, in either protocol, as plain values: no sockets here.

The first byte tells the protocols apart: `00` begins the native one, 16 (hex) a TLS handshake, and anything else can
only be a Typha client's gob stream.
"""

import importlib.metadata
from collections.abc import Iterator
from typing import NamedTuple, Protocol

from protocol import errors, messages
from protocol.gob import scalars
from protocol.native import connection as native
from protocol.native import encoder as native_encoder
from protocol.native import frames
from protocol.reasons import DisconnectReason
from protocol.typha import connection as typha
from protocol.typha import messages as typha_messages
from typha.worker import policy

SOFTWARE = f"typha/{importlib.metadata.version('typha')}"
_SUPPORTED_FEATURES = frozenset({messages.Feature.ZSTD.value})
_RETRY_UNKNOWN_FEED_MILLISECONDS = 30_000
_TLS_HANDSHAKE_BYTE = 0x16
_GOB_MARK = b"Envelope"
"""Every Typha client begins with the gob definition of this type (docs/reference/typha-wire.md, section 3)."""
_GOB_MARK_WITHIN_BYTES = 64
_FIRST_TYPE_ID = 64
_WIRE_TYPES = 7


class Refusal(NamedTuple):
    """The client is not served; a protocol that has a goodbye says this in it."""

    reason: DisconnectReason
    text: str
    retry_after_milliseconds: int = 0


class Answer(NamedTuple):
    """What follows from a message; at most one of the members behind `data` is set."""

    data: bytes = b""
    """To be sent now, at once and whole."""
    subscribe: tuple[str, str] | None = None
    """The handshake is done: (feed, wire format) to be served from here on."""
    refusal: Refusal | None = None
    is_pong: bool = False
    left: str = ""
    """The client said that it leaves, and why."""
    awaits_ack: bool = False
    """The hello was good, and the client is to acknowledge before anything else is sent."""


class Conversation(Protocol):
    """One connection's handshake and what comes behind it."""

    agent: str
    """Who the client says it is, empty before its hello."""

    @property
    def pending_bytes(self) -> int:
        """Bytes that are held for an incomplete message."""
        ...

    def receive(self, data: bytes) -> Iterator[Answer]:
        """Takes bytes; gives an answer for each message in them. Stop reading answers once the connection is closing.

        Raises:
            RemoteProtocolError: this is not the protocol.
        """
        ...

    def goodbye(self, refusal: Refusal) -> bytes:
        """The last message to be sent; empty if the protocol has none."""
        ...


def begin(first: bytes, config: policy.WorkerConfig, number: int, limits: policy.Policy) -> Conversation | Refusal:
    """The conversation that a connection's first bytes begin."""
    if first[0] == frames.PREFACE[0]:
        return NativeConversation(config, number, limits)
    if first[0] == _TLS_HANDSHAKE_BYTE:
        return Refusal(DisconnectReason.UNSUPPORTED_PROTOCOL, "TLS, which is not configured here")
    if not _may_begin_gob(first):
        return Refusal(DisconnectReason.BAD_PREFACE, f"first bytes {first[:_GOB_MARK_WITHIN_BYTES]!r}")
    return TyphaConversation(config, number, looks_right=_GOB_MARK in first[:_GOB_MARK_WITHIN_BYTES])


def _may_begin_gob(first: bytes) -> bool:
    """Whether these may be a client's first bytes: a gob stream begins with the definition of a type.

    That is a length, the type's negated id (64 at least), and the field of the wire type that says what it is (1 to 7);
    what has not come yet is given the benefit of the doubt.
    """
    try:
        length = scalars.split_uint(first, 0)
        number = scalars.split_uint(first, length[1]) if length else None
    except errors.RemoteProtocolError:
        return False
    if number is None:
        return True
    encoded, position = number
    is_definition = encoded & 1 == 1 and (encoded >> 1) + 1 >= _FIRST_TYPE_ID
    return is_definition and (position >= len(first) or 1 <= first[position] <= _WIRE_TYPES)


class NativeConversation:
    """The native protocol's."""

    __slots__ = ("_config", "_connection", "_limits", "_number", "agent")

    def __init__(self, config: policy.WorkerConfig, number: int, limits: policy.Policy) -> None:
        self.agent = ""
        self._config = config
        self._number = number
        self._limits = limits
        self._connection = native.Connection(native.Role.SERVER)

    @property
    def pending_bytes(self) -> int:
        """Bytes of an incomplete frame."""
        return self._connection.pending_bytes

    def receive(self, data: bytes) -> Iterator[Answer]:
        """Takes bytes; gives an answer for each message in them."""
        self._connection.receive_data(data)
        while (message := self._connection.next_event()) is not None:
            match message:
                case messages.ClientHello():
                    yield self._hello(message)
                case messages.Pong():
                    yield Answer(is_pong=True)
                case messages.Goodbye():
                    yield Answer(left=f"goodbye: {message.reason}")

    def _hello(self, hello: messages.ClientHello) -> Answer:
        self.agent = hello.agent
        if native.VERSION not in hello.versions:
            text = f"this server speaks version {native.VERSION} only"
            return Answer(refusal=Refusal(DisconnectReason.UNSUPPORTED_VERSION, text))
        if hello.feed not in self._config.feeds:
            text = f"no feed {hello.feed!r} here"
            return Answer(refusal=Refusal(DisconnectReason.UNKNOWN_FEED, text, _RETRY_UNKNOWN_FEED_MILLISECONDS))
        features = hello.features & _SUPPORTED_FEATURES
        answer = messages.ServerHello(
            version=native.VERSION,
            feed=hello.feed,
            incarnation=bytes.fromhex(self._config.incarnation),
            features=features,
            not_supported=_asked_for(hello) - _SUPPORTED_FEATURES,
            software=SOFTWARE,
            ping_interval_milliseconds=int(self._limits.ping_interval_seconds * 1000),
            max_frame_bytes=self._limits.max_frame_bytes,
        )
        self._connection.send_hello(answer, self._number)
        wire_format = native_encoder.ZSTD if messages.Feature.ZSTD.value in features else native_encoder.PLAIN
        return Answer(self._connection.data_to_send(), subscribe=(hello.feed, wire_format))

    def goodbye(self, refusal: Refusal) -> bytes:
        """The goodbye frame."""
        text = refusal.text[:500]
        self._connection.send(messages.Goodbye(refusal.reason.value, text, refusal.retry_after_milliseconds))
        return self._connection.data_to_send()


class TyphaConversation:
    """Typha's protocol: no goodbye, and a decoder restart behind the hello of a client that takes snappy."""

    __slots__ = ("_config", "_connection", "_feed", "_looks_right", "_number", "agent")

    def __init__(self, config: policy.WorkerConfig, number: int, *, looks_right: bool) -> None:
        self.agent = ""
        self._config = config
        self._number = number
        self._looks_right = looks_right
        self._feed = ""
        self._connection = typha.Connection(typha.Role.SERVER)

    @property
    def pending_bytes(self) -> int:
        """Bytes of an incomplete message."""
        return self._connection.pending_bytes

    def receive(self, data: bytes) -> Iterator[Answer]:
        """Takes bytes; gives an answer for each message in them."""
        self._connection.receive_data(data)
        try:
            while (message := self._connection.next_event()) is not None:
                match message:
                    case typha_messages.ClientHello():
                        yield self._hello(message)
                    case typha_messages.Ack() if self._connection.state is typha.State.RESTARTED:
                        subscription = (self._feed, self._connection.wire_format)
                        yield Answer(self._connection.data_to_send(), subscribe=subscription)
                    case typha_messages.Pong():
                        yield Answer(is_pong=True)
        except errors.RemoteProtocolError as error:
            if self._looks_right or error.reason is not DisconnectReason.PROTOCOL_ERROR:
                raise
            raise errors.RemoteProtocolError(
                f"no protocol that is known here: {error}", reason=DisconnectReason.BAD_PREFACE
            ) from error

    def _hello(self, hello: typha_messages.ClientHello) -> Answer:
        self.agent = hello.agent
        self._looks_right = True
        served = [name for name in typha_messages.SYNCER_TYPES if name in self._config.feeds]
        refused = typha.refusal(hello, served)
        if refused is not None:
            return Answer(refusal=Refusal(*refused))
        self._feed = hello.feed
        wire_format = self._connection.accept(version=SOFTWARE, connection_id=self._number)
        said = self._connection.data_to_send()
        if self._connection.state is typha.State.RESTARTING:
            return Answer(said, awaits_ack=True)
        return Answer(said, subscribe=(self._feed, wire_format))

    def goodbye(self, refusal: Refusal) -> bytes:
        """There is none: the connection just ends."""
        return b""


def _asked_for(hello: messages.ClientHello) -> frozenset[str]:
    """Features that the hello names or makes use of."""
    asked = set(hello.features)
    if hello.resume is not None:
        asked.add(messages.Feature.RESUME.value)
    if hello.chunk_digests is not None:
        asked.add(messages.Feature.CHUNK_DIGESTS.value)
    if hello.subscription is not None:
        asked.add(messages.Feature.SUBSCRIPTIONS.value)
    return frozenset(asked)
