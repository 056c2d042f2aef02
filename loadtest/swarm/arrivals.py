"""When the network last brought data to a socket, whenever it is read."""

import socket
import struct
from typing import Final

_TCP_INFO: Final = struct.Struct("=52xI")
"""Up to tcpi_last_data_recv of struct tcp_info: milliseconds."""


def last_arrival_ns(sock: socket.socket, now_ns: int) -> int:
    """When the last data came, or the connection came to be: nanoseconds since 1970, to a tick of the kernel (10 ms).

    `now_ns` is the moment of the call. A process with thousands of agents is late with reading now and then; the kernel
    is not. Raises OSError.
    """
    milliseconds: int
    (milliseconds,) = _TCP_INFO.unpack(sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _TCP_INFO.size))
    return now_ns - milliseconds * 1_000_000
