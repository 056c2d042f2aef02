"""TCP in memory: connections with bounded buffers and latency.

What the kernel does and a mere pipe does not: a small message is taken whole or not at all, a larger one perhaps in
part; a socket counts as writable only when a third of its buffer is free; bytes that a peer's host has acknowledged
are counted; who closes with unread bytes resets.
"""

import errno
from collections.abc import Callable
from typing import NamedTuple

from tests.simulation import world as worlds

_WHOLE_BYTES = 512
"""The kernel takes messages of this size in one piece, and larger ones too while it holds nothing."""
_WHOLE_BYTES_IF_EMPTY = 4096


class Link(NamedTuple):
    """What a connection's way is like."""

    send_buffer_bytes: int
    receive_buffer_bytes: int
    latency_seconds: float
    partial_probability: float
    """That a write takes less than there is room for."""


class Pipe:
    """One direction: what the sender's host holds, what the receiver's host holds, and a wire in between."""

    def __init__(self, world: worlds.World, link: Link) -> None:
        self.world = world
        self.link = link
        self.held = bytearray()
        """Written, not acknowledged."""
        self.arrived = bytearray()
        self.acknowledged_bytes = 0
        self.acknowledged_at = world.now
        self.is_cut = False
        """Nothing gets through, in either direction, and nobody is told."""
        self.is_finished = False
        """The sender has closed; behind the bytes there is an end."""
        self.is_ended = False
        """The receiver has been told of the end."""
        self.on_arrival: Callable[[], None] = lambda: None
        self.on_room: Callable[[], None] = lambda: None
        self._is_moving = False

    @property
    def room(self) -> int:
        """Bytes that a write may bring."""
        return self.link.send_buffer_bytes - len(self.held)

    @property
    def is_writable(self) -> bool:
        """As epoll sees it."""
        return self.room * 3 >= self.link.send_buffer_bytes

    def write(self, data: bytes | memoryview) -> int:
        """Takes some of it; 0 for nothing."""
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
        """No more will be written."""
        self.is_finished = True
        self.move()

    def read(self, count: int) -> bytes:
        """Takes what has arrived."""
        data = bytes(self.arrived[:count])
        del self.arrived[:count]
        if data and (self.held or self.is_finished):
            self.move()
        return data

    def move(self) -> None:
        """The wire takes what it can, in a while."""
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
    """A connection: the way to the client and the way to the server, and how it ended."""

    def __init__(self, world: worlds.World, number: int, link: Link) -> None:
        self.world = world
        self.number = number
        self.down = Pipe(world, link)
        self.up = Pipe(world, link)
        self.server_error: int | None = None
        """What the server's kernel has to say (errno)."""
        self.is_reset = False
        """The client's end has been reset by the server's host."""
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
        """The network goes; the server's kernel gives the connection up after a while, if it has bytes to send."""
        self.down.is_cut = self.up.is_cut = True
        self.world.after(user_timeout_seconds, self._time_out)

    def mend(self) -> None:
        """The network is back."""
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
        """The client closes; what is still sent to it is answered with a reset."""
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
        """The server closes; unread bytes of the client make that a reset."""
        self.server_closed = True
        if discard or self.up.arrived:
            self.world.after(self.down.link.latency_seconds, self._reset_client)
        else:
            self.down.finish()

    def _reset_client(self) -> None:
        self.is_reset = not self.down.is_cut
        self.on_client_event()
