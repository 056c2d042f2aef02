"""Tests of loadtest.swarm.engine with real sockets: silences, and connections that failed."""

import contextlib
import socket
import time
from collections.abc import Callable, Iterator

import pytest

from loadtest.swarm import control, engine
from loadtest.swarm.agent import Phase
from protocol import messages
from protocol.native import codec, frames
from tests.harness import swarm_peers

pytestmark = pytest.mark.slow

LATE_SECONDS = 0.8
"""Delay of the read, longer than `engine.QUIET_NS`."""
TICK_NS = 20_000_000


class Peer:
    """A server with one client, driven by the test."""

    def __init__(self) -> None:
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.source = swarm_peers.Source({"a": swarm_peers.value("1"), "b": swarm_peers.value("2")})
        self.connection: socket.socket | None = None

    def accept(self) -> socket.socket:
        if self.connection is not None:
            self.connection.close()
        self.connection, _ = self.listener.accept()
        return self.connection

    def close(self) -> None:
        self.listener.close()
        if self.connection is not None:
            self.connection.close()


@contextlib.contextmanager
def one_agent() -> Iterator[tuple[Peer, engine.Engine]]:
    peer = Peer()
    host, port = peer.listener.getsockname()
    swarm = engine.Engine(control.Start(addresses=[(host, port)], feed="f", agents=1, compressed=False))
    try:
        yield peer, swarm
    finally:
        swarm.close()
        peer.close()


def poll_until(swarm: engine.Engine, condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 180
    while not condition():
        assert time.monotonic() < deadline
        swarm.poll(0.01)


def test_a_late_read_does_not_count_as_silence() -> None:
    with one_agent() as (peer, swarm):
        poll_until(swarm, lambda: swarm.connects == 1)
        connection = peer.accept()
        connection.sendall(swarm_peers.hello())
        time.sleep(LATE_SECONDS)
        link = swarm.links[0]
        read_at_ns = time.time_ns()
        poll_until(swarm, lambda: link.agent.heard_ns >= read_at_ns)
        swarm.listen(link.arrived_ns)
        assert swarm.behaving.read_gap_ns >= LATE_SECONDS * 1e9
        assert swarm.behaving.silence_ns < LATE_SECONDS * 1e9 / 2


def test_a_silence_is_measured_while_it_lasts_and_when_it_is_over() -> None:
    with one_agent() as (peer, swarm):
        poll_until(swarm, lambda: swarm.connects == 1)
        connection = peer.accept()
        time.sleep(LATE_SECONDS)  # the hello is not answered
        swarm.listen(time.time_ns())
        assert swarm.behaving.silence_ns >= (LATE_SECONDS - 0.05) * 1e9
        swarm.behaving.silence_ns = 0
        connection.sendall(swarm_peers.hello())
        link = swarm.links[0]
        begin_ns = link.arrived_ns
        poll_until(swarm, lambda: link.arrived_ns > begin_ns)
        assert swarm.behaving.silence_ns >= (LATE_SECONDS - 0.05) * 1e9


def test_a_connection_that_ends_is_unserved_before_in_sync_and_lost_after_it() -> None:
    with one_agent() as (peer, swarm):
        poll_until(swarm, lambda: swarm.connects == 1)
        peer.accept().shutdown(socket.SHUT_WR)
        poll_until(swarm, lambda: swarm.connects == 2)
        assert (swarm.unserved, swarm.lost) == ({"eof": 1}, 0)
        connection = peer.accept()
        connection.sendall(swarm_peers.hello() + b"".join(peer.source.snapshot()))
        poll_until(swarm, lambda: swarm.links[0].agent.in_sync)
        connection.shutdown(socket.SHUT_WR)
        poll_until(swarm, lambda: swarm.connects == 3)
        assert (swarm.unserved, swarm.lost) == ({"eof": 1}, 1)
        peer.listener.close()
        peer.close()
        poll_until(swarm, lambda: "connect ECONNREFUSED" in swarm.unserved)


def test_an_agent_that_moves_is_counted_apart_and_its_path_is_recorded() -> None:
    with one_agent() as (peer, swarm), socket.create_server(("127.0.0.1", 0)) as other:
        agent = swarm.links[0].agent
        poll_until(swarm, lambda: swarm.connects == 1)
        connection = peer.accept()
        connection.sendall(swarm_peers.hello() + b"".join(peer.source.snapshot()))
        poll_until(swarm, lambda: agent.in_sync)
        swarm.set_moved_apart()
        assert agent.group is swarm.behaving
        swarm.choose_from([other.getsockname()])
        swarm.choose_from([])  # without any, agents go on with those they knew
        connection.shutdown(socket.SHUT_WR)
        poll_until(swarm, lambda: swarm.connects == 2)
        assert agent.group is swarm.impaired
        other.accept()[0].close()
        poll_until(swarm, lambda: len(swarm.links[0].visits) > 2)
        swarm.set_moved_apart()
        assert agent.group is swarm.behaving
        [path] = swarm.paths()
        first, second, third = path.visits
        assert first.address == peer.listener.getsockname()
        assert first.connected_ns <= first.in_sync_ns <= first.ended_ns
        assert second.address == other.getsockname()
        assert second.ended_ns
        assert not second.connected_ns
        assert not third.ended_ns
        assert 0.1e9 <= second.waited_ns <= 0.3e9, "the back-off after a connection in sync"
        assert 0.1e9 <= third.waited_ns <= 0.6e9


def test_a_goodbye_names_servers_and_a_pause_for_its_own_address() -> None:
    with one_agent() as (peer, swarm), socket.create_server(("127.0.0.1", 0)) as other:
        poll_until(swarm, lambda: swarm.connects == 1)
        named = "{}:{}".format(*other.getsockname())
        goodbye = messages.Goodbye("rebalanced", "", retry_after_milliseconds=60_000, servers=(named,))
        peer.accept().sendall(swarm_peers.hello() + frames.pack_frame(codec.encode(goodbye)))
        poll_until(swarm, lambda: swarm.links[0].agent.phase == Phase.ENDED)
        peer.close()
        poll_until(swarm, lambda: swarm.connects == 2)
        assert swarm.links[0].peer == other.getsockname()
        other.accept()[0].close()
        poll_until(swarm, lambda: len(swarm.links[0].visits) == 3)
        assert swarm.links[0].peer == peer_address(swarm)


def peer_address(swarm: engine.Engine) -> tuple[str, int]:
    """The address that the swarm was started with."""
    return swarm.start.addresses[0]


def test_a_late_read_does_not_change_the_arrival() -> None:
    with (
        socket.create_server(("127.0.0.1", 0)) as listener,
        socket.create_connection(listener.getsockname()) as client,
        listener.accept()[0] as server,
    ):
        time.sleep(0.1)  # the test is about time
        before_ns = time.time_ns()
        server.send(b"x")
        after_ns = time.time_ns()
        time.sleep(0.1)
        found = engine.last_arrival_ns(client, time.time_ns())
        assert before_ns - TICK_NS <= found <= after_ns + TICK_NS
        assert client.recv(1) == b"x"
        again = engine.last_arrival_ns(client, time.time_ns())
        assert abs(again - found) <= TICK_NS, "a read does not count as an arrival"


def test_a_connection_without_data_counts_from_its_start() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        before_ns = time.time_ns()
        with socket.create_connection(listener.getsockname()) as client:
            after_ns = time.time_ns()
            time.sleep(0.05)
            found = engine.last_arrival_ns(client, time.time_ns())
            assert before_ns - TICK_NS <= found <= after_ns + TICK_NS
