"""Agents that decode everything, through the public client: `python -m loadtest.swarm.public`.

The same commands and reports as `worker`, one `clients.mirror.Mirror` for each agent. They are few, and they are what
says that the client library holds the right map as well.
"""

import asyncio
import contextlib
import gc
import os
import sys
import time
from collections.abc import Mapping, Sequence
from typing import Final

from clients import mirror
from loadtest.swarm import control, frames, tls
from protocol import digest, errors

REPORT_INTERVAL_SECONDS: Final = 0.5


class PublicAgent:
    """A mirror, and the deletions that it gave."""

    def __init__(self, name: str, start: control.Start, deletions: dict[tuple[str, str], int]) -> None:
        self.name = name
        self.deletions = 0
        self.updates = 0
        self._all_deletions = deletions
        servers = [f"[{host}]:{port}" if ":" in host else f"{host}:{port}" for host, port in start.addresses]
        self.captured: dict[str, mirror.Entry] = {}
        context = tls.context_of(start.tls) if start.tls is not None else None
        self.mirror = mirror.Mirror(
            servers, feed=start.feed, agent=name, node=name, tls=context, on_change=self._changed
        )

    def _changed(self, changes: Sequence[mirror.Change]) -> None:
        self.updates += len(changes)
        for change in changes:
            if change.old is None:
                continue
            uid, _ = frames.metadata_of(change.old.value)
            if change.new is None or frames.metadata_of(change.new.value)[0] != uid:
                self.deletions += 1
                self._all_deletions.setdefault((change.key, uid), time.time_ns())

    def proof(self, held: Mapping[str, mirror.Entry], without: Sequence[str]) -> control.AgentDigest:
        """The digest, computed anew from every value that the mirror holds, or held."""
        left_out = set(without)
        pairs = [(key, entry.value) for key, entry in held.items() if key not in left_out]
        return control.AgentDigest(
            name=self.name,
            digest=digest.state_digest(pairs),
            keys=len(pairs),
            sequence=0,
            in_sync=self.mirror.in_sync,
            deletions=self.deletions,
        )


class Process:
    """The agents of the process, and its supervisor's pipes."""

    def __init__(self) -> None:
        self._deletions: dict[tuple[str, str], int] = {}
        self._agents: list[PublicAgent] = []

    async def run(self) -> None:
        """Until told to stop, or until the supervisor is gone."""
        loop = asyncio.get_running_loop()
        commands = asyncio.StreamReader(limit=control.MAX_LINE_BYTES)
        await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(commands), sys.stdin)
        async with contextlib.AsyncExitStack() as mirrors:
            reporter = asyncio.create_task(self._report_regularly(), name="reports")
            try:
                while line := await commands.readline():
                    command = control.decode_command(line)
                    if isinstance(command, control.Stop):
                        break
                    await self._obey(command, mirrors)
            finally:
                reporter.cancel()
                await asyncio.wait([reporter])

    async def _obey(self, command: control.Command, mirrors: contextlib.AsyncExitStack) -> None:
        match command:
            case control.Start() if not self._agents:
                for number in range(command.agents):
                    name = f"public-{command.first_index + number}"
                    one = PublicAgent(name, command, self._deletions)
                    await mirrors.enter_async_context(one.mirror)
                    self._agents.append(one)
            case control.Capture():
                for one in self._agents:
                    one.captured = dict(one.mirror)
            case control.AskDigests(captured=captured, without=without):
                deletions = [control.Deletion(key, uid, first) for (key, uid), first in self._deletions.items()]
                proofs = [one.proof(one.captured if captured else one.mirror, without) for one in self._agents]
                _write(control.Digests(agents=proofs, deletions=deletions, deletions_lost=0))
            case control.Impair() | control.Reconnect():
                pass  # what the swarm's agents are told; those of the public client stay as they are
            case _:
                _write(control.Failed(text=f"{type(command).__name__} out of place"))

    async def _report_regularly(self) -> None:
        while True:
            await asyncio.sleep(REPORT_INTERVAL_SECONDS)
            if self._agents:
                _write(self._stats())

    def _stats(self) -> control.Stats:
        disconnects: dict[str, int] = {}
        protocol_errors = []
        for one in self._agents:
            last = one.mirror.last_disconnect
            if last is not None:
                name = type(last.error).__name__
                disconnects[name] = disconnects.get(name, 0) + 1
                if isinstance(last.error.__cause__, errors.ProtocolError):
                    protocol_errors.append(f"{one.name}: {last.error}")
        group = control.GroupStats(
            updates=sum(one.updates for one in self._agents), deletions=sum(one.deletions for one in self._agents)
        )
        return control.Stats(
            at_ns=time.time_ns(),
            agents=len(self._agents),
            connected=sum(one.mirror.connected for one in self._agents),
            in_sync=sum(one.mirror.in_sync for one in self._agents),
            connects=0,
            disconnects=disconnects,
            protocol_errors=protocol_errors,
            behaving=group,
            cpu_seconds=time.process_time(),
        )


def _write(report: control.Report) -> None:
    view = memoryview(control.encode(report) + b"\n")
    while view:
        view = view[os.write(sys.stdout.fileno(), view) :]


def main() -> None:
    """Runs the process on stdin and stdout."""
    gc.set_threshold(50_000, 20, 100)
    try:
        asyncio.run(Process().run())
    except BrokenPipeError:
        sys.exit("the supervisor is gone")


if __name__ == "__main__":
    main()
