"""A bare send loop to compare the service with: `python -m loadtest.bare`, one process that only sends.

It greets each agent with an empty snapshot, then encodes one update after the other, by a schedule, and hands the same
frame to one socket after the other. No API server, no store, no log, no other process; a socket that takes less than a
whole frame ends the run. What the service costs above this is what it does for its keep.
"""

import itertools
import json
import select
import socket
import sys
import time
from typing import Any, Final

import click

from loadtest.apiserver import population
from loadtest.swarm import frames
from protocol import messages
from protocol.native import codec
from protocol.native import frames as native

MAX_HELLO_BYTES: Final = 64 * 1024
POLL_SECONDS: Final = 0.1


class BareLoop:
    """Listens from the start; `greet` takes agents in, `send` sends to all of them."""

    def __init__(self, port: int, *, objects: int) -> None:
        self._listener = socket.create_server(("127.0.0.1", port), backlog=4096)
        self._listener.setblocking(False)
        self._compressor = native.make_compressor()
        self._sequence = 1
        self.agents: list[socket.socket] = []
        maker = population.Maker(population.Population(), seed=0)
        self._objects = [maker.pod(number) for number in range(objects)]

    def greet(self, count: int) -> None:
        """Takes in agents until there are so many."""
        waiting = {}
        poller = select.epoll()
        poller.register(self._listener, select.EPOLLIN)
        while len(self.agents) < count:
            for fd, _ in poller.poll(POLL_SECONDS):
                if fd == self._listener.fileno():
                    newcomer, _ = self._listener.accept()
                    newcomer.setblocking(False)
                    newcomer.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                    waiting[newcomer.fileno()] = newcomer
                    poller.register(newcomer, select.EPOLLIN)
                    continue
                agent = waiting.pop(fd)
                poller.unregister(fd)
                agent.recv(MAX_HELLO_BYTES)
                agent.sendall(self._greeting(len(self.agents)))
                self.agents.append(agent)
        poller.close()

    def send(self, *, updates_per_second: float, seconds: float) -> dict[str, float]:
        """Sends updates for a while; what it cost."""
        cpu, begin = time.process_time(), time.monotonic()
        sent_bytes = updates = 0
        for number, content in enumerate(itertools.cycle(self._objects)):
            due = begin + number / updates_per_second
            if due >= begin + seconds:
                break
            if (pause := due - time.monotonic()) > 0:
                time.sleep(pause)
            frame = self._frame(content)
            for agent in self.agents:
                if agent.send(frame) != len(frame):
                    raise BlockingIOError("an agent takes less than a frame")
            sent_bytes += len(frame)
            updates += 1
        elapsed = time.monotonic() - begin
        return {
            "updates": updates,
            "deliveries": updates * len(self.agents),
            "seconds": elapsed,
            "cpu_seconds": time.process_time() - cpu,
            "frame_bytes": sent_bytes / max(1, updates),
        }

    def _greeting(self, number: int) -> bytes:
        hello = messages.ServerHello(
            version=1, feed="bare", incarnation=bytes(16), features=frozenset({"zstd"}), connection_id=number
        )
        parts: list[messages.Message] = [
            hello,
            messages.SnapshotBegin(self._sequence, 0, 0),
            messages.SnapshotEnd(self._sequence, 0, 0),
            messages.Status(self._sequence, messages.SyncStatus.IN_SYNC),
        ]
        return native.PREFACE + b"".join(native.pack_frame(codec.encode(part)) for part in parts)

    def _frame(self, content: dict[str, Any]) -> bytes:
        metadata = content["metadata"]
        metadata["annotations"] = {**metadata["annotations"], frames.WRITTEN_AT: str(time.time_ns())}
        key = f"/core/v1/pods/{metadata['namespace']}/{metadata['name']}"
        update = messages.Update(
            key, json.dumps(content, separators=(",", ":")).encode(), "1", messages.UpdateType.UPDATED
        )
        payload = codec.encode_updates(self._sequence, self._sequence + 1, [update])
        self._sequence += 1
        return native.pack_frame(payload, compressor=self._compressor)


@click.command()
@click.option("--port", required=True, type=int)
@click.option("--agents", required=True, type=int)
@click.option("--objects", default=1000)
def main(port: int, agents: int, objects: int) -> None:
    """Greets the agents, prints a line; then for each line `RATE SECONDS` on stdin sends, and prints what it cost."""
    loop = BareLoop(port, objects=objects)
    loop.greet(agents)
    print(json.dumps({"agents": agents}), flush=True)
    for line in sys.stdin:
        rate, seconds = line.split()
        print(json.dumps(loop.send(updates_per_second=float(rate), seconds=float(seconds))), flush=True)


if __name__ == "__main__":
    main()
