"""The link between hub and worker: order, descriptors, full sockets, and the other end's death."""

import array
import contextlib
import os
import socket
from collections.abc import Iterator

import pytest

from tests.harness import support
from typha.ipc import link as ipc


@pytest.fixture
def links() -> Iterator[tuple[ipc.Link, ipc.Link]]:
    """Two ends; whatever a test does with them, no descriptor may be left."""
    before = support.open_descriptors()
    hub, worker = (ipc.Link(end) for end in ipc.pair())
    yield hub, worker
    hub.close()
    worker.close()
    assert support.open_descriptors() == before


def received(link: ipc.Link) -> list[list[object]]:
    """All messages that are there; their descriptors are closed."""
    found: list[list[object]] = []
    while True:
        batch = list(link.receive())
        if not batch:
            return found
        for message, descriptors in batch:
            found.append(message)
            for descriptor in descriptors:
                os.close(descriptor)


def fill(link: ipc.Link) -> int:
    """Sends until something is queued; how many messages that took."""
    sent = 0
    while not link.wants_write:
        link.send(["fill", sent, "x" * 1000])
        sent += 1
    return sent


def test_messages_arrive_whole_and_in_order(links: tuple[ipc.Link, ipc.Link]) -> None:
    hub, worker = links
    for number in range(600):
        hub.send(["n", number, b"\xff", "text", {1: 2.5}, None])
        if number % 100 == 99:
            expected = range(number - 99, number + 1)
            assert received(worker) == [["n", n, b"\xff", "text", {1: 2.5}, None] for n in expected]
    worker.send(["back"])
    assert received(hub) == [["back"]]
    assert received(hub) == []


def test_descriptors_arrive_with_their_message_and_the_sender_keeps_its_own(links: tuple[ipc.Link, ipc.Link]) -> None:
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


def test_what_does_not_fit_waits_with_its_descriptors(links: tuple[ipc.Link, ipc.Link]) -> None:
    hub, worker = links
    sent = fill(hub)
    reading, writing = os.pipe()
    hub.send(["pipe"], reading)
    os.close(reading)  # the queue has its own
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


def test_a_queue_that_is_closed_lets_its_descriptors_go(links: tuple[ipc.Link, ipc.Link]) -> None:
    hub, _ = links
    fill(hub)
    reading, writing = os.pipe()
    for _ in range(10):
        hub.send(["pipe"], reading, writing)
    os.close(reading)
    os.close(writing)


def test_a_queue_without_end_is_a_broken_link(
    links: tuple[ipc.Link, ipc.Link], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ipc, "MAX_QUEUED", 50)
    hub, _ = links
    fill(hub)
    for number in range(49):
        hub.send(["more", number])
    with pytest.raises(ipc.LinkBroken, match="50 messages wait"):
        hub.send(["too much"])


def test_out_of_descriptors_for_the_queue_is_a_broken_link(
    links: tuple[ipc.Link, ipc.Link], monkeypatch: pytest.MonkeyPatch
) -> None:
    hub, _ = links
    fill(hub)
    reading, writing = os.pipe()
    real_dup, taken = os.dup, [reading]

    def dup(descriptor: int) -> int:
        if not taken:
            raise OSError(24, "Too many open files")
        taken.pop()
        return real_dup(descriptor)

    monkeypatch.setattr(os, "dup", dup)
    with pytest.raises(ipc.LinkBroken, match="Too many open files"):
        hub.send(["pipe"], reading, writing)
    os.close(reading)
    os.close(writing)


def test_the_other_ends_death_shows_in_both_directions(links: tuple[ipc.Link, ipc.Link]) -> None:
    hub, worker = links
    worker.send(["last words"])
    worker.close()
    messages = hub.receive()
    assert next(messages)[0] == ["last words"]
    with pytest.raises(ipc.LinkBroken):
        next(messages)
    with pytest.raises(ipc.LinkBroken):
        hub.send(["anybody?"])


def test_death_with_a_full_queue(links: tuple[ipc.Link, ipc.Link]) -> None:
    hub, worker = links
    fill(hub)
    worker.close()
    with pytest.raises(ipc.LinkBroken):
        hub.flush()


def test_more_descriptors_than_agreed_break_the_link_and_leak_nothing(links: tuple[ipc.Link, ipc.Link]) -> None:
    hub, worker = links
    reading, writing = os.pipe()
    rights = array.array("i", [reading, writing] * 8)
    hub.socket.sendmsg([b"\x91\x01"], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, rights)])
    with pytest.raises(ipc.LinkBroken, match="cut short"):
        list(worker.receive())
    os.close(reading)
    os.close(writing)


def test_messages_over_the_limits_are_the_senders_defect(links: tuple[ipc.Link, ipc.Link]) -> None:
    hub, worker = links
    with pytest.raises(ValueError, match="'big'"):
        hub.send(["big", b"x" * ipc.MAX_DATAGRAM_BYTES])
    with pytest.raises(ValueError, match="5 descriptors"):
        hub.send(["many"], 0, 0, 0, 0, 0)
    largest = ["largest", b"x" * (ipc.MAX_DATAGRAM_BYTES - 100)]
    hub.send(largest)
    assert received(worker) == [largest]


def test_a_receiver_takes_no_more_than_a_batch_at_a_time(links: tuple[ipc.Link, ipc.Link]) -> None:
    hub, worker = links
    with contextlib.suppress(ipc.LinkBroken):
        for number in range(400):
            hub.send([number])
    assert len(list(worker.receive())) <= 256
    while hub.wants_write:
        hub.flush()
        received(worker)
