"""When updates leave the hub: at once while workers are idle, together while they send."""

import asyncio
import contextlib
from collections.abc import AsyncIterator

import pytest

from typha import clock
from typha.hub import coalescer

_START = 1000.0
pytestmark = pytest.mark.looptime(start=_START)


class Bench:
    """A gathering, on the loop's virtual time, whose workers are busy when the test says so."""

    def __init__(self) -> None:
        self.coalescer = coalescer.Coalescer(lambda: self.under_way, self._publish)
        self.under_way = 0
        self.published: list[float] = []

    @property
    def now(self) -> float:
        """Seconds since the start."""
        return round(asyncio.get_running_loop().time() - _START, 6)

    def _publish(self) -> None:
        self.published.append(self.now)
        self.coalescer.published()

    def batch(self, waiting: int = 1) -> None:
        """The end of a batch, as the hub does it."""
        if self.coalescer.is_due(waiting):
            self._publish()


@pytest.fixture
async def bench() -> AsyncIterator[Bench]:
    """With its task running."""
    loop = asyncio.get_running_loop()
    with clock.replaced(monotonic=loop.time, time_ns=lambda: 0):
        made = Bench()
        running = asyncio.create_task(made.coalescer.run(), name="gathering")
        yield made
        running.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await running


async def test_nothing_waits_while_workers_are_idle(bench: Bench) -> None:
    for _ in range(5):
        bench.batch()
        await asyncio.sleep(0.001)
    assert bench.published == [0.0, 0.001, 0.002, 0.003, 0.004]
    assert bench.coalescer.since == 0.0


async def test_what_comes_first_while_workers_send_goes_round_with_it(bench: Bench) -> None:
    bench.under_way = 1
    bench.batch()
    bench.under_way = 2
    bench.batch()
    await asyncio.sleep(0.0105)
    bench.under_way = 1  # not all of it is sent, but a worker that was busy longer is done
    await asyncio.sleep(0.01)
    assert bench.published == [0.0, 0.011]


async def test_what_comes_while_workers_send_leaves_together_soon_after(bench: Bench) -> None:
    bench.coalescer.note_clients(2_000)  # looks each 8 ms
    bench.under_way = 2
    for waiting in range(1, 6):
        bench.batch(waiting)
        await asyncio.sleep(0.005)
    bench.under_way = 0
    assert bench.published == []
    await asyncio.sleep(0.1)
    assert bench.published == [0.032]


async def test_the_next_batch_does_not_wait_for_a_look(bench: Bench) -> None:
    bench.coalescer.note_clients(5_000)
    bench.under_way = 2
    bench.batch()
    await asyncio.sleep(0.003)
    bench.under_way = 0
    bench.batch(2)
    await asyncio.sleep(1)
    assert bench.published == [0.003]


async def test_nothing_waits_longer_than_a_tenth_of_a_second_for_busy_workers(bench: Bench) -> None:
    bench.coalescer.note_clients(1_000_000)
    bench.under_way = 2
    bench.batch()
    await asyncio.sleep(0.5)
    assert bench.published == [pytest.approx(coalescer.GATHER_SECONDS_MAX, abs=0.021)]
    bench.batch()  # waits from now, not from then
    assert len(bench.published) == 1
    await asyncio.sleep(0.5)
    assert len(bench.published) == 2


async def test_a_burst_does_not_pile_up(bench: Bench) -> None:
    bench.under_way = 2
    bench.batch(coalescer.UPDATES_MAX - 1)
    assert bench.published == []
    bench.batch(coalescer.UPDATES_MAX)
    assert bench.published == [0.0]


async def test_a_batch_of_nothing_does_not_begin_to_wait(bench: Bench) -> None:
    bench.under_way = 2
    bench.batch(0)
    assert bench.coalescer.since == 0.0
