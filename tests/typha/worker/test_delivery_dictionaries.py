"""Clients of a channel with a dictionary, on real sockets: each has it before the first frame that needs it."""

import functools
import random

import msgspec
import pytest

from protocol import messages
from tests.harness import worker_stand
from tests.harness.returning import FEATURES, Returning
from tests.harness.worker_stand import FAST, HUB_LIMITS, WorkerStand, pod
from tests.typha.conftest import OpenStage
from tests.typha.worker.test_delivery_resume import SMALL_LOG, ReturningPeer, come_back, fill, leave

COMPRESSION = frozenset({"zstd", "zstd-dictionary"})
LIMITS = msgspec.structs.replace(HUB_LIMITS, dictionary_seconds=0.0)
SMALL = msgspec.structs.replace(SMALL_LOG, dictionary_seconds=0.0)


def client() -> Returning:
    return Returning(worker_stand.FEED, features=FEATURES | COMPRESSION)


async def train(stage: WorkerStand) -> None:
    """Another dictionary; it holds from the next change on."""
    stage.hub.look_after_channels()
    job = await stage.hub.dictionaries.next()
    made = job.train()
    assert made is not None
    stage.hub.dictionary_trained(job, made)


def kinds(one: Returning) -> list[type[messages.Message]]:
    """What it has received; pings come at any time."""
    return [kind for kind in one.kinds if kind is not messages.Ping]


def is_current(peer: ReturningPeer, stage: WorkerStand) -> bool:
    return peer.client.entries == stage.content


def change(stage: WorkerStand, version: int) -> None:
    stage.put(pod("pod-1", f"new {version}".ljust(500, "x"), version=version))


async def test_before_and_after_the_training_and_without_the_feature(open_stage: OpenStage) -> None:
    stage = await open_stage(FAST, hub_limits=LIMITS)
    fill(stage)
    stage.in_sync()
    early, plain = client(), Returning(worker_stand.FEED, features=FEATURES | {"zstd"})
    peers = [await come_back(stage, one) for one in (early, plain)]
    await train(stage)
    change(stage, 2)
    change(stage, 3)
    for peer in peers:
        await peer.read_until(functools.partial(is_current, peer, stage))
    assert kinds(early)[-3:] == [messages.Dictionary, messages.Updates, messages.Updates]
    assert messages.Dictionary not in kinds(plain)
    assert plain.received_bytes < 1_000_000
    in_log, after_it = client(), client()
    await come_back(stage, in_log)
    assert kinds(in_log).count(messages.Dictionary) == 1
    for channel in stage.hub.channels.values():
        stage.hub.snapshots.request(channel)
    stage.make_snapshots()
    peer = await come_back(stage, after_it)
    assert kinds(after_it)[:3] == [messages.ServerHello, messages.Dictionary, messages.SnapshotBegin]
    change(stage, 4)
    await peer.read_until(lambda: after_it.entries == stage.content)
    assert kinds(after_it).count(messages.Dictionary) == 1
    assert stage.broken == []


@pytest.mark.parametrize("is_trained_before", [True, False])
async def test_back_in_the_log(open_stage: OpenStage, is_trained_before: bool) -> None:
    stage = await open_stage(FAST, hub_limits=LIMITS)
    fill(stage)
    stage.in_sync()
    one = client()
    peer = await come_back(stage, one)
    if is_trained_before:
        await train(stage)
    change(stage, 2)
    await peer.read_until(lambda: one.entries == stage.content)
    await leave(stage, peer)
    await train(stage)
    change(stage, 3)
    change(stage, 4)
    await come_back(stage, one)
    assert kinds(one)[:4] == [messages.ServerHello, messages.Dictionary, messages.Updates, messages.Updates]
    assert messages.SnapshotBegin not in kinds(one)


@pytest.mark.parametrize("is_trained_before", [True, False])
async def test_back_by_blocks(open_stage: OpenStage, is_trained_before: bool) -> None:
    stage = await open_stage(FAST, hub_limits=SMALL)
    fill(stage)
    stage.in_sync()
    one, other = client(), client()
    stays = await come_back(stage, other)
    if is_trained_before:
        await train(stage)
        change(stage, 2)
        await stays.read_until(lambda: other.entries == stage.content)
    await leave(stage, await come_back(stage, one))
    for version in range(3, 153):
        if version == 50:
            await train(stage)
        stage.put(pod("pod-7", random.Random(version).randbytes(15_000).hex(), version=version))
        change(stage, version)
        stays.read()
    await stays.read_until(lambda: other.entries == stage.content)
    peer = await come_back(stage, one)
    assert messages.SnapshotBegin not in kinds(one)
    assert kinds(one)[:3] == [messages.ServerHello, messages.Dictionary, messages.Status]
    change(stage, 1000)
    await peer.read_until(lambda: one.entries == stage.content)
    assert kinds(one).count(messages.Dictionary) == 1
