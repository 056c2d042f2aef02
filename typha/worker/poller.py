"""The one place where client sockets are opened, registered and closed.

A worker's clients are raw non-blocking sockets in an epoll of its own, and the event loop watches only the epoll's
descriptor. The kernel reuses a descriptor's number as soon as it is closed, so registering and closing in two places
loses connections without an error. Here they are one operation each.
"""

import errno
import select
import socket
import struct
from collections.abc import Iterable
from typing import Generic, Protocol, TypeVar

from typha import networks
from typha.worker import transport

READ = select.EPOLLIN | select.EPOLLRDHUP
WRITE = select.EPOLLOUT
HANG_UP = select.EPOLLRDHUP
BROKEN = select.EPOLLERR | select.EPOLLHUP
_OUT_OF_RESOURCES = {errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM}
_TRANSIENT_ACCEPT_ERRORS = {errno.ECONNABORTED, errno.EPROTO, errno.EINTR, errno.ENETDOWN, errno.EHOSTUNREACH}
_EPOLLEXCLUSIVE = 1 << 28
_RESET_ON_CLOSE = struct.pack("ii", 1, 0)
MAX_EVENTS = 512
"""Events taken at once: limits a turn of the loop."""


class HasSocket(Protocol):
    """What the poller needs of a client."""

    fd: int
    socket: transport.Connection
    watching_write: bool


ClientT = TypeVar("ClientT", bound=HasSocket)


class OutOfResources(Exception):
    """Neither the process nor the system has a descriptor or buffer left for another connection."""


class AnyPoller(Protocol[ClientT]):
    """What a worker asks of a poller. `Poller` is the one on real sockets, and documents each operation."""

    clients: dict[int, ClientT]
    """By descriptor."""

    def fileno(self) -> int: ...

    def listen(self, active: bool) -> None: ...

    def close_listener(self) -> None: ...

    def poll(self) -> tuple[list[tuple[ClientT, int]], bool]: ...

    def accept(self) -> tuple[transport.Connection, str] | None: ...

    def add(self, client: ClientT) -> None: ...

    def has_unread(self, client: ClientT) -> bool: ...

    def has_hung_up(self, client: ClientT) -> bool: ...

    def with_room(self, clients: Iterable[ClientT]) -> list[ClientT]: ...

    def limit_unsent(self, client: ClientT, count: int) -> None: ...

    def watch_write(self, client: ClientT, active: bool) -> None: ...

    def watch_read(self, client: ClientT) -> None: ...

    def watch_handshake(self, client: ClientT, *, wants_write: bool) -> None: ...

    def watch_end(self, client: ClientT) -> None: ...

    def close(self, client: ClientT, *, discard: bool = False) -> None: ...

    def close_all(self) -> None: ...


class Poller(Generic[ClientT]):
    """The listening socket and all clients of one worker."""

    def __init__(
        self,
        listener: socket.socket,
        *,
        notsent_lowat_bytes: int,
    ) -> None:
        self._epoll = select.epoll()
        self._listener = listener
        self._listener_fd = listener.fileno()
        self._listening = False
        self._notsent_lowat_bytes = notsent_lowat_bytes
        self.clients: dict[int, ClientT] = {}

    def fileno(self) -> int:
        """The epoll's descriptor: readable when `poll` has something to report."""
        return self._epoll.fileno()

    def listen(self, active: bool) -> None:
        """Whether new connections are wanted. A connection wakes one of the processes that share the listener."""
        if active and not self._listening:
            self._epoll.register(self._listener_fd, select.EPOLLIN | _EPOLLEXCLUSIVE)
        elif self._listening and not active and self._listener.fileno() >= 0:
            self._epoll.unregister(self._listener_fd)
        self._listening = active

    def close_listener(self) -> None:
        """Accepts no more. Once every process that shares the listener has closed it, the kernel refuses
        connections."""
        self.listen(False)
        self._listener.close()

    def poll(self) -> tuple[list[tuple[ClientT, int]], bool]:
        """The clients with events, and whether connections wait to be accepted.

        Handle the clients first: a descriptor number that is closed there may come back from `accept`.
        """
        ready: list[tuple[ClientT, int]] = []
        waiting = False
        for descriptor, events in self._epoll.poll(0, MAX_EVENTS):
            client = self.clients.get(descriptor)
            if client is not None:
                ready.append((client, events))
            else:
                waiting = waiting or descriptor == self._listener_fd
        return ready, waiting

    def accept(self) -> tuple[socket.socket, str] | None:
        """The next connection, with its options set, and its peer's address; None if there is none.

        Raises:
            OutOfResources: there may be more, but they cannot be accepted now.
        """
        while True:
            try:
                connection, address = self._listener.accept()
            except BlockingIOError:
                return None
            except OSError as error:
                if error.errno in _OUT_OF_RESOURCES:
                    raise OutOfResources(str(error)) from error
                if error.errno in _TRANSIENT_ACCEPT_ERRORS:
                    continue
                raise
            try:
                self._set_options(connection)
            except OSError:  # reset between the handshake and here
                connection.close()
                continue
            return connection, networks.with_port(address[0], address[1])

    def _set_options(self, connection: socket.socket) -> None:
        connection.setblocking(False)
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NOTSENT_LOWAT, self._notsent_lowat_bytes)

    def add(self, client: ClientT) -> None:
        """Takes a new client in, and watches it for reading."""
        self.clients[client.fd] = client
        self._epoll.register(client.fd, READ)

    def has_unread(self, client: ClientT) -> bool:
        """Whether the client has sent something, or hung up, that has not been read yet."""
        return bool(_look(client.fd, READ))

    def has_hung_up(self, client: ClientT) -> bool:
        """Whether the client has hung up, which has not been reported yet."""
        return bool(_look(client.fd, HANG_UP) & (HANG_UP | BROKEN))

    def with_room(self, clients: Iterable[ClientT]) -> list[ClientT]:
        """The clients whose sockets take more: less than half of their limit is unsent, or they are broken."""
        asked = select.poll()
        for one in clients:
            asked.register(one.fd, WRITE)
        return [self.clients[descriptor] for descriptor, _ in asked.poll(0)]

    def limit_unsent(self, client: ClientT, count: int) -> None:
        """From now on the kernel takes no more for the client while it holds this many unsent bytes."""
        client.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NOTSENT_LOWAT, count)

    def watch_write(self, client: ClientT, active: bool) -> None:
        """Whether to report that the client's socket takes bytes again."""
        if client.watching_write is active:
            return
        client.watching_write = active
        self._epoll.modify(client.fd, READ | WRITE if active else READ)

    def watch_read(self, client: ClientT) -> None:
        """Watches for reading only, after a handshake."""
        client.watching_write = False
        self._epoll.modify(client.fd, READ)

    def watch_handshake(self, client: ClientT, *, wants_write: bool) -> None:
        """Reports once that a step can be taken; after that nothing, not even a hang-up."""
        self._epoll.modify(client.fd, select.EPOLLONESHOT | (WRITE if wants_write else READ))

    def watch_end(self, client: ClientT) -> None:
        """Reports only that the peer has closed."""
        client.watching_write = False
        self._epoll.modify(client.fd, select.EPOLLRDHUP)

    def close(self, client: ClientT, *, discard: bool = False) -> None:
        """Unregisters and closes; the descriptor's number is free from here on.

        With `discard` the kernel drops what it still holds for the peer. Otherwise it would keep it for as long as a
        peer that takes nothing answers probes.
        """
        if discard:
            client.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET_ON_CLOSE)
        client.watching_write = False
        del self.clients[client.fd]
        self._epoll.unregister(client.fd)
        client.socket.close()

    def close_all(self) -> None:
        """Closes every client and the epoll itself."""
        for client in list(self.clients.values()):
            self.close(client)
        self._epoll.close()


def _look(descriptor: int, events: int) -> int:
    one = select.poll()
    one.register(descriptor, events)
    return next((found for _, found in one.poll(0)), 0)
