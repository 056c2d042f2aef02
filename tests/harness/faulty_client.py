"""Our Python client with one fault: `python -m tests.harness.faulty_client RULE ADDRESS FEED`. The kit must find it."""

import asyncio
import contextlib
import sys
from collections.abc import Callable
from typing import Any

import msgspec

from clients import addresses, applied, connection, differ, follower, selecting
from clients.conformance import python_client
from protocol import errors, messages
from protocol.native import connection as native
from protocol.native import frames


def _wrap(owner: Any, name: str, wrapper: Callable[..., Any]) -> None:
    """Replaces a method by `wrapper(original, self, ...)`."""
    original = getattr(owner, name)
    setattr(owner, name, lambda self, *arguments, **named: wrapper(original, self, *arguments, **named))


def _any_length(original: Any, splitter: frames.FrameSplitter) -> Any:
    splitter.max_frame_bytes = 1 << 32
    return original(splitter)


def _type_decides(original: Any, known: differ.Differ, updates: tuple[messages.Update, ...]) -> Any:
    return original(known, tuple(one._replace(value=None) if one.update_type == 3 else one for one in updates))


def _early(original: Any, known: differ.Differ, message: messages.Message) -> Any:
    batch = original(known, message)
    is_complete = isinstance(message, messages.SnapshotEnd) and known._snapshot is not None
    return known._swap(known._snapshot) if is_complete and known._snapshot is not None else batch


def _any_sequence(original: Any, end: native.Connection, message: messages.Message) -> Any:
    with contextlib.suppress(errors.RemoteProtocolError):
        original(end, message)


def _twice(original: Any, end: native.Connection, message: messages.Message) -> None:
    original(end, message)
    if isinstance(message, messages.Pong):
        original(end, message)


def _forgets(original: Any, one: follower.Follower, message: messages.Message, *, now: float) -> Any:
    if message == messages.Status(40, messages.SyncStatus.WAITING):
        one._differ = differ.Differ()
    return original(one, message, now=now)


def _at_once(original: Any, rotation: addresses.Rotation, *_: object, **__: object) -> float:
    return 0.0


def _ignores_requests(original: Any, rotation: addresses.Rotation, now: float, **named: float) -> Any:
    return original(rotation, now, **{**named, "retry_after_seconds": 0.0})


async def _patient(original: Any, receiver: connection._Receiver) -> None:
    receiver._write()
    data = await receiver._reader.read(connection.READ_BYTES)
    if not data:
        raise OSError("the end")
    receiver._protocol.receive_data(data)


def _everything_received(original: Any, one: applied.Acknowledger, sequence: int, *, has_changed: bool) -> None:
    """The client says that it has applied what has only arrived."""
    original(one, sequence + 1, has_changed=has_changed)
    one.applied()


def _at_any_time(original: Any, one: applied.Acknowledger) -> None:
    one._sent_at = -10.0
    original(one)


def _whether_or_not(original: Any, receiver: connection._Receiver, hello: Any, acknowledger: Any) -> None:
    original(receiver, msgspec.structs.replace(hello, features=hello.features | {"positions"}), acknowledger)


def _only_once(original: Any, one: applied.Acknowledger) -> None:
    """What was applied on an earlier connection is not said again."""
    if one._covered and one._covered[-1].sequence > 40:
        original(one)


def _always_positioned(original: Any, known: differ.Differ, hello: messages.ClientHello) -> Any:
    told = original(known, hello)
    position = messages.ResumePosition(known._incarnation, 45)
    return msgspec.structs.replace(told, resume=told.resume or (position if known.chunks else None))


def _no_digests(original: Any, known: differ.Differ) -> tuple[int, ...]:
    return tuple(0 for _ in original(known))


def _declined(original: Any, end: native.Connection, sequence: int) -> Any:
    end._is_selection = False
    return original(end, sequence)


def _unselected(original: Any, one: selecting.Selecting, batch: differ.Batch) -> differ.Batch:
    return batch


def _of_any_feed(original: Any, known: differ.Differ, sequence: int) -> Any:
    known._has_position = True
    return original(known, sequence)


def _stays(original: Any, rotation: addresses.Rotation, now: float, **named: Any) -> Any:
    return original(rotation, now, **{**named, "servers": ()})


def _nothing(original: Any, *_: object) -> None:
    """Checks nothing."""


FAULTS: dict[str, tuple[Any, str, Callable[..., Any]]] = {
    "F2": (frames.FrameSplitter, "next_frame", _any_length),
    "D1": (differ.Differ, "_receive_updates", _type_decides),
    "O6": (differ.Differ, "receive", _early),
    "O11": (native.Connection, "_step", _any_sequence),
    "O15": (follower.Follower, "_receive", _forgets),
    "R1": (differ.Differ, "resuming", _always_positioned),
    "R2": (differ.Differ, "_chunk_digests", _no_digests),
    "R8": (differ.Differ, "distrust", _nothing),
    "S4": (native.Connection, "_is_continued_by", _declined),
    "S6": (selecting.Selecting, "select", _unselected),
    "S8": (differ.Differ, "_position_at", _of_any_feed),
    "G7": (addresses.Rotation, "failed", _stays),
    "K2": (connection._Receiver, "_read", _patient),
    "K3": (native.Connection, "send", _twice),
    "B1": (addresses.Rotation, "failed", _at_once),
    "B3": (addresses.Rotation, "failed", _ignores_requests),
    "P1": (connection._Receiver, "begin_reports", _whether_or_not),
    "P2": (applied.Acknowledger, "received", _everything_received),
    "P3": (applied.Acknowledger, "_tell", _at_any_time),
    "P5": (applied.Acknowledger, "_settle", _only_once),
    "V1": (differ._Snapshot, "leave_chunk", _nothing),
    "V2": (differ._Snapshot, "verify_end", _nothing),
}
"""By the rule that is broken: what is replaced, and by what."""


if __name__ == "__main__":
    rule, *arguments = sys.argv[1:]
    _wrap(*FAULTS[rule])
    asyncio.run(python_client.follow(*arguments))
