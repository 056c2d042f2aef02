"""A stream of UDP packets between pods: how many are lost, and when each one arrives."""

import abc
import contextlib
import socket
import threading
import time
from types import TracebackType
from typing import Final, Self

from loadtest.crash_course.cluster import Pod
from loadtest.crash_course.namespaces import Namespaces

PACKETS_PER_SECOND: Final = 1000
RECEIVE_BUFFER_BYTES: Final = 1 << 22
"""Room for many seconds: packets must not be lost because the receiving thread has no CPU."""
DRAIN_SECONDS: Final = 0.5
"""After the last packet nothing comes for so long."""
PACKET_BYTES_MAX: Final = 2048
_NUMBER_BYTES: Final = 8
SO_RCVBUFFORCE: Final = 33
"""As SO_RCVBUF, and not limited by the machine's `rmem_max`. The socket module does not name it."""


class PacketStream(abc.ABC):
    """Packets with numbers, at a steady rate for the time of a `with` block, and those that arrive."""

    def __init__(self, sender: socket.socket, receiver: socket.socket) -> None:
        """Takes both sockets, and closes them at the end."""
        self._sender = sender
        self._receiver = receiver
        self._receiver.settimeout(DRAIN_SECONDS)
        self._stop = threading.Event()
        self._threads = [threading.Thread(target=self._send), threading.Thread(target=self._receive)]
        self.sent = 0
        self.arrived: set[int] = set()
        self.last_arrival = time.monotonic()
        """When the last packet arrived."""
        self.longest_gap_seconds = 0.0
        """The longest time without an arrival."""

    def __enter__(self) -> Self:
        self.last_arrival = time.monotonic()
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Ends the stream. Packets that are on their way still arrive."""
        self._stop.set()
        for thread in self._threads:
            thread.join()
        self._sender.close()
        self._receiver.close()

    @property
    def lost(self) -> int:
        """Packets that did not arrive, after the end."""
        return self.sent - len(self.arrived)

    @abc.abstractmethod
    def send_packet(self, number: int) -> None:
        """Sends one packet."""

    @abc.abstractmethod
    def number_of(self, data: bytes) -> int | None:
        """The number of a packet that has arrived; None if it is not of this stream."""

    def _send(self) -> None:
        due = time.monotonic()
        while not self._stop.is_set():
            self.send_packet(self.sent)
            self.sent += 1
            # After a standstill of this process it does not catch up: a burst would overflow the kernel's queues.
            due = max(due + 1 / PACKETS_PER_SECOND, time.monotonic())
            self._stop.wait(max(0.0, due - time.monotonic()))

    def _receive(self) -> None:
        """Receives until the stream has ended and nothing has come for a while."""
        while True:
            try:
                number = self.number_of(self._receiver.recv(PACKET_BYTES_MAX))
            except TimeoutError:
                if self._stop.is_set():
                    return
                continue
            if number is not None:
                now = time.monotonic()
                self.longest_gap_seconds = max(self.longest_gap_seconds, now - self.last_arrival)
                self.last_arrival = now
                self.arrived.add(number)


class Stream(PacketStream):
    """UDP packets between two pods. The target answers nothing.

    So to connection tracking the stream is never established, and every packet asks the policies.
    """

    def __init__(self, spaces: Namespaces, source: Pod, target: Pod, *, port: int) -> None:
        super().__init__(spaces.within(source.sandbox, _open), spaces.within(target.sandbox, _open))
        self._address = (target.address, port)
        self._receiver.setsockopt(socket.SOL_SOCKET, SO_RCVBUFFORCE, RECEIVE_BUFFER_BYTES)
        self._receiver.bind(("", port))

    def send_packet(self, number: int) -> None:
        """See the base class."""
        with contextlib.suppress(OSError):  # the network is unreachable: the packet is lost
            self._sender.sendto(number.to_bytes(_NUMBER_BYTES), self._address)

    def number_of(self, data: bytes) -> int:
        """See the base class."""
        return int.from_bytes(data)


def _open() -> socket.socket:
    return socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
