"""The live set: whichever clients join and leave, each keeps its own offset and send time."""

import contextlib
import socket
from collections.abc import Iterator

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cache.feeds.calico import syncers
from protocol.typha import encoder
from typha.worker import channel, client, policy

Made = list[client.Client]


class NoHub:
    """A link's end that drops messages."""

    def send(self, message: object, /) -> None:
        """Drops the message."""


@pytest.fixture
def made() -> Iterator[Made]:
    """Eight clients of one channel, none in the live set."""
    with contextlib.ExitStack() as stack:
        found = []
        for number in range(8):
            ends = socket.socketpair()
            for end in ends:
                stack.callback(end.close)
            found.append(client.Client(ends[0], "peer", number=number, slot=0, now=float(number)))
        yield found


def channel_of(made: Made) -> channel.WorkerChannel:
    """A new channel to which all of them belong."""
    opened = channel.WorkerChannel(syncers.FELIX, encoder.TyphaEncoder(compress=False), NoHub(), policy.Policy())
    for one in made:
        one.channel, one.index, one.offset = opened, -1, 0
    return opened


steps = st.lists(
    st.tuples(st.sampled_from(["move", "send", "turn"]), st.integers(0, 7), st.integers(1, 1 << 40)), max_size=60
)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(steps)
def test_each_client_keeps_its_own_through_joins_and_leaves(made: Made, taken: list[tuple[str, int, int]]) -> None:
    opened = channel_of(made)
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
            opened.remove_live(one)
        else:
            inside.add(one)
            opened.add_live(one)
        assert {each: (each.offset, each.sent_at) for each in made} == wanted
        assert set(opened.live) == inside
        assert len(opened.live) == len(inside)
        assert all((each.index >= 0) == (each in inside) for each in made)
        places = zip(opened.live, opened.live.descriptors, strict=True)
        assert all(each.fd == descriptor for each, descriptor in places)


def test_a_pass_moves_a_run_of_clients_at_once(made: Made) -> None:
    opened = channel_of(made)
    for one in made:
        opened.add_live(one)
    times = [one.sent_at for one in made]
    opened.live.note_sent(0, len(made), 700, 9.0)
    opened.live.note_sent(2, 3, 900, 9.5)
    opened.live.note_sent(5, 0, 1000, 10.0)
    assert [one.offset for one in made] == [700, 700, 900, 900, 900, 700, 700, 700]
    assert [one.sent_at for one in made] == [9.0, 9.0, 9.5, 9.5, 9.5, 9.0, 9.0, 9.0] != times
    assert len(opened.live.offsets) == len(opened.live.sent_at) == len(made)
    opened.live.offsets[:] = [700] * len(made)
    opened.live.sent_at[2] = 9.5
    assert [one.offset for one in made] == [700] * len(made)
    opened.remove_live(made[2])
    assert (made[2].offset, made[2].sent_at, made[2].index) == (700, 9.5, -1)
    assert made[7].index == 2
