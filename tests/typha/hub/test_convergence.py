"""How far the fleet is, by what workers report."""

import itertools

from tests.harness.hub_stand import HubStand, Worker
from tests.harness.worker_stand import FEED
from typha import clock
from typha.hub import commit_times, convergence
from typha.ipc import messages as ipc


def report(
    worker: Worker, reporting: int = 1, applied: int = 0, lowest: int = 0, reached: int = 0, at: float = 0.0
) -> None:
    worker.say(ipc.ReportApplied(FEED, reporting, applied, lowest, reached, at))


def asked(worker: Worker) -> list[int]:
    return [message.sequence for message in worker.hear() if isinstance(message, ipc.AwaitApplied)]


def stand_of(count: int) -> tuple[HubStand, list[Worker]]:
    stand = HubStand()
    workers = [stand.add_worker(number + 1) for number in range(count)]
    stand.open()
    return stand, workers


def close(stand: HubStand) -> None:
    stand.hub.close()
    for worker in stand.workers:
        worker.close()


def test_nobody_is_asked_while_nobody_reports() -> None:
    stand, [worker] = stand_of(1)
    stand.put("a")
    report(worker, reporting=0)
    stand.put("b")
    assert asked(worker) == []
    found = stand.hub.convergence.reported(FEED, stand.hub.publisher.commit_times[FEED], clock.monotonic())
    assert found == convergence.NOBODY
    close(stand)


def test_the_slowest_worker_says_when_a_change_is_applied_everywhere() -> None:
    stand, [first, second] = stand_of(2)
    report(first)
    report(second, reporting=0)
    stand.put("a")
    sequence = stand.hub.feeds[FEED].store.sequence
    committed_at = stand.hub.publisher.commit_times[FEED].newest_at
    stand.put("b")  # one at a time
    assert asked(first) == asked(second) == [sequence]
    report(first, reached=sequence, at=committed_at + 0.3)
    stand.hub.convergence.look(committed_at + 1.0)
    assert not stand.hub.convergence.seconds
    report(second, reporting=0, reached=sequence)
    stand.hub.convergence.look(committed_at + 2.0)
    counts = stand.hub.convergence.seconds[FEED]
    assert sum(counts.counts) == 1
    assert round(counts.seconds, 6) == 0.3
    close(stand)


def test_a_worker_that_dies_and_a_client_that_hangs_stop_nothing() -> None:
    stand, [first, second] = stand_of(2)
    report(first)
    report(second)
    stand.put("a")
    sequence = stand.hub.feeds[FEED].store.sequence
    committed_at = stand.hub.publisher.commit_times[FEED].newest_at
    report(first, reached=sequence, at=committed_at + 0.25)
    stand.hub.remove_worker(2)
    stand.hub.convergence.look(committed_at + 2.0)
    counts = stand.hub.convergence.seconds[FEED]
    assert counts.seconds == 0.25
    stand.hub.convergence._next_at[FEED] = 0.0
    stand.put("b")
    committed_at = stand.hub.publisher.commit_times[FEED].newest_at
    stand.hub.convergence.look(committed_at + convergence.PATIENCE_SECONDS - 1.0)
    assert sum(counts.counts) == 1
    stand.hub.convergence.look(committed_at + convergence.PATIENCE_SECONDS + 1.0)
    assert sum(counts.counts) == 2
    assert counts.counts[-1] == 1
    close(stand)


def test_a_lying_worker_changes_no_time_by_much() -> None:
    stand, [worker] = stand_of(1)
    report(worker)
    stand.put("a")
    sequence = stand.hub.feeds[FEED].store.sequence
    committed_at = stand.hub.publisher.commit_times[FEED].newest_at
    report(worker, reached=sequence, at=committed_at + 1e8)
    stand.hub.convergence.look(committed_at + 2.0)
    assert round(stand.hub.convergence.seconds[FEED].seconds, 6) == 2.0
    worker.say(ipc.ReportApplied(FEED, reporting=1, applied=2, lowest=0))
    assert len(worker.broken) == 1
    close(stand)


def test_the_lag_is_the_age_of_the_oldest_change_that_somebody_lacks() -> None:
    stand, [first, second] = stand_of(2)
    stand.put("a")
    has_a = stand.hub.feeds[FEED].store.sequence
    stand.put("b")
    times = stand.hub.publisher.commit_times[FEED]
    report(first, reporting=3, applied=2, lowest=has_a)
    report(second, reporting=0, lowest=0)
    found = stand.hub.convergence.reported(FEED, times, times.newest_at + 7.0)
    assert (found.reporting, found.applied) == (3, 2)
    assert 7.0 <= found.lag_seconds < 8.0
    report(first, reporting=3, applied=3, lowest=has_a + 1)
    assert stand.hub.convergence.reported(FEED, times, times.newest_at + 7.0).lag_seconds == 0.0
    close(stand)


def test_ages_of_what_follows_a_sequence() -> None:
    times = commit_times.CommitTimes()
    assert times.age_of_next(0, 5.0) == 0.0
    for number in itertools.count(1):
        times.note(number * 10, float(number * 60))
        if number == 5000:
            break
    now = 5000 * 60.0 + 1.0
    assert times.age_of_next(50_000, now) == 0.0
    assert times.age_of_next(49_999, now) == 1.0
    assert times.age_of_next(49_990, now) == 1.0
    assert times.age_of_next(49_989, now) == 61.0
    assert times.age_of_next(0, now) > 86_000.0
    assert (times.newest_sequence, times.newest_at) == (50_000, now - 1.0)
