"""Simulated clients. They connect, read as planned, reconnect after a disconnect, and check everything they receive."""

from collections.abc import Callable

from protocol import reasons
from tests.simulation import expected_state, models, network, plans, reporters, subscribers, transports
from tests.simulation import world as worlds

_RETRY_SECONDS_MAX = 0.5
_SLOW_TURN_SECONDS = 0.2


class Agent:
    """One client and its successive connections."""

    def __init__(
        self,
        world: worlds.World,
        number: int,
        plan: plans.AgentPlan,
        *,
        feed: str,
        is_tls: bool,
        dial: Callable[["Agent", network.Connection], bool],
        silence_seconds_max: float,
    ) -> None:
        self.world = world
        self.name = f"agent {number} ({plan.wire})"
        self.plan = plan
        self.model: models.Model | None = None
        self.connection: network.Connection | None = None
        self.is_mute = False
        """The client answers no pings."""
        self.is_dismissed = False
        """The server has sent a goodbye on this connection."""
        self.is_calm = False
        """The phase of faults is over."""
        self.bytes_per_second = plan.bytes_per_second
        self.stalled_until = 0.0
        self.heard_at = 0.0
        """Time of the last bytes, or of the connect."""
        self.ends = 0
        self.disturbed_until = world.now
        """Until then, a fault of the client itself excuses missing updates."""
        self.on_heard: Callable[[], None] = lambda: None
        """Called after the client has processed bytes."""
        self._feed = feed
        self._is_tls = is_tls
        self._dial = dial
        self._silence_seconds_max = silence_seconds_max
        self._reader = transports.RecordReader()
        self._connections = 0
        self._number = number
        self._is_reading = False
        self.reporter: reporters.Reporter | None = None
        """Of a client that says what it has applied."""
        if plan.apply_seconds_max is not None and plan.wire.startswith("native"):
            self.reporter = reporters.Reporter(world, apply_seconds_max=plan.apply_seconds_max)
        self.connect()

    def __repr__(self) -> str:
        return f"<Agent {self.name}>"

    def connect(self) -> None:
        """Connect. If nothing listens, retry later."""
        self._connections += 1
        connection = network.Connection(self.world, self._number * 1000 + self._connections, self.plan.link)
        connection.on_client_event = lambda: self._happened(connection)
        wire, wanted = self.plan.wire, self.plan.subscription
        compression = {"zstd"} if wire.endswith("zstd") else set[str]()
        if self._number % 3 == 2 or (compression and self._number % 3 == 1):
            compression = {"zstd", "zstd-dictionary"}
        if wanted is not None:
            self.model = subscribers.SubscribedModel(
                self._feed, wanted, self.plan.node, compression=compression, reporter=self.reporter
            )
        elif wire.startswith("native"):
            before = self.model if isinstance(self.model, models.NativeModel) else None
            self.model = models.NativeModel(
                self._feed,
                compression=compression,
                resumes=self._number % 2 == 0,
                before=before,
                reporter=self.reporter,
            )
        else:
            self.model = models.TyphaModel(self._feed, snappy=wire.endswith("snappy"))
        if not isinstance(self.model, models.TyphaModel):
            self.model.say = lambda data: self._say_rest(connection, data)
        self.connection = connection
        self.is_dismissed = False
        self._reader = transports.RecordReader()
        self.heard_at = self.world.now
        if not self._dial(self, connection):
            self._lose("nothing listens")
            return
        self.world.note(self.name, f"connects as {connection.number}")
        self._say(connection, self.model.hello())

    def _say(self, connection: network.Connection, data: bytes) -> None:
        """Send the bytes in one or two pieces."""
        cut = self.world.random.randint(1, len(data)) if self.world.chance(0.3) else len(data)
        connection.up.write(data[:cut])
        if data[cut:]:
            self.world.after(self.world.random.random() * 0.3, lambda: self._say_rest(connection, data[cut:]))

    def _say_rest(self, connection: network.Connection, data: bytes) -> None:
        if connection is self.connection:
            connection.up.write(data)

    def _happened(self, connection: network.Connection) -> None:
        if connection is not self.connection:
            return
        self.heard_at = self.world.now
        if connection.is_reset:
            self._lose("reset")
        elif not self._is_reading:
            self._is_reading = True
            delay = _SLOW_TURN_SECONDS if self.bytes_per_second else self.world.random.random()
            self.world.after(delay * (1.0 if self.bytes_per_second else self.plan.think_seconds_max), self._read)

    def _read(self) -> None:
        """Read some of the bytes that have arrived."""
        self._is_reading = False
        connection = self.connection
        if connection is None or connection.is_reset:
            return
        if self.world.now < self.stalled_until:
            self._is_reading = True
            self.world.at(self.stalled_until, self._read)
            return
        limit = self.plan.read_bytes_max
        if self.bytes_per_second:
            limit = int(self.bytes_per_second * _SLOW_TURN_SECONDS)
        data = connection.down.read(limit)
        if data:
            self._hear(connection, data)
        if connection is not self.connection:
            return
        if connection.down.arrived:
            self._is_reading = True
            self.world.after(_SLOW_TURN_SECONDS if self.bytes_per_second else 1e-5, self._read)
        elif connection.down.is_ended:
            if self.is_dismissed:
                raise worlds.Violation(f"{self.name}: the goodbye was sent inside a frame")
            self._lose("closed by the server")

    def _hear(self, connection: network.Connection, data: bytes) -> None:
        model = self.model
        if model is None:
            return
        if self._is_tls:
            data = self._reader.receive(data)
        status = model.status
        try:
            answer = model.receive(data)
        except worlds.Violation as error:
            raise worlds.Violation(f"{self.name}: {error}") from error
        if model.status is not status and model.status is not None:
            self.world.note(self.name, f"receives status {model.status.label} at {model.sequence}")
        if answer and not (self.is_mute and status is not None):
            connection.up.write(answer)
        self.on_heard()
        if model.goodbye:
            if model.goodbye == reasons.DisconnectReason.PROTOCOL_ERROR:
                raise worlds.Violation(f"{self.name}: a good client is told of a protocol error")
            self._close(connection, f"goodbye: {model.goodbye}")

    def _close(self, connection: network.Connection, why: str, *, is_reset: bool = False) -> None:
        connection.close_client(is_reset=is_reset)
        self._lose(why)

    def _lose(self, why: str) -> None:
        self.world.note(self.name, f"is disconnected: {why}")
        if self.connection is not None and not self.connection.client_closed:
            self.connection.close_client(is_reset=False)
        self.connection = None
        if self.reporter is not None:
            self.reporter.disconnected()
        self.ends += 1
        self._is_reading = False
        self.world.after(0.01 + self.world.random.random() * _RETRY_SECONDS_MAX, self.connect)

    def hang_up(self, *, is_reset: bool) -> None:
        """Disconnect, and reconnect later."""
        if self.connection is not None:
            self.disturb(1.0)
            self._close(self.connection, "leaves", is_reset=is_reset)

    def stall(self, seconds: float) -> None:
        """Read nothing for a while."""
        self.world.note(self.name, f"stalls for {seconds:.1f} s")
        self.stalled_until = self.world.now + seconds
        self.disturb(seconds)

    def disturb(self, seconds: float) -> None:
        """Excuse missing updates for this long."""
        self.disturbed_until = max(self.disturbed_until, self.world.now + seconds)

    def cut(self, seconds: float, *, user_timeout_seconds: float) -> None:
        """Cut the network of the client, and restore it later."""
        connection = self.connection
        if connection is not None:
            self.world.note(self.name, f"loses its network for {seconds:.1f} s")
            self.disturb(seconds + 1.0)
            connection.cut(user_timeout_seconds=user_timeout_seconds)
            self.world.after(seconds, connection.mend)

    def calm(self) -> None:
        """Behave like a healthy client from now on."""
        self.is_calm = True
        self.is_mute = False
        self.bytes_per_second = 0
        self.stalled_until = 0.0
        if self.connection is not None:
            self.connection.mend()

    def look(self) -> None:
        """Disconnect from a silent server, as real clients do."""
        connection = self.connection
        if connection is not None and self.world.now - self.heard_at > self._silence_seconds_max:
            self._close(connection, "nothing heard")

    def silent_for(self) -> float:
        """Seconds for which the server has sent nothing although it could."""
        connection, model = self.connection, self.model
        if connection is None or model is None or not model.is_accepted:
            return 0.0
        if connection.down.held or connection.down.arrived or connection.down.is_cut:
            return 0.0
        return self.world.now - self.heard_at

    def lacks(self, history: expected_state.ExpectedState, *, bound_seconds: float) -> int:
        """Number of updates that are older than the bound and have not arrived."""
        model = self.model
        if model is None or model.status is None or model.expected is not history:
            return 0
        due = history.due_at(self.world.now - bound_seconds)
        if isinstance(model, subscribers.SubscribedModel):
            return model.lacks(due)
        if model.sequence >= due or history.digests[due] == model.total:
            return 0
        return due - model.sequence
