"""Simulated clients that subscribe to a part of the feed, and what each of them must have."""

from protocol import digest, messages
from protocol.native import connection as native
from protocol.subscriptions import Subscription
from tests.harness.worker_stand import is_selected
from tests.simulation import expected_state, models, reporters
from tests.simulation import world as worlds

_CATCHING_UP = messages.SyncStatus.CATCHING_UP
_IN_SYNC = messages.SyncStatus.IN_SYNC
_UNCONFIRMED = (messages.SyncStatus.WAITING, messages.SyncStatus.RESYNC)


class View:
    """The part of a history that a subscription selects: its digest at each sequence number."""

    def __init__(self, history: expected_state.ExpectedState, wanted: Subscription, node: str) -> None:
        self._history = history
        self._wanted = wanted
        self._node = node
        self._map: dict[str, int] = {}
        self._digests = [0]

    def digest_at(self, sequence: int) -> int:
        """Digest of the part at a sequence number."""
        for key, value in self._history.changes[len(self._digests) - 1 :]:
            before = self._map.pop(key, expected_state.ABSENT)
            now = expected_state.ABSENT
            if value is not None and is_selected(self._wanted, self._node, key, value):
                now = self._map[key] = digest.pair_digest(key.encode(), value)
            self._digests.append((self._digests[-1] + now - before) % digest.MODULUS)
        return self._digests[sequence]

    def is_same(self, sequence: int, other: int) -> bool:
        """Whether nothing of the part has changed between two sequence numbers."""
        self.digest_at(0)
        low, high = sorted((sequence, other))
        return len(set(self._digests[low : high + 1])) == 1


class SubscribedModel(models._Client[messages.Message]):
    """A client of the native protocol with a subscription. It checks its map wherever it is a whole one."""

    _instead_of_in_sync = _UNCONFIRMED

    def __init__(
        self,
        feed: str,
        wanted: Subscription,
        node: str,
        *,
        compression: set[str],
        reporter: reporters.Reporter | None = None,
    ) -> None:
        self._connection = native.Connection(native.Role.CLIENT)
        super().__init__(self._connection)
        self._wanted = wanted
        self._node = node
        self._building: models._Map | None = None
        self._view: View | None = None
        features = {messages.Feature.SUBSCRIPTIONS.value, *compression}
        self.reporter = reporter
        if reporter is not None:
            features |= {messages.Feature.POSITIONS.value}
        self._is_pending = False
        """A whole snapshot waits for its status."""
        self._hello = messages.ClientHello(
            feed=feed, agent="subscriber", node=node, features=frozenset(features), subscription=wanted
        )

    @property
    def view(self) -> View:
        """What the hub has for this client."""
        expected = self._expected()
        if self._view is None or self._view._history is not expected:
            self._view = View(expected, self._wanted, self._node)
        return self._view

    @property
    def newest_total(self) -> int:
        """Digest of the newest map for this client."""
        return self.view.digest_at(self._expected().sequence)

    def hello(self) -> bytes:
        """The bytes of the hello."""
        self._connection.send(self._hello)
        return self._connection.data_to_send()

    def mix(self) -> None:
        """Ignored: the protocol announces a catch-up with a status."""

    def settle(self, told: messages.SyncStatus) -> None:
        """The client has received everything: its map and status must be those that the hub has for it."""
        if self.total != self.newest_total:
            raise worlds.Violation("received everything, but the map differs from the hub's")
        self._check_newest_status(told)

    def lacks(self, due: int) -> int:
        """Number of sequences that the client is behind one, if it lacks something up to it."""
        if self.sequence >= due or self.view.digest_at(due) == self.total:
            return 0
        return due - self.sequence

    def _take(self, message: messages.Message) -> None:
        match message:
            case messages.ServerHello():
                self.is_accepted = True
                if messages.Feature.SUBSCRIPTIONS not in message.features:
                    raise worlds.Violation("the subscription is not in force")
                self._begin_reports(message, self.view.digest_at)
            case messages.SnapshotBegin():
                self._building = models._Map()
            case messages.SnapshotChunk(updates=updates) if self._building is not None:
                for update in updates:
                    self._building.apply(update)
            case messages.SnapshotEnd() if self._building is not None:
                self._map, self._building = self._building, None
                self._is_pending = True
                self.status = None
                self.sequence = message.sequence
                self._check("a snapshot", message.digest)
            case messages.Updates():
                for update in message.updates:
                    self._map.apply(update)
                self.sequence = message.sequence
                if message.sequence > message.previous_sequence and self.status is not _CATCHING_UP:
                    self._check("updates")
                if not self._is_pending:
                    # What is for this node comes before the rest of its batch, and does not reach its sequence.
                    self._report(is_whole=message.sequence > message.previous_sequence)
            case messages.Status():
                self._tell(message)
            case messages.Goodbye():
                self.goodbye = message.reason

    def _tell(self, message: messages.Status) -> None:
        is_first = self.status is None
        self.status, self.sequence = message.status, message.sequence
        if message.status is _CATCHING_UP:
            return
        self._check(f"the status {message.status.label}")
        right = self._expected().statuses_at(self.sequence)
        if message.status not in right and not (message.status in _UNCONFIRMED and _IN_SYNC in right):
            raise worlds.Violation(f"status {message.status.label} is wrong for sequence {self.sequence}")
        if is_first and self.sequence < self.floor and not self.view.is_same(self.sequence, self.floor):
            raise worlds.Violation(f"first status at {self.sequence}, but {self.floor} was published before")
        self._is_pending = False
        self._report()

    def _check(self, after: str, said: int | None = None) -> None:
        if self.sequence > self._expected().sequence:
            raise worlds.Violation(f"{after}: sequence {self.sequence} was never published")
        if self.view.digest_at(self.sequence) != self.total or said not in (None, self.total):
            raise worlds.Violation(f"after {after}, the map is not the selected part at sequence {self.sequence}")
