"""One worker as the hub sees it: what it reports, and what breaks its link."""

from collections.abc import Iterator

import pytest

from protocol import subscriptions
from tests.harness import worker_stand
from tests.harness.hub_stand import LIMITS
from typha.hub import hub, worker_link
from typha.ipc import link, messages


class RecordingHub(hub.Hub):
    """A hub that keeps what a worker asks for."""

    def __init__(self) -> None:
        super().__init__([], LIMITS)
        self.wanted_channels: list[tuple[str, str]] = []
        self.wanted_snapshots: list[tuple[int, int]] = []
        """(worker, channel) of each request."""
        self.wanted_blocks: list[tuple[int, messages.WantBlock]] = []
        """(worker, request)."""

    def want_channel(
        self,
        feed_name: str,
        wire_format: str,
        subscription: subscriptions.Subscription | None = None,
        *,
        asker: str = "",
    ) -> None:
        """Keeps the request; raises KeyError for one name."""
        if feed_name == "unknown":
            raise KeyError(feed_name)
        self.wanted_channels.append((feed_name, wire_format))

    def want_snapshot(self, worker: worker_link.WorkerLink, number: int) -> None:
        """Keeps the request."""
        self.wanted_snapshots.append((worker.number, number))

    def want_block(self, worker: worker_link.WorkerLink, request: messages.WantBlock) -> None:
        """Keeps the request; raises ValueError for an impossible one."""
        if request.needed_sequence < request.from_sequence:
            raise ValueError(request.needed_sequence)
        self.wanted_blocks.append((worker.number, request))


class LinkStand:
    """A hub, its handle of a worker, the worker's end of the link, and the calls that the handle makes."""

    def __init__(self) -> None:
        ours, theirs = link.pair()
        self.hub = RecordingHub()
        self.broken: list[Exception] = []
        self.watching: list[bool] = []
        self.handle = worker_link.WorkerLink(3, ours, self.broken.append, self.watching.append)
        self.handle.feeds = frozenset({"web"})
        self.worker = link.Link(theirs, messages.FOR_WORKER)

    def hear(self) -> None:
        """The hub takes what the worker has sent."""
        self.hub.hear(self.handle)

    def say(self, message: object) -> None:
        """The worker sends a message, and the hub takes it."""
        self.worker.send(message)
        self.hear()


@pytest.fixture
def stand() -> Iterator[LinkStand]:
    """Both ends; when the test ends, no descriptor may be left."""
    before = worker_stand.descriptors_before()
    opened = LinkStand()
    yield opened
    opened.handle.link.close()
    opened.worker.close()
    assert worker_stand.open_descriptors() == before


def test_messages_of_a_worker(stand: LinkStand) -> None:
    handle = stand.handle
    assert (handle.ready, handle.report.active, handle.report.channels) == (False, 0, {})
    report = messages.ChannelReport(clients=4)
    stand.say(messages.Ready())
    stand.say(messages.WantChannel("web", "native"))
    stand.say(messages.WantSnapshot(1))
    stand.say(messages.WantBlock(1, 40, 45))
    stand.say(messages.Report(messages.WorkerCounts(), active=5, channels={1: report}))
    stand.say(messages.ReportHistograms("web", {"typha_kvs_per_msg": [1, 1]}))
    assert handle.ready
    assert stand.hub.wanted_blocks == [(3, messages.WantBlock(1, 40, 45))]
    assert stand.hub.wanted_channels == [("web", "native")]
    assert stand.hub.wanted_snapshots == [(3, 1)]
    assert handle.report.active == 5
    assert handle.report.channels == {1: report}
    stand.say(messages.Report(messages.WorkerCounts(), active=6))
    assert (handle.report.active, handle.report.channels) == (6, {})
    assert handle.histograms == {"web": {"typha_kvs_per_msg": [1, 1]}}
    assert stand.broken == []


@pytest.mark.parametrize(
    "message",
    [
        *(["Sing"], ["Report", 5], ["WantChannel", "unknown", "native"], ["WantChannel", 1, 2], [], ["Ready", 1, 2]),
        *(["WantBlock", 1, 2], ["WantBlock", 1, 2, "3"], ["WantBlock", 1, 5, 4], ["WantBlock", None, 4, 5]),
    ],
)
def test_a_worker_whose_message_cannot_be_understood_is_broken(stand: LinkStand, message: list[object]) -> None:
    stand.say(message)
    assert len(stand.broken) == 1


def test_bytes_that_are_no_message_break_the_link(stand: LinkStand) -> None:
    stand.worker.socket.send(b"\xc1")
    stand.hear()
    assert len(stand.broken) == 1


def test_every_use_of_a_dead_worker_reports_it_as_broken(stand: LinkStand) -> None:
    stand.worker.close()
    stand.hear()
    stand.handle.send(messages.LimitConnections(5))
    stand.handle.flush()
    assert {type(error) for error in stand.broken} == {link.LinkBroken}


def test_messages_that_a_worker_sent_before_its_death_are_heard(stand: LinkStand) -> None:
    stand.worker.send(messages.Report(messages.WorkerCounts(), active=9))
    stand.worker.close()
    stand.hear()
    assert stand.handle.report.active == 9
    assert stand.broken


def test_a_full_link_asks_to_be_flushed(stand: LinkStand) -> None:
    sent: list[messages.ToWorker] = []
    while not stand.watching:
        sent.append(messages.WithdrawFeeds([str(len(sent)), "x" * 1000]))
        stand.handle.send(sent[-1])
    sent.append(messages.CloseChannel(1))
    stand.handle.send(sent[-1])
    heard: list[messages.ToWorker] = []
    while stand.watching == [True]:
        heard += [message for message, _ in stand.worker.receive()]
        stand.handle.flush()
    heard += [message for message, _ in stand.worker.receive()]
    assert stand.watching == [True, False]
    assert heard == sent
