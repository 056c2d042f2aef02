"""Replaces the clocks, sockets and random numbers of the machine by those of the world during a run."""

import contextlib
import errno
import random
import select
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Protocol
from unittest import mock

import structlog

from cache.state import catchup, cursor, memfile, snapshot, store
from protocol.native import encoder as native_encoder
from protocol.typha import encoder as typha_encoder
from tests.simulation import plans, service, sockets
from tests.simulation import world as worlds
from typha import clock
from typha.worker import client, connections, tls_transport

_BUILDERS: tuple[tuple[Any, float], ...] = (
    (snapshot.SnapshotBuilder, 1.0),
    (snapshot.OrderedSnapshotBuilder, 1.0),
    (catchup.BlockBuilder, 0.25),
)
"""The builders of files, and the duration of their steps relative to the plan's."""


class Observer(Protocol):
    """The methods of a simulation that are called for events."""

    generations: list[service.Service]

    def moved(self, current: client.Client, state: cursor.CursorState) -> None:
        """A cursor has changed its state."""
        ...

    def took_leave(self, current: client.Client) -> None:
        """The server begins to close a client, with a goodbye if the protocol has one."""
        ...


@contextlib.contextmanager
def replaced(world: worlds.World, plan: plans.Plan, running: Sequence[Observer]) -> Iterator[None]:
    """Install the clocks, the epoll and the random numbers of the world, and the sizes of the plan."""

    def at_work() -> service.Worker:
        for generation in running[0].generations:
            for worker in generation.workers.values():
                if worker.process is world.current:
                    return worker
        raise worlds.Violation("a socket outside of any worker")

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

    refuse = connections.Connections._refuse

    def took_leave(self: connections.Connections, current: client.Client, *arguments: Any, **named: Any) -> None:
        refuse(self, current, *arguments, **named)
        if running:
            running[0].took_leave(current)

    patches: list[contextlib.AbstractContextManager[object]] = [
        clock.replaced(monotonic=world.monotonic, time_ns=world.unix_nanoseconds),
        mock.patch.object(select, "epoll", make_epoll),
        mock.patch.object(select, "poll", make_poll),
        mock.patch.object(cursor.Cursor, "_enter", observed),
        mock.patch.object(connections.Connections, "_refuse", took_leave),
        mock.patch.object(memfile, "create_empty", _unless(memfile.create_empty, world)),
        mock.patch.object(memfile, "map_readonly", _unless(memfile.map_readonly, world)),
        mock.patch.object(client.Client, "__hash__", _number_of),  # keeps the order of sets the same in every run
        mock.patch.object(
            store,
            "DEFAULT_LIMITS",
            store.StoreLimits(
                chunk_target_keys=plan.chunk_keys,
                tombstones_min=plan.tombstones_min,
                split_at_once_keys=2 * plan.chunk_keys,
            ),
        ),
        mock.patch.object(native_encoder, "FRAME_TARGET_BYTES", plan.frame_bytes),
        mock.patch.object(typha_encoder, "MESSAGE_TARGET_BYTES", plan.frame_bytes),
        mock.patch.object(catchup, "BLOCK_TARGET_BYTES", plan.block_bytes),
        mock.patch.object(
            tls_transport, "OFFER_BYTES", min(tls_transport.OFFER_BYTES, plan.limits.send_bytes)
        ),  # sealed bytes must be offered again in one piece
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
    """Make each step of a builder take time. Otherwise every file would be built at once."""

    def steps_at_work(builder: Any) -> Iterator[None]:
        for step in steps(builder):
            if world.current is not None:
                world.current.work(step_seconds)
            yield step

    return steps_at_work


def _unless(make: Callable[..., Any], world: worlds.World) -> Callable[..., Any]:
    """The function, but it fails while the machine lacks resources."""

    def made(*arguments: Any) -> Any:
        if world.lacks():
            raise OSError(errno.EMFILE, "nothing left")
        return make(*arguments)

    return made


def _number_of(current: client.Client) -> int:
    return current.number


def _log_into(world: worlds.World) -> structlog.typing.Processor:
    """Add the log lines of the service to the history."""

    def process_line(_: object, level: str, event: structlog.typing.EventDict) -> structlog.typing.EventDict:
        name = world.current.name if world.current else "no process"
        world.note(f"{name} log", f"{level} {event}")
        if "Defect" in str(event.get("event")):
            raise worlds.Violation(f"{name}: {event}")
        raise structlog.DropEvent

    return process_line
