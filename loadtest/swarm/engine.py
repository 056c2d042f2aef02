"""The sockets of one worker process: thousands of agents in one epoll."""

import errno
import heapq
import random
import select
import socket
import ssl
import struct
import time
from collections.abc import Sequence
from typing import Final

from loadtest.swarm import agent, control, nativeagent, tls, typhaagent
from protocol import errors

READ_BYTES: Final = 64 * 1024
READ_SNAPSHOT_BYTES: Final = 256 * 1024
MAX_EVENTS: Final = 1024
"""Events taken from one poll, so that connects and reports are not delayed too long."""
BACK_OFF_SECONDS: Final = 0.2
MAX_BACK_OFF_SECONDS: Final = 5.0
THROTTLE_TICK_SECONDS: Final = 0.02
ETHERNET_SEGMENT_BYTES: Final = 1460
MAX_ERRORS_KEPT: Final = 20
QUIET_NS: Final = 500_000_000
"""A connection that was read within this time is not called silent. Silences that matter are far longer."""
VISITS_MAX: Final = 200
"""Connections of an agent that are recorded: more than any run has, unless something is wrong."""

_TCP_INFO: Final = struct.Struct("=52xI")
"""struct tcp_info up to tcpi_last_data_recv, in milliseconds."""


class Link:
    """An agent and its socket."""

    __slots__ = (
        "address",
        "agent",
        "arrived_ns",
        "budget_bytes",
        "failures",
        "impaired_until",
        "named",
        "open",
        "opened_ns",
        "peer",
        "sock",
        "tls",
        "visits",
        "visits_left_out",
        "waited_ns",
    )

    def __init__(self, one: agent.Agent, address: int) -> None:
        self.agent = one
        self.sock: socket.socket | None = None
        self.open = False
        """The TCP connection is established."""
        self.tls: tls.Channel | None = None
        self.opened_ns = 0
        """When the first byte was sent."""
        self.arrived_ns = 0
        """When the network last brought data, as far as is known; `opened_ns` before that."""
        self.address = address
        """Index in the engine's addresses."""
        self.named: tuple[str, int] | None = None
        """Where the last goodbye sent the agent, for one try."""
        self.peer = ("", 0)
        """Where the agent is connected, or was connected last."""
        self.failures = 0
        """Successive connections that ended before they were in sync."""
        self.impaired_until = 0.0
        self.budget_bytes = 0.0
        self.visits: list[control.Visit] = []
        self.visits_left_out = 0
        self.waited_ns = 0
        """Since the last connection ended: how long the next one was put off."""


class Engine:
    """All agents of a process. `poll` does all work, and must be called again and again."""

    def __init__(self, start: control.Start) -> None:
        self.start = start
        self.shared = agent.Shared()
        self.behaving = control.Group()
        self.impaired = control.Group()
        self.connects = 0
        self.disconnects: dict[str, int] = {}
        self.unserved: dict[str, int] = {}
        """Of those, and of failed connects: connections that ended before they were in sync, unless we dropped them."""
        self.lost = 0
        """Connections that ended after they had been in sync."""
        self.protocol_errors: list[str] = []
        make = typhaagent.TyphaAgent if start.protocol is control.Protocol.TYPHA else nativeagent.NativeAgent
        self.links = [
            Link(make(f"agent-{number}", self.shared, self._group_at_first()), number)
            for number in range(start.first_index, start.first_index + start.agents)
        ]
        self._addresses: list[tuple[str, int]] = list(start.addresses)
        self._sets_moved_apart = False
        self._random = random.Random(start.seed * 1_000_003 + start.first_index)
        self._tls = tls.context_of(start.tls) if start.tls is not None else None
        self._epoll = select.epoll()
        self._by_fd: dict[int, Link] = {}
        self._due: list[tuple[float, int]] = []
        self._throttled: dict[Link, int] = {}
        """Links that read only in `_throttle` -> bytes a second."""
        self._throttled_at = 0.0
        self._schedule(start.ramp_per_second, agents=start.agents_at_first)

    def _group_at_first(self) -> control.Group:
        return self.impaired if self.start.background else self.behaving

    def poll(self, timeout_seconds: float) -> None:
        """Wait for sockets up to this time, then do what is due."""
        now = time.monotonic()
        if self._due:
            timeout_seconds = min(timeout_seconds, max(0.0, self._due[0][0] - now))
        if self._throttled:
            timeout_seconds = min(timeout_seconds, THROTTLE_TICK_SECONDS)
        for fd, events in self._epoll.poll(timeout_seconds, MAX_EVENTS):
            link = self._by_fd.get(fd)
            if link is None:
                continue
            if not link.open:
                self._opened(link)
            elif events:
                self._read(link)
        now = time.monotonic()
        while self._due and self._due[0][0] <= now:
            self._connect(heapq.heappop(self._due)[1])
        if self._throttled and now - self._throttled_at >= THROTTLE_TICK_SECONDS:
            self._throttle(now)

    def impair(self, order: control.Impair) -> None:
        """Let the last agents read slowly, or not at all, for a while."""
        until = time.monotonic() + order.seconds
        for link in self.links[len(self.links) - order.agents :]:
            link.agent.group = self.impaired
            link.impaired_until = until
            link.budget_bytes = 0.0
            self._throttled[link] = order.bytes_per_second
            if link.sock is not None and link.open:
                self._epoll.modify(link.sock.fileno(), 0)
        self._throttled_at = time.monotonic()

    def set_moved_apart(self) -> None:
        """Count all agents as behaving again, and as impaired those that lose their connection from now on."""
        self._sets_moved_apart = True
        for link in self.links:
            link.agent.group = self.behaving

    def choose_from(self, addresses: list[tuple[str, int]]) -> None:
        """From now on connect to one of these. Without any, agents go on with those they knew, as Calico's do."""
        self._addresses = addresses or self._addresses

    def paths(self) -> list[control.AgentPath]:
        """The connections of each agent."""
        for link in self.links:
            self._complete_visit(link)
        return [control.AgentPath(one.agent.name, one.visits, one.visits_left_out) for one in self.links]

    def reconnect(self, ramp_per_second: float) -> None:
        """Drop every connection. All agents connect again, at once or at a rate."""
        for link in self.links:
            if link.sock is not None:
                self._close(link, "dropped", again=False)
        self._schedule(ramp_per_second)

    def listen(self, now_ns: int) -> None:
        """Ask the kernel about connections that were not read for a while: their silence may be our own delay."""
        for link in self._by_fd.values():
            if link.open and now_ns - link.arrived_ns > QUIET_NS:
                self._note_arrival(link, now_ns)
                # A silence that still lasts counts as well.
                link.agent.group.silence_ns = max(link.agent.group.silence_ns, now_ns - link.arrived_ns)

    def close(self) -> None:
        """Drop every connection for good."""
        for link in self.links:
            if link.sock is not None:
                self._close(link, "dropped", again=False)
        self._epoll.close()

    def _schedule(self, ramp_per_second: float, *, agents: int | None = None) -> None:
        """Let the first agents, or all, connect, and no others."""
        now = time.monotonic()
        step = 1 / ramp_per_second if ramp_per_second else 0.0
        self._due = [(now + number * step, number) for number in range(len(self.links))[:agents]]

    def _connect(self, number: int) -> None:
        link = self.links[number]
        host, port = link.peer = self._address_of(link)
        self._begin_visit(link)
        sock = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET, socket.SOCK_STREAM)
        sock.setblocking(False)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if number >= len(self.links) - self.start.small_buffers:
            # Segments as on Ethernet: one 64 KiB segment of loopback fills the buffer, and the next waits for its ack.
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_MAXSEG, ETHERNET_SEGMENT_BYTES)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, self.start.small_buffer_bytes)
        link.sock = sock
        link.open = False
        self._by_fd[sock.fileno()] = link
        self._epoll.register(sock.fileno(), select.EPOLLOUT)
        status = sock.connect_ex((host, port))
        if status not in (0, errno.EINPROGRESS):
            self._close(link, f"connect {errno.errorcode.get(status, status)}")

    def _address_of(self, link: Link) -> tuple[str, int]:
        """Where an agent connects next."""
        return link.named or self._addresses[link.address % len(self._addresses)]

    @staticmethod
    def _begin_visit(link: Link) -> None:
        waited_ns, link.waited_ns = link.waited_ns, 0
        if len(link.visits) < VISITS_MAX:
            link.visits.append(control.Visit(link.peer, waited_ns))
        else:
            link.visits_left_out += 1

    @staticmethod
    def _complete_visit(link: Link) -> control.Visit | None:
        """The record of the present connection; None if it is not recorded, or there is none."""
        if link.sock is None or link.visits_left_out:
            return None
        visit = link.visits[-1]
        visit.connected_ns, visit.in_sync_ns = link.agent.connected_ns, link.agent.live_since_ns
        return visit

    def _opened(self, link: Link) -> None:
        assert link.sock is not None
        status = link.sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
        if status:
            self._close(link, f"connect {errno.errorcode.get(status, status)}")
            return
        link.open = True
        self.connects += 1
        self._epoll.modify(link.sock.fileno(), 0 if link in self._throttled else select.EPOLLIN)
        link.opened_ns = link.arrived_ns = time.time_ns()
        if self._tls is None:
            self._greet(link)
            return
        link.tls = tls.Channel(self._tls, link.peer[0])
        self._send_raw(link, link.tls.begin())

    def _greet(self, link: Link) -> None:
        """Start the agent's protocol."""
        hello = link.agent.connected(feed=self.start.feed, compressed=self.start.compressed, now_ns=time.time_ns())
        self._send(link, hello)

    def _read(self, link: Link, limit_bytes: int | None = None) -> int:
        """Read a connection once; returns the number of bytes."""
        one, sock = link.agent, link.sock
        assert sock is not None
        limit = limit_bytes or (READ_BYTES if one.phase == agent.Phase.FOLLOWING else READ_SNAPSHOT_BYTES)
        try:
            data = sock.recv(limit)
        except BlockingIOError:
            return 0
        except OSError as error:
            self._close(link, errno.errorcode.get(error.errno or 0, str(error)))
            return 0
        if not data:
            self._close(link, "goodbye" if one.phase == agent.Phase.ENDED else "eof")
            return 0
        now_ns = time.time_ns()
        if now_ns - link.arrived_ns > QUIET_NS:
            self._note_arrival(link, now_ns)
        else:
            link.arrived_ns = now_ns
        try:
            answer = one.receive(data, now_ns) if link.tls is None else self._receive_sealed(link, link.tls, data)
        except (errors.RemoteProtocolError, ssl.SSLError) as error:
            if len(self.protocol_errors) < MAX_ERRORS_KEPT:
                self.protocol_errors.append(f"{one.name}: {error}")
            self._close(link, "protocol-error")
            return 0
        if one.in_sync:
            link.failures = 0
        if answer:
            self._send(link, answer)
        return len(data)

    def _note_arrival(self, link: Link, now_ns: int) -> None:
        """Record when data last arrived, which ends the silence before it.

        A read shows that data has arrived, not when. The first look after a read within `QUIET_NS` corrects its time,
        long before a silence after it matters.
        """
        assert link.sock is not None
        arrived_ns = max(last_arrival_ns(link.sock, now_ns), link.opened_ns)
        link.agent.group.silence_ns = max(link.agent.group.silence_ns, arrived_ns - link.arrived_ns)
        link.arrived_ns = arrived_ns

    def _receive_sealed(self, link: Link, channel: tls.Channel, data: bytes) -> bytes:
        """The agent's answers to data in TLS. Raises RemoteProtocolError, ssl.SSLError."""
        was_established = channel.established
        records, answer = channel.receive(data)
        if answer:
            self._send_raw(link, answer)
        if link.sock is not None and channel.established and not was_established:
            self._greet(link)
        now_ns = time.time_ns()
        return b"".join([link.agent.receive(record, now_ns) for record in records if link.sock is not None])

    def _send(self, link: Link, data: bytes) -> None:
        self._send_raw(link, data if link.tls is None else link.tls.send(data))

    def _send_raw(self, link: Link, data: bytes) -> None:
        # A hello or a pong: the kernel takes all of it, unless the server has not read for a hundred thousand pongs.
        assert link.sock is not None
        try:
            complete = link.sock.send(data) == len(data)
        except BlockingIOError:
            complete = False
        except OSError as error:
            self._close(link, errno.errorcode.get(error.errno or 0, str(error)))
            return
        if not complete:
            self._close(link, "send blocked")

    def _close(self, link: Link, reason: str, *, again: bool = True) -> None:
        assert link.sock is not None
        self.disconnects[reason] = self.disconnects.get(reason, 0) + 1
        visit = self._complete_visit(link)
        if visit is not None:
            visit.ended_ns, visit.end = time.time_ns(), reason
        del self._by_fd[link.sock.fileno()]
        self._epoll.unregister(link.sock.fileno())
        link.sock.close()
        link.sock = None
        link.open = False
        link.tls = None
        if link.agent.live_since_ns:
            self.lost += 1
            if self._sets_moved_apart:
                link.agent.group = self.impaired
        elif again:
            self.unserved[reason] = self.unserved.get(reason, 0) + 1
        retry_after, servers = link.agent.retry_after_seconds, link.agent.servers
        link.agent.disconnected(time.time_ns())
        if again:
            delay = min(MAX_BACK_OFF_SECONDS, BACK_OFF_SECONDS * 2**link.failures) * self._random.uniform(0.5, 1.5)
            delay = max(delay, self._choose(link, retry_after, servers))
            link.failures = min(link.failures + 1, 16)
            link.waited_ns = int(delay * 1e9)
            number = int(link.agent.name.rpartition("-")[2]) - self.start.first_index
            heapq.heappush(self._due, (time.monotonic() + delay, number))

    def _choose(self, link: Link, retry_after_seconds: float, servers: Sequence[str]) -> float:
        """Choose where an agent connects next; returns how long it may not.

        A goodbye's pause is for its own address, and it may name others (protocol.md, B3 and G7).
        """
        named = [(host.strip("[]"), int(port)) for host, _, port in (one.rpartition(":") for one in servers)]
        link.named = self._random.choice(named) if named else None
        if len(self._addresses) > 1:
            link.address = self._random.randrange(len(self._addresses))
            if retry_after_seconds and self._address_of(link) == link.peer:
                link.address += 1
        return retry_after_seconds if self._address_of(link) == link.peer else 0.0

    def _throttle(self, now: float) -> None:
        """Let impaired agents read their share, and release those whose time is over."""
        elapsed = now - self._throttled_at
        self._throttled_at = now
        for link, bytes_per_second in list(self._throttled.items()):
            if now >= link.impaired_until:
                del self._throttled[link]
                if link.sock is not None and link.open:
                    self._epoll.modify(link.sock.fileno(), select.EPOLLIN)
                continue
            link.budget_bytes = min(link.budget_bytes + elapsed * bytes_per_second, float(READ_SNAPSHOT_BYTES))
            if link.budget_bytes >= 1 and link.sock is not None and link.open:
                link.budget_bytes -= self._read(link, int(link.budget_bytes))


def last_arrival_ns(sock: socket.socket, now_ns: int) -> int:
    """When the network last brought data to a socket, or connected it; nanoseconds since 1970, to a kernel tick.

    `now_ns` is the time of the call. A process with thousands of agents sometimes reads late; the kernel's time is
    right even then. Raises OSError.
    """
    milliseconds: int
    (milliseconds,) = _TCP_INFO.unpack(sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _TCP_INFO.size))
    return now_ns - milliseconds * 1_000_000
