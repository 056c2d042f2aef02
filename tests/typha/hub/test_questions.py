"""The hub asks its workers: all that answer in time are heard, and no other."""

import asyncio
from collections.abc import Iterator

import msgspec
import pytest

from cache.state import cursor
from tests.harness import hub_stand
from typha.hub import client_lists, worker_link
from typha.ipc import messages


def one_client(number: int, node: str = "n") -> messages.ConnectedClient:
    """A client of a worker."""
    state = cursor.CursorState.FOLLOWING
    return messages.ConnectedClient(
        *(number, "10.0.0.1:5", node, "v3", "info", "", "3.33", "felix", "native", state, 0, 0.0, 1, 2, 3.0)
    )


def asked(worker: hub_stand.Worker) -> int:
    """The number of the list that the worker was asked for."""
    [request] = [message.request for message in worker.hear() if isinstance(message, messages.ListClients)]
    return request


@pytest.fixture
def stand() -> Iterator[hub_stand.HubStand]:
    made = hub_stand.HubStand()
    for number in (1, 2):
        made.add_worker(number).say(messages.Ready())
    yield made
    for worker in made.workers:
        worker.close()
    made.hub.close()


async def test_all_workers_are_asked_once_and_their_slices_put_together(stand: hub_stand.HubStand) -> None:
    first, second = stand.workers
    lists = stand.hub.client_lists
    waiting = [asyncio.create_task(lists.newest()) for _ in range(3)]
    await asyncio.sleep(0)
    numbers = asked(first), asked(second)
    first.say(messages.ClientSlice(numbers[0], [one_client(1)], False))
    second.say(messages.ClientSlice(numbers[1], [one_client(9)], True))
    first.say(messages.ClientSlice(numbers[0], [one_client(2)], True))
    found = await asyncio.gather(*waiting)
    assert found[0] is found[1] is found[2]
    assert found[0].missing == []
    assert sorted((one.worker, one.client.number) for one in found[0].clients) == [(1, 1), (1, 2), (2, 9)]
    assert not any(isinstance(message, messages.ListClients) for message in first.hear())


async def test_a_silent_worker_is_named_and_what_it_has_said_counts(
    stand: hub_stand.HubStand, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("typha.hub.questions.PATIENCE_SECONDS", 0.01)
    first, second = stand.workers
    lists = stand.hub.client_lists
    task = asyncio.create_task(lists.newest())
    await asyncio.sleep(0)
    number = asked(first)
    first.say(messages.ClientSlice(number, [one_client(1)], True))
    second.say(messages.ClientSlice(asked(second), [one_client(2)], False))  # and then nothing more
    found = await task
    assert [one.client.number for one in found.clients] == [1, 2]
    assert found.missing == [2]
    second.say(messages.ClientSlice(number, [one_client(3)], True))  # too late: nobody waits for it
    assert second.broken == []
    assert [one.client.number for one in (await lists.newest()).clients] == [1, 2]


async def test_a_late_answer_does_not_count_for_the_next_question(
    stand: hub_stand.HubStand, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("typha.hub.questions.PATIENCE_SECONDS", 0.01)
    first, second = stand.workers
    task = asyncio.create_task(stand.hub.client_lists.newest())
    await asyncio.sleep(0)
    late = asked(first)
    assert (await task).missing == [1, 2]
    monkeypatch.setattr("typha.hub.questions.PATIENCE_SECONDS", 10.0)
    lists = stand.hub.client_lists = client_lists.ClientLists(stand.hub.workers)
    lists._question._request = late + 1  # as the one before
    task = asyncio.create_task(lists.newest())
    await asyncio.sleep(0)
    number = asked(first)
    first.say(messages.ClientSlice(late, [one_client(1)], True))
    first.say(messages.ClientSlice(number, [one_client(2)], True))
    second.hear()
    second.say(messages.ClientSlice(number, [one_client(3)], True))
    assert sorted(one.client.number for one in (await task).clients) == [2, 3]


async def test_answers_to_no_question_are_dropped(stand: hub_stand.HubStand) -> None:
    worker = stand.workers[0]
    for number in (0, 1, 2**40):
        worker.say(messages.ClientSlice(number, [one_client(1)], True))
    assert worker.broken == []
    assert stand.hub.client_lists._question._waiting == {}


@pytest.mark.parametrize(
    "message",
    [
        ["ClientSlice", 1, [], True, 0],
        ["ClientSlice", -1, [], True],
        ["ClientSlice", 1, [[1, *[""] * 8, "held", 1 << 63, 0.0, 0, 0, 0.0]], True],
        ["ClientSlice", 1, [[1, "a" * 254, *[""] * 7, "held", 0, 0.0, 0, 0, 0.0]], True],
        ["ClientSlice", 1, [[1, *[""] * 8, "asleep", 0, 0.0, 0, 0, 0.0]], True],
        ["ClientSlice", 1, [[1, *[""] * 8, "held", -1, 0.0, 0, 0, 0.0]], True],
        ["ClientSlice", 1, [[1, *[""] * 8, "held", 0, float("nan"), 0, 0, 0.0]], True],
        ["ClientSlice", 1, [[1, *[""] * 8, "held", 0, 0.0, 0, 0, 0.0]] * 1001, True],
        ["DescriptionPart", 1, 1, "x" * 9000, True],
    ],
    ids=["more", "negative", "large", "long", "state", "lag", "nan", "many", "text"],
)
async def test_a_worker_that_says_what_none_may_say_is_broken(stand: hub_stand.HubStand, message: object) -> None:
    worker = stand.workers[0]
    worker.link.socket.send(msgspec.msgpack.encode(message))
    stand.hub.hear(worker.handle)
    assert worker.broken


async def test_a_worker_that_dies_meanwhile_is_missing(
    stand: hub_stand.HubStand, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("typha.hub.questions.PATIENCE_SECONDS", 0.01)
    stand.hub.remove_worker(2)
    first = stand.workers[0]
    lists = client_lists.ClientLists(stand.hub.workers)
    task = asyncio.create_task(lists.newest())
    await asyncio.sleep(0)
    number = asked(first)
    stand.hub.remove_worker(1)
    found = await task
    assert (found.clients, found.missing) == ([], [1])
    assert isinstance(first.handle, worker_link.WorkerLink)
    assert number == 1
