"""A worker that says what no worker says ends itself alone: not the hub, its housekeeping or its metrics."""

import math
import time
from collections.abc import Iterator

import msgspec
import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from tests.harness import worker_stand
from tests.harness.hub_stand import LIMITS, HubStand
from typha import clock, settings
from typha.hub import collector, supervisor, worker_link
from typha.ipc import messages as ipc
from typha.observability import loop_latency, metrics, quantiles

TOO_LARGE = 2**64 - 1
ENDS_THE_WORKER: dict[str, object] = {
    "text for a number": ["Report", {}, "abc"],
    "counts that are a map of something else": ["Report", {"active": "abc"}],
    "channels that are a number": ["Report", {}, 1, 1, 0.0, 0.0, 5],
    "an offset that is text": ["Report", {}, 1, 1, 0.0, 0.0, {1: {"min_offset": "x"}}],
    "a negative offset": ["Report", {}, 1, 1, 0.0, 0.0, {1: {"min_offset": -1}}],
    "a negative sequence": ["Report", {}, 1, 1, 0.0, 0.0, {1: {"min_sequence": -1}}],
    "negative clients": ["Report", {}, -(10**9)],
    "more clients than there can be": ["Report", {}, TOO_LARGE],
    "more clients of a channel than there can be": ["Report", {}, 1, 1, 0.0, 0.0, {1: {"clients": TOO_LARGE}}],
    "disconnects that are a number": ["Report", {"disconnects": 5}],
    "a reason that does not exist": ["Report", {"disconnects": {"boredom": 1}}],
    "a negative count": ["Report", {"accepted": -1}],
    "counts of an unknown feed": ["Report", {"feeds": {"unknown": {"sends": 1}}}],
    "a histogram with other buckets": ["Report", {"feeds": {worker_stand.FEED: {"propagation": [[1, 2], 0.5]}}}],
    "buckets with a negative count": ["Report", {"feeds": {worker_stand.FEED: {"propagation": [[-1] * 12, 0.5]}}}],
    "buckets with a sum of NaN": ["Report", {"feeds": {worker_stand.FEED: {"propagation": [[0] * 12, math.nan]}}}],
    "a turn of NaN": ["Report", {}, 1, 1, math.nan],
    "an infinite turn": ["Report", {}, 1, 1, 0.0, math.inf],
    "thousands of channels": ["Report", {}, 1, 1, 0.0, 0.0, {number: {} for number in range(5000)}],
    "histograms of an unknown feed": ["ReportHistograms", "unknown", {}],
    "an unknown histogram": ["ReportHistograms", worker_stand.FEED, {"typha_cache_size": [1, 1]}],
    "a histogram without a sum": ["ReportHistograms", worker_stand.FEED, {"typha_ping_latency": [1]}],
    "a bucket without a count": ["ReportHistograms", worker_stand.FEED, {"typha_ping_latency": [1, 1, 1]}],
    "a bucket that does not exist": [
        "ReportHistograms",
        worker_stand.FEED,
        {"typha_ping_latency": [1, 1, quantiles.BUCKETS, 1]},
    ],
    "a negative bucket": ["ReportHistograms", worker_stand.FEED, {"typha_ping_latency": [1, 1, 1, -1]}],
    "a histogram of 10,000 numbers": ["ReportHistograms", worker_stand.FEED, {"typha_ping_latency": [1] * 10_000}],
    "an end on an unknown feed": ["ReportRecent", [0, 0], [[1.0, "n", "a", "unknown", "rebalanced", 1.0]]],
    "an end for no reason": ["ReportRecent", [0, 0], [[1.0, "n", "a", "", "boredom", 1.0]]],
    "an end at no time": ["ReportRecent", [0, 0], [[math.nan, "n", "a", "", "rebalanced", 1.0]]],
    "a node with a name of 254 characters": ["ReportRecent", [0, 0], [[1.0, "n" * 254, "a", "", "rebalanced", 1.0]]],
    "more ends than a report has": ["ReportRecent", [0, 0], [[1.0, "n", "a", "", "rebalanced", 1.0]] * 51],
    "latency that is no histogram": ["ReportRecent", [1], []],
    "an unknown format": ["WantChannel", worker_stand.FEED, "native+lzma"],
    "a format with a line end": ["WantChannel", worker_stand.FEED, "native\n"],
    "a block from before the beginning": ["WantBlock", 1, -1, 0],
    "a block of the future": ["WantBlock", 1, 0, TOO_LARGE],
    "a message for workers": ["Drain", 1.0, 1.0],
    "another field": ["Ready", 1],
    "no array": {"Report": 1},
}
HARMLESS: dict[str, object] = {
    "a feed that does not exist": ["WantChannel", "unknown", "native"],
    "a channel that does not exist": ["WantSnapshot", TOO_LARGE],
    "a block of a channel that does not exist": ["WantBlock", TOO_LARGE, 0, 0],
    "a report on a channel that does not exist": ["Report", {}, 1, 1, 0.0, 0.0, {-5: {"clients": 7}}],
    "huge counts": ["Report", {"accepted": TOO_LARGE, "disconnects": {"pong-timeout": TOO_LARGE}}, 1 << 31],
    "huge offsets": ["Report", {}, 1, 1, 0.0, 0.0, {1: {"min_offset": TOO_LARGE, "min_sequence": TOO_LARGE}}],
    "a huge histogram": [
        "ReportHistograms",
        worker_stand.FEED,
        {"typha_ping_latency": [TOO_LARGE, TOO_LARGE, 1, TOO_LARGE]},
    ],
    "a huge latency": ["ReportRecent", [TOO_LARGE, TOO_LARGE, 1, TOO_LARGE], []],
    "an end in the future": ["ReportRecent", [0, 0], [[1e9, "", "", "", "rebalanced", 1e9]]],
    "ready, again and again": ["Ready"],
}


async def no_worker(*_: object) -> None:
    """No worker runs in the hub."""


class HostileStand(HubStand):
    """A hub with an honest worker and a hostile one, whose every message is raw."""

    def __init__(self) -> None:
        super().__init__()
        self.honest = self.add_worker(1)
        self.hostile = self.add_worker(2)
        self.channel = self.open()
        self.put("a")
        self.honest.report(clients=3, min_offset=self.channel.log.end)
        self.honest.hear()
        self.hostile.hear()

    def hears(self, *messages: object) -> None:
        """The hub hears them from the hostile worker."""
        for message in messages:
            self.hostile.link.socket.send(msgspec.msgpack.encode(message))
            self.hub.hear(self.hostile.handle)

    def samples(self) -> str:
        """The page of /metrics."""
        configured = settings.Settings(workers=2)
        keeper = supervisor.Supervisor(self.hub, configured, LIMITS, self.hostile.link.socket, serve_embedded=no_worker)
        reads = collector.Collector(
            configured, self.hub, keeper, max_latency=loop_latency.MaxLatency(0.0), open_files_limit=1024
        )
        registry = metrics.make_registry(
            metrics.SamplesCollector(reads.samples, syncers=self.hub.names), runtime=False, process=False
        )
        return metrics.exposition(registry).decode()

    def works(self) -> None:
        """The hub goes on for the honest worker."""
        self.hub.look_after_channels()
        end = self.channel.log.end
        self.put("b", version=self.channel.feed.store.sequence + 2)
        assert self.channel.log.end > end
        assert ipc.Publish in self.honest.kinds()
        assert self.honest.broken == []
        assert 'typha_cache_size{syncer="web"} ' in self.samples()


@pytest.fixture
def hostile() -> Iterator[HostileStand]:
    """A hub with a hostile worker; when the test ends, no descriptor may be left."""
    before = worker_stand.descriptors_before()
    stand = HostileStand()
    yield stand
    stand.hub.close()
    for worker in stand.workers:
        worker.close()
    assert worker_stand.open_descriptors() == before


@pytest.mark.parametrize("name", ENDS_THE_WORKER)
def test_what_no_worker_says_ends_that_worker(hostile: HostileStand, name: str) -> None:
    hostile.hears(ENDS_THE_WORKER[name])
    assert len(hostile.hostile.broken) == 1
    hostile.works()


@pytest.mark.parametrize("name", HARMLESS)
def test_what_makes_no_sense_but_could_be_said_does_nothing(hostile: HostileStand, name: str) -> None:
    hostile.hears(HARMLESS[name], HARMLESS[name])
    hostile.works()


numbers = st.integers(-(2**63), 2**64 - 1) | st.sampled_from((0, 1, 2, 2**31, 2**53, 2**63, TOO_LARGE))
plain = st.none() | st.booleans() | numbers | st.floats() | st.text(max_size=8) | st.binary(max_size=8)
values = plain | st.lists(plain, max_size=4) | st.dictionaries(st.text(max_size=16) | numbers, plain, max_size=4)
counts = st.dictionaries(st.sampled_from(ipc.WorkerCounts.__struct_fields__), values | numbers, max_size=4)
reports = st.dictionaries(st.sampled_from(ipc.ChannelReport.__struct_fields__), values | numbers, max_size=8)
said = st.one_of(
    st.tuples(st.just("Report"), counts, numbers, numbers, st.floats(), st.floats(), st.dictionaries(numbers, reports)),
    st.tuples(
        st.just("ReportHistograms"),
        st.just(worker_stand.FEED),
        st.dictionaries(st.sampled_from(("typha_ping_latency", "typha_kvs_per_msg", "x")), st.lists(numbers) | values),
    ),
    st.tuples(st.just("WantChannel"), st.sampled_from((worker_stand.FEED, "x")) | values, st.text() | values),
    st.tuples(st.just("ReportRecent"), st.lists(numbers) | values, st.lists(values, max_size=3) | values),
    st.tuples(st.just("WantSnapshot"), numbers | values),
    st.tuples(st.just("WantBlock"), st.just(1) | numbers, numbers, numbers),
    values,
)


@given(messages=st.lists(said, max_size=5))
@hypothesis_settings(max_examples=150, deadline=None)
def test_whatever_a_worker_says_the_hub_goes_on(messages: list[object]) -> None:
    stand = HostileStand()
    try:
        stand.hears(*messages)
        stand.works()
    finally:
        stand.hub.close()
        for worker in stand.workers:
            worker.close()


def test_a_format_that_does_not_exist_is_not_remembered_until_there_is_something_to_serve() -> None:
    stand = HubStand()
    worker = stand.add_worker()
    worker.link.send(["WantChannel", worker_stand.FEED, "native+lzma"])
    stand.hub.hear(worker.handle)
    assert len(worker.broken) == 1
    stand.sync()
    stand.hub.close()
    worker.close()


def test_what_a_worker_reports_replaces_what_it_reported_before(hostile: HostileStand) -> None:
    reasons = {"pong-timeout": 1, "client-closed": 1}
    for number in range(200):
        hostile.hears(["Report", {"disconnects": reasons}, 1, 1, 0.0, 0.0, {number * 10 + n: {} for n in range(10)}])
        hostile.hears(["ReportHistograms", worker_stand.FEED, {"typha_ping_latency": [1, 1]}])
    assert hostile.hostile.broken == []
    assert len(hostile.hostile.handle.report.channels) == 10
    assert len(hostile.hostile.handle.histograms) == 1


def test_descriptors_from_a_worker_are_never_received(hostile: HostileStand) -> None:
    before = worker_stand.descriptors_before()
    hostile.hostile.link.send(ipc.Ready(), 0, 1, 2)
    hostile.hub.hear(hostile.hostile.handle)
    assert worker_stand.open_descriptors() == before
    assert len(hostile.hostile.broken) == 1
    hostile.works()


def test_a_flood_of_messages_ends_its_worker(hostile: HostileStand) -> None:
    with clock.replaced(monotonic=lambda: 1000.0, time_ns=time.time_ns):
        while not hostile.hostile.broken and hostile.hostile.handle.link.received_bytes < 10**7:
            hostile.hears(*[["Ready"]] * 100)
    assert isinstance(hostile.hostile.broken[0], worker_link.Flood)
    hostile.works()


def test_a_flood_of_bytes_ends_its_worker(hostile: HostileStand) -> None:
    large = ["Report", {}, 1, 1, 0.0, 0.0, {number: {"clients": 1} for number in range(4000)}]
    with clock.replaced(monotonic=lambda: 1000.0, time_ns=time.time_ns):
        while not hostile.hostile.broken and hostile.hostile.handle.link.received_bytes < 10**8:
            hostile.hears(large)
    assert isinstance(hostile.hostile.broken[0], worker_link.Flood)
    assert hostile.hostile.handle.link.received_bytes < 2 * worker_link.BYTES_PER_SECOND_MAX
    hostile.works()


def test_one_turn_hears_a_bounded_part_of_what_a_worker_says(hostile: HostileStand) -> None:
    large = msgspec.msgpack.encode(["Report", {}, 1, 1, 0.0, 0.0, {number: {"clients": 1} for number in range(4000)}])
    sent = 0
    while True:
        try:
            hostile.hostile.link.socket.send(large)
        except BlockingIOError:
            break
        sent += len(large)
    handle = hostile.hostile.handle
    before = handle.link.received_bytes
    hostile.hub.hear(handle)
    assert 0 < handle.link.received_bytes - before < 256 * 1024 + 160 * 1024
    assert sent


def test_a_worker_waits_for_a_bounded_number_of_blocks(hostile: HostileStand) -> None:
    for number in range(300):
        hostile.put(f"p{number}", version=number + 5)
        hostile.honest.hear()
        hostile.hostile.hear()
    limit = LIMITS.wanted_blocks_max
    hostile.hears(*(["WantBlock", 1, number, number] for number in range(limit)))
    assert hostile.hostile.broken == []
    hostile.hears(["WantBlock", 1, limit, limit])
    assert len(hostile.hostile.broken) == 1
    hostile.works()


def test_a_worker_that_asks_for_many_blocks_keeps_no_other_waiting(hostile: HostileStand) -> None:
    for number in range(60):
        hostile.put(f"p{number}", version=number + 5)
    hostile.hears(*(["WantBlock", 1, number, number] for number in range(60)))
    answered: list[int] = []
    for number in (57, 58):
        hostile.honest.say(ipc.WantBlock(1, number, 60))
        for _ in hostile.hub.catch_ups.steps():
            said = [message for message in hostile.honest.hear() if isinstance(message, ipc.SendBlock)]
            if said:
                break
        answered.append(hostile.hub.catch_ups.blocks_made)
    assert answered[0] <= 2
    assert answered[1] - answered[0] <= 3


def test_messages_that_a_worker_does_not_read_use_no_descriptors(hostile: HostileStand) -> None:
    before = worker_stand.descriptors_before()
    for _ in range(3000):
        hostile.hears(["WantSnapshot", 1])
    assert hostile.hostile.handle.link.wants_write
    assert worker_stand.open_descriptors() == before
    hostile.works()
