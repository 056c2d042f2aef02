"""Client sockets: options, events, and descriptor numbers that are used again."""

import contextlib
import errno
import os
import resource
import select
import socket
import struct
from collections.abc import Callable, Iterator

import pytest

from tests.harness import worker_stand
from typha.worker import poller


class PolledClient:
    """The fields that a poller needs of a client."""

    def __init__(self, connection: socket.socket) -> None:
        self.socket = connection
        self.fd = connection.fileno()
        self.watching_write = False


@pytest.fixture
def listener() -> Iterator[socket.socket]:
    """A listening socket, closed after the test."""
    with socket.create_server(("127.0.0.1", 0), backlog=64) as listening:
        listening.setblocking(False)
        yield listening


MakePoller = Callable[..., poller.Poller[PolledClient]]


@pytest.fixture
def make(listener: socket.socket) -> Iterator[MakePoller]:
    """Makes pollers that share the one listener, unless they get another."""
    made: list[poller.Poller[PolledClient]] = []

    def make_one(listening: socket.socket = listener) -> poller.Poller[PolledClient]:
        one: poller.Poller[PolledClient] = poller.Poller(listening, notsent_lowat_bytes=65536)
        made.append(one)
        return one

    yield make_one
    for one in made:
        one.close_all()


def connect(listener: socket.socket) -> socket.socket:
    return socket.create_connection(listener.getsockname())


def ready(one: poller.Poller[PolledClient], *, seconds: float = 5.0) -> tuple[list[tuple[PolledClient, int]], bool]:
    """The next events; none if there are none within `seconds`."""
    if not select.select([one.fileno()], [], [], seconds)[0]:
        return [], False
    return one.poll()


def accept(one: poller.Poller[PolledClient]) -> PolledClient:
    accepted = one.accept()
    assert accepted is not None
    held = PolledClient(accepted[0])
    one.add(held)
    return held


def test_accepted_sockets_have_our_options(listener: socket.socket, make: MakePoller) -> None:
    one = make()
    one.listen(True)
    with connect(listener) as peer:
        assert ready(one) == ([], True)
        accepted = one.accept()
        assert accepted is not None
        connection, address = accepted
        with connection:
            host, port = peer.getsockname()
            assert address == f"{host}:{port}"
            assert not connection.getblocking()
            assert connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY) != 0
            assert connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_NOTSENT_LOWAT) == 65536
        assert one.accept() is None


def test_addresses_on_a_socket_for_both_families(make: MakePoller) -> None:
    with socket.create_server(("", 0), family=socket.AF_INET6, dualstack_ipv6=True) as listening:
        listening.setblocking(False)
        one = make(listening)
        one.listen(True)
        for host, shown in (("127.0.0.1", "127.0.0.1"), ("::1", "[::1]")):
            with socket.create_connection((host, listening.getsockname()[1])) as peer:
                assert ready(one) == ([], True)
                accepted = one.accept()
                assert accepted is not None
                accepted[0].close()
                assert accepted[1] == f"{shown}:{peer.getsockname()[1]}"


def test_a_client_with_less_than_half_of_its_limit_unsent_has_room(listener: socket.socket, make: MakePoller) -> None:
    one = make()
    with connect(listener) as peer, connect(listener) as other:
        full, roomy = accept(one), accept(one)
        one.limit_unsent(full, 16_384)
        sent = 0
        with contextlib.suppress(BlockingIOError):
            while sent < 1 << 26:
                sent += full.socket.send(bytes(16_384))
        assert one.with_room([full, roomy]) == [roomy]
        assert one.with_room([]) == []
        one.limit_unsent(full, 1 << 26)
        assert one.with_room([full]) == [full]
        other.close()
        assert one.with_room([roomy]) == [roomy]
        peer.close()


def test_reading_writing_and_hanging_up(listener: socket.socket, make: MakePoller) -> None:
    one = make()
    with connect(listener) as peer:
        held = accept(one)
        assert ready(one, seconds=0) == ([], False)
        one.watch_write(held, True)
        assert ready(one) == ([(held, select.EPOLLOUT)], False)
        one.watch_write(held, False)
        assert ready(one, seconds=0) == ([], False)
        peer.send(b"x")
        [(found, events)] = ready(one)[0]
        assert found is held
        assert events == select.EPOLLIN
        one.watch_end(held)  # bytes are no event any more
        assert ready(one, seconds=0) == ([], False)
        peer.shutdown(socket.SHUT_WR)
        [(found, events)] = ready(one)[0]
        assert events & select.EPOLLRDHUP


def test_with_more_events_than_are_taken_at_once_all_get_their_turn(
    listener: socket.socket, make: MakePoller, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(poller, "MAX_EVENTS", 3)
    one = make()
    with contextlib.ExitStack() as stack:
        polled = []
        for _ in range(7):
            stack.enter_context(connect(listener)).send(b"never read")
            polled.append(accept(one))
        seen = [held for _ in range(3) for held, _ in ready(one)[0]]
        assert len(seen) == 9
        assert set(seen) == set(polled)


def test_discarding_resets_the_connection(listener: socket.socket, make: MakePoller) -> None:
    one = make()
    with connect(listener) as peer:
        held = accept(one)
        held.socket.send(b"what the peer never reads")
        one.close(held, discard=True)
        assert peer.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) == errno.ECONNRESET


def test_a_descriptors_number_that_comes_back_in_the_same_turn_is_the_new_connections(
    listener: socket.socket, make: MakePoller
) -> None:
    one = make()
    one.listen(True)
    with connect(listener) as first:
        ready(one)
        old = accept(one)
        first.send(b"last")
        with connect(listener) as second:
            select.select([one.fileno()], [], [], 5.0)
            events, waiting = one.poll()
            assert waiting
            assert [held for held, _ in events] == [old]
            one.close(old)
            new = accept(one)
            assert new.fd == old.fd
            assert one.clients == {new.fd: new}
            assert ready(one, seconds=0) == ([], False)
            second.send(b"hello")
            [(found, _)] = ready(one)[0]
            assert found is new
            assert new.socket.recv(10) == b"hello"
            one.watch_write(new, True)
            assert ready(one)[0][0][0] is new


def test_listening_stops_and_starts(listener: socket.socket, make: MakePoller) -> None:
    one = make()
    one.listen(True)
    one.listen(True)
    with connect(listener):
        assert ready(one)[1]
        one.listen(False)
        one.listen(False)
        assert ready(one, seconds=0) == ([], False)
        one.listen(True)
        assert ready(one)[1]


def test_several_pollers_share_a_listener(listener: socket.socket, make: MakePoller) -> None:
    pollers = [make() for _ in range(3)]
    for one in pollers:
        one.listen(True)
    peers = [connect(listener) for _ in range(9)]
    for number in range(9):
        accept(pollers[number % 3])
    for one in pollers:
        assert one.accept() is None
        assert len(one.clients) == 3
    for peer in peers:
        peer.close()


def test_a_closed_listener_refuses_connections(listener: socket.socket, make: MakePoller) -> None:
    one = make()
    one.listen(True)
    address = listener.getsockname()
    one.close_listener()
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(address)
    assert ready(one, seconds=0) == ([], False)


def test_a_listener_that_its_owner_has_closed_is_no_error(listener: socket.socket, make: MakePoller) -> None:
    one = make()
    one.listen(True)
    listener.close()
    assert ready(one, seconds=0) == ([], False)
    one.close_listener()


def test_out_of_descriptors(listener: socket.socket, make: MakePoller) -> None:
    one = make()
    one.listen(True)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with connect(listener):
        lowest_free = os.dup(0)
        os.close(lowest_free)
        resource.setrlimit(resource.RLIMIT_NOFILE, (lowest_free, hard))
        try:
            with pytest.raises(poller.OutOfResources, match="Too many open files"):
                one.accept()
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        accept(one)  # the connection has waited


class FailingListener(socket.socket):
    """A listening socket whose accept fails with these errors, and then finds no connection."""

    def __init__(self, *errors: int) -> None:
        super().__init__()
        self._errors = [*errors, errno.EAGAIN]

    def accept(self) -> tuple[socket.socket, str]:
        """Fails with the next error."""
        number = self._errors.pop(0)
        raise OSError(number, os.strerror(number))


@pytest.mark.parametrize("number", [errno.ECONNABORTED, errno.EPROTO])
def test_a_connection_that_is_gone_before_it_is_accepted(make: MakePoller, number: int) -> None:
    with FailingListener(number, number) as failing:
        assert make(failing).accept() is None


def test_other_errors_of_accept_are_not_hidden(make: MakePoller) -> None:
    with FailingListener(errno.EINVAL) as failing:
        one = make(failing)
        with pytest.raises(OSError, match="Invalid argument"):
            one.accept()


def test_a_connection_reset_while_it_waited_is_passed_on_without_an_error(
    listener: socket.socket, make: MakePoller
) -> None:
    one = make()
    one.listen(True)
    peer = connect(listener)
    peer.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\x01\0\0\0\0\0\0\0")
    peer.close()
    accepted = one.accept()
    if accepted is not None:
        with accepted[0]:
            assert accepted[0].getblocking() is False
    assert one.accept() is None


def test_closing_everything_leaves_no_descriptor(listener: socket.socket) -> None:
    before = worker_stand.descriptors_before()
    one: poller.Poller[PolledClient] = poller.Poller(listener, notsent_lowat_bytes=1)
    peers = [connect(listener) for _ in range(10)]
    for _ in peers:
        accept(one)
    one.close_all()
    assert [peer.recv(1) for peer in peers] == [b""] * 10
    for peer in peers:
        peer.close()
    assert worker_stand.open_descriptors() == before


def test_the_next_step_of_a_handshake_is_reported_once(listener: socket.socket, make: MakePoller) -> None:
    one = make()
    one.listen(True)
    with connect(listener) as peer:
        held = accept(one)
        one.watch_handshake(held, wants_write=True)
        assert ready(one) == ([(held, poller.WRITE)], False)
        assert one.poll() == ([], False)
        peer.send(b"x")
        one.watch_handshake(held, wants_write=False)
        [(announced, events)], _ = ready(one)
        assert (announced, events & poller.WRITE) == (held, 0)
        peer.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    assert ready(one, seconds=0.05) == ([], False)  # not even a reset is reported
    one.watch_read(held)
    assert ready(one)[0][0][0] is held
