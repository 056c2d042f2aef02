"""Peers with an unknown protocol or an incomplete hello, or that say what they were not asked for.

The server must close them within the handshake timeout.
"""

from collections.abc import Callable

from protocol import messages
from protocol.native import connection as native
from protocol.typha import codec, timestamps
from protocol.typha import connection as typha
from protocol.typha import messages as typha_messages
from tests.simulation import network
from tests.simulation import world as worlds
from typha.worker import policy

_LINK = network.Link(send_buffer_bytes=4000, receive_buffer_bytes=4000, latency_seconds=0.001, partial_probability=0.0)
_SLACK_SECONDS = 1.5
_AWAY_SECONDS = 3.0
_UNASKED = 60
"""Pongs."""


def _half_a_hello() -> bytes:
    asking = native.Connection(native.Role.CLIENT)
    asking.send(messages.ClientHello(feed="felix", agent="stranger"))
    return asking.data_to_send()[:-5]


def _unasked_pongs() -> bytes:
    asking = native.Connection(native.Role.CLIENT)
    asking.send(messages.ClientHello(feed="felix", agent="stranger"))
    for _ in range(_UNASKED):
        asking.send(messages.Pong(0))
    return asking.data_to_send()


def _unasked_typha_pongs() -> bytes:
    asking = typha.Connection(typha.Role.CLIENT)
    asking.send_hello(typha_messages.ClientHello(hostname="stranger", supports_modern_policy_keys=True))
    pong = codec.encode(typha_messages.Pong(timestamps.from_unix_nanoseconds(1)), types=codec.CLIENT)
    return asking.data_to_send() + pong * _UNASKED


def _unknown_feed() -> bytes:
    asking = native.Connection(native.Role.CLIENT)
    asking.send(messages.ClientHello(feed="nothing", agent="stranger"))
    return asking.data_to_send()


_FIRST_WORDS = (
    b"",
    b"GET / HTTP/1.1\r\n\r\n",
    b"\x16\x03\x01\x00\x05hello",
    _half_a_hello(),
    _unknown_feed(),
    _unasked_pongs(),
    _unasked_typha_pongs(),
    b"\x00" * 40,
)


class Stranger:
    """One such peer, which reconnects again and again."""

    def __init__(self, world: worlds.World, number: int, dial: Callable[[network.Connection], bool]) -> None:
        self.world = world
        self._name = f"stranger {number}"
        self._dial = dial
        self._count = 0
        self._number = 900_000 + number * 1000
        self._connection: network.Connection | None = None
        self._since = world.now
        self._come()

    def _come(self) -> None:
        self._count += 1
        connection = network.Connection(self.world, self._number + self._count, _LINK)
        connection.on_client_event = lambda: self._happened(connection)
        self._since = self.world.now
        if not self._dial(connection):
            self.world.after(_AWAY_SECONDS, self._come)
            return
        self._connection = connection
        words = self.world.random.choice(_FIRST_WORDS)
        self.world.note(self._name, f"says {words[:12]!r}")
        if words:
            connection.up.write(words)

    def _happened(self, connection: network.Connection) -> None:
        connection.down.read(1000)
        if connection is self._connection and (connection.is_reset or connection.down.is_ended):
            self._connection = None
            if not connection.client_closed:
                connection.close_client(is_reset=False)
            self.world.after(_AWAY_SECONDS, self._come)

    def look(self, limits: policy.Policy, *, calm_at: float) -> None:
        """Check that the server has not kept the connection for too long."""
        bound = limits.handshake_timeout_seconds + limits.refusal_hold_seconds + _SLACK_SECONDS
        if self._connection is not None and self.world.now - max(self._since, calm_at) > bound:
            raise worlds.Violation(f"{self._name} is still there")
