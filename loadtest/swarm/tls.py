"""TLS of an agent, between the bytes of its socket and those of its protocol. No I/O.

A read of the socket may hold many records, and OpenSSL returns one at a time. With memory BIOs in place of the socket,
one system call reads all of them, and no decrypted data stays behind that a poll would not show.
"""

import ssl
from pathlib import Path
from typing import Final

from loadtest.swarm import control

ENVIRONMENT: Final = {"OPENSSL_CONF": str(Path(__file__).with_name("openssl.cnf"))}
"""Of a process with agents: they offer the suites of TLS 1.3 in the order of the real ones."""
READ_BYTES: Final = 64 * 1024
"""More than a record, so each read returns a whole record."""


def context_of(files: control.TlsFiles) -> ssl.SSLContext:
    """The context of all agents of a process. Raises OSError, ssl.SSLError."""
    context = ssl.create_default_context(cafile=files.authority)
    context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN  # as in Go, an intermediate authority is enough
    context.load_cert_chain(files.certificate, files.key)
    return context


class Channel:
    """TLS of one connection. Every method may raise ssl.SSLError; the connection is unusable then."""

    __slots__ = ("_incoming", "_object", "_outgoing", "established")

    def __init__(self, context: ssl.SSLContext, server: str) -> None:
        self._incoming = ssl.MemoryBIO()
        self._outgoing = ssl.MemoryBIO()
        self._object = context.wrap_bio(self._incoming, self._outgoing, server_hostname=server)
        self.established = False
        """Whether the handshake is done, so that data can flow in both directions."""

    def begin(self) -> bytes:
        """The bytes to send to the socket first."""
        self._shake_hands()
        return self._outgoing.read()

    def receive(self, data: bytes) -> tuple[list[bytes], bytes]:
        """Take bytes from the socket; returns the records for the agent and the bytes for the socket."""
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
            pass  # the rest of the record has not arrived yet
        return records, self._outgoing.read() if self._outgoing.pending else b""

    def send(self, data: bytes) -> bytes:
        """The bytes for the socket that carry the agent's data."""
        self._object.write(data)
        return self._outgoing.read()

    def _shake_hands(self) -> bool:
        try:
            self._object.do_handshake()
        except ssl.SSLWantReadError:
            return False
        self.established = True
        return True
