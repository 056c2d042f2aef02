"""The list of clients that a worker makes for operators, on real sockets."""

import asyncio

import msgspec
import pytest

from cache.state import cursor
from protocol import messages as protocol_messages
from protocol.typha import messages as typha
from tests.harness.worker_stand import FEED, WorkerStand, eventually, pod
from typha.hub import client_lists, worker_link
from typha.ipc import link, messages
from typha.worker import client_list, policy, transport


async def listed(stage: WorkerStand) -> dict[str, messages.ConnectedClient]:
    """The clients by address."""
    stage.hub.client_lists = client_lists.ClientLists(stage.hub.workers)  # a list of now
    found = await stage.hub.client_lists.newest()
    assert found.missing == []
    assert {one.worker for one in found.clients} <= {1}
    return {one.client.address: one.client for one in found.clients}


async def test_says_where_each_client_stands(stage: WorkerStand) -> None:
    await eventually(lambda: stage.handle.ready)
    stage.put(pod("another"))
    good, slow, silent = await stage.subscribe(), await stage.subscribe(), await stage.connect()
    await stage.converged(good, slow)
    blocked = await stage.block(slow)
    await stage.converged(good)
    by_address = await listed(stage)
    assert len(by_address) == 3
    current, behind = by_address[(await stage.client_of(good)).address], by_address[blocked.address]
    assert (current.node, current.feed, current.wire_format) == ("test", FEED, "native")
    assert current.state is behind.state is cursor.CursorState.FOLLOWING
    assert current.sequence == stage.feed.store.sequence > behind.sequence > 0
    assert (current.lag_bytes, current.lag_seconds) == (0, 0.0)
    assert behind.lag_bytes == stage.channel.log.end - blocked.offset > 0
    assert behind.lag_seconds > 0.0
    assert current.bytes_sent == len(good.received)
    assert current.number == (await stage.client_of(good)).number
    new = by_address[(await stage.client_of(silent)).address]
    assert (new.state, new.node, new.feed, new.sequence) == (cursor.CursorState.HANDSHAKE, "", "", 0)
    assert new.age_seconds < current.age_seconds


async def test_a_client_that_waits_for_a_snapshot_is_held_and_has_nothing(stage: WorkerStand) -> None:
    await eventually(lambda: stage.handle.ready)
    stage.holds_snapshots = True
    await stage.subscribe()
    held = cursor.CursorState.HELD
    await eventually(lambda: any(one.state is held for one in stage.server.poller.clients.values()))
    [one] = (await listed(stage)).values()
    assert (one.state, one.sequence, one.feed) == (held, 0, FEED)
    assert one.lag_seconds > 0.0


async def test_slices_are_small_and_have_every_client_once(stage: WorkerStand) -> None:
    for _ in range(150):
        await stage.subscribe()
    await eventually(lambda: len(stage.server.poller.clients) == 150)
    made = client_list.ClientList(
        7, stage.server.poller.clients, transport.PlainTransport(), policy.Policy(), now=1000.0
    )
    slices = [made.next_slice(1000.0)]
    while not slices[-1].is_last:
        slices.append(made.next_slice(1000.0))
    assert len(slices) > 1
    assert {one.request for one in slices} == {7}
    found = [one.number for part in slices for one in part.clients]
    assert sorted(found) == sorted(one.number for one in stage.server.poller.clients.values())
    for part in slices:
        assert len(part.clients) < 150
        assert len(msgspec.msgpack.encode(part)) < messages.SLICE_BYTES + 1024


async def test_names_of_wide_characters_do_not_make_a_list_longer(stage: WorkerStand) -> None:
    peer = await stage.connect()
    peer.say(protocol_messages.ClientHello(feed=stage.feed.name, agent="ab" + "\U0001f600" * messages.TEXT_CHARS_MAX))
    current = await stage.client_of(peer)
    await eventually(lambda: current.adapter is not None and current.adapter.identity.node)
    made = client_list.ClientList(1, stage.server.poller.clients, transport.PlainTransport(), policy.Policy(), now=0.0)
    [one] = made.next_slice(0.0).clients
    assert one.node == "ab" + "\U0001f600" * 62
    assert len(one.node.encode()) <= messages.TEXT_CHARS_MAX


async def test_a_client_that_has_gone_meanwhile_is_left_out(stage: WorkerStand) -> None:
    stays, goes = await stage.subscribe(), await stage.subscribe()
    gone, left = await stage.client_of(goes), await stage.client_of(stays)
    clients = stage.server.poller.clients
    made = client_list.ClientList(1, clients, transport.PlainTransport(), policy.Policy(), now=0.0)
    goes.close()
    await eventually(lambda: gone.fd not in clients or clients[gone.fd] is not gone)
    assert [one.number for one in made.next_slice(0.0).clients] == [left.number]


def test_the_longest_texts_fit_a_datagram() -> None:
    text = "\U0001f600" * messages.TEXT_CHARS_MAX
    one = messages.ConnectedClient(
        *(1, text, text, text, text, text, text, text, text, cursor.CursorState.HELD, 1, 1.0, 1, 1, 1.0)
    )
    count = messages.SLICE_BYTES // (8 * len(text.encode())) + 1
    encoded = msgspec.msgpack.encode(messages.ClientSlice(1, [one] * count, False))
    assert len(encoded) < link.MAX_DATAGRAM_BYTES
    assert messages.FOR_HUB.decode(encoded) == messages.ClientSlice(1, [one] * count, False)


def test_answers_with_the_longest_texts_are_no_flood() -> None:
    """A worker that answers both questions at once, beside its reports."""
    text = "\U0001f600" * messages.TEXT_CHARS_MAX
    fields = [1, *[text] * 8, "held", 1, 1.0, 1, 1, 1.0]
    one = msgspec.convert(fields, messages.ConnectedClient)
    slice_bytes = messages.SLICE_BYTES + len(msgspec.msgpack.encode(one))
    part_bytes = 4 * messages.DESCRIPTION_CHARS
    in_a_second = (slice_bytes + part_bytes) / messages.SLICE_SECONDS
    assert in_a_second < 0.9 * worker_link.BYTES_PER_SECOND_MAX


@pytest.mark.parametrize(
    ("hostname", "node"), [("n1", "n1"), ("x" * 100_000, "x" * 253), ("a\x1b[2Jb\ud800", "a?[2Jb?"), ("", "")]
)
def test_what_a_client_says_of_itself_is_cut_and_printable(hostname: str, node: str) -> None:
    assert typha.printable(hostname, messages.TEXT_CHARS_MAX) == node


async def test_an_unfinished_list_is_given_up_and_a_new_one_replaces_it(
    stage: WorkerStand, monkeypatch: pytest.MonkeyPatch
) -> None:
    clients = stage.server.poller.clients
    made = client_list.ClientList(1, clients, transport.PlainTransport(), policy.Policy(), now=100.0)
    assert not made.is_too_late(100.0 + messages.LIST_SECONDS_MAX)
    assert made.is_too_late(100.1 + messages.LIST_SECONDS_MAX)
    await eventually(lambda: stage.handle.ready)
    await stage.subscribe()
    await eventually(lambda: len(clients) == 1)
    seen: list[int] = []
    monkeypatch.setattr(stage.hub.client_lists, "take", lambda worker, message: seen.append(message.request))
    stage.handle.send(messages.ListClients(1))
    stage.handle.send(messages.ListClients(2))
    await eventually(lambda: seen)
    await asyncio.sleep(0)
    assert seen == [2]
