"""Invariants that hold after every turn of a process, checked on the objects of the service."""

from cache.state.cursor import CursorState
from tests.simulation import service
from tests.simulation import world as worlds
from typha.worker import client, connections, server
from typha.worker.channel import WorkerChannel

_AWAY = {CursorState.SNAPSHOT, CursorState.FOLLOWING, CursorState.CATCHING_UP}


def check_worker(one: server.Server) -> None:
    """The counters add up, and every client is in exactly one list."""
    if one._finished.is_set():
        return  # the worker is closing everything, and its counters are no longer read
    clients = one.poller.clients
    _check_room(one)
    active = len(clients) - len(one.connections.closing)
    ended = sum(one.stats.counts.disconnects.values())
    if one.stats.counts.accepted != active + ended:
        raise worlds.Violation(f"{one.stats.counts.accepted} accepted, {active} active, {ended} ended")
    seen: set[client.Client] = set()
    for view in one.channels:
        _check_view(view, seen)
    for current in clients.values():
        is_closing = current.state is CursorState.CLOSING
        if (current in seen) != (current.channel is not None and not is_closing):
            raise worlds.Violation(f"{current!r} is in no list, or in too many")
        if (current.reason is not None) != is_closing:
            raise worlds.Violation(f"{current!r} has a reason but is not closing, or the reverse")


def _check_room(one: server.Server) -> None:
    """Peers take no more places and memory than they may, and what they take is what is counted."""
    limits, held = one.connections._policy, one.connections.unproven_bytes
    if len(one.poller.clients) > limits.connections_max:
        raise worlds.Violation(f"{len(one.poller.clients)} connections, {limits.connections_max} allowed")
    if held > limits.unproven_bytes_max:
        raise worlds.Violation(f"peers make the worker hold {held} bytes, {limits.unproven_bytes_max} allowed")
    open_clients = [current for current in one.poller.clients.values() if not current.is_closing()]
    parts = sum(current.adapter.pending_bytes for current in open_clients if current.adapter)
    counted = held - len(one.connections.handshaking) * connections._CONNECTION_BYTES
    if parts != counted:
        raise worlds.Violation(f"{parts} bytes of unfinished messages, {counted} are counted")


def _check_view(view: WorkerChannel, seen: set[client.Client]) -> None:
    # The worker may learn of a snapshot before it learns of the end of the log where the snapshot was cut.
    end = max(view.log.end, view.snapshot.log_offset if view.snapshot else 0)
    for index, current in enumerate(view.live):
        if current.index != index or current.state is not CursorState.FOLLOWING or current.offset > end:
            raise worlds.Violation(f"{current!r} is at {index} of the live set, and the log ends at {end}")
    for current in view.held:
        if current.state is not CursorState.HELD:
            raise worlds.Violation(f"{current!r} is in the list of held clients")
    for current in view.away:
        if current.state not in _AWAY or current.index >= 0:
            raise worlds.Violation(f"{current!r} is in the list of clients that are away")
    before = len(seen)
    everyone = view.all_clients()
    seen.update(everyone)
    if len(seen) - before != len(everyone):
        raise worlds.Violation("a client is in two lists")


def left_files(one: server.Server) -> str:
    """Files that a worker keeps open for no reader; empty if none. They are legal shortly after a disconnect."""
    reading = {current.state for current in one.poller.clients.values()}
    for view in one.channels:
        if view._old_snapshots and CursorState.SNAPSHOT not in reading:
            return f"{view!r} still holds {view._old_snapshots}"
    if one.catch_up._blocks_held and CursorState.CATCHING_UP not in reading:
        return f"{one.catch_up!r} although no client catches up"
    return ""


def check_hub(one: service.Service) -> None:
    """The logs stay within their budget, except for what no snapshot covers yet and the last segment of each log."""
    the_hub = one.hub
    if the_hub is None:
        return
    logs = the_hub.retention.log_bytes
    if logs <= one.plan.log_budget_bytes:
        return
    allowed = one.plan.log_budget_bytes
    for channel in the_hub.channels.values():
        log = channel.log
        behind = log.end - (log.start if channel.snapshot is None else min(channel.snapshot.log_offset, log.end))
        allowed += behind + max([one.plan.segment_bytes, *(segment.size for segment in log.segments)])
    if logs > allowed:
        raise worlds.Violation(f"logs of {logs} bytes, {allowed} allowed")
