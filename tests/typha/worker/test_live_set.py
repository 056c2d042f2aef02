"""The pass's lists: whatever comes and goes, each client keeps its own offset and time."""

import contextlib
import socket
from collections.abc import Iterator

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cache.feeds.calico import syncers
from protocol.typha import encoder
from typha.worker import channel, client

Made = list[client.Client]


@pytest.fixture
def made() -> Iterator[Made]:
    """Eight clients of one channel, none in the pass."""
    with contextlib.ExitStack() as stack:
        found = []
        for number in range(8):
            ends = socket.socketpair()
            for end in ends:
                stack.callback(end.close)
            found.append(client.Client(ends[0], "peer", number=number, slot=0, now=float(number)))
        yield found


def channel_of(made: Made) -> channel.WorkerChannel:
    """A new channel, that all belong to."""
    view = channel.WorkerChannel(syncers.FELIX, encoder.TyphaEncoder(compress=False), lambda _: None)
    for one in made:
        one.channel, one.index, one.offset = view, -1, 0
    return view


steps = st.lists(
    st.tuples(st.sampled_from(["move", "send", "turn"]), st.integers(0, 7), st.integers(1, 1 << 40)), max_size=60
)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(steps)
def test_each_keeps_its_own_through_coming_and_going(made: Made, taken: list[tuple[str, int, int]]) -> None:
    view = channel_of(made)
    wanted = {one: (0, one.sent_at) for one in made}
    inside: set[client.Client] = set()
    for what, number, value in taken:
        one = made[number]
        if what == "move":
            one.offset += value
            wanted[one] = one.offset, wanted[one][1]
        elif what == "send":
            one.sent_at = float(value)
            wanted[one] = wanted[one][0], float(value)
        elif one in inside:
            inside.remove(one)
            view.remove_live(one)
        else:
            inside.add(one)
            view.add_live(one)
        assert {each: (each.offset, each.sent_at) for each in made} == wanted
        assert set(view.live) == inside
        assert len(view.live) == len(inside)
        assert all((each.index >= 0) == (each in inside) for each in made)
        places = zip(view.live, view.live.descriptors, strict=True)
        assert all(each.fd == descriptor for each, descriptor in places)


def test_a_pass_moves_all_by_writing_the_lists(made: Made) -> None:
    view = channel_of(made)
    for one in made:
        view.add_live(one)
    view.live.offsets[:] = [700] * len(made)
    view.live.sent_at[2] = 9.5
    assert [one.offset for one in made] == [700] * len(made)
    view.remove_live(made[2])
    assert (made[2].offset, made[2].sent_at, made[2].index) == (700, 9.5, -1)
    assert made[7].index == 2
