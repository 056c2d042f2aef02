"""The times of updates on their way through the hub: when they came, and when they were written."""

import datetime
import json
from collections.abc import Iterator

import pytest

from cache import objects
from tests.harness import worker_stand
from tests.harness.hub_stand import HubStand, Worker
from typha import clock
from typha.ipc import messages as ipc

NOON = datetime.datetime(2026, 1, 2, 12, tzinfo=datetime.UTC)


class Clock:
    """Monotonic time, and the time of the day at which that is 1000."""

    def __init__(self) -> None:
        self.now = 1000.0

    def time_ns(self) -> int:
        return int((NOON.timestamp() + self.now - 1000.0) * 1e9)


@pytest.fixture
def time() -> Iterator[Clock]:
    made = Clock()
    with clock.replaced(monotonic=lambda: made.now, time_ns=made.time_ns):
        yield made


def written(name: str, seconds_before_noon: float, content: str = "x", version: int = 1) -> objects.ObjectEvent:
    at = (NOON - datetime.timedelta(seconds=seconds_before_noon)).strftime("%Y-%m-%dT%H:%M:%SZ")
    event = worker_stand.pod(name, content, version=version)
    metadata = {"name": name, "namespace": "default", "managedFields": [{"time": at}]}
    return event._replace(raw=json.dumps({"metadata": metadata, "spec": content}).encode())


def opened(stand: HubStand) -> Worker:
    worker = stand.add_worker(tells_progress=True)
    stand.sync()
    stand.hub.want_channel(worker_stand.FEED, "native")
    stand.make_snapshots()
    worker.hear()
    worker.sent()
    return worker


def times_heard(worker: Worker) -> list[ipc.UpdateTimes]:
    return [end.times for message in worker.hear() if isinstance(message, ipc.Publish) for end in message.ends]


@pytest.fixture
def stand(time: Clock) -> Iterator[HubStand]:
    made = HubStand()
    yield made
    made.hub.close()
    for worker in made.workers:
        worker.close()


def test_the_first_object_of_a_batch_tells(stand: HubStand, time: Clock) -> None:
    worker = opened(stand)
    stand.hub.apply(worker_stand.pod("a", "new"))  # tells nothing
    time.now += 1
    stand.hub.apply(written("b", 7))
    time.now += 1
    stand.hub.apply(written("c", 300))
    stand.hub.commit()
    assert times_heard(worker) == [ipc.UpdateTimes(1000.0, 993.0)]
    time.now += 10
    stand.hub.apply(written("d", -11.5))
    stand.hub.commit()
    assert times_heard(worker) == [ipc.UpdateTimes(1012.0, 1011.0)]


def test_times_that_cannot_be_those_of_the_change(stand: HubStand, time: Clock) -> None:
    worker = opened(stand)
    stand.hub.apply(written("a", 600))  # nothing that changed it last has noted a time
    stand.hub.commit()
    stand.hub.apply(written("b", -30))  # the API server's clock is ahead
    stand.hub.commit()
    stand.hub.delete(written("b", 1))
    stand.hub.commit()
    written_at = [times.written_at for times in times_heard(worker)]
    assert written_at == [0.0, 1000.0, 0.0]


def test_a_worker_that_hears_late_hears_of_the_oldest(stand: HubStand, time: Clock) -> None:
    worker = opened(stand)
    [channel] = stand.hub.channels.values()
    worker.handle.publish(channel, ipc.UpdateTimes(900.0, 800.0))
    worker.handle.publish(channel, ipc.UpdateTimes(950.0, 940.0))
    worker.handle.flush()
    assert times_heard(worker) == [ipc.UpdateTimes(900.0, 800.0)]


def test_a_second_without_a_batch_counts_as_one_of_nothing(stand: HubStand, time: Clock) -> None:
    opened(stand)
    sizes = stand.hub.publisher.batch_sizes[worker_stand.FEED]
    stand.hub.look_after_channels()
    before = sizes.count
    stand.hub.look_after_channels()
    stand.hub.look_after_channels()
    assert sizes.count == before + 2
    stand.hub.apply(worker_stand.pod("a", "new"))
    stand.hub.commit()
    stand.hub.look_after_channels()
    assert sizes.count == before + 3
    assert sizes.quantile(1.0) == pytest.approx(1.0, rel=0.07)
    assert stand.hub.publisher.batches_total[worker_stand.FEED] == 2  # the status, and the object
