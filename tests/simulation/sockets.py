"""Simulated sockets of a process: the server's ends of connections, the listening socket, and epoll.

As in the kernel, a new socket gets the lowest free descriptor, and a closed descriptor is free at once.
"""

import errno
import select
import socket
import struct
from collections import deque
from collections.abc import Callable, Iterator
from typing import Any

from tests.simulation import network, process
from tests.simulation import world as worlds

LISTENER_FD = 2
_ABORTED = 0.02
"""Share of connections that are reset between the kernel's handshake and `accept`."""
_SYSTEM_CALL_SECONDS = 5e-6
_TCP_INFO = struct.Struct("=120xQ8x")
_NUMBER = struct.Struct("i")


class ServerSocket(socket.socket):
    """The server's end of a connection."""

    def __init__(self, connection: network.Connection, host: "Host", owner: process.Process) -> None:
        self.connection = connection
        self.owner = owner
        self.discards = False
        self.epoll: Epoll | None = None
        self._host = host
        self._number = host.take_number(self)
        self._closed = False
        connection.on_server_event = self._happened

    def __repr__(self) -> str:
        return f"<ServerSocket {self.connection.number}>"

    def _happened(self) -> None:
        if self.epoll is not None:
            self.epoll.note(self._number)

    def fileno(self) -> int:
        """The descriptor; -1 once the socket is closed."""
        return self._number

    def setblocking(self, flag: bool) -> None:
        """Ignored: it never blocks."""

    def setsockopt(self, *arguments: Any) -> None:
        """Of all options, only SO_LINGER has an effect: closing resets the connection."""
        if arguments[:2] == (socket.SOL_SOCKET, socket.SO_LINGER):
            self.discards = True

    def getsockopt(self, *arguments: Any) -> Any:
        """SO_ERROR, or TCP_INFO with the number of acknowledged bytes."""
        if arguments[:2] == (socket.SOL_SOCKET, socket.SO_ERROR):
            return _NUMBER.pack(self.connection.server_error or 0)
        return _TCP_INFO.pack(self.connection.down.acknowledged_bytes)

    def _check(self) -> None:
        if not self.owner.is_alive:
            raise OSError(errno.EBADF, "its process is dead")
        if self._number < 0:
            raise worlds.Violation(f"{self!r} is used after it was closed")
        self.owner.work(_SYSTEM_CALL_SECONDS)
        if self.connection.server_error is not None:
            raise OSError(self.connection.server_error, errno.errorcode[self.connection.server_error])

    def recv(self, bufsize: int, flags: int = 0, /) -> bytes:
        """Read bytes that have arrived, at random not all of them."""
        self._check()
        pipe = self.connection.up
        if pipe.arrived:
            if self.connection.world.chance(0.2):
                bufsize = self.connection.world.random.randint(1, bufsize)
            return pipe.read(bufsize)
        if pipe.is_ended:
            return b""
        raise BlockingIOError(errno.EAGAIN, "no bytes")

    def send(self, data: Any, flags: int = 0, /) -> int:
        """Send as many bytes as there is room for."""
        self._check()
        if self.connection.client_closed and self.connection.up.is_ended:
            self.connection._fail_server(errno.EPIPE)
        count = self.connection.down.write(data)
        if not count and len(data):
            raise BlockingIOError(errno.EAGAIN, "no room")
        return count

    def events(self) -> int:
        """The events that epoll reports."""
        connection = self.connection
        events = 0
        if connection.up.arrived or connection.up.is_ended:
            events |= select.EPOLLIN
        if connection.up.is_ended:
            events |= select.EPOLLRDHUP
        if connection.down.is_writable:
            events |= select.EPOLLOUT
        if connection.server_error is not None:
            events |= select.EPOLLIN | select.EPOLLERR | select.EPOLLHUP | select.EPOLLRDHUP
        return events

    def shutdown(self, how: int, /) -> None:
        """End the direction to the client."""
        assert how == socket.SHUT_WR
        self._check()
        self.connection.down.finish()

    def close(self) -> None:
        """Free the descriptor, and close the connection."""
        if self._number >= 0:
            self._host.give_back(self._number)
            self._number = -1
            self._closed = True
            if self.owner.is_alive:
                self.connection.close_server(discard=self.discards)


class Host:
    """The descriptors of a process."""

    def __init__(self) -> None:
        self.sockets: dict[int, ServerSocket] = {}

    def take_number(self, opened: ServerSocket) -> int:
        """Allocate the lowest free descriptor."""
        number = 3
        while number in self.sockets:
            number += 1
        self.sockets[number] = opened
        return number

    def give_back(self, number: int) -> None:
        """Free a descriptor."""
        del self.sockets[number]

    def close_all(self) -> None:
        """Close all connections, as the kernel does for a dead process."""
        for opened in list(self.sockets.values()):
            opened.connection.close_server(discard=opened.discards)


class Backlog:
    """The kernel's queue of connections that wait for `accept`. It exists as long as a process listens."""

    def __init__(self, world: worlds.World) -> None:
        self.world = world
        self.waiting: deque[network.Connection] = deque()
        self.epolls: list[Epoll] = []
        self.listeners = 0

    def connect(self, connection: network.Connection) -> bool:
        """Connect a client. Returns False if no process listens."""
        if self.listeners == 0:
            return False
        self.waiting.append(connection)
        for epoll in self.epolls:
            epoll.note(LISTENER_FD)
        return True

    def let_go(self) -> None:
        """Remove a listener. The last one resets the waiting connections."""
        self.listeners -= 1
        if self.listeners == 0:
            while self.waiting:
                self.waiting.popleft().close_server(discard=True)


class Listener(socket.socket):
    """The listening socket in one of the processes that share it."""

    def __init__(
        self,
        backlog: Backlog,
        host: Host,
        owner: process.Process,
        accepted: Callable[[ServerSocket], None] = lambda _: None,
    ) -> None:
        self.backlog = backlog
        self._accepted = accepted
        self._host = host
        self._owner = owner
        self._is_open = True
        self._closed = False
        backlog.listeners += 1

    def fileno(self) -> int:
        """The descriptor; -1 once the socket is closed."""
        return LISTENER_FD if self._is_open else -1

    def accept(self) -> tuple[socket.socket, Any]:
        """Accept the connection that has waited longest. Some have been reset meanwhile."""
        while self.backlog.waiting:
            connection = self.backlog.waiting.popleft()
            if self.backlog.world.chance(_ABORTED) and not self.backlog.world.is_calm:
                connection.close_server(discard=True)
                raise ConnectionAbortedError(errno.ECONNABORTED, "gone before it was accepted")
            opened = ServerSocket(connection, self._host, self._owner)
            self._accepted(opened)
            return opened, ("client", connection.number)
        raise BlockingIOError(errno.EAGAIN, "no connection")

    def close(self) -> None:
        """Stop listening."""
        if self._is_open:
            self._is_open = False
            self._closed = True
            self.backlog.let_go()


class Epoll:
    """An epoll object for the sockets of a host and a listener. It is a file in the loop of its process."""

    def __init__(self, world: worlds.World, host: Host, backlog: Backlog, owner: process.Process) -> None:
        self._world = world
        self._host = host
        self._backlog = backlog
        self._owner = owner
        self._masks: dict[int, int] = {}
        self._noted: dict[int, None] = {}
        """Descriptors that may be ready."""
        self._number = owner.open(self)
        backlog.epolls.append(self)

    def fileno(self) -> int:
        """The descriptor in the loop."""
        return self._number

    def register(self, fd: int, events: int) -> None:
        """Add a descriptor."""
        if fd in self._masks:
            raise FileExistsError(errno.EEXIST, "registered twice")
        self._masks[fd] = events
        if fd != LISTENER_FD:
            self._host.sockets[fd].epoll = self
        self.note(fd)

    def modify(self, fd: int, events: int) -> None:
        """Change the events of a descriptor."""
        if fd not in self._masks:
            raise FileNotFoundError(errno.ENOENT, "not registered")
        self._masks[fd] = events
        self.note(fd)

    def unregister(self, fd: int) -> None:
        """Remove a descriptor."""
        if self._masks.pop(fd, None) is None:
            raise FileNotFoundError(errno.ENOENT, "not registered")
        self._noted.pop(fd, None)
        if fd in self._host.sockets:
            self._host.sockets[fd].epoll = None

    def note(self, fd: int) -> None:
        """Note that a descriptor may be ready."""
        if fd in self._masks:
            self._noted[fd] = None
            self._owner.wake()

    def _happened(self) -> Iterator[tuple[int, int]]:
        if not self._owner.is_alive:
            return
        for fd in list(self._noted):
            if fd == LISTENER_FD:
                events = select.EPOLLIN if self._backlog.waiting else 0
            else:
                always = select.EPOLLERR | select.EPOLLHUP
                events = self._host.sockets[fd].events() & (self._masks[fd] | always)
            if events:
                yield fd, events
            else:
                del self._noted[fd]

    def is_readable(self) -> bool:
        """Whether a descriptor is ready."""
        return any(True for _ in self._happened())

    def is_writable(self) -> bool:
        """Always False."""
        return False

    def poll(self, timeout: float | None = None, maxevents: int = -1) -> list[tuple[int, int]]:
        """The events of ready descriptors in random order, at random not all of them."""
        self._owner.work(_SYSTEM_CALL_SECONDS)
        happened = list(self._happened())
        if len(happened) > 1:
            self._world.random.shuffle(happened)
            if self._world.chance(0.1):
                happened = happened[: self._world.random.randint(1, len(happened))]
        return happened[:maxevents] if maxevents > 0 else happened

    def close(self) -> None:
        """Remove all descriptors."""
        self._masks.clear()
        self._noted.clear()
        if self in self._backlog.epolls:
            self._backlog.epolls.remove(self)


class Poll:
    """A poll object for a few sockets."""

    def __init__(self, host: Host) -> None:
        self._host = host
        self._masks: dict[int, int] = {}

    def register(self, fd: int, events: int) -> None:
        """Add a descriptor."""
        self._masks[fd] = events

    def poll(self, timeout: float | None = None) -> list[tuple[int, int]]:
        """The events of the ready descriptors."""
        always = select.EPOLLERR | select.EPOLLHUP
        answers = [(fd, self._host.sockets[fd].events() & (mask | always)) for fd, mask in self._masks.items()]
        return [(fd, events) for fd, events in answers if events]
