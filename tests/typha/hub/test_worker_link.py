"""One worker as the hub sees it: what it says, and what breaks its link."""

from collections.abc import Iterator

import pytest

from tests.harness import support
from typha.hub import worker_link
from typha.ipc import link


class Asked:
    """The hub's side."""

    def __init__(self) -> None:
        self.wishes: list[tuple[str, str]] = []
        self.stale_channels: list[tuple[int, int]] = []
        self.blocks: list[tuple[int, int, int, int]] = []

    def wanted(self, feed: str, wire_format: str) -> None:
        """Remembers the wish."""
        if feed == "unknown":
            raise KeyError(feed)
        self.wishes.append((feed, wire_format))

    def stale(self, worker: worker_link.WorkerLink, channel: int) -> None:
        """Remembers who waits for what."""
        self.stale_channels.append((worker.number, channel))

    def block_wanted(
        self, worker: worker_link.WorkerLink, channel: int, from_sequence: int, needed_sequence: int
    ) -> None:
        """Remembers who asked for what."""
        if needed_sequence < from_sequence:
            raise ValueError(needed_sequence)
        self.blocks.append((worker.number, channel, from_sequence, needed_sequence))


class Ends:
    """A handle, the worker's end of the link, and what was called."""

    def __init__(self) -> None:
        ours, theirs = link.pair()
        self.asked = Asked()
        self.broken: list[Exception] = []
        self.watching: list[bool] = []
        self.handle = worker_link.WorkerLink(3, link.Link(ours), self.asked, self.broken.append, self.watching.append)
        self.worker = link.Link(theirs)

    def say(self, *message: object) -> None:
        """The worker says it, the hub hears it."""
        self.worker.send(message)
        self.handle.hear()


@pytest.fixture
def ends() -> Iterator[Ends]:
    """Both ends; no descriptor may be left."""
    before = support.open_descriptors()
    opened = Ends()
    yield opened
    opened.handle.link.close()
    opened.worker.close()
    assert support.open_descriptors() == before


def test_what_a_worker_says(ends: Ends) -> None:
    handle = ends.handle
    assert (handle.ready, handle.active, handle.channel_report(1)) == (False, 0, {})
    ends.say("ready", 3)
    ends.say("want", "web", "native")
    ends.say("stale", 1)
    ends.say("catch-up", 1, 40, 45)
    ends.say("trimmed", 1, 100)
    ends.say("stats", {"active": 5, "channels": {1: {"clients": 4}}})
    ends.say("histograms", "web", {"typha_kvs_per_msg": [1, 1]})
    assert handle.ready
    assert ends.asked.blocks == [(3, 1, 40, 45)]
    assert ends.asked.wishes == [("web", "native")]
    assert ends.asked.stale_channels == [(3, 1)]
    assert handle.active == 5
    assert handle.channel_report(1) == {"clients": 4}
    assert handle.channel_report(2) == {}
    ends.say("stats", {"active": 6, "channels": {}})
    assert handle.report["histograms"] == {"web": {"typha_kvs_per_msg": [1, 1]}}
    assert ends.broken == []


@pytest.mark.parametrize(
    "message",
    [
        *(("sing",), ("stats", 5), ("want", "unknown", "native"), ("want", 1, 2), (), ("ready", 1, 2)),
        *(("catch-up", 1, 2), ("catch-up", 1, 2, "3"), ("catch-up", 1, 5, 4), ("catch-up", None, 4, 5)),
    ],
)
def test_a_worker_that_cannot_be_understood_is_broken(ends: Ends, message: tuple[object, ...]) -> None:
    ends.say(*message)
    assert len(ends.broken) == 1


def test_bytes_that_are_no_message_break_the_link(ends: Ends) -> None:
    ends.worker.socket.send(b"\xc1")
    ends.handle.hear()
    assert len(ends.broken) == 1


def test_a_dead_worker_is_broken_whatever_is_done_with_it(ends: Ends) -> None:
    ends.worker.close()
    ends.handle.hear()
    ends.handle.tell(["share", 5])
    ends.handle.flush()
    assert {type(error) for error in ends.broken} == {link.LinkBroken}


def test_what_was_said_before_death_is_heard(ends: Ends) -> None:
    ends.worker.send(["stats", {"active": 9}])
    ends.worker.close()
    ends.handle.hear()
    assert ends.handle.active == 9
    assert ends.broken


def test_a_full_link_asks_to_be_flushed(ends: Ends) -> None:
    number = 0
    while not ends.watching:
        ends.handle.tell(["fill", number, "x" * 1000])
        number += 1
    ends.handle.tell(["last"])
    heard: list[object] = []
    while ends.watching == [True]:
        heard += [message[0] for message, _ in ends.worker.receive()]
        ends.handle.flush()
    heard += [message[0] for message, _ in ends.worker.receive()]
    assert ends.watching == [True, False]
    assert heard == ["fill"] * number + ["last"]
