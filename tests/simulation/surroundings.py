"""The world's clocks, sockets and draws in the place of the machine's, for as long as a run takes."""

import contextlib
import random
import select
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Protocol
from unittest import mock

import structlog

from cache.state import catchup, cursor, snapshot, store
from protocol.native import encoder as native_encoder
from protocol.typha import encoder as typha_encoder
from tests.simulation import plans, service, sockets
from tests.simulation import world as worlds
from typha import clock
from typha.hub import catchup_builder, channel
from typha.worker import client, connections, policy, tls_transport

_BUILDERS: tuple[tuple[Any, float], ...] = (
    (snapshot.SnapshotBuilder, 1.0),
    (snapshot.OrderedSnapshotBuilder, 1.0),
    (catchup.BlockBuilder, 0.25),
)
"""Who writes files, and how much a step of it takes of the plan's."""


class Stage(Protocol):
    """What a run has of its own."""

    generations: list[service.Service]

    def moved(self, current: client.Client, state: cursor.CursorState) -> None:
        """A cursor has changed its state."""
        ...

    def took_leave(self, current: client.Client) -> None:
        """A client has been sent a goodbye, or is to wait for its end without one."""
        ...


@contextlib.contextmanager
def replaced(world: worlds.World, plan: plans.Plan, running: Sequence[Stage]) -> Iterator[None]:
    """The world's clocks, epolls and draws in the place of the machine's, and the plan's sizes."""

    def at_work() -> service.Worker:
        for generation in running[0].generations:
            for worker in generation.workers.values():
                if worker.process is world.current:
                    return worker
        raise worlds.Violation("sockets for nobody")

    def make_epoll() -> sockets.Epoll:
        worker = at_work()
        return sockets.Epoll(world, worker.host, worker.service.backlog, worker.process)

    def make_poll() -> sockets.Poll:
        return sockets.Poll(at_work().host)

    enter = cursor.Cursor._enter

    def observed(current: client.Client, state: cursor.CursorState) -> None:
        enter(current, state)
        if running:
            running[0].moved(current, state)

    refuse = connections.Sessions._refuse

    def took_leave(self: connections.Sessions, current: client.Client, *arguments: Any) -> None:
        refuse(self, current, *arguments)
        if running:
            running[0].took_leave(current)

    patches: list[contextlib.AbstractContextManager[object]] = [
        clock.replaced(monotonic=world.monotonic, time_ns=world.unix_nanoseconds),
        mock.patch.object(select, "epoll", make_epoll),
        mock.patch.object(select, "poll", make_poll),
        mock.patch.object(cursor.Cursor, "_enter", observed),
        mock.patch.object(connections.Sessions, "_refuse", took_leave),
        mock.patch.object(client.Client, "__hash__", _number_of),  # sets of clients have the same order every time
        mock.patch.object(policy, "from_settings", return_value=plan.limits),
        mock.patch.object(
            store,
            "DEFAULT_LIMITS",
            store.StoreLimits(chunk_target_keys=plan.chunk_keys, tombstones_min=plan.tombstones_min),
        ),
        mock.patch.object(native_encoder, "FRAME_TARGET_BYTES", plan.frame_bytes),
        mock.patch.object(typha_encoder, "MESSAGE_TARGET_BYTES", plan.frame_bytes),
        mock.patch.object(catchup, "BLOCK_TARGET_BYTES", plan.block_bytes),
        mock.patch.object(catchup_builder, "STALE_LOG_BYTES", plan.stale_log_bytes),
        mock.patch.object(catchup_builder, "KEPT_BYTES_MAX", plan.kept_block_bytes),
        mock.patch.object(
            tls_transport, "OFFER_BYTES", min(tls_transport.OFFER_BYTES, plan.limits.send_bytes)
        ),  # what is sealed is offered again in one piece
        mock.patch.object(channel, "SNAPSHOT_LOG_BYTES_MIN", plan.snapshot_log_bytes_min),
    ]
    patches += [
        mock.patch.object(builder, "steps", _at_work(builder.steps, world, plan.step_seconds * share))
        for builder, share in _BUILDERS
    ]
    draws = random.getstate()
    random.seed(world.seed)
    processors = structlog.get_config()["processors"]
    before = list(processors)
    processors[:] = [_log_into(world)]
    try:
        with contextlib.ExitStack() as stack:
            for patch in patches:
                stack.enter_context(patch)
            yield
    finally:
        processors[:] = before
        random.setstate(draws)


def _at_work(
    steps: Callable[[Any], Iterator[None]], world: worlds.World, step_seconds: float
) -> Callable[[Any], Iterator[None]]:
    """A builder's steps, each of which takes time: else all files were made within a moment."""

    def steps_at_work(builder: Any) -> Iterator[None]:
        for step in steps(builder):
            if world.current is not None:
                world.current.work(step_seconds)
            yield step

    return steps_at_work


def _number_of(current: client.Client) -> int:
    return current.number


def _log_into(world: worlds.World) -> structlog.typing.Processor:
    """The service's log lines become part of the history."""

    def process_line(_: object, level: str, event: structlog.typing.EventDict) -> structlog.typing.EventDict:
        name = world.current.name if world.current else "nobody"
        world.note(f"{name} log", f"{level} {event}")
        if "Defect" in str(event.get("event")):
            raise worlds.Violation(f"{name}: {event}")
        raise structlog.DropEvent

    return process_line
