"""Internal: one connection to one address. It yields the protocol's messages as they arrive, without reconnects."""

import asyncio
import enum
import random
import socket
import ssl
from collections import OrderedDict
from collections.abc import AsyncGenerator
from dataclasses import dataclass
from typing import Self

from clients import addresses, applied, errors
from protocol import errors as protocol_errors
from protocol import messages
from protocol.native import connection
from protocol.typha import client

SOFTWARE = "typha-python-client"
READ_BYTES = 256 * 1024
MAX_UNSENT_BYTES = 64 * 1024
"""Limit of pongs that the server does not read while it keeps sending pings."""
DEFAULT_PING_INTERVAL_SECONDS = 10.0
"""Assumed if the server does not announce one."""
MAX_PING_INTERVAL_SECONDS = 600.0
MAX_TLS_SESSIONS = 64
"""Servers with a session to resume: more than a service has replicas. A session takes some 4 kB."""


class Protocol(enum.Enum):
    """The protocol to speak to the server. The client yields the native protocol's messages in either case."""

    NATIVE = "native"
    TYPHA = "typha"
    """The protocol of Calico's Typha. The feed is the syncer type. It has no digests, and a refusal gives no reason."""


@dataclass(frozen=True, slots=True)
class Timeouts:
    """How long a client waits for the server."""

    connect_seconds: float = 10.0
    """For name resolution, and again for TCP and TLS together. The addresses of a name share the latter."""
    hello_seconds: float = 10.0
    """From the connection to the server's hello. A server answers hellos even while it has no data."""
    silence_factor: float = 3.0
    """Number of ping intervals without any message after which the server counts as silent: two pings may be late."""


DEFAULT_TIMEOUTS = Timeouts()


class TlsSessions(ssl.SSLContext):
    """Makes connections of another context, one at a time, and resumes their sessions: each server's last one, once.

    A handshake that resumes costs the client a third. A server that cannot resume the session does a full one.
    """

    server: tuple[str, int, str]
    """Address, port and name of the next connection's. Sessions of one server are none of another's business."""
    _context: ssl.SSLContext
    _resumable: OrderedDict[tuple[str, int, str], ssl.SSLSession]

    def __new__(cls, context: ssl.SSLContext) -> Self:
        """Takes the caller's context, which stays as it is."""
        made = super().__new__(cls, ssl.PROTOCOL_TLS_CLIENT)
        made._context = context
        made._resumable = OrderedDict()
        return made

    def wrap_bio(
        self,
        incoming: ssl.MemoryBIO,
        outgoing: ssl.MemoryBIO,
        server_side: bool = False,
        server_hostname: str | bytes | None = None,
        session: ssl.SSLSession | None = None,
    ) -> ssl.SSLObject:
        """Called by asyncio, which knows no sessions."""
        session = self._resumable.pop(self.server, session)
        return self._context.wrap_bio(incoming, outgoing, server_side, server_hostname, session)

    def keep(self, ended: ssl.SSLObject) -> None:
        """The session of a connection that is about to be closed may be resumed."""
        session = ended.session
        if session is not None and session.has_ticket:
            self._resumable[self.server] = session
            if len(self._resumable) > MAX_TLS_SESSIONS:
                self._resumable.popitem(last=False)


async def stream(
    address: str,
    *,
    hello: messages.ClientHello,
    tls: ssl.SSLContext | None = None,
    server_name: str | None = None,
    timeouts: Timeouts = DEFAULT_TIMEOUTS,
    protocol: Protocol = Protocol.NATIVE,
    acknowledger: applied.Acknowledger | None = None,
) -> AsyncGenerator[messages.Message, None]:
    """Yields the messages of one connection in order, starting with the server's hello. It ends only with an exception.

    It answers pings and yields them too. Wrap it in `contextlib.aclosing`, or iterate to the end: closing the generator
    closes the socket. It reads from the socket only during iteration. The `acknowledger` can tell the server what has
    been applied, if the hello offers `positions` and the server supports that.

    Raises:
        ConnectFailed, Refused, ServerGoodbye, ConnectionLost, ServerSilent, BadServer: see `clients`.
        ValueError: the address is malformed.
    """
    reader, writer = await _open(address, tls=tls, server_name=server_name, timeouts=timeouts)
    receiver = _Receiver(address, reader, writer, hello=hello, timeouts=timeouts, protocol=protocol)
    try:
        while True:
            message = await receiver.receive()
            if acknowledger is not None and isinstance(message, messages.ServerHello):
                receiver.begin_reports(message, acknowledger)
            yield message
    except protocol_errors.RemoteProtocolError as error:
        raise errors.BadServer(address, str(error)) from error
    except OSError as error:
        raise errors.ConnectionLost(address, f"connection failed: {error}") from error
    finally:
        if acknowledger is not None:
            acknowledger.disconnected()
        if isinstance(tls, TlsSessions):
            tls.keep(writer.get_extra_info("ssl_object"))
        # close() would wait for a peer that may be gone; a cancelled caller must not wait.
        writer.transport.abort()


async def _open(
    address: str, *, tls: ssl.SSLContext | None, server_name: str | None, timeouts: Timeouts
) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    host, port = addresses.parse(address)
    server_hostname = (server_name or host) if tls is not None else None
    try:
        async with asyncio.timeout(timeouts.connect_seconds):
            found = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError) as error:
        raise errors.ConnectFailed(address, f"cannot resolve the name: {_describe(error)}") from error
    hosts = list(dict.fromkeys(str(entry[4][0]) for entry in found))
    random.shuffle(hosts)  # spreads the clients over the replicas behind one name
    problem: Exception = OSError("the name has no address")
    for candidate in hosts:
        try:
            async with asyncio.timeout(timeouts.connect_seconds / len(hosts)):
                if isinstance(tls, TlsSessions):
                    tls.server = (candidate, port, server_name or host)
                return await asyncio.open_connection(
                    candidate, port, ssl=tls, server_hostname=server_hostname, limit=READ_BYTES
                )
        except OSError as error:  # includes TimeoutError and ssl.SSLError
            problem = error
    raise errors.ConnectFailed(address, f"cannot connect: {_describe(problem)}") from problem


def _describe(error: Exception) -> str:
    if isinstance(error, TimeoutError) and not str(error):
        return "timed out"
    return str(error) or type(error).__name__


def software(protocol: Protocol, agent_release: str) -> str:
    """What a client says of its version."""
    return agent_release or (client.NEWEST_VERSION if protocol is Protocol.TYPHA else SOFTWARE)


def _make_connection(protocol: Protocol) -> connection.Connection | client.ClientConnection:
    return client.ClientConnection() if protocol is Protocol.TYPHA else connection.Connection(connection.Role.CLIENT)


class _Receiver:
    """An open connection: the protocol's state, the two streams and the deadline of the next message."""

    def __init__(
        self,
        address: str,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        *,
        hello: messages.ClientHello,
        timeouts: Timeouts,
        protocol: Protocol,
    ) -> None:
        self._address = address
        self._reader = reader
        self._writer = writer
        self._hello = hello
        self._timeouts = timeouts
        self._protocol = _make_connection(protocol)
        self._protocol.send(hello)
        self._accepted = False
        self._wait_seconds = timeouts.hello_seconds
        self._deadline = asyncio.get_running_loop().time() + self._wait_seconds

    async def receive(self) -> messages.Message:
        while (message := self._protocol.next_event()) is None:
            await self._read()
        match message:
            case messages.Goodbye():
                raise _make_goodbye_error(self._address, message, accepted=self._accepted)
            case messages.ServerHello():
                self._accepted = True
                self._wait_seconds = _check_hello(self._hello, message) * self._timeouts.silence_factor
        return message

    async def _read(self) -> None:
        self._write()
        if self._accepted:
            self._deadline = asyncio.get_running_loop().time() + self._wait_seconds
        try:
            async with asyncio.timeout_at(self._deadline):
                data = await self._reader.read(READ_BYTES)
        except TimeoutError as error:
            what = "nothing, not even a ping" if self._accepted else "no hello"
            raise errors.ServerSilent(self._address, f"{what} for {self._wait_seconds:g} s") from error
        if not data:
            raise errors.ConnectionLost(self._address, "the server closed the connection without a goodbye")
        self._protocol.receive_data(data)

    def begin_reports(self, hello: messages.ServerHello, acknowledger: applied.Acknowledger) -> None:
        if messages.Feature.POSITIONS in hello.features:
            acknowledger.connected(self._send_applied)

    def _send_applied(self, sequence: int) -> None:
        """Sends it now, or never if the server does not read."""
        if self._writer.transport.get_write_buffer_size() <= MAX_UNSENT_BYTES and not self._writer.is_closing():
            self._protocol.send(messages.Applied(sequence))
            self._writer.write(self._protocol.data_to_send())

    def _write(self) -> None:
        data = self._protocol.data_to_send()
        if not data:
            return
        self._writer.write(data)
        if self._writer.transport.get_write_buffer_size() > MAX_UNSENT_BYTES:
            raise protocol_errors.RemoteProtocolError("the server sends pings but does not read the pongs")


def _check_hello(ours: messages.ClientHello, theirs: messages.ServerHello) -> float:
    """Checks the server's hello against the client's. Returns the ping interval in seconds."""
    if theirs.version not in ours.versions:
        raise protocol_errors.RemoteProtocolError(f"the server chose version {theirs.version}, which was not offered")
    if theirs.feed != ours.feed:
        raise protocol_errors.RemoteProtocolError(f"the server serves feed {theirs.feed!r} instead of {ours.feed!r}")
    announced = theirs.ping_interval_milliseconds / 1000 or DEFAULT_PING_INTERVAL_SECONDS
    return min(announced, MAX_PING_INTERVAL_SECONDS)


def _make_goodbye_error(address: str, goodbye: messages.Goodbye, *, accepted: bool) -> errors.ServerGoodbye:
    kind = errors.ServerGoodbye if accepted else errors.Refused
    return kind(
        address,
        reason=goodbye.reason,
        text=goodbye.text,
        retry_after_seconds=goodbye.retry_after_milliseconds / 1000,
        servers=goodbye.servers,
    )
