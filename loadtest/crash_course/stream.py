"""A stream of UDP packets between pods: how many are lost, and when each one arrives."""

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
_NUMBER_BYTES: Final = 8
_SO_RCVBUFFORCE: Final = 33


class Stream:
    """A stream for the time of a `with` block. Each packet has a number; the target answers nothing.

    So to connection tracking it is never established, and every packet asks the policies.
    """

    def __init__(self, spaces: Namespaces, source: Pod, target: Pod, *, port: int) -> None:
        self._address = (target.address, port)
        self._sender = spaces.within(source.sandbox, _open)
        self._receiver = spaces.within(target.sandbox, _open)
        self._receiver.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, RECEIVE_BUFFER_BYTES)
        self._receiver.settimeout(DRAIN_SECONDS)
        self._receiver.bind(("", port))
        self._stop = threading.Event()
        self._threads = [threading.Thread(target=self._send), threading.Thread(target=self._receive)]
        self.sent = 0
        self._arrived: set[int] = set()
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
        return self.sent - len(self._arrived)

    def _send(self) -> None:
        due = time.monotonic()
        while not self._stop.is_set():
            with contextlib.suppress(OSError):  # the network is unreachable: the packet is lost
                self._sender.sendto(self.sent.to_bytes(_NUMBER_BYTES), self._address)
            self.sent += 1
            # After a standstill of this process it does not catch up: a burst would overflow the kernel's queues.
            due = max(due + 1 / PACKETS_PER_SECOND, time.monotonic())
            self._stop.wait(max(0.0, due - time.monotonic()))

    def _receive(self) -> None:
        while True:
            try:
                data = self._receiver.recv(64)
            except TimeoutError:
                if self._stop.is_set():
                    return
                continue
            now = time.monotonic()
            self.longest_gap_seconds = max(self.longest_gap_seconds, now - self.last_arrival)
            self.last_arrival = now
            self._arrived.add(int.from_bytes(data))


def _open() -> socket.socket:
    return socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
