"""A transport without room."""

import os

from typha.worker import transport


class FullTransport:
    """Takes no control message of the connections that are `full`; what is of a log or file passes."""

    send_file = staticmethod(os.sendfile)
    receive = staticmethod(transport.PlainTransport.receive)
    owed = staticmethod(transport.PlainTransport.owed)
    release = staticmethod(transport.PlainTransport.release)
    acked_bytes = staticmethod(transport.kernel_acked_bytes)
    window_bytes = staticmethod(transport.kernel_window_bytes)

    def __init__(self) -> None:
        self.full: set[int] = set()
        self.refused = 0

    def write(self, descriptor: int, data: bytes | memoryview, /) -> int:
        """As the kernel would, with no room for a few bytes."""
        if descriptor in self.full and isinstance(data, bytes):
            self.refused += 1
            raise BlockingIOError
        return os.write(descriptor, data)

    def write_ahead(self, connection: transport.Connection, data: bytes, /) -> int:
        """As any other bytes."""
        return self.write(connection.fileno(), data)


class VoidTransport(FullTransport):
    """What is written for the connections that are `gone` is accepted, and arrives nowhere."""

    def __init__(self) -> None:
        super().__init__()
        self.gone: set[int] = set()

    def write(self, descriptor: int, data: bytes | memoryview, /) -> int:
        """As the kernel would."""
        return len(data) if descriptor in self.gone else super().write(descriptor, data)
