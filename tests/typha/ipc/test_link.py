"""The link between hub and worker: order, descriptors, full sockets, and the other end's death."""

import array
import contextlib
import errno
import os
import resource
import socket
from collections.abc import Iterator
from typing import TypeAlias
from unittest import mock

import msgspec
import pytest

from cache.state import memfile
from tests.harness import worker_stand
from typha.ipc import link as ipc
from typha.ipc import messages

AnyLink: TypeAlias = "ipc.Link[list[object]]"
Ends: TypeAlias = tuple[AnyLink, AnyLink]


@pytest.fixture
def links() -> Iterator[Ends]:
    """Two ends that take any list for a message; when the test ends, no descriptor may be left."""
    before = worker_stand.descriptors_before()
    hub, worker = (ipc.Link(end, msgspec.msgpack.Decoder(list[object])) for end in ipc.pair())
    yield hub, worker
    hub.close()
    worker.close()
    assert worker_stand.open_descriptors() == before


def received(link: AnyLink) -> list[list[object]]:
    """All messages that have arrived; their descriptors are closed."""
    found: list[list[object]] = []
    while True:
        batch = list(link.receive())
        if not batch:
            return found
        for message, descriptors in batch:
            found.append(message)
            for descriptor in descriptors:
                os.close(descriptor)


def fill(link: AnyLink) -> int:
    """Sends until a message is queued; returns the number of messages."""
    sent = 0
    while not link.wants_write:
        link.send(["fill", sent, "x" * 1000])
        sent += 1
    return sent


def test_messages_arrive_whole_and_in_order(links: Ends) -> None:
    hub, worker = links
    for number in range(600):
        hub.send(["n", number, b"\xff", "text", {1: 2.5}, None])
        if number % 100 == 99:
            expected = range(number - 99, number + 1)
            assert received(worker) == [["n", n, b"\xff", "text", {1: 2.5}, None] for n in expected]
    worker.send(["back"])
    assert received(hub) == [["back"]]
    assert received(hub) == []


def test_descriptors_arrive_with_their_message_and_the_sender_keeps_its_own(links: Ends) -> None:
    hub, worker = links
    for text in (b"first", b"second"):
        reading, writing = os.pipe()
        hub.send(["pipe", text], reading, writing)
        os.write(writing, text)
        os.close(reading)
        os.close(writing)
    hub.send(["none"])
    for message, descriptors in worker.receive():
        if message == ["none"]:
            assert descriptors == []
            continue
        reading, writing = descriptors
        assert not os.get_inheritable(reading)
        assert os.read(reading, 100) == message[1]
        os.close(reading)
        os.close(writing)


def test_messages_that_do_not_fit_wait_with_their_descriptors(links: Ends) -> None:
    hub, worker = links
    sent = fill(hub)
    reading, writing = os.pipe()
    hub.send(["pipe"], reading)
    memfile.close(reading)  # the queue still holds it
    hub.flush()
    assert hub.wants_write
    os.write(writing, b"late")
    os.close(writing)
    found: list[list[object]] = []
    while len(found) <= sent:
        for message, descriptors in worker.receive():
            found.append(message[:2])
            if message == ["pipe"]:
                assert os.read(descriptors[0], 10) == b"late"
                os.close(descriptors[0])
        hub.flush()
    assert found == [*(["fill", number] for number in range(sent)), ["pipe"]]


def test_a_queue_that_is_closed_closes_its_descriptors(links: Ends) -> None:
    hub, _ = links
    fill(hub)
    reading, writing = os.pipe()
    before = worker_stand.descriptors_before()
    for _ in range(10):
        hub.send(["pipe"], reading, writing)
    assert worker_stand.open_descriptors() == before
    memfile.close(reading)
    memfile.close(writing)
    assert worker_stand.open_descriptors() == before


def test_a_full_queue_is_a_broken_link(links: Ends) -> None:
    hub, _ = links
    fill(hub)
    for number in range(ipc.MAX_QUEUED - 1):
        hub.send(["more", number])
    with pytest.raises(ipc.LinkBroken, match=f"{ipc.MAX_QUEUED} messages wait"):
        hub.send(["too much"])


@contextlib.contextmanager
def free_descriptors(count: int) -> Iterator[None]:
    """Limits this process to so many more descriptors."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    lowest_free = os.dup(0)
    os.close(lowest_free)
    resource.setrlimit(resource.RLIMIT_NOFILE, (lowest_free + count, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_a_message_waits_without_descriptors_of_its_own(links: Ends) -> None:
    hub, worker = links
    fill(hub)
    reading, writing = os.pipe()
    with free_descriptors(0):
        hub.send(["pipe"], reading, writing)
    memfile.close(reading)
    memfile.close(writing)
    found: list[list[object]] = []
    while hub.wants_write:
        found += received(worker)
        hub.flush()
    assert (found + received(worker))[-1] == ["pipe"]


@pytest.mark.parametrize("free", [0, 1])
def test_a_receiver_without_descriptors_finds_the_message_again(links: Ends, free: int) -> None:
    hub, worker = links
    reading, writing = os.pipe()
    hub.send(["first"])
    hub.send(["pipe"], reading, writing)
    hub.send(["last"])
    with free_descriptors(free):
        for _ in range(3):
            with pytest.raises(ipc.Starved):
                received(worker)
    os.write(writing, b"still there")
    os.close(reading)
    os.close(writing)
    found: list[list[object]] = []
    for message, descriptors in worker.receive():
        found.append(message)
        if descriptors:
            assert os.read(descriptors[0], 100) == b"still there"
            for descriptor in descriptors:
                os.close(descriptor)
    assert found == [["pipe"], ["last"]]


@pytest.mark.parametrize("lacking", [errno.ETOOMANYREFS, errno.ENOBUFS, errno.ENOMEM])
def test_what_the_kernel_cannot_send_is_sent_later(lacking: int) -> None:
    watched: list[bool] = []
    ends = ipc.pair()
    hub = ipc.Link(ends[0], msgspec.msgpack.Decoder(list[object]), watched.append)
    worker = ipc.Link(ends[1], msgspec.msgpack.Decoder(list[object]))
    with mock.patch.object(socket, "send_fds", side_effect=OSError(lacking, "nothing left")) as sending:
        for number in range(3):
            hub.send([number])
        hub.flush()
    assert sending.call_count == 2
    assert isinstance(hub.shortage, OSError)
    assert watched == []  # the socket has room, so a loop that watches it would never rest
    hub.flush()
    assert received(worker) == [[0], [1], [2]]
    hub.close()
    worker.close()


def test_a_message_that_is_put_back_comes_first_and_once(links: Ends) -> None:
    hub, worker = links
    reading, writing = os.pipe()
    hub.send(["pipe"], reading, writing)
    hub.send(["next"])
    os.close(reading)
    os.close(writing)
    worker.put_back(*next(worker.receive()))
    assert received(worker) == [["pipe"], ["next"]]
    hub.send(["pipe"], 0)
    worker.put_back(*next(worker.receive()))  # and the link is closed, which closes the descriptors


def test_descriptors_that_nobody_expects_are_dropped_and_break_the_link() -> None:
    before = worker_stand.descriptors_before()
    ends = ipc.pair()
    hub = ipc.Link(ends[0], msgspec.msgpack.Decoder(list[object]), max_descriptors=0)
    worker = ipc.Link(ends[1], msgspec.msgpack.Decoder(list[object]))
    worker.send(["a gift"], 0, 1, 2)
    with pytest.raises(ipc.LinkBroken, match="unexpected descriptors"):
        list(hub.receive())
    hub.close()
    worker.close()
    assert worker_stand.open_descriptors() == before


def test_one_call_takes_a_bounded_number_of_bytes(links: Ends) -> None:
    hub, worker = links
    large = ["x" * 150_000]
    for _ in range(10):
        hub.send(large)
    taken = 0
    while taken < 10:
        batch = list(worker.receive())
        assert len(batch) <= 2
        taken += len(batch)
        hub.flush()


def test_the_other_ends_death_shows_in_both_directions(links: Ends) -> None:
    hub, worker = links
    worker.send(["last words"])
    worker.close()
    arriving = hub.receive()
    assert next(arriving)[0] == ["last words"]
    with pytest.raises(ipc.LinkBroken):
        next(arriving)
    with pytest.raises(ipc.LinkBroken):
        hub.send(["hello?"])


def test_death_with_a_full_queue(links: Ends) -> None:
    hub, worker = links
    fill(hub)
    worker.close()
    with pytest.raises(ipc.LinkBroken):
        hub.flush()


def test_too_many_descriptors_break_the_link_and_none_is_left(links: Ends) -> None:
    hub, worker = links
    reading, writing = os.pipe()
    rights = array.array("i", [reading, writing] * 8)
    hub.socket.sendmsg([b"\x91\x01"], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, rights)])
    with pytest.raises(ipc.LinkBroken, match="more than 4 descriptors"):
        list(worker.receive())
    os.close(reading)
    os.close(writing)


@pytest.mark.parametrize("data", [b"\x81\xa2no\xa4list", b"\x92\xadWithdrawFeeds\x91\xa1\xff"], ids=["map", "no UTF-8"])
def test_a_message_that_this_end_does_not_know_leaves_no_descriptor(links: Ends, data: bytes) -> None:
    hub, worker = links
    reading, writing = os.pipe()
    os.set_blocking(reading, False)
    socket.send_fds(hub.socket, [data], [writing])
    os.close(writing)
    with pytest.raises((msgspec.DecodeError, UnicodeDecodeError)):
        list(worker.receive())
    assert os.read(reading, 1) == b"", "the other end has no writer left, so the worker has closed it"
    os.close(reading)


def test_messages_over_the_limits_are_the_senders_defect(links: Ends) -> None:
    hub, worker = links
    with pytest.raises(ValueError, match=r"WithdrawFeeds of \d{6} bytes"):
        hub.send(messages.WithdrawFeeds(["x" * ipc.MAX_DATAGRAM_BYTES]))
    with pytest.raises(ValueError, match="5 descriptors"):
        hub.send(["many"], 0, 0, 0, 0, 0)
    largest = ["largest", b"x" * (ipc.MAX_DATAGRAM_BYTES - 100)]
    hub.send(largest)
    assert received(worker) == [largest]


def test_a_receiver_takes_one_batch_at_a_time(links: Ends) -> None:
    hub, worker = links
    with contextlib.suppress(ipc.LinkBroken):
        for number in range(400):
            hub.send([number])
    assert len(list(worker.receive())) <= 256
    while hub.wants_write:
        hub.flush()
        received(worker)
