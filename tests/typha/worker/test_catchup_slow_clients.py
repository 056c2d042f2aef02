"""Slow clients that read a catch-up block for long while others wait for room: on real sockets, both protocols."""

import asyncio

import msgspec
import pytest

from cache.state.cursor import CursorState
from tests.harness import worker_stand
from tests.harness.worker_stand import WorkerStand, eventually, pod
from tests.typha.conftest import OpenStage
from tests.typha.worker.test_catchup import (
    CATCHING_UP,
    IN_SYNC,
    KIBIBYTE,
    PATIENT,
    Join,
    all_kinds,
    fall_out,
    native,
    native_zstd,
    noise,
    opened,
)
from typha.worker import client

pytestmark = pytest.mark.slow


async def stand_in_a_block(stage: WorkerStand, slow: worker_stand.Peer) -> client.Client:
    """Lets a client fall out of the log, then read until it is inside a block, and no further."""
    fallen = await fall_out(stage, slow)
    stage.put(*(pod(f"p{number}", noise(number, 10_000), version=5) for number in range(100)))
    while fallen.block is None or not fallen.position:
        slow.read(2000)
        await asyncio.sleep(0.001)
    await eventually(lambda: fallen.waiting)
    return fallen


@all_kinds
async def test_a_client_that_reads_a_block_for_long_keeps_no_other_waiting(open_stage: OpenStage, join: Join) -> None:
    limits = msgspec.structs.replace(PATIENT, catch_up_blocks=1, catch_up_patience_seconds=0.2)
    stage = await opened(open_stage, limits)
    slow, other = await join(stage), await join(stage)
    await stage.converged(slow, other)
    stuck = await stand_in_a_block(stage, slow)
    await fall_out(stage, other)
    await stage.converged(other)
    assert stuck.state is CursorState.CATCHING_UP
    assert stuck.block is None
    assert stuck.tail, "it stands inside a frame, and has read nothing since"
    await stage.converged(slow)
    is_native = join in (native, native_zstd)
    assert slow.told == ([IN_SYNC, CATCHING_UP, IN_SYNC] if is_native else [IN_SYNC])
    assert slow.snapshots <= 1
    assert stage.disconnects == {}
    assert stage.server.stats.counts.catch_ups == 2
    stage.server.catch_up.tidy()
    assert not stage.server.catch_up._readers
    assert not stage.server.catch_up._rests


async def test_a_block_is_not_left_while_there_is_room(open_stage: OpenStage) -> None:
    limits = msgspec.structs.replace(PATIENT, catch_up_blocks=2, catch_up_patience_seconds=0.0)
    stage = await opened(open_stage, limits)
    slow = await native(stage)
    await stage.converged(slow)
    stuck = await stand_in_a_block(stage, slow)
    block = stuck.block
    other = await native(stage)
    await stage.converged(other)
    await fall_out(stage, other)
    await stage.converged(other)
    assert stuck.block is block
    await stage.converged(slow)


async def test_what_is_kept_for_clients_that_left_a_block_is_limited(open_stage: OpenStage) -> None:
    limits = msgspec.structs.replace(
        PATIENT, catch_up_blocks=1, catch_up_patience_seconds=0.0, catch_up_rest_bytes=100 * KIBIBYTE
    )
    stage = await opened(open_stage, limits)
    slow, other = await native(stage), await native(stage)
    await stage.converged(slow, other)
    stuck = await stand_in_a_block(stage, slow)
    waiting = await fall_out(stage, other)
    await other.read_until(lambda: stage.server.catch_up._waiting != {})
    for _ in range(3):
        stage.server.catch_up.tidy()
    assert stuck.block is not None
    assert waiting.block is None
    await stage.converged(slow, other)
