"""A bare fan-out: one process, one watch, one log in memory, and sockets with an offset into it.

A new client gets a recorded handshake and snapshot by sendfile, then what was appended since. A client that has
everything gets each frame by a plain send, one socket after another. There are no keys and values, no pings, no limits,
no metrics and no other processes. The service's additional cost is the price of its functions.
"""

import os
import select
import socket
import ssl
from typing import Final

from loadtest.bench.bare import greeting, sources
from protocol import encoding, messages

POLL_EVENTS: Final = 1024
CATCH_UP_BYTES: Final = 256 * 1024
HEAR_BYTES: Final = 64 * 1024
COMMAND_BYTES: Final = 4096
BACKLOG: Final = 8192


class Connection:
    """A connection. `offset` is its position in the log while it lacks data."""

    __slots__ = ("greeting", "offset", "shaking_hands", "sock", "waits_to_write")

    def __init__(self, sock: socket.socket, greeting: int) -> None:
        self.sock = sock
        self.shaking_hands = isinstance(sock, ssl.SSLSocket)
        self.greeting = greeting
        """Parts of the greeting that it has not asked for yet; each message of the client asks for one."""
        self.offset = 0
        self.waits_to_write = False


class BareLoop:
    """Listens from the start; `run` serves."""

    def __init__(
        self,
        listener: socket.socket,
        *,
        recording: greeting.Recording,
        encoder: encoding.Encoder,
        watch: sources.Watch | None = None,
        schedule: sources.Schedule | None = None,
        context: ssl.SSLContext | None = None,
    ) -> None:
        self._listener = listener
        listener.setblocking(False)
        self._encoder = encoder
        self._sequence = recording.sequence
        self._watch = watch
        self._schedule = schedule
        self._context = context
        self._recorded = b"".join(recording.parts)
        self._stops = [sum(map(len, recording.parts[: count + 1])) for count in range(len(recording.parts))]
        self._log = os.memfd_create("bare", os.MFD_CLOEXEC)
        os.write(self._log, self._recorded)
        self._end = len(self._recorded)
        self._epoll = select.epoll()
        self._agents: dict[int, Connection] = {}
        self._at_end: dict[int, socket.socket] = {}

    def run(self, commands: int = 0) -> None:
        """Serve until the descriptor `commands` ends."""
        listener = self._listener.fileno()
        watch = -1 if self._watch is None else self._watch.fileno()
        for descriptor in (listener, commands, *([watch] if self._watch else [])):
            self._epoll.register(descriptor, select.EPOLLIN)
        while True:
            due = None if self._schedule is None else self._schedule.due_in_seconds()
            for descriptor, _ in self._epoll.poll(due, POLL_EVENTS):
                if descriptor == watch and self._watch is not None:
                    self._deliver(self._watch.take())
                elif descriptor == listener:
                    self._accept()
                elif descriptor == commands:
                    if not self._command(os.read(commands, COMMAND_BYTES)):
                        return
                elif (agent := self._agents.get(descriptor)) is not None:
                    self._event(agent)
            if self._schedule is not None and self._schedule.due_in_seconds() == 0.0:
                self._deliver(self._schedule.take())

    def _command(self, line: bytes) -> bool:
        """Obey `RATE SECONDS`, which starts the schedule; returns False at the end of the commands."""
        if line and self._schedule is not None:
            rate, seconds = line.split()
            self._schedule.start(updates_per_second=float(rate), seconds=float(seconds))
        return bool(line)

    def _deliver(self, updates: list[messages.Update]) -> None:
        if not updates:
            return
        frames = self._encoder.updates(self._sequence, updates)
        self._sequence = frames[-1].sequence
        data = b"".join(frame.data for frame in frames)
        length = len(data)
        before = self._end
        os.pwrite(self._log, data, before)
        self._end += length
        slow: list[tuple[int, int]] = []
        for descriptor, sock in self._at_end.items():
            try:
                if (sent := sock.send(data)) != length:
                    slow.append((descriptor, before + sent))
            except (BlockingIOError, ssl.SSLWantWriteError):
                slow.append((descriptor, before))
            except OSError:
                slow.append((descriptor, -1))
        for descriptor, offset in slow:
            self._at_end.pop(descriptor)
            self._agents[descriptor].offset = offset
            if offset < 0:
                self._close(self._agents[descriptor])
            else:
                self._wait_to_write(self._agents[descriptor], True)

    def _wait_to_write(self, agent: Connection, waits: bool) -> None:
        if agent.waits_to_write != waits:
            agent.waits_to_write = waits
            self._epoll.modify(agent.sock.fileno(), select.EPOLLIN | (select.EPOLLOUT if waits else 0))

    def _accept(self) -> None:
        while True:
            try:
                newcomer, _ = self._listener.accept()
            except BlockingIOError:
                return
            newcomer.setblocking(False)
            newcomer.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            if self._context is not None:
                newcomer = self._context.wrap_socket(newcomer, server_side=True, do_handshake_on_connect=False)
            self._agents[newcomer.fileno()] = Connection(newcomer, len(self._stops))
            self._epoll.register(newcomer.fileno(), select.EPOLLIN)

    def _event(self, agent: Connection) -> None:
        try:
            if agent.shaking_hands:
                self._shake_hands(agent)
                return
            if not self._hear(agent):
                self._close(agent)
                return
            if agent.sock.fileno() not in self._at_end:
                self._catch_up(agent)
        except (BlockingIOError, ssl.SSLWantReadError, ssl.SSLWantWriteError):
            return
        except OSError:
            self._close(agent)

    def _shake_hands(self, agent: Connection) -> None:
        assert isinstance(agent.sock, ssl.SSLSocket)
        try:
            agent.sock.do_handshake()
        except ssl.SSLWantWriteError:
            self._wait_to_write(agent, True)
            return
        agent.shaking_hands = False
        self._event(agent)

    def _hear(self, agent: Connection) -> bool:
        """Read a hello, an ACK or a pong; returns False at the end of the connection."""
        try:
            data = agent.sock.recv(HEAR_BYTES)
        except (BlockingIOError, ssl.SSLWantReadError):
            return True
        if data and agent.greeting:
            agent.greeting -= 1
        return bool(data)

    def _catch_up(self, agent: Connection) -> None:
        """Send from the log up to its end, or to the end of the part of the greeting that was asked for."""
        asked = len(self._stops) - agent.greeting
        while agent.offset < (end := self._end if not agent.greeting else self._stops[asked - 1] if asked else 0):
            try:
                agent.offset += self._send_from(agent, end)
            except (BlockingIOError, ssl.SSLWantWriteError):
                self._wait_to_write(agent, True)
                return
        self._wait_to_write(agent, False)
        if not agent.greeting:
            self._at_end[agent.sock.fileno()] = agent.sock

    def _send_from(self, agent: Connection, end: int) -> int:
        count = min(CATCH_UP_BYTES, end - agent.offset)
        if self._context is None:
            return os.sendfile(agent.sock.fileno(), self._log, agent.offset, count)
        # After SSLWantWriteError the same bytes must be sent again, and not fewer: so a slice ends with the recording.
        if agent.offset < len(self._recorded):
            with memoryview(self._recorded) as view:
                return agent.sock.send(view[agent.offset : agent.offset + count])
        return agent.sock.send(os.pread(self._log, count, agent.offset))

    def _close(self, agent: Connection) -> None:
        descriptor = agent.sock.fileno()
        self._epoll.unregister(descriptor)
        self._at_end.pop(descriptor, None)
        del self._agents[descriptor]
        agent.sock.close()
