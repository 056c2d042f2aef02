"""What the service sends a new client, recorded once, so that a bare loop can send the same to every client."""

import socket
import ssl
import time
from pathlib import Path
from typing import Final

import msgspec

from loadtest.swarm import agent, control, nativeagent, typhaagent
from protocol import encoding
from protocol.native import encoder as native_encoder
from protocol.typha import encoder as typha_encoder

READ_BYTES: Final = 1024 * 1024
TIMEOUT_SECONDS: Final = 30.0


class Recording(msgspec.Struct):
    """All bytes up to the in-sync status, in parts: each part is the answer to one message of the client."""

    protocol: control.Protocol
    parts: list[bytes]
    sequence: int
    """Sequence after the snapshot; updates start with the next one."""

    def save(self, file: Path) -> None:
        """Write it for `load`."""
        file.write_bytes(msgspec.msgpack.encode(self))


def load(file: Path) -> Recording:
    """Read what `save` wrote. Raises OSError, msgspec.DecodeError."""
    return msgspec.msgpack.decode(file.read_bytes(), type=Recording)


def make_encoder(protocol: control.Protocol) -> encoding.Encoder:
    """The encoder of the frames after a recording."""
    if protocol is control.Protocol.TYPHA:
        return typha_encoder.TyphaEncoder(compress=True)
    return native_encoder.NativeEncoder(zstd=True)


def record(
    address: tuple[str, int], *, protocol: control.Protocol, feed: str, context: ssl.SSLContext | None = None
) -> Recording:
    """Connect to a service while nothing changes, and record what it sends. Raises OSError, RemoteProtocolError."""
    make = typhaagent.TyphaAgent if protocol is control.Protocol.TYPHA else nativeagent.NativeAgent
    one = make("bench", agent.Shared(), control.Group())
    parts = [bytearray()]
    with socket.create_connection(address, timeout=TIMEOUT_SECONDS) as plain:
        connection = plain if context is None else context.wrap_socket(plain, server_hostname=address[0])
        connection.sendall(one.connected(feed=feed, compressed=True, now_ns=time.time_ns()))
        while not one.in_sync:
            data = connection.recv(READ_BYTES)
            if not data:
                raise ConnectionError("the service closed the connection during the recording")
            parts[-1] += data
            answer = one.receive(data, time.time_ns())
            if answer and not one.in_sync:
                connection.sendall(answer)
                parts.append(bytearray())
    return Recording(protocol, [bytes(part) for part in parts], one.sequence)
