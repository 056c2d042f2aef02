"""Dictionaries: when one is trained, from what, and how it comes into the logs."""

import asyncio
from collections.abc import Iterator

import msgspec
import pytest

from protocol.native import dictionary, encoder
from tests.harness import hub_stand, worker_stand
from tests.harness.hub_stand import HubStand
from tests.harness.worker_stand import pod
from typha.hub import dictionaries
from typha.ipc import messages as ipc

LIMITS = msgspec.structs.replace(
    hub_stand.LIMITS, dictionary_keys_min=100, dictionary_samples=150, dictionary_seconds=1_000_000.0
)
POD_BYTES = 300


@pytest.fixture
def stand() -> Iterator[HubStand]:
    made = HubStand(limits=LIMITS)
    yield made
    for worker in made.workers:
        worker.close()
    made.hub.close()


def fill(stand: HubStand, first: int, end: int, *, version: int = 1) -> None:
    for number in range(first, end):
        content = f"value {version} of a pod, with words that come again ".rjust(POD_BYTES, "x")
        stand.hub.apply(pod(f"pod-{number}", content, version=version))
    stand.hub.batch_end()


async def next_job(stand: HubStand) -> dictionaries.Job | None:
    """The job that is due; None if none is."""
    waiting = asyncio.ensure_future(stand.hub.dictionaries.next())
    await asyncio.sleep(0)
    if not waiting.done():
        waiting.cancel()
        return None
    return waiting.result()


async def due(stand: HubStand) -> dictionaries.Job | None:
    stand.hub.look_after_channels()
    return await next_job(stand)


def open_channel(stand: HubStand, wire_format: str) -> None:
    stand.hub.want_channel(worker_stand.FEED, wire_format)
    stand.make_snapshots()


async def test_nothing_is_trained_without_clients_that_understand_it(stand: HubStand) -> None:
    fill(stand, 0, 200)
    stand.sync()
    open_channel(stand, encoder.ZSTD)
    assert await due(stand) is None
    open_channel(stand, encoder.ZSTD_DICTIONARY)
    job = await next_job(stand)
    assert job is not None
    assert len(job.entries) == 150
    assert job.keys == 200


async def test_it_is_trained_again_when_the_feed_is_four_times_as_large_or_a_day_has_passed(stand: HubStand) -> None:
    fill(stand, 0, 99)
    stand.sync()
    open_channel(stand, encoder.ZSTD_DICTIONARY)
    assert await due(stand) is None
    fill(stand, 99, 101)
    job = await due(stand)
    assert job is not None
    assert await due(stand) is None  # while it is under way
    stand.hub.dictionary_trained(job, job.train())
    fill(stand, 101, 403)
    assert await due(stand) is None
    fill(stand, 403, 404)
    again = await due(stand)
    assert again is not None
    assert (again.number, again.keys) == (2, 404)
    stand.hub.dictionary_trained(again, None)
    assert await due(stand) is None
    stand.hub.dictionaries._policy = msgspec.structs.replace(LIMITS, dictionary_seconds=0.0)
    assert await due(stand) is not None


async def test_a_failure_is_tried_again_later(stand: HubStand) -> None:
    fill(stand, 0, 200)
    stand.sync()
    open_channel(stand, encoder.ZSTD_DICTIONARY)
    job = await next_job(stand)
    assert job is not None
    stand.hub.dictionaries.failed(job, MemoryError("no room"))
    assert stand.hub.dictionaries.of(worker_stand.FEED) is None
    assert await due(stand) is None
    stand.hub.dictionaries._policy = msgspec.structs.replace(LIMITS, dictionary_retry_seconds=-1.0)
    stand.hub.dictionaries._queue.clear()
    stand.hub.dictionaries.failed(job, MemoryError("no room"))
    assert await due(stand) is not None


async def test_the_hub_trains_in_a_thread(stand: HubStand) -> None:
    fill(stand, 0, 200)
    stand.sync()
    open_channel(stand, encoder.ZSTD_DICTIONARY)
    running = asyncio.create_task(stand.hub.run_dictionaries())
    await worker_stand.eventually(lambda: stand.hub.dictionaries.of(worker_stand.FEED) is not None)
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running


async def test_it_comes_with_the_next_batch_and_workers_know_it(stand: HubStand) -> None:
    worker = stand.add_worker()
    fill(stand, 0, 200)
    stand.sync()
    open_channel(stand, encoder.ZSTD)
    open_channel(stand, encoder.ZSTD_DICTIONARY)
    plain, channel = stand.hub.channels.values()
    fill(stand, 0, 1, version=2)
    before = channel.log.end
    assert plain.log.end == before
    job = await next_job(stand)
    assert job is not None
    made = job.train()
    assert made is not None
    worker.hear()
    stand.hub.dictionary_trained(job, made)
    assert (channel.log.end, worker.kinds()) == (before, [])
    fill(stand, 0, 1, version=3)
    [noted] = [message for message in worker.hear() if isinstance(message, ipc.NoteDictionary)]
    assert noted == ipc.NoteDictionary(channel.number, before + len(made.frame), made.frame)
    delta_bytes = channel.log.end - noted.offset
    assert delta_bytes < (plain.log.end - before) / 2
    assert plain.dictionaries == []
    newer = stand.add_worker(2)
    assert [message for message in newer.hear() if isinstance(message, ipc.NoteDictionary)] == [noted]


async def test_a_channel_that_is_opened_later_has_it_from_its_first_batch_on(stand: HubStand) -> None:
    fill(stand, 0, 200)
    stand.sync()
    open_channel(stand, encoder.ZSTD_DICTIONARY)
    job = await next_job(stand)
    assert job is not None
    stand.hub.dictionary_trained(job, job.train())
    [first] = stand.hub.channels.values()
    stand.hub._close_channel(first)
    open_channel(stand, encoder.ZSTD_DICTIONARY)
    [channel] = stand.hub.channels.values()
    assert channel.dictionaries == []
    fill(stand, 0, 1, version=2)
    assert len(channel.dictionaries) == 1
    stand.hub._close_channel(channel)
    stand.hub.look_after_channels()
    assert stand.hub.dictionaries.of(worker_stand.FEED) is None


async def test_samples_are_small_and_together_limited(stand: HubStand) -> None:
    limits = msgspec.structs.replace(LIMITS, dictionary_sample_bytes=20_000)
    stand.hub.dictionaries._policy = limits
    fill(stand, 0, 200)
    stand.put("large", size=dictionary.PAYLOAD_BYTES_MAX)
    stand.sync()
    open_channel(stand, encoder.ZSTD_DICTIONARY)
    job = await next_job(stand)
    assert job is not None
    assert 20_000 <= sum(len(entry.value) for entry in job.entries) < 20_000 + 2 * POD_BYTES
    assert all(len(entry.value) <= dictionary.PAYLOAD_BYTES_MAX for entry in job.entries)
