"""Models of clients, by protocol. They check every message against what the hub has published.

After every frame, a native client has the hub's map of the sequence number that it has reached. During a catch-up its
map may be a mix, but no key goes back in time, and the catch-up ends in one of the hub's maps. A client of Typha's
protocol has no sequence number: its map must be one that the hub had, and never an older one than before.
"""

import abc
from collections.abc import Callable
from typing import Generic, Protocol, TypeVar

import msgspec

from protocol import digest, errors, messages
from protocol.native import connection as native
from protocol.typha import client
from protocol.typha import connection as typha
from protocol.typha import messages as typha_messages
from tests.simulation import expected_state, reporters
from tests.simulation import world as worlds

_CATCHING_UP = messages.SyncStatus.CATCHING_UP
_IN_SYNC = messages.SyncStatus.IN_SYNC
_UNCONFIRMED = (messages.SyncStatus.WAITING, messages.SyncStatus.RESYNC)
"""What a native client may be told instead of in-sync, while the API server fails."""

MessageT = TypeVar("MessageT")
ReceivedT_co = TypeVar("ReceivedT_co", covariant=True)


class Model(Protocol):
    """The protocol, the map and the checks of one connection."""

    expected: expected_state.ExpectedState | None
    """What the hub has published; set when the client connects."""
    floor: int
    """The first status must not belong to an older map than this."""
    sequence: int
    """The map is the hub's map of this sequence number or a later one."""
    status: messages.SyncStatus | None
    is_accepted: bool
    """The server has answered the hello. From then on it must not be silent."""
    goodbye: str

    def hello(self) -> bytes:
        """The bytes of the hello."""
        ...

    def receive(self, data: bytes) -> bytes:
        """Process received bytes. Returns the bytes of the answer."""
        ...

    def mix(self) -> None:
        """A catch-up begins: until it ends, the map may differ from every map of the hub."""
        ...

    def settle(self, told: messages.SyncStatus) -> None:
        """The client has received everything: its map must equal the hub's."""
        ...

    @property
    def total(self) -> int:
        """Digest of the map."""
        ...

    @property
    def newest_total(self) -> int:
        """Digest of the newest map that the hub has for this client."""
        ...


class _Map:
    """Digests by key, and the digest of the whole map."""

    def __init__(self) -> None:
        self.keys: dict[str, int] = {}
        self.total = 0
        self.moved: dict[str, int] = {}
        """Lowest possible sequence number of each key's value."""

    def apply(self, update: messages.Update) -> int:
        """Apply an update. Returns the new digest of the key."""
        now = expected_state.ABSENT
        if update.value is not None:
            now = digest.pair_digest(update.key.encode(), update.value)
        before = self.keys.pop(update.key, expected_state.ABSENT)
        if now:
            self.keys[update.key] = now
        self.total = (self.total + now - before) % digest.MODULUS
        return now

    def digest_of(self, number: int, chunks: int) -> int:
        """Digest of one of so many chunks."""
        return sum(one for key, one in self.keys.items() if digest.chunk_number(key, chunks) == number) % digest.MODULUS

    def kept(self, message: messages.SnapshotResume) -> "_Map":
        """A map with the keys of the kept chunks."""
        made = _Map()
        made.keys = {
            key: one for key, one in self.keys.items() if message.keeps(digest.chunk_number(key, message.chunks))
        }
        made.total = sum(made.keys.values()) % digest.MODULUS
        return made

    def move(self, expected: expected_state.ExpectedState, key: str, now: int) -> None:
        """Check that a key moves to a value that it really had, and not back in time."""
        at = expected.key_moved(key, now, self.moved.get(key, 0))
        if at is None:
            raise worlds.Violation(f"key {key} goes back in time, or gets a value that it never had")
        self.moved[key] = at


class _Wire(Protocol[ReceivedT_co]):
    """The common interface of both protocols' connections."""

    def receive_data(self, data: bytes) -> None:
        """Process received bytes."""
        ...

    def next_event(self) -> ReceivedT_co | None:
        """The next complete message, or None."""
        ...

    def data_to_send(self) -> bytes:
        """The bytes to send."""
        ...


class _Client(abc.ABC, Generic[MessageT]):
    """Base of the models of both protocols."""

    _instead_of_in_sync: tuple[messages.SyncStatus, ...] = ()
    """What a client may be told while the API server fails."""

    def __init__(self, wire: _Wire[MessageT]) -> None:
        self._wire = wire
        self._map = _Map()
        self.expected: expected_state.ExpectedState | None = None
        self.floor = 0
        self.sequence = 0
        self.status: messages.SyncStatus | None = None
        self.is_accepted = False
        self.goodbye = ""
        self.reporter: reporters.Reporter | None = None
        """Of a client that says what it has applied."""
        self.say: Callable[[bytes], None] = lambda _: None
        """How it is said."""

    @property
    def total(self) -> int:
        """Digest of the map."""
        return self._map.total

    @property
    def keys(self) -> list[str]:
        """The keys of the map."""
        return list(self._map.keys)

    @property
    def newest_total(self) -> int:
        """Digest of the newest map that the hub has for this client."""
        return self._expected().digest

    def receive(self, data: bytes) -> bytes:
        """Process received bytes. Returns the bytes of the answer."""
        self._wire.receive_data(data)
        try:
            while (message := self._wire.next_event()) is not None:
                self._take(message)
        except errors.RemoteProtocolError as error:
            raise worlds.Violation(f"the server breaks the protocol: {error}") from error
        return self._wire.data_to_send()

    @abc.abstractmethod
    def _take(self, message: MessageT) -> None:
        """Check and apply a message."""

    def _begin_reports(self, hello: messages.ServerHello, digest_at: Callable[[int], int]) -> None:
        if self.reporter is not None:
            if messages.Feature.POSITIONS not in hello.features:
                raise worlds.Violation("positions are not in force")
            self.reporter.connected(self.say, digest_at)

    def _report(self, *, is_whole: bool = True) -> None:
        """The map has moved on. During a catch-up it is that of no sequence."""
        is_mixed = self.status is _CATCHING_UP
        if self.reporter is not None:
            self.reporter.moved(0 if is_mixed else self.sequence, self.total, is_whole=is_whole and not is_mixed)

    def _check_newest_status(self, told: messages.SyncStatus) -> None:
        right = self._expected().status
        is_right = told is right or (right is _IN_SYNC and told in self._instead_of_in_sync)
        if self.status is not told or not is_right:
            raise worlds.Violation(f"received everything, but with status {self.status!r} instead of {right!r}")

    def _expected(self) -> expected_state.ExpectedState:
        if self.expected is None:
            raise worlds.Violation("data from an unknown hub")
        return self.expected


class NativeModel(_Client[messages.Message]):
    """A client of the native protocol."""

    _instead_of_in_sync = _UNCONFIRMED

    def __init__(
        self,
        feed: str,
        *,
        compression: set[str],
        resumes: bool = False,
        before: "NativeModel | None" = None,
        reporter: reporters.Reporter | None = None,
    ) -> None:
        """`compression` are features; `before` is the client's last connection, whose map it has."""
        self._connection = native.Connection(native.Role.CLIENT)
        super().__init__(self._connection)
        self._building: _Map | None = None
        features = set(compression)
        if resumes:
            features |= {messages.Feature.RESUME.value, messages.Feature.CHUNK_DIGESTS.value}
        self.reporter = reporter
        if reporter is not None:
            features |= {messages.Feature.POSITIONS.value}
        self._is_pending = False
        """A whole snapshot waits for its status."""
        self._hello = messages.ClientHello(feed=feed, agent="simulated", features=frozenset(features))
        self._incarnation = b""
        self.position: messages.ResumePosition | None = None
        """That of the map. None while it is a mixture, and before there is a map."""
        self.chunks = 0
        """Of the last snapshot; 0 before there is a map."""
        self.resumptions = 0
        """Whether the server has gone on with the map that the client had."""
        if resumes and before is not None and before.chunks:
            self._map, self.position, self.chunks = before._map, before.position, before.chunks
            self._map.moved.clear()

    def hello(self) -> bytes:
        """The bytes of the hello."""
        if self.chunks:
            digests = tuple([self._map.digest_of(number, self.chunks) for number in range(self.chunks)])
            self._hello = msgspec.structs.replace(self._hello, resume=self.position, chunk_digests=digests)
        self._connection.send(self._hello)
        return self._connection.data_to_send()

    def mix(self) -> None:
        """Ignored: the protocol announces a catch-up with a status."""

    def settle(self, told: messages.SyncStatus) -> None:
        """The client has received everything: its map and status must equal the hub's."""
        expected = self._expected()
        if self.total != expected.digest:
            raise worlds.Violation("received everything, but the map differs from the hub's")
        self._check_newest_status(told)

    def _take(self, message: messages.Message) -> None:
        match message:
            case messages.ServerHello():
                self.is_accepted = True
                self._incarnation = message.incarnation
                self.sequence = self._connection.sequence  # that of the position, if the server may go on from it
                self._begin_reports(message, lambda sequence: self._expected().digests[sequence])
            case messages.SnapshotBegin():
                self._building = _Map()
                self.chunks = max(1, message.chunks)
            case messages.SnapshotResume():
                self._building = self._map.kept(message)
                self.resumptions += 1
            case messages.SnapshotChunk(updates=updates) if self._building is not None:
                for update in updates:
                    self._building.apply(update)
            case messages.SnapshotEnd() if self._building is not None:
                self._map, self._building = self._building, None
                self._is_pending = True
                self.status = None
                self.sequence = message.sequence
                self._check_cut("a snapshot", message.digest)
                self._reached()
            case messages.Updates():
                self._apply(message)
            case messages.Status():
                self._tell(message)
            case messages.Goodbye():
                self.goodbye = message.reason

    def _apply(self, message: messages.Updates) -> None:
        expected = self._expected()
        for update in message.updates:
            now = self._map.apply(update)
            if self.status is _CATCHING_UP:
                self._map.move(expected, update.key, now)
        self.sequence = message.sequence
        if self.status is not _CATCHING_UP:
            self._check_cut("updates")
            self._reached()
        if not self._is_pending:
            self._report()

    def _reached(self) -> None:
        """The map is the hub's map of a sequence number."""
        self.position = messages.ResumePosition(self._incarnation, self.sequence)

    def _tell(self, message: messages.Status) -> None:
        self.status = message.status
        if message.status is _CATCHING_UP:
            self.position = None
            return
        self._check_cut(f"the status {message.status.label}")
        right = self._expected().statuses_at(self.sequence)
        if message.status not in right and not (message.status in _UNCONFIRMED and _IN_SYNC in right):
            raise worlds.Violation(f"status {message.status.label} is wrong for sequence {self.sequence}")
        if self.sequence < self.floor:
            raise worlds.Violation(
                f"a status at {self.sequence}, but {self.floor} was published when the client connected"
            )
        self._is_pending = False
        self._report()

    def _check_cut(self, after: str, said: int | None = None) -> None:
        expected = self._expected()
        if self.sequence > expected.sequence:
            raise worlds.Violation(f"{after}: sequence {self.sequence} was never published")
        if expected.digests[self.sequence] != self.total or said not in (None, self.total):
            raise worlds.Violation(f"after {after}, the map differs from the hub's map of sequence {self.sequence}")


class TyphaModel(_Client[typha_messages.Message]):
    """A client of Typha's protocol."""

    def __init__(self, feed: str, *, snappy: bool) -> None:
        self._connection = typha.Connection(typha.Role.CLIENT)
        super().__init__(self._connection)
        self._hello = typha_messages.ClientHello(
            hostname="simulated",
            version=client.NEWEST_VERSION,
            syncer_type=feed,
            supports_decoder_restart=snappy,
            supported_compression_algorithms=(typha_messages.SNAPPY,) if snappy else (),
            supports_modern_policy_keys=True,
        )
        self._snappy = snappy
        self._is_mixed = False
        """A catch-up may be running, so the map may differ from every map of the hub."""

    def hello(self) -> bytes:
        """The bytes of the hello."""
        self._connection.send_hello(self._hello)
        return self._connection.data_to_send()

    def mix(self) -> None:
        """A catch-up begins. The protocol does not announce it."""
        self._is_mixed = True

    def settle(self, told: messages.SyncStatus) -> None:
        """The client has received everything: its map and status must equal the hub's."""
        expected = self._expected()
        if self.total != expected.digest:
            raise worlds.Violation("received everything, but the map differs from the hub's")
        self._check_newest_status(told)
        self._is_mixed = False
        self.sequence = expected.sequence

    def _take(self, message: typha_messages.Message) -> None:
        match message:
            case typha_messages.ServerHello():
                self.is_accepted = not self._snappy
            case typha_messages.DecoderRestart():
                self.is_accepted = True
            case typha_messages.KeyValues():
                self._apply(message.updates)
            case typha_messages.SyncStatus():
                self._tell(messages.SyncStatus(message.status))

    def _apply(self, updates: tuple[messages.Update, ...]) -> None:
        expected = self._expected()
        for update in updates:
            self._map.move(expected, update.key, self._map.apply(update))
        if self.status is not None and not self._is_mixed:
            self._find_cut("updates")

    def _find_cut(self, after: str) -> None:
        found = self._expected().first_cut(self.total, self.sequence)
        if found is None:
            raise worlds.Violation(f"after {after}, the map equals no map of the hub since {self.sequence}")
        self.sequence = found

    def _tell(self, status: messages.SyncStatus) -> None:
        if self.status is None:
            self.sequence = max(self.sequence, self.floor)
        self.status = status
        if self._is_mixed:
            return
        self._find_cut(f"the status {status.label}")
        if status not in self._statuses():
            raise worlds.Violation(f"status {status.label} is wrong for sequence {self.sequence}")

    def _statuses(self) -> set[messages.SyncStatus]:
        """The statuses of all sequence numbers that this map may belong to."""
        expected = self._expected()
        found: set[messages.SyncStatus] = set()
        at: int | None = self.sequence
        while at is not None:
            found |= expected.statuses_at(at)
            at = expected.first_cut(self.total, at + 1)
        return found
