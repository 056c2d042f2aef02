"""When updates leave the hub: at once while workers are idle, together while they send."""

import asyncio
import contextlib
from collections.abc import AsyncIterator

import pytest
from msgspec import structs

from protocol import messages
from tests.harness import worker_stand
from tests.harness.hub_stand import LIMITS
from typha import clock
from typha.hub import hub, worker_link

_START = 1000.0
_PART = 2_500
"""Above the number of updates that never wait."""
pytestmark = pytest.mark.looptime(start=_START)


class BusyWorkers(worker_link.WorkerLinks):
    """No workers, and as many publishes under way as the test says."""

    under_way = 0

    @property
    def publishes_under_way(self) -> int:
        """The number that the test has set."""
        return self.under_way


class CoalescerStand(hub.Hub):
    """A hub on the loop's virtual time that notes when it publishes."""

    def __init__(self) -> None:
        super().__init__([worker_stand.raw_feed()], structs.replace(LIMITS, batch_changes_max=_PART))
        self.workers = self.busy = BusyWorkers()
        self.published: list[float] = []
        """In seconds since the start."""

    def commit(self) -> None:
        """Notes the time."""
        super().commit()
        self.published.append(round(asyncio.get_running_loop().time() - _START, 6))

    def batch(self, updates: int = 1) -> None:
        """A batch from a watcher."""
        for number in range(updates):
            self.apply(worker_stand.pod(f"p{number}"))
        self.batch_end()


@pytest.fixture
async def stand() -> AsyncIterator[CoalescerStand]:
    """A hub whose coalescing runs."""
    loop = asyncio.get_running_loop()
    with clock.replaced(monotonic=loop.time, time_ns=lambda: 0):
        opened = CoalescerStand()
        running = asyncio.create_task(opened.run_coalescing(), name="coalescing")
        yield opened
        running.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await running
        opened.close()


async def test_updates_leave_at_once_while_workers_are_idle(stand: CoalescerStand) -> None:
    for _ in range(5):
        stand.batch()
        await asyncio.sleep(0.001)
    assert stand.published == [0.0, 0.001, 0.002, 0.003, 0.004]
    assert stand.coalescer.since == 0.0


async def test_the_first_updates_leave_while_workers_send_and_the_next_ones_wait(stand: CoalescerStand) -> None:
    stand.busy.under_way = 1
    stand.batch()
    stand.busy.under_way = 2
    stand.batch()
    await asyncio.sleep(0.0105)
    stand.busy.under_way = 1  # not everything is sent, but the busiest worker has finished one publish
    await asyncio.sleep(0.01)
    assert stand.published == [0.0, 0.011]


async def test_updates_that_come_while_workers_send_leave_together_soon_after(stand: CoalescerStand) -> None:
    stand.coalescer.note_clients(2_000)  # checks every 8 ms
    stand.busy.under_way = 2
    for _ in range(5):
        stand.batch()
        await asyncio.sleep(0.005)
    stand.busy.under_way = 0
    assert stand.published == []
    await asyncio.sleep(0.1)
    assert stand.published == [0.032]


async def test_the_next_batch_does_not_wait_for_a_check(stand: CoalescerStand) -> None:
    stand.coalescer.note_clients(5_000)
    stand.busy.under_way = 2
    stand.batch()
    await asyncio.sleep(0.003)
    stand.busy.under_way = 0
    stand.batch()
    await asyncio.sleep(1)
    assert stand.published == [0.003]


async def test_updates_wait_a_tenth_of_a_second_at_most_for_busy_workers(stand: CoalescerStand) -> None:
    stand.coalescer.note_clients(1_000_000)
    stand.busy.under_way = 2
    stand.batch()
    await asyncio.sleep(0.5)
    assert stand.published == [pytest.approx(LIMITS.coalesce_seconds_max, abs=0.021)]
    stand.batch()  # its time begins now
    assert len(stand.published) == 1
    await asyncio.sleep(0.5)
    assert len(stand.published) == 2


async def test_a_burst_does_not_pile_up(stand: CoalescerStand) -> None:
    stand.busy.under_way = 2
    stand.batch(LIMITS.coalesced_updates_max - 1)
    assert stand.published == []
    stand.batch()
    assert stand.published == [0.0]


async def test_an_empty_batch_does_not_begin_to_wait(stand: CoalescerStand) -> None:
    stand.busy.under_way = 2
    stand.batch(0)
    assert stand.coalescer.since == 0.0


async def test_a_large_commit_goes_on_in_the_next_turns_with_the_status_at_its_end(stand: CoalescerStand) -> None:
    stand.busy.under_way = 9  # the rest does not wait for busy workers
    feed = stand.feeds[worker_stand.FEED]
    for number in range(3 * _PART + 1):
        stand.apply(worker_stand.pod(f"p{number}"))
    stand.status(worker_stand.PODS, messages.SyncStatus.IN_SYNC)
    stand.batch_end()
    sizes = [len(feed.store)]
    for _ in range(6):
        assert feed.synced_once is (len(feed.store) > 3 * _PART)
        if stand.coalescer.is_unfinished:
            stand.batch_end()  # another watcher's batch adds no part to the turn
        await asyncio.sleep(0)
        sizes.append(len(feed.store))
    assert sorted(set(sizes)) == [_PART, 2 * _PART, 3 * _PART, 3 * _PART + 1]
    assert stand.published == [0.0] * 4
    assert stand.coalescer.since == 0.0
    await asyncio.sleep(1)
    assert len(stand.published) == 4


async def test_watchers_wait_for_room_while_a_whole_batch_is_gathered(stand: CoalescerStand) -> None:
    stand.busy.under_way = 9
    await stand.room()
    for number in range(2 * _PART):
        stand.apply(worker_stand.pod(f"p{number}"))
    waiting = asyncio.create_task(stand.room(), name="room")
    await asyncio.sleep(0)
    assert (len(stand.published), waiting.done()) == (1, False)  # it published a part, and the rest is a whole batch
    await waiting
    assert not stand.is_full
