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

REPORT_INTERVAL_SECONDS: Final = 0.5
COMMAND_BYTES: Final = 64 * 1024


def group_stats(group: agent.Group) -> control.GroupStats:
    """A group's counts; its histograms and the longest silence begin anew."""
    silence_ns, group.silence_ns = group.silence_ns, 0
    read_gap_ns, group.read_gap_ns = group.read_gap_ns, 0
    return control.GroupStats(
        bytes=group.bytes,
        frames=group.frames,
        updates=group.updates,
        deletions=group.deletions,
        snapshots=group.snapshots,
        goodbyes=dict(group.goodbyes),
        latency=group.latency.take(),
        in_sync_after=group.in_sync_after.take(),
        back_after=group.back_after.take(),
        silence_seconds=silence_ns / 1e9,
        read_gap_seconds=read_gap_ns / 1e9,
    )


def stats(swarm: engine.Engine) -> control.Stats:
    """The report that is due."""
    now_ns = time.time_ns()
    swarm.listen(now_ns)
    connected = in_sync = 0
    lags = {swarm.behaving: 0.0, swarm.impaired: 0.0}
    timeline = swarm.shared.timeline
    for link in swarm.links:
        one = link.agent
        if one.phase < agent.Phase.READY:
            continue
        connected += 1
        in_sync += one.in_sync
        one.group.read_gap_ns = max(one.group.read_gap_ns, now_ns - one.heard_ns)
        if one.live_since_ns:
            lags[one.group] = max(lags[one.group], timeline.lag_seconds(one.incarnation, one.sequence, now_ns))
    return control.Stats(
        at_ns=now_ns,
        agents=len(swarm.links),
        connected=connected,
        in_sync=in_sync,
        connects=swarm.connects,
        disconnects=dict(swarm.disconnects),
        unserved=dict(swarm.unserved),
        lost=swarm.lost,
        protocol_errors=list(swarm.protocol_errors),
        behaving=group_stats(swarm.behaving),
        impaired=group_stats(swarm.impaired),
        slowest_lag_seconds=lags[swarm.behaving],
        impaired_lag_seconds=lags[swarm.impaired],
        highest_sequence=timeline.highest(),
        distinct_states=len(swarm.shared.table),
        distinct_frames=swarm.shared.distinct_frames,
        cpu_seconds=time.process_time(),
    )


def digests(swarm: engine.Engine, held: Sequence[shared_maps.State], without: Sequence[str] = ()) -> control.Digests:
    """Every agent's proof: of the states in `held`, one for each agent."""
    table = swarm.shared.table
    results: dict[shared_maps.State, tuple[int, int]] = {}
    agents = []
    for link, state in zip(swarm.links, held, strict=True):
        if state not in results:
            results[state] = state.without(without)
        state_digest, keys = results[state]
        agents.append(
            control.AgentDigest(
                name=link.agent.name,
                digest=state_digest,
                keys=keys,
                sequence=link.agent.sequence,
                in_sync=link.agent.in_sync,
                deletions=link.agent.deletions,
            )
        )
    return control.Digests(
        agents=agents,
        deletions=[control.Deletion(key, uid, first) for (key, uid), first in table.deletions.items()],
        deletions_lost=table.deletions_lost,
    )


class Worker:
    """Commands in, reports out, and the engine in between."""

    def __init__(self, commands_fd: int, reports_fd: int) -> None:
        self._commands_fd = commands_fd
        self._reports_fd = reports_fd
        self._received = b""
        self._swarm: engine.Engine | None = None
        self._captured: list[shared_maps.State] = []
        self._stopping = False

    def run(self) -> None:
        """Until told to stop, or until the supervisor is gone."""
        poller = select.poll()
        poller.register(self._commands_fd, select.POLLIN)
        next_report = time.monotonic() + REPORT_INTERVAL_SECONDS
        while not self._stopping:
            if self._swarm is None:
                poller.poll()
            else:
                self._swarm.poll(max(0.0, min(0.05, next_report - time.monotonic())))
            if poller.poll(0):
                self._receive()
            if self._swarm is not None and time.monotonic() >= next_report:
                next_report = time.monotonic() + REPORT_INTERVAL_SECONDS
                self._report(stats(self._swarm))
        if self._swarm is not None:
            self._swarm.close()

    def _receive(self) -> None:
        data = os.read(self._commands_fd, COMMAND_BYTES)
        if not data:
            self._stopping = True
            return
        *lines, self._received = (self._received + data).split(b"\n")
        for line in lines:
            self._obey(control.decode_command(line))

    def _obey(self, command: control.Command) -> None:
        match command, self._swarm:
            case control.Start(), None:
                if command.apart:
                    os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))
                self._swarm = engine.Engine(command)
            case control.Impair(), engine.Engine() as swarm:
                swarm.impair(command)
            case control.Reconnect(), engine.Engine() as swarm:
                swarm.reconnect(command.ramp_per_second)
            case control.Capture(), engine.Engine() as swarm:
                self._captured = [link.agent.state for link in swarm.links]
            case control.AskDigests(captured=captured, without=without), engine.Engine() as swarm:
                now = [link.agent.state for link in swarm.links]
                self._report(digests(swarm, self._captured if captured else now, without))
            case control.Stop(), _:
                self._stopping = True
            case _:
                self._report(control.Failed(text=f"{type(command).__name__} out of place"))
                self._stopping = True

    def _report(self, report: control.Report) -> None:
        view = memoryview(control.encode(report) + b"\n")
        while view:
            view = view[os.write(self._reports_fd, view) :]


def main() -> None:
    """Runs a worker on stdin and stdout."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    gc.set_threshold(
        50_000, 50, 1000
    )  # there are few cycles, and a collection of the states takes tens of milliseconds
    try:
        Worker(sys.stdin.fileno(), sys.stdout.fileno()).run()
    except BrokenPipeError:
        sys.exit("the supervisor is gone")


if __name__ == "__main__":
    main()
