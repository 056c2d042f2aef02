"""Agents that decode everything, through the public client: `python -m loadtest.swarm.public`.

Commands and reports are those of `worker`; each agent is one `clients.mirror.Mirror`. A few such agents prove that the
client library holds the right map as well.
"""

import asyncio
import contextlib
import gc
import sys
import time
from collections.abc import Mapping, Sequence

from clients import mirror
from loadtest.swarm import control, frames, tls
from protocol import digest, errors


class PublicAgent:
    """A mirror and the deletions that it reported."""

    def __init__(self, name: str, start: control.Start, deletions: dict[tuple[str, str], int]) -> None:
        self.name = name
        self.deletions = 0
        self.updates = 0
        self.captured: dict[str, mirror.Entry] = {}
        self._all_deletions = deletions
        servers = [f"[{host}]:{port}" if ":" in host else f"{host}:{port}" for host, port in start.addresses]
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
        """The digest of `held`, computed from all values."""
        left_out = set(without)
        pairs = [(key, entry.value) for key, entry in held.items() if key not in left_out]
        state_digest = digest.state_digest(pairs)
        return control.AgentDigest(self.name, state_digest, len(pairs), 0, self.mirror.in_sync, self.deletions)


class PublicWorker:
    """Reads commands, keeps the agents, writes reports."""

    def __init__(self) -> None:
        self._deletions: dict[tuple[str, str], int] = {}
        self._agents: list[PublicAgent] = []

    async def run(self) -> None:
        """Until the commands end."""
        loop = asyncio.get_running_loop()
        commands = asyncio.StreamReader(limit=control.MAX_LINE_BYTES)
        await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(commands), sys.stdin)
        async with contextlib.AsyncExitStack() as mirrors:
            reporter = asyncio.create_task(self._report_regularly(), name="reports")
            try:
                while line := await commands.readline():
                    await self._obey(control.decode_command(line), mirrors)
            finally:
                reporter.cancel()
                await asyncio.wait([reporter])

    async def _obey(self, command: control.Command, mirrors: contextlib.AsyncExitStack) -> None:
        match command:
            case control.Start() if not self._agents:
                for number in range(command.agents):
                    one = PublicAgent(f"public-{command.first_index + number}", command, self._deletions)
                    await mirrors.enter_async_context(one.mirror)
                    self._agents.append(one)
            case control.Capture():
                for one in self._agents:
                    one.captured = dict(one.mirror)
            case control.AskDigests(captured=captured, without=without):
                proofs = [one.proof(one.captured if captured else one.mirror, without) for one in self._agents]
                control.write_report(control.Digests(agents=proofs, deletions=control.deletions_of(self._deletions)))
            case control.AskPaths():
                control.write_report(control.Paths([]))
            case control.Impair() | control.Reconnect() | control.Addresses() | control.SetMovedApart():
                pass  # these are for the agents of `worker`
            case _:
                control.write_report(control.out_of_place(command))

    async def _report_regularly(self) -> None:
        while True:
            await asyncio.sleep(control.REPORT_INTERVAL_SECONDS)
            if self._agents:
                control.write_report(self._stats())

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
        return control.Stats(
            at_ns=time.time_ns(),
            agents=len(self._agents),
            connected=sum(one.mirror.connected for one in self._agents),
            in_sync=sum(one.mirror.in_sync for one in self._agents),
            connects=0,
            disconnects=disconnects,
            protocol_errors=protocol_errors,
            behaving=control.Group(
                updates=sum(one.updates for one in self._agents), deletions=sum(one.deletions for one in self._agents)
            ),
            cpu_seconds=time.process_time(),
        )


def main() -> None:
    """Run the process on stdin and stdout."""
    gc.set_threshold(50_000, 20, 100)
    asyncio.run(PublicWorker().run())


if __name__ == "__main__":
    main()
