"""TCP in memory: connections with bounded buffers and latency.

It models details of the kernel. A small message is accepted whole or not at all, a larger one perhaps in part. A socket
is writable only if a third of its buffer is free. Acknowledged bytes are counted. Closing with unread bytes resets the
connection.
"""

import errno
from collections.abc import Callable
from typing import NamedTuple

from tests.simulation import world as worlds

_WHOLE_BYTES = 512
"""The kernel accepts messages of up to this size whole, and larger ones if its buffer is empty."""
_WHOLE_BYTES_IF_EMPTY = 4096


class Link(NamedTuple):
    """Properties of the network path of a connection."""

    send_buffer_bytes: int
    receive_buffer_bytes: int
    latency_seconds: float
    partial_probability: float
    """Probability that a write accepts less than there is room for."""


class Pipe:
    """One direction: the buffer of the sender's host, the buffer of the receiver's host, and the wire between them."""

    def __init__(self, world: worlds.World, link: Link) -> None:
        self.world = world
        self.link = link
        self.held = bytearray()
        """Written but not acknowledged."""
        self.arrived = bytearray()
        self.acknowledged_bytes = 0
        self.acknowledged_at = world.now
        self.is_cut = False
        """The network is cut silently, in both directions."""
        self.is_finished = False
        """The sender has closed: an end follows the bytes."""
        self.is_ended = False
        """The end has arrived."""
        self.on_arrival: Callable[[], None] = lambda: None
        self.on_room: Callable[[], None] = lambda: None
        self._is_moving = False

    @property
    def room(self) -> int:
        """Bytes of free space in the send buffer."""
        return self.link.send_buffer_bytes - len(self.held)

    @property
    def is_writable(self) -> bool:
        """Whether epoll reports the socket as writable."""
        return self.room * 3 >= self.link.send_buffer_bytes

    def write(self, data: bytes | memoryview) -> int:
        """Accept some of the bytes. Returns their number, which may be 0."""
        count = len(data)
        if self.room <= 0:
            return 0
        if count > (_WHOLE_BYTES if self.held else _WHOLE_BYTES_IF_EMPTY):
            count = min(count, self.room)
            if self.world.chance(self.link.partial_probability):
                count = self.world.random.randint(1, count)
        self.held += data[:count]
        self.move()
        return count

    def finish(self) -> None:
        """The sender closes: no more bytes follow."""
        self.is_finished = True
        self.move()

    def read(self, count: int) -> bytes:
        """Read bytes that have arrived."""
        data = bytes(self.arrived[:count])
        del self.arrived[:count]
        if data and (self.held or self.is_finished):
            self.move()
        return data

    def move(self) -> None:
        """Move bytes to the receiver after the latency, as far as there is room."""
        if not self._is_moving:
            self._is_moving = True
            self.world.after(self.link.latency_seconds, self._moved)

    def _moved(self) -> None:
        self._is_moving = False
        if self.is_cut:
            return
        count = min(len(self.held), self.link.receive_buffer_bytes - len(self.arrived))
        if count > 0:
            was_writable = self.is_writable
            self.arrived += self.held[:count]
            del self.held[:count]
            self.acknowledged_bytes += count
            self.acknowledged_at = self.world.now
            self.on_arrival()
            if self.is_writable and not was_writable:
                self.on_room()
        if self.is_finished and not self.held and not self.is_ended:
            self.is_ended = True
            self.on_arrival()


class Connection:
    """A connection: a pipe for each direction, and how it ended."""

    def __init__(self, world: worlds.World, number: int, link: Link) -> None:
        self.world = world
        self.number = number
        self.down = Pipe(world, link)
        self.up = Pipe(world, link)
        self.server_error: int | None = None
        """Error of the server's socket (errno)."""
        self.is_reset = False
        """The server's host has reset the connection."""
        self.server_closed = False
        self.client_closed = False
        self.on_server_event: Callable[[], None] = lambda: None
        self.on_client_event: Callable[[], None] = lambda: None
        self.down.on_arrival = self._client_event
        self.down.on_room = self._server_event
        self.up.on_arrival = self._server_event

    def _client_event(self) -> None:
        self.on_client_event()

    def _server_event(self) -> None:
        self.on_server_event()

    def cut(self, *, user_timeout_seconds: float) -> None:
        """Cut the network. After the timeout, the server's kernel gives up if it has bytes to send."""
        self.up.is_cut = True
        self.cut_down(user_timeout_seconds=user_timeout_seconds)

    def cut_down(self, *, user_timeout_seconds: float) -> None:
        """Cut the way to the client only."""
        self.down.is_cut = True
        self.world.after(user_timeout_seconds, self._time_out)

    def mend(self) -> None:
        """Restore the network."""
        self.down.is_cut = self.up.is_cut = False
        self.down.move()
        self.up.move()

    def _time_out(self) -> None:
        if self.down.is_cut and self.down.held and not self.server_closed:
            self._fail_server(errno.ETIMEDOUT)

    def _fail_server(self, error: int) -> None:
        self.server_error = error
        self.on_server_event()

    def close_client(self, *, is_reset: bool) -> None:
        """The client closes. Its host answers later bytes with a reset."""
        self.client_closed = True
        if self.up.is_cut:
            return
        if is_reset:
            self.world.after(self.up.link.latency_seconds, lambda: self._fail_server(errno.ECONNRESET))
        else:
            self.up.finish()
            self.world.after(self.up.link.latency_seconds * 2, self._refuse_late_bytes)

    def _refuse_late_bytes(self) -> None:
        if self.down.acknowledged_bytes and (self.down.held or self.down.arrived) and not self.server_closed:
            self._fail_server(errno.ECONNRESET)

    def close_server(self, *, discard: bool) -> None:
        """The server closes. If it has unread bytes, this resets the connection."""
        self.server_closed = True
        if discard or self.up.arrived:
            self.world.after(self.down.link.latency_seconds, self._reset_client)
        else:
            self.down.finish()

    def _reset_client(self) -> None:
        self.is_reset = not self.down.is_cut
        self.on_client_event()
