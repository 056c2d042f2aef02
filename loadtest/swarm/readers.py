"""Agents that each take a part of their own of a feed: `python -m loadtest.swarm.readers`, a plan as JSON on stdin.

The agents of `worker` share what they decode, because all receive the same. Those of different nodes do not. So these
decode little: they answer pings and see when they are in sync. A few of them, `proved`, keep their map. A line on stdin
makes all of them connect again; each line on stdout is a report.
"""

import os
import select
import socket
import sys
import time
from typing import Final

import msgspec

from loadtest.swarm import histogram, worker
from protocol import digest, messages, subscriptions
from protocol.native import codec, connection, frames

REPORT_SECONDS: Final = 0.5
_READ_BYTES: Final = 256 * 1024
_EVENTS: Final = 1024
_PING: Final = codec.encode(messages.Ping())
_STATUS_MARK: Final = codec.encode(messages.Status(0, messages.SyncStatus.WAITING))[:2]


class Plan(msgspec.Struct, kw_only=True):
    """The agents: number n of them says that it runs on node n modulo `nodes`."""

    address: tuple[str, int]
    feed: str
    agents: int
    nodes: list[str]
    subscription: subscriptions.Subscription | None
    compressed: bool = True
    """With zstd."""
    proved_every: int = 50
    """One of so many agents keeps its map."""
    ramp_per_second: float = 500.0


class Proof(msgspec.Struct):
    """The map of an agent."""

    node: str
    keys: int
    digest: int
    in_force: bool
    is_in_sync: bool


class Report(msgspec.Struct, kw_only=True):
    """Totals since the start, and of the last storm."""

    connected: int
    rounds: int
    """How often the agents have been told to connect."""
    in_sync: int
    frames: int
    bytes: int
    lost: int
    """Connections that ended by themselves."""
    in_sync_seconds: tuple[float, float] = (0.0, 0.0)
    """Median and worst time from connect to in-sync, since the agents were last told to connect."""
    cpu_seconds: float = 0.0
    proofs: list[Proof] = []


class _Agent:
    """One connection after another."""

    def __init__(self, plan: Plan, number: int) -> None:
        self.node = plan.nodes[number % len(plan.nodes)]
        self.is_proved = number % plan.proved_every == 0
        features = frozenset({messages.Feature.ZSTD}) if plan.compressed else frozenset[str]()
        if plan.subscription is not None:
            features |= {messages.Feature.SUBSCRIPTIONS}
        self._hello = messages.ClientHello(
            feed=plan.feed,
            agent="reader",
            node=self.node,
            features=features,
            subscription=plan.subscription,
            software="loadtest",
        )
        self.socket: socket.socket | None = None
        self.is_in_sync = False
        self.connected_at = 0.0
        self.in_force = False
        self.map: dict[str, bytes] = {}
        self._new: dict[str, bytes] = {}
        self._splitter = frames.FrameSplitter()
        self._connection = connection.Connection(connection.Role.CLIENT)
        self._has_preface = False

    def begin(self) -> bytes:
        """A connection is up; what to send first."""
        self.is_in_sync = False
        self.connected_at = time.monotonic()
        self._splitter = frames.FrameSplitter()
        self._connection = connection.Connection(connection.Role.CLIENT)
        self._has_preface = False
        self._connection.send(self._hello)
        return self._connection.data_to_send()

    def receive(self, data: bytes) -> tuple[int, bytes]:
        """Number of frames in the data, and what to answer."""
        if self.is_proved:
            return self._prove(data)
        self._splitter.receive(data)
        if not self._has_preface:
            if len(self._splitter.peek(len(frames.PREFACE))) < len(frames.PREFACE):
                return 0, b""
            self._splitter.skip(len(frames.PREFACE))
            self._has_preface = True
        count, answer = 0, b""
        while (part := self._splitter.next_frame()) is not None:
            count += 1
            body = part[1]
            if body == _PING:
                answer += frames.pack_frame(codec.encode(messages.Pong(0)))
            elif body.startswith(_STATUS_MARK):
                self._status(codec.decode(body))
        return count, answer

    def _status(self, message: messages.Message) -> None:
        self.is_in_sync = isinstance(message, messages.Status) and message.status is messages.SyncStatus.IN_SYNC

    def _prove(self, data: bytes) -> tuple[int, bytes]:
        self._connection.receive_data(data)
        count = 0
        while (message := self._connection.next_event()) is not None:
            count += 1
            match message:
                case messages.ServerHello():
                    self.in_force = messages.Feature.SUBSCRIPTIONS in message.features
                case messages.SnapshotBegin():
                    self._new = {}
                case messages.SnapshotChunk():
                    self._new.update({update.key: update.value or b"" for update in message.updates})
                case messages.SnapshotEnd():
                    self.map = self._new
                case messages.Updates():
                    for update in message.updates:
                        if update.value is None:
                            self.map.pop(update.key, None)
                        else:
                            self.map[update.key] = update.value
                case messages.Status():
                    self._status(message)
        return count, self._connection.data_to_send()


class Readers:
    """All agents of a process."""

    def __init__(self, plan: Plan) -> None:
        self._plan = plan
        self._agents = [_Agent(plan, number) for number in range(plan.agents)]
        self._epoll = select.epoll()
        self._by_fd: dict[int, _Agent] = {}
        self._due: list[_Agent] = []
        self._frames = self._bytes = self._lost = 0
        self._waits = histogram.Histogram()
        self._begun = 0.0
        self._rounds = 0
        self.connect_again()

    def connect_again(self) -> None:
        """All agents drop their connections and connect, at the plan's rate."""
        for agent in self._agents:
            self._close(agent)
        self._rounds += 1
        self._due = list(reversed(self._agents))
        self._begun = time.monotonic()
        self._waits = histogram.Histogram()

    def poll(self, seconds: float) -> None:
        """Connect those that are due, and read what has arrived."""
        wanted = (time.monotonic() - self._begun) * self._plan.ramp_per_second
        while self._due and len(self._agents) - len(self._due) < wanted:
            self._connect(self._due.pop())
        for descriptor, _ in self._epoll.poll(min(seconds, 0.01) if self._due else seconds, _EVENTS):
            agent = self._by_fd.get(descriptor)
            if agent is not None and agent.socket is not None:
                self._read(agent, agent.socket)

    def _connect(self, agent: _Agent) -> None:
        end = socket.create_connection(self._plan.address)
        end.setblocking(False)
        end.send(agent.begin())
        agent.socket = end
        self._by_fd[end.fileno()] = agent
        self._epoll.register(end.fileno(), select.EPOLLIN)

    def _read(self, agent: _Agent, end: socket.socket) -> None:
        try:
            data = end.recv(_READ_BYTES)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if not data:
            self._lost += 1
            self._close(agent)
            return
        was_in_sync = agent.is_in_sync
        count, answer = agent.receive(data)
        self._frames += count
        self._bytes += len(data)
        if answer:
            end.send(answer)
        if agent.is_in_sync and not was_in_sync:
            self._waits.add(int((time.monotonic() - agent.connected_at) * 1e6))

    def _close(self, agent: _Agent) -> None:
        if agent.socket is not None:
            del self._by_fd[agent.socket.fileno()]
            agent.socket.close()
        agent.socket, agent.is_in_sync = None, False

    def report(self) -> Report:
        """What has happened. The proofs are as of now."""
        proved = [agent for agent in self._agents if agent.is_proved]
        return Report(
            connected=len(self._by_fd),
            rounds=self._rounds,
            in_sync=sum(agent.is_in_sync for agent in self._agents),
            frames=self._frames,
            bytes=self._bytes,
            lost=self._lost,
            in_sync_seconds=(self._waits.quantile(0.5) or 0.0, self._waits.quantile(1.0) or 0.0),
            cpu_seconds=time.process_time(),
            proofs=[
                Proof(one.node, len(one.map), digest.state_digest(one.map.items()), one.in_force, one.is_in_sync)
                for one in proved
            ],
        )


def main() -> None:
    """Runs until stdin ends."""
    worker.raise_file_limit()
    readers = Readers(msgspec.json.decode(sys.stdin.buffer.readline(), type=Plan))
    commands = select.poll()
    commands.register(sys.stdin.fileno(), select.POLLIN)
    next_report = 0.0
    while True:
        readers.poll(0.05)
        if commands.poll(0):
            if not os.read(sys.stdin.fileno(), 4096):
                return
            readers.connect_again()
        if time.monotonic() >= next_report:
            sys.stdout.buffer.write(msgspec.json.encode(readers.report()) + b"\n")
            sys.stdout.buffer.flush()
            next_report = time.monotonic() + REPORT_SECONDS


if __name__ == "__main__":
    main()
