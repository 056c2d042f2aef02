"""One process of the swarm: `python -m loadtest.swarm.worker`, commands on stdin, reports on stdout (see `control`)."""

import gc
import os
import resource
import select
import sys
import time
from collections.abc import Sequence
from typing import Final

from loadtest.swarm import agent, control, engine, shared_maps
from protocol import messages

COMMAND_BYTES: Final = 64 * 1024
POLL_SECONDS_MAX: Final = 0.05
STALE: Final = (messages.SyncStatus.WAITING, messages.SyncStatus.RESYNC)
"""Statuses of a server that cannot confirm its data."""


def stats(swarm: engine.Engine) -> control.Stats:
    """The report that is due."""
    now_ns = time.time_ns()
    swarm.listen(now_ns)
    connected = in_sync = told_stale = 0
    lags = {swarm.behaving: 0.0, swarm.impaired: 0.0}
    timeline = swarm.shared.timeline
    for link in swarm.links:
        one = link.agent
        if one.phase < agent.Phase.READY:
            continue
        connected += 1
        in_sync += one.in_sync
        told_stale += one.status in STALE and one.phase == agent.Phase.FOLLOWING
        one.group.read_gap_ns = max(one.group.read_gap_ns, now_ns - one.heard_ns)
        if one.live_since_ns:
            lags[one.group] = max(lags[one.group], timeline.lag_seconds(one.incarnation, one.sequence, now_ns))
    return control.Stats(
        at_ns=now_ns,
        agents=len(swarm.links),
        connected=connected,
        in_sync=in_sync,
        told_stale=told_stale,
        connects=swarm.connects,
        disconnects=dict(swarm.disconnects),
        unserved=dict(swarm.unserved),
        lost=swarm.lost,
        protocol_errors=list(swarm.protocol_errors),
        behaving=swarm.behaving,
        impaired=swarm.impaired,
        slowest_lag_seconds=lags[swarm.behaving],
        impaired_lag_seconds=lags[swarm.impaired],
        distinct_states=len(swarm.shared.table),
        distinct_frames=swarm.shared.distinct_frames,
        cpu_seconds=time.process_time(),
    )


def digests(swarm: engine.Engine, maps: Sequence[shared_maps.SharedMap], without: Sequence[str]) -> control.Digests:
    """The proof of every agent, from one map for each agent."""
    table = swarm.shared.table
    results: dict[shared_maps.SharedMap, tuple[int, int]] = {}
    agents = []
    for link, one_map in zip(swarm.links, maps, strict=True):
        if one_map not in results:
            results[one_map] = one_map.without(without)
        one = link.agent
        agents.append(control.AgentDigest(one.name, *results[one_map], one.sequence, one.in_sync, one.deletions))
    deletions = control.deletions_of(table.deletions)
    return control.Digests(agents=agents, deletions=deletions, deletions_lost=table.deletions_lost)


class Worker:
    """Reads commands, polls the engine, writes reports."""

    def __init__(self) -> None:
        self._received = b""
        self._swarm: engine.Engine | None = None
        self._captured: list[shared_maps.SharedMap] = []
        self._stopping = False

    def run(self) -> None:
        """Until the commands end."""
        poller = select.poll()
        poller.register(sys.stdin.fileno(), select.POLLIN)
        next_report = time.monotonic() + control.REPORT_INTERVAL_SECONDS
        while not self._stopping:
            if self._swarm is None:
                poller.poll()
            else:
                self._swarm.poll(max(0.0, min(POLL_SECONDS_MAX, next_report - time.monotonic())))
            if poller.poll(0):
                self._receive()
            if self._swarm is not None and time.monotonic() >= next_report:
                next_report = time.monotonic() + control.REPORT_INTERVAL_SECONDS
                control.write_report(stats(self._swarm))
                for group in (self._swarm.behaving, self._swarm.impaired):
                    group.reported()
        if self._swarm is not None:
            self._swarm.close()

    def _receive(self) -> None:
        data = os.read(sys.stdin.fileno(), COMMAND_BYTES)
        self._stopping = not data
        *lines, self._received = (self._received + data).split(b"\n")
        for line in lines:
            self._obey(control.decode_command(line))

    def _obey(self, command: control.Command) -> None:
        match command, self._swarm:
            case control.Start(), None:
                if command.background:
                    os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))
                self._swarm = engine.Engine(command)
            case control.Impair(), engine.Engine() as swarm:
                swarm.impair(command)
            case control.Reconnect(), engine.Engine() as swarm:
                swarm.reconnect(command.ramp_per_second)
            case control.Addresses(addresses=addresses), engine.Engine() as swarm:
                swarm.choose_from(addresses)
            case control.SetMovedApart(), engine.Engine() as swarm:
                swarm.set_moved_apart()
            case control.AskPaths(), engine.Engine() as swarm:
                control.write_report(control.Paths(swarm.paths()))
            case control.Capture(), engine.Engine() as swarm:
                self._captured = [link.agent.map for link in swarm.links]
            case control.AskDigests(captured=captured, without=without), engine.Engine() as swarm:
                now = [link.agent.map for link in swarm.links]
                control.write_report(digests(swarm, self._captured if captured else now, without))
            case _:
                control.write_report(control.out_of_place(command))
                self._stopping = True


def raise_file_limit() -> None:
    """Allow this process as many open files as it may have."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def main() -> None:
    """Run a worker on stdin and stdout."""
    raise_file_limit()
    gc.set_threshold(50_000, 50, 1000)  # there are few cycles, and a collection of the maps takes tens of milliseconds
    Worker().run()


if __name__ == "__main__":
    main()
