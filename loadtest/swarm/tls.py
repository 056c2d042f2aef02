"""An agent's end of TLS between the bytes of its socket and those of its protocol. No I/O.

A read of the socket may hold many records, and OpenSSL gives out one at a time. With its memory in place of the socket,
one system call takes them all, and nothing decrypted is left behind that no poll would tell of.
"""

import ssl
from typing import Final

from loadtest.swarm import control

READ_BYTES: Final = 64 * 1024
"""More than a record: what is read is always whole records."""


def context_of(files: control.TlsFiles) -> ssl.SSLContext:
    """For all agents of a process. Raises OSError, ssl.SSLError."""
    context = ssl.create_default_context(cafile=files.authority)
    context.load_cert_chain(files.certificate, files.key)
    return context


class Channel:
    """One connection's TLS; every method may raise ssl.SSLError, and then the connection is of no more use."""

    __slots__ = ("_incoming", "_object", "_outgoing", "established")

    def __init__(self, context: ssl.SSLContext, server: str) -> None:
        self._incoming = ssl.MemoryBIO()
        self._outgoing = ssl.MemoryBIO()
        self._object = context.wrap_bio(self._incoming, self._outgoing, server_hostname=server)
        self.established = False
        """The handshake is done: there may be data in both directions."""

    def begin(self) -> bytes:
        """What the socket is to be sent first."""
        self._shake_hands()
        return self._outgoing.read()

    def receive(self, data: bytes) -> tuple[list[bytes], bytes]:
        """Takes what the socket gave; what the agent is to read, by record, and what the socket is to be sent."""
        self._incoming.write(data)
        if not self.established and not self._shake_hands():
            return [], self._outgoing.read()
        records = []
        try:
            while self._incoming.pending or self._object.pending():
                record = self._object.read(READ_BYTES)
                if not record:
                    break  # the peer has closed its side
                records.append(record)
        except ssl.SSLWantReadError:
            pass  # the rest of a record is to come
        return records, self._outgoing.read() if self._outgoing.pending else b""

    def send(self, data: bytes) -> bytes:
        """What the socket is to be sent for data of the agent's."""
        self._object.write(data)
        return self._outgoing.read()

    def _shake_hands(self) -> bool:
        try:
            self._object.do_handshake()
        except ssl.SSLWantReadError:
            return False
        self.established = True
        return True
