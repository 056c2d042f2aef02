"""Tests of loadtest.swarm.arrivals, on the kernel's own sockets."""

import socket
import time

from loadtest.swarm import arrivals

TICK_NS = 20_000_000


def test_what_is_read_late_has_arrived_when_it_arrived() -> None:
    with (
        socket.create_server(("127.0.0.1", 0)) as listener,
        socket.create_connection(listener.getsockname()) as client,
        listener.accept()[0] as server,
    ):
        time.sleep(0.1)  # what is looked at is time itself
        before_ns = time.time_ns()
        server.send(b"x")
        after_ns = time.time_ns()
        time.sleep(0.1)
        found = arrivals.last_arrival_ns(client, time.time_ns())
        assert before_ns - TICK_NS <= found <= after_ns + TICK_NS
        assert client.recv(1) == b"x"
        again = arrivals.last_arrival_ns(client, time.time_ns())
        assert abs(again - found) <= TICK_NS, "a read is no arrival"


def test_a_connection_that_brought_nothing_begins_with_itself() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        before_ns = time.time_ns()
        with socket.create_connection(listener.getsockname()) as client:
            after_ns = time.time_ns()
            time.sleep(0.05)
            found = arrivals.last_arrival_ns(client, time.time_ns())
            assert before_ns - TICK_NS <= found <= after_ns + TICK_NS
