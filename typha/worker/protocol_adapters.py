"""What a client says and what it is answered, in either protocol, as plain values: no sockets here.

The first byte distinguishes the protocols: `00` begins the native one, 16 (hex) a TLS handshake, and anything else can
only be the gob stream of a Typha client.
"""

import array
import functools
import importlib.metadata
import types
from collections.abc import Callable, Iterator, Mapping
from typing import NamedTuple, Protocol, TypeAlias

from cache.feeds.calico import releases, syncers
from protocol import errors, messages, subscriptions
from protocol.gob import scalars
from protocol.native import connection as native
from protocol.native import encoder as native_encoder
from protocol.native import frames
from protocol.reasons import DisconnectReason
from protocol.typha import connection as typha
from protocol.typha import messages as typha_messages
from typha import clock

SOFTWARE = f"typha/{importlib.metadata.version('typha')}"
_SUPPORTED_FEATURES = frozenset(
    {
        messages.Feature.ZSTD.value,
        messages.Feature.POSITIONS.value,
        messages.Feature.FRESHNESS.value,
        messages.Feature.TIERS.value,
        messages.Feature.RESUME.value,
        messages.Feature.CHUNK_DIGESTS.value,
        messages.Feature.ZSTD_DICTIONARY.value,
    }
)
_RESUMING = frozenset({messages.Feature.RESUME.value, messages.Feature.CHUNK_DIGESTS.value})
_CALICO_FEEDS = frozenset(syncers.NAMES)
"""Their keys have neither kinds nor namespaces that a client could name."""
_RETRY_UNKNOWN_FEED_MILLISECONDS = 30_000
_NAMED_FEATURES_BYTES_MAX = 32 * 1024
"""The answer to a hello names them in one frame, which may have 64 KiB at least."""
_TLS_HANDSHAKE_BYTE = 0x16
_GOB_MARK = b"Envelope"
"""Every Typha client begins with the gob definition of this type (docs/reference/typha-wire.md, section 3)."""
_GOB_MARK_WITHIN_BYTES = 64
_FIRST_TYPE_ID = 64
_WIRE_TYPES = 7
_NODE_CHARS_MAX = 253
"""The longest name of a Kubernetes node."""


def _has_no_room(feed: str, subscription: subscriptions.Subscription, address: str) -> bool:
    return False


class Offer(NamedTuple):
    """What a server tells native clients of itself, and the feeds that clients of either protocol may ask for."""

    feeds: frozenset[str]
    """With the projections of felix, which only another replica can ask for by name."""
    incarnation: bytes
    ping_interval_seconds: float
    max_frame_bytes: int
    release_overrides: tuple[releases.Override, ...] = ()
    """What Typha clients get against their own words."""
    confirmed_at: Mapping[str, float] = types.MappingProxyType({})
    """When the backend last confirmed each feed, by the monotonic clock; those that are confirmed and complete."""
    upstreams: tuple[bytes, ...] | None = None
    """See `protocol.messages.ServerHello`."""
    has_room_for: Callable[[str, subscriptions.Subscription, str], bool] = _has_no_room
    """Whether native clients of a feed may have a subscription, if one at this address asks for it."""


class Ponged(NamedTuple):
    """The client has answered a ping."""


class Applied(NamedTuple):
    """The client has applied everything up to a sequence."""

    sequence: int


class Left(NamedTuple):
    """The client said that it leaves, and why."""

    text: str


class Refused(NamedTuple):
    """The client is not served; a protocol that has a goodbye sends this in it."""

    reason: DisconnectReason
    text: str
    retry_after_milliseconds: int = 0
    servers: tuple[str, ...] = ()
    """Other servers that the client may try."""


class Introduction(NamedTuple):
    """What the log tells of a client whose hello was good. Nobody has cut or escaped the client's words yet."""

    protocol: str
    syncer: str
    """What the client asked for, which is the feed but for agents of older releases."""
    feed: str
    node: str = ""
    version: str = ""


class Identity(NamedTuple):
    """What a client has said of itself, cut and printable."""

    node: str = ""
    version: str = ""
    info: str = ""
    release: str = ""
    """The release of Calico whose data an agent of feed felix gets."""


class AckAwaited(NamedTuple):
    """The hello was good; the client is to acknowledge `data` before anything else is sent."""

    data: bytes
    introduction: Introduction | None = None


class AgentVersion(NamedTuple):
    """The version that an agent of feed felix says it has, and what it gets for that."""

    version: str
    release: releases.Release
    reason: str


class Resumption(NamedTuple):
    """What a client has of the feed from an earlier connection, by its own words."""

    sequence: int | None = None
    """Everything up to this sequence of our incarnation."""
    digests: "array.array[int] | None" = None
    """Those of the chunks of its map, a power of two of them."""


class Subscribed(NamedTuple):
    """The handshake is done: after `data`, the client is sent this feed in this wire format."""

    data: bytes
    feed: str
    wire_format: str
    agent_version: AgentVersion | None = None
    introduction: Introduction | None = None
    """None if the event of the hello had it."""
    reports_positions: bool = False
    """Whether the client says what it has applied."""
    subscription: subscriptions.Subscription | None = None
    """What part of the feed it gets; None for all of it."""
    tag: int = subscriptions.COMMON
    """Of the client's node, if the subscription is by node."""
    resumption: Resumption | None = None


Event: TypeAlias = Ponged | Applied | Left | Refused | AckAwaited | Subscribed
"""What a message of a client means."""
_PONGED = Ponged()


class ProtocolAdapter(Protocol):
    """One connection's handshake and what follows it, in one of the protocols."""

    @property
    def agent(self) -> str:
        """Who the client says it is; empty before its hello."""
        ...

    @property
    def identity(self) -> "Identity":
        """The same in parts."""
        ...

    @property
    def pending_bytes(self) -> int:
        """Bytes that are kept of an incomplete message."""
        ...

    def receive(self, data: bytes) -> Iterator[Event]:
        """Takes bytes; yields an event for each message in them. Stop iterating once the connection is closing.

        Raises:
            RemoteProtocolError: this is not the protocol.
        """
        ...

    def goodbye(self, refusal: Refused) -> bytes:
        """The last message to be sent; empty if the protocol has none."""
        ...


def begin(first: bytes, offer: Offer, number: int, address: str = "") -> ProtocolAdapter | Refused:
    """The adapter for the protocol that a connection's first bytes belong to; the client is told the `number`.

    `address` is the client's, without its port; of IPv6, its network.
    """
    if first[0] == frames.PREFACE[0]:
        return NativeAdapter(offer, number, address)
    if first[0] == _TLS_HANDSHAKE_BYTE:
        return Refused(DisconnectReason.UNSUPPORTED_PROTOCOL, "TLS, which is not configured here")
    if not _may_begin_gob(first):
        return Refused(DisconnectReason.BAD_PREFACE, f"first bytes {first[:_GOB_MARK_WITHIN_BYTES]!r}")
    return TyphaAdapter(offer, number, looks_right=_GOB_MARK in first[:_GOB_MARK_WITHIN_BYTES])


def _may_begin_gob(first: bytes) -> bool:
    """Whether these may be a client's first bytes: a gob stream begins with the definition of a type.

    A definition is a length, the type's negated id (at least 64), and the field of the wire type that tells its kind
    (1 to 7). Bytes that have not arrived yet are taken to be right.
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


class NativeAdapter:
    """The native protocol."""

    __slots__ = ("_address", "_connection", "_node", "_number", "_offer", "_reports_positions", "agent")

    def __init__(self, offer: Offer, number: int, address: str = "") -> None:
        self.agent = ""
        self._address = address
        self._node = ""
        self._offer = offer
        self._number = number
        self._connection = native.Connection(native.Role.SERVER)
        self._reports_positions = False

    @property
    def identity(self) -> Identity:
        """The node that the client says it runs on, or its own name. With a node, its name is the info."""
        node, agent = (typha_messages.printable(text, _NODE_CHARS_MAX) for text in (self._node, self.agent))
        return Identity(node=node, info=agent) if node else Identity(node=agent)

    @property
    def pending_bytes(self) -> int:
        """Bytes of an incomplete frame."""
        return self._connection.pending_bytes

    def receive(self, data: bytes) -> Iterator[Event]:
        """Takes bytes; yields an event for each message in them."""
        self._connection.receive_data(data)
        while (message := self._connection.next_event()) is not None:
            match message:
                case messages.ClientHello():
                    yield self._hello(message)
                case messages.Pong():
                    yield _PONGED
                case messages.Applied():
                    if not self._reports_positions:
                        raise errors.RemoteProtocolError("applied, but positions are not in force")
                    yield Applied(message.sequence)
                case messages.Goodbye():
                    yield Left(f"goodbye: {message.reason}")

    def _hello(self, hello: messages.ClientHello) -> Event:
        self.agent, self._node = hello.agent, hello.node
        if native.VERSION not in hello.versions:
            text = f"this server speaks version {native.VERSION} only"
            return Refused(DisconnectReason.UNSUPPORTED_VERSION, text)
        is_named = hello.feed not in releases.PROJECTIONS or messages.Feature.TIERS.value in hello.features
        if hello.feed not in self._offer.feeds or not is_named:
            text = f"no feed {hello.feed!r} here"
            return Refused(DisconnectReason.UNKNOWN_FEED, text, _RETRY_UNKNOWN_FEED_MILLISECONDS)
        features = hello.features & _SUPPORTED_FEATURES
        if messages.Feature.ZSTD.value not in features:
            features -= {messages.Feature.ZSTD_DICTIONARY.value}
        subscription = self._subscription(hello)
        if subscription is not None:
            features |= {messages.Feature.SUBSCRIPTIONS.value}
            if subscription.own_node:  # a chunk of a snapshot may be of one node
                features -= _RESUMING
        elif hello.subscription is not None:  # the client's position may be that of a part
            features -= {messages.Feature.RESUME.value}
        not_supported = _asked_for(hello) - features
        if sum(len(name.encode()) for name in not_supported) > _NAMED_FEATURES_BYTES_MAX:
            text = f"the names of unknown features have more than {_NAMED_FEATURES_BYTES_MAX} bytes"
            return Refused(DisconnectReason.MESSAGE_TOO_LARGE, text)
        answer = messages.ServerHello(
            version=native.VERSION,
            feed=hello.feed,
            incarnation=self._offer.incarnation,
            features=features,
            not_supported=not_supported,
            software=SOFTWARE,
            ping_interval_milliseconds=int(self._offer.ping_interval_seconds * 1000),
            max_frame_bytes=self._offer.max_frame_bytes,
            confirmed_milliseconds=(
                self._confirmed_milliseconds(hello.feed) if messages.Feature.FRESHNESS.value in features else None
            ),
            upstreams=self._offer.upstreams if messages.Feature.TIERS.value in features else None,
        )
        self._connection.send_hello(answer, self._number)
        by_node = subscription is not None and bool(subscription.own_node)
        self._reports_positions = messages.Feature.POSITIONS.value in features
        return Subscribed(
            self._connection.data_to_send(),
            hello.feed,
            _wire_format(features),
            introduction=Introduction("native", hello.feed, hello.feed),
            reports_positions=self._reports_positions,
            resumption=_resumption(hello, features, self._offer.incarnation),
            subscription=None if subscription is None or subscription.is_everything else subscription,
            tag=subscriptions.tag_of(hello.node) if by_node else subscriptions.COMMON,
        )

    def _confirmed_milliseconds(self, feed: str) -> int | None:
        confirmed_at = self._offer.confirmed_at.get(feed)
        return None if confirmed_at is None else max(0, int((clock.monotonic() - confirmed_at) * 1000))

    def _subscription(self, hello: messages.ClientHello) -> subscriptions.Subscription | None:
        """The subscription that is in force; None if the client gets the whole feed."""
        if hello.subscription is None or messages.Feature.SUBSCRIPTIONS.value not in hello.features:
            return None
        wanted = hello.subscription.normalized()
        if hello.feed in releases.PROJECTIONS:
            return None
        has_resource_keys = hello.feed not in _CALICO_FEEDS
        if (wanted.own_node and not hello.node) or not (has_resource_keys or wanted.is_for_any_keys):
            return None
        is_in_force = wanted.is_everything or self._offer.has_room_for(hello.feed, wanted, self._address)
        return wanted if is_in_force else None

    def goodbye(self, refusal: Refused) -> bytes:
        """The goodbye frame."""
        text = refusal.text[:500]
        goodbye = messages.Goodbye(refusal.reason.value, text, refusal.retry_after_milliseconds, refusal.servers)
        self._connection.send(goodbye)
        return self._connection.data_to_send()


class TyphaAdapter:
    """Typha's protocol: no goodbye, and a decoder restart after the hello of a client that takes snappy."""

    __slots__ = (
        "_agent_version",
        "_connection",
        "_feed",
        "_info",
        "_looks_right",
        "_node",
        "_number",
        "_offer",
        "_version",
    )

    def __init__(self, offer: Offer, number: int, *, looks_right: bool) -> None:
        self._node = self._version = self._info = ""
        self._offer = offer
        self._number = number
        self._looks_right = looks_right
        self._feed = ""
        self._agent_version: AgentVersion | None = None
        self._connection = typha.Connection(typha.Role.SERVER)

    @property
    def agent(self) -> str:
        """Info, version and node."""
        return typha_messages.agent_text(self._info, self._version, self._node)

    @property
    def identity(self) -> Identity:
        """As the hello has it, and the release that follows from it."""
        release = self._agent_version.release.value if self._agent_version is not None else ""
        return Identity(self._node, self._version, self._info, release)

    @property
    def pending_bytes(self) -> int:
        """Bytes of an incomplete message."""
        return self._connection.pending_bytes

    def receive(self, data: bytes) -> Iterator[Event]:
        """Takes bytes; yields an event for each message in them."""
        self._connection.receive_data(data)
        try:
            while (message := self._connection.next_event()) is not None:
                match message:
                    case typha_messages.ClientHello():
                        yield self._hello(message)
                    case typha_messages.Ack() if self._connection.state is typha.State.RESTARTED:
                        yield self._subscribed(self._connection.data_to_send())
                    case typha_messages.Pong():
                        yield _PONGED
        except errors.RemoteProtocolError as error:
            if self._looks_right or error.reason is not DisconnectReason.PROTOCOL_ERROR:
                raise
            raise errors.RemoteProtocolError(
                f"no protocol that is known here: {error}", reason=DisconnectReason.BAD_PREFACE
            ) from error

    def _hello(self, hello: typha_messages.ClientHello) -> Event:
        self._node = typha_messages.printable(hello.hostname, _NODE_CHARS_MAX)
        self._version, self._info = _shared(hello.version), _shared(hello.info)
        self._looks_right = True
        served = [name for name in typha_messages.SYNCER_TYPES if name in self._offer.feeds]
        refused = typha.refusal(hello, served)
        if refused is not None:
            return Refused(*refused)
        self._feed = hello.feed
        if hello.feed == typha_messages.FELIX:
            version = hello.version[: releases.MAX_VERSION_CHARS]
            found = _choose(version, hello.supports_modern_policy_keys, self._offer.release_overrides)
            if isinstance(found, Refused):
                node = hello.hostname[: typha_messages.MAX_AGENT_CHARS]
                return found._replace(text=f"node {node!r}, version {version!r}: {found.text}")
            self._feed, self._agent_version = releases.feed_name(found.release), found
            if self._feed not in self._offer.feeds:
                return Refused(DisconnectReason.UNKNOWN_FEED, f"nothing for agents of {found.release.value} here")
        self._connection.accept(version=SOFTWARE, connection_id=self._number)
        said = self._connection.data_to_send()
        introduction = Introduction("typha", hello.feed, self._feed, hello.hostname, hello.version)
        if self._connection.state is typha.State.RESTARTING:
            return AckAwaited(said, introduction)
        return self._subscribed(said)._replace(introduction=introduction)

    def _subscribed(self, said: bytes) -> Subscribed:
        return Subscribed(said, self._feed, self._connection.wire_format, self._agent_version)

    def goodbye(self, refusal: Refused) -> bytes:
        """There is none: the connection just ends."""
        return b""


@functools.lru_cache(maxsize=256)
def _cut(text: str) -> str:
    return typha_messages.printable(text, typha_messages.MAX_AGENT_CHARS)


def _shared(text: str) -> str:
    """The text, cut and printable. All agents of a version share it."""
    return _cut(text[: typha_messages.MAX_AGENT_CHARS])  # cut before, so that the cache keeps no long text


@functools.lru_cache(maxsize=256)
def _choose(
    version: str, supports_modern_policy_keys: bool, overrides: tuple[releases.Override, ...]
) -> AgentVersion | Refused:
    """What an agent of feed felix gets. All agents of a version share the answer, which each connection keeps."""
    choice = releases.choose(version, supports_modern_policy_keys, overrides)
    if choice.release is None:
        return Refused(DisconnectReason.UNSUPPORTED_VERSION, choice.reason)
    return AgentVersion(version, choice.release, choice.reason)


def _wire_format(features: frozenset[str]) -> str:
    if messages.Feature.ZSTD_DICTIONARY.value in features:
        return native_encoder.ZSTD_DICTIONARY
    return native_encoder.ZSTD if messages.Feature.ZSTD.value in features else native_encoder.PLAIN


def _resumption(hello: messages.ClientHello, features: frozenset[str], incarnation: bytes) -> Resumption | None:
    """What the client has, as far as the features that are in force use it."""
    sequence = digests = None
    if messages.Feature.RESUME in features and hello.resume is not None:
        sequence = hello.resume.sequence if hello.resume.incarnation == incarnation else None
    if messages.Feature.CHUNK_DIGESTS in features and hello.chunk_digests:
        digests = array.array("Q", hello.chunk_digests)
    return None if sequence is None and digests is None else Resumption(sequence, digests)


def _asked_for(hello: messages.ClientHello) -> frozenset[str]:
    """The features that the hello names or uses."""
    asked = set(hello.features)
    if hello.resume is not None:
        asked.add(messages.Feature.RESUME.value)
    if hello.chunk_digests is not None:
        asked.add(messages.Feature.CHUNK_DIGESTS.value)
    if hello.subscription is not None:
        asked.add(messages.Feature.SUBSCRIPTIONS.value)
    return frozenset(asked)
