"""Mutation tests of the simulation: it finds each of these defects of the service, most of them within a few seeds."""

from typing import Any
from unittest import mock

import msgspec
import pytest

from cache.state import cursor, files, log, resume, sections, store
from clients import applied
from protocol import messages
from tests.simulation import simulation
from typha.hub import channel
from typha.worker import catchup, client, connections, convergence, delivery, poller, protocol_adapters
from typha.worker.channel import WorkerChannel

SEEDS_MAX = 400

leave_block = cursor.Cursor.leave_block
become_catching_up = cursor.Cursor.become_catching_up
changes_since = store.Store.changes_since
append = channel.HubChannel.append
watch_write = poller.Poller.watch_write
resumption = protocol_adapters._resumption
pieces = resume.pieces
offset_of = log.LogReader.offset_of
received = applied.Acknowledger.received
forget = convergence.Position.forget


def without_the_tail(self: cursor.Cursor, reader: Any, *, owed_bytes: int = 0) -> None:
    become_catching_up(self, reader, owed_bytes=owed_bytes)
    self.tail = None


def without_what_is_sealed(self: cursor.Cursor, reader: Any, *, owed_bytes: int = 0) -> None:
    become_catching_up(self, reader)


def in_the_middle(self: cursor.Cursor, sequence: int, rest: memoryview) -> None:
    leave_block(self, sequence, rest[:0])


def as_of_the_snapshot(self: WorkerChannel, snapshot: files.SnapshotFile) -> client.StatusNotice:
    frame = memoryview(self._encoder.status(snapshot.sequence, snapshot.status).data)
    return client.StatusNotice(snapshot.log_offset, snapshot.sequence, snapshot.status, frame)


def without_deletions(self: store.Store, sequence: int) -> store.Difference:
    return changes_since(self, sequence)._replace(tombstones=[])


def status_first(self: channel.HubChannel, batch: Any, times: Any = None) -> list[log.Segment]:
    if batch.status is None:
        return append(self, batch)
    self.log.append([self.encoder.status(batch.previous_sequence, batch.status)])
    return append(self, batch._replace(status=None))


def never_for_writing(self: poller.Poller[Any], current: Any, active: bool) -> None:
    if not active:
        watch_write(self, current, active)


def whatever_status_follows(self: WorkerChannel) -> files.SnapshotFile | None:
    snapshot = self.snapshot
    is_there = snapshot is not None and snapshot.log_offset >= self.trim_offset
    return snapshot if is_there and not self._awaits_newer else None


def within_frames(self: client.Client, bytes_through: Any) -> bool:
    return True


def of_any_incarnation(
    hello: messages.ClientHello, features: frozenset[str], incarnation: bytes
) -> protocol_adapters.Resumption | None:
    if hello.resume is not None:
        hello = msgspec.structs.replace(hello, resume=hello.resume._replace(incarnation=incarnation))
    return resumption(hello, features, incarnation)


def too_late(sequence: int, newest_sequence: int) -> int:
    return min(sequence + 1, newest_sequence)


def all_kept(file: files.SnapshotFile, digests: Any, encode: Any) -> files.Pieces | None:
    return pieces(file, file.index.digests, encode)


def at_the_next_frame(self: log.LogReader, sequence: int) -> int | None:
    offset = offset_of(self, sequence)
    return offset if offset is None or offset >= self.end else self.frame_at(offset)[1]


def of_nothing(self: convergence.Position, before_offset: int, last: int) -> None:
    forget(self, before_offset, 0)


def at_once(self: applied.Acknowledger, sequence: int, *, has_changed: bool) -> None:
    received(self, sequence, has_changed=has_changed)
    self.applied()


MUTATIONS: dict[str, tuple[object, str, object]] = {
    "an object that moves stays on its old node": (sections.Sections, "tag_of", lambda *_: None),
    "what is for a node is not sent": (delivery.Delivery, "_flush_node", lambda *_: None),
    "snapshots lack what is for a node": (files.SnapshotFile, "sections", property(lambda _: {})),
    "the rest of a frame is dropped": (cursor.Cursor, "become_catching_up", without_the_tail),
    "sealed TLS records are forgotten": (cursor.Cursor, "become_catching_up", without_what_is_sealed),
    "blocks are left inside frames": (cursor.Cursor, "leave_block", in_the_middle),
    "in-sync comes with the snapshot": (WorkerChannel, "greeting", as_of_the_snapshot),
    "catch-ups leave out deletions": (store.Store, "changes_since", without_deletions),
    "the status overtakes its data": (channel.HubChannel, "append", status_first),
    "full sockets are forgotten": (poller.Poller, "watch_write", never_for_writing),
    "replaced snapshots stay open": (WorkerChannel, "close_unread_snapshots", lambda _: None),
    "outdated statuses are accepted": (WorkerChannel, "servable_snapshot", property(whatever_status_follows)),
    "goodbyes are sent inside frames": (client.Client, "at_frame_end", within_frames),
    "blocks of a different cut are read": (catchup, "_is_of_use", lambda *_: True),
    "pongs are taken whether they were asked for or not": (client.Liveness, "note_pong", lambda _: 0.0),
    "newcomers take every place": (connections.Connections, "make_room", lambda *_: None),
    "parts of messages are not counted": (connections.Connections, "hold", lambda *_: None),
    "unfinished hellos take all memory": (connections.Connections, "_free_memory", lambda *_: None),
    "positions of another incarnation are believed": (protocol_adapters, "_resumption", of_any_incarnation),
    "clients that come back miss the frame after their position": (log.LogReader, "offset_of", at_the_next_frame),
    "clients that come back are caught up from a later sequence": (resume, "start_point", too_late),
    "clients that come back keep chunks that differ": (resume, "pieces", all_kept),
    "clients that come back read statuses of the past": (WorkerChannel, "last_status_offset", lambda _: 0),
    "all counts as applied": (convergence.Position, "up_to", lambda _: convergence.EVERYTHING),
    "what the log has dropped counts as applied": (convergence.Position, "forget", of_nothing),
    "a part of a batch counts as a whole one": (WorkerChannel, "last_batch_end", property(lambda self: self.log.end)),
    "clients that are gone count as reporting": (convergence.Convergence, "remove", lambda *_: None),
    "clients say that they have applied what has come": (applied.Acknowledger, "received", at_once),
    "clients get no pings": (connections.Connections, "send_ping", lambda *_: True),
}


SEEDS_FROM = {
    "sealed TLS records are forgotten": 82,
    "positions of another incarnation are believed": 59,
    "clients that come back read statuses of the past": 172,
    "blocks are left inside frames": 82,
    "outdated statuses are accepted": 506,
    "goodbyes are sent inside frames": 328,
    "blocks of a different cut are read": 859,
}
"""The first seed that finds a defect, where a search from 0 takes long. If a change moves it, the search goes on from
here."""


@pytest.mark.slow
@pytest.mark.parametrize("name", MUTATIONS)
def test_the_simulation_finds_a_defect(name: str) -> None:
    place, attribute, mutant = MUTATIONS[name]
    with mock.patch.object(place, attribute, mutant):
        first = SEEDS_FROM.get(name, 0)
        assert simulation.first_to_fail(simulation.run, range(first, first + SEEDS_MAX)) is not None
