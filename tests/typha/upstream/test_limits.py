"""How much an upstream may send: what all its feeds take counts together, and time is counted in virtual seconds."""

import asyncio

import pytest

from cache.feeds import followed
from protocol import messages
from typha.upstream import limits

VALUE = b"x" * 1000


def update(key: str, value: bytes | None = VALUE) -> messages.Update:
    return messages.Update(key, value, "1", int(messages.UpdateType.UPDATED))


def feeds(*names: str) -> list[followed.FollowedFeed]:
    return [followed.FollowedFeed(name) for name in names]


def test_the_feeds_share_the_room() -> None:
    one, two = feeds("one", "two")
    room = limits.Room(2 * (1000 + limits.KEY_BYTES + 1), lambda: [one, two])
    room.take(one, [update("a")], is_in_snapshot=False)
    one.receive([update("a")])
    room.take(two, [update("b")], is_in_snapshot=False)
    two.receive([update("b")])
    two.take()
    with pytest.raises(limits.Exceeded):
        room.take(one, [update("c", b"")], is_in_snapshot=False)
    room.take(one, [update("a", None)], is_in_snapshot=False)


def test_a_snapshot_counts_what_is_not_held_and_is_forgotten() -> None:
    one, two = feeds("one", "two")
    one.receive([update("a")])
    one.take()
    room = limits.Room(2 * (1000 + limits.KEY_BYTES + 1), lambda: [one, two])
    room.begin_snapshot("one", 1)
    for _ in range(9):
        room.take(one, [update("a")], is_in_snapshot=True)
    room.take(one, [update("b")], is_in_snapshot=True)
    with pytest.raises(limits.Exceeded):
        room.take(two, [update("c")], is_in_snapshot=False)
    room.forget_snapshot("one")
    room.take(two, [update("c")], is_in_snapshot=False)


def test_a_snapshot_of_too_many_keys_is_refused_before_it_comes() -> None:
    [one] = feeds("one")
    room = limits.Room(10 * limits.KEY_BYTES, lambda: [one])
    room.begin_snapshot("one", 10)
    with pytest.raises(limits.Exceeded, match="11 keys"):
        room.begin_snapshot("one", 11)


def test_the_room_is_a_share_of_the_memory() -> None:
    assert limits.bytes_max(None) == limits.BYTES_MAX
    assert limits.bytes_max(1 << 30) == 1 << 29
    assert limits.bytes_max(1 << 40) == limits.BYTES_MAX


@pytest.mark.looptime
@pytest.mark.usefixtures("virtual_time")
async def test_events_pass_at_their_pace_and_a_second_of_them_at_once() -> None:
    loop = asyncio.get_running_loop()
    pace = limits.Pace(10)
    began_at = loop.time()
    for _ in range(10):
        await pace.turn()
    assert loop.time() == began_at
    for _ in range(20):
        await pace.turn()
    assert loop.time() - began_at == pytest.approx(2.0)
    await asyncio.sleep(60)
    resumed_at = loop.time()
    for _ in range(11):
        await pace.turn()
    assert loop.time() - resumed_at == pytest.approx(0.1)
