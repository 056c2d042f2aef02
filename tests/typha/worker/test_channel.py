"""A worker's channels: asked for once, which snapshot newcomers get, and how old a client's backlog is."""

import asyncio
import socket

import msgspec
import pytest
from structlog import testing

from protocol import formats, messages
from protocol.native import encoder
from protocol.subscriptions import Subscription
from tests.harness import typha_peer
from tests.harness.worker_stand import FAST, FEED, HUB_LIMITS, WorkerStand, pod
from tests.typha.conftest import OpenStage
from typha.hub.policy import HubPolicy
from typha.ipc import link
from typha.ipc import messages as ipc
from typha.ipc.selections import SELECTIONS_MAX
from typha.worker import channel, client, policy

NEVER_FRESH = msgspec.structs.replace(FAST, snapshot_fresh_seconds=0.0)
REBUILDS_GLADLY = msgspec.structs.replace(HUB_LIMITS, snapshot_fresh_seconds=0.0, rebuild_share_max=1e9)


class Unsent:
    """A link's end that keeps messages instead of sending them."""

    def __init__(self) -> None:
        self.messages: list[object] = []

    def send(self, message: object, /) -> None:
        """Keeps the message."""
        self.messages.append(message)


def worker_channel(hub: link.Sender) -> channel.WorkerChannel:
    """A channel in the native format, not opened yet."""
    return channel.WorkerChannel("web", formats.make_encoder(encoder.PLAIN), hub, policy.Policy())


async def test_a_format_is_wanted_by_its_first_client_and_once(stage: WorkerStand) -> None:
    assert stage.hub.channels == {}
    peers = [await stage.subscribe() for _ in range(3)]
    await stage.converged(*peers)
    assert list(stage.hub.channels) == [(FEED, "native", None)]
    peers.append(await stage.subscribe(features=frozenset({"zstd"})))
    await stage.converged(*peers)
    assert len(stage.hub.channels) == 2
    assert [channel.number for channel in stage.hub.channels.values()] == [1, 2]


def test_a_channel_is_known_by_name_before_the_hub_opens_it_and_by_number_after() -> None:
    hub = Unsent()
    channels = channel.Channels(hub, policy.Policy())
    wanted = channels.wanted("web", encoder.PLAIN)
    assert channels.wanted("web", encoder.PLAIN) is wanted
    assert hub.messages == [ipc.WantChannel("web", encoder.PLAIN)]
    assert (list(channels), channels.numbered()) == ([wanted], [])
    channels.opened(ipc.OpenChannel(7, "web", encoder.PLAIN, 0, 0))
    assert channels[7] is wanted
    assert channels.numbered() == [(7, wanted)]
    channels.remove(wanted)
    assert (list(channels), channels.numbered()) == ([], [])


async def changed_stand(open_stage: OpenStage, limits: policy.Policy, hub_limits: HubPolicy) -> WorkerStand:
    """A client of Typha's protocol has a snapshot of two objects. Then one changes, and the other is deleted."""
    stage = await open_stage(limits, hub_limits=hub_limits, feed_name=typha_peer.FELIX)
    stage.put(pod("kept"), pod("gone"))
    stage.in_sync()
    await stage.converged(await typha_peer.join(stage))
    stage.put(pod("kept", "changed", version=2))
    stage.delete("gone")
    return stage


async def test_newcomers_of_typhas_protocol_are_not_led_through_the_past(open_stage: OpenStage) -> None:
    stage = await changed_stand(open_stage, NEVER_FRESH, REBUILDS_GLADLY)
    newcomers = [await typha_peer.join(stage) for _ in range(3)]
    await stage.converged(*newcomers)
    assert [newcomer.types for newcomer in newcomers] == [[messages.UpdateType.NEW]] * 3
    assert stage.channel.snapshots_built == 2
    await stage.converged(await typha_peer.join(stage))
    assert stage.channel.snapshots_built == 2  # there is no log after this one


async def test_snapshots_of_the_last_second_serve_all_newcomers(open_stage: OpenStage) -> None:
    limits = msgspec.structs.replace(FAST, snapshot_fresh_seconds=3600.0)
    hub_limits = msgspec.structs.replace(HUB_LIMITS, snapshot_fresh_seconds=3600.0)
    stage = await changed_stand(open_stage, limits, hub_limits)
    newcomer = await typha_peer.join(stage)
    await stage.converged(newcomer)
    kinds = messages.UpdateType
    assert newcomer.types == [kinds.NEW, kinds.NEW, kinds.UPDATED, kinds.DELETED]
    assert stage.channel.snapshots_built == 1


async def test_the_hub_may_think_that_a_snapshot_has_cost_too_much_to_make_it_again(open_stage: OpenStage) -> None:
    limits = msgspec.structs.replace(FAST, snapshot_fresh_seconds=0.1)
    hub_limits = msgspec.structs.replace(HUB_LIMITS, snapshot_fresh_seconds=0.0, rebuild_share_max=1e-9)
    stage = await changed_stand(open_stage, limits, hub_limits)
    await asyncio.sleep(2 * limits.snapshot_fresh_seconds)
    newcomers = [await typha_peer.join(stage) for _ in range(3)]
    await stage.converged(*newcomers)
    assert stage.channel.snapshots_built == 1


async def test_newcomers_of_the_native_protocol_take_any_snapshot(open_stage: OpenStage) -> None:
    stage = await open_stage(NEVER_FRESH, hub_limits=REBUILDS_GLADLY)
    stage.put(*(pod(name, "x") for name in ("a", "b", "c")))
    stage.in_sync()
    await stage.converged(await stage.subscribe())
    stage.put(pod("a", "changed", version=99))
    await stage.converged(await stage.subscribe())
    assert stage.channel.snapshots_built == 1


def test_the_age_of_a_backlog_is_known_far_back_too() -> None:
    opened = worker_channel(Unsent())
    opened.open(1, start=0, start_sequence=0)
    for number in range(4000):  # 200 s at 20 a second
        opened.publish(100 * (number + 1), number + 1, ipc.UpdateTimes(1000.0 + number / 20))
    now = 1200.0
    assert opened.age_of(400_000, now) == 0.0
    assert opened.age_of(399_900, now) == pytest.approx(0.05)
    assert opened.age_of(390_000, now) == pytest.approx(5.0, abs=0.06)
    for offset in (0, 100, 50_000, 250_000):
        assert opened.age_of(offset, now) == pytest.approx(200.0 - offset / 2000, abs=1.1)


def test_a_client_is_not_moved_back_to_the_end_of_a_log_that_is_not_published_yet() -> None:
    """A snapshot may be offered a moment before the log up to it is published."""
    of_nodes = channel.WorkerChannel(
        "web", formats.make_encoder(encoder.PLAIN), Unsent(), policy.Policy(), Subscription(own_node=True)
    )
    of_nodes.open(1, start=100, start_sequence=7)
    ours, theirs = socket.socketpair()
    with ours, theirs:
        reader = client.Client(ours, "127.0.0.1:1", number=1, slot=0, now=0.0)
        reader.offset = 500
        of_nodes.pass_over(reader)
        assert reader.offset == 500


def test_too_many_subscriptions_are_logged_once_a_minute() -> None:
    channels = channel.Channels(Unsent(), policy.Policy())
    for number in range(SELECTIONS_MAX):
        channels.wanted("web", encoder.PLAIN, Subscription(prefixes=(f"/{number}",)), asker=f"10.0.0.{number}")
    with testing.capture_logs() as lines:
        assert channels.has_room_for("web", Subscription(prefixes=("/0",)), "10.0.9.9")
        for number in range(100, 300):
            assert not channels.has_room_for("web", Subscription(prefixes=(f"/{number}\n",)), "10.0.9.9")
    [line] = lines
    assert (line["log_level"], line["subscription"], line["clients"]) == ("warning", "prefixes=/100?", 1)
    assert line["address"] == "10.0.9.9"
