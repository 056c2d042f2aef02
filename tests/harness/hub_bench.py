"""A hub without processes: workers whose links the test reads, and snapshots that are made when it says so."""

import os
from typing import Any

from cache import resources
from cache.feeds import feed
from protocol import messages
from tests.harness import support
from tests.harness.support import PODS, build_snapshot, pod
from typha.hub import hub, worker_link
from typha.hub.channel import HubChannel
from typha.ipc import link, shared_counters

IN_SYNC = messages.SyncStatus.IN_SYNC
KIBIBYTE = 1024


class Worker:
    """The other end of a worker's link, and the hub's handle of it."""

    def __init__(self, number: int = 1) -> None:
        ours, theirs = link.pair()
        self.broken: list[Exception] = []
        self.watching: list[bool] = []
        self.link = link.Link(theirs)
        self.handle: worker_link.WorkerLink
        self._ours = link.Link(ours)
        self._number = number
        self._ends_sent: shared_counters.SharedCounter | None = None
        self._ends_heard = 0

    def attach(self, to: hub.Hub, *, tells_progress: bool = False) -> None:
        """The hub gets to know it; without its progress it is taken to have sent everything at once."""
        self.handle = worker_link.WorkerLink(self._number, self._ours, to, self.broken.append, self.watching.append)
        to.add_worker(self.handle)
        if not tells_progress:
            self.handle.close()

    def hear(self) -> list[list[Any]]:
        """All it has been told since the last call."""
        messages: list[list[Any]] = []
        while batch := list(self.link.receive()):
            for message, descriptors in batch:
                if message == ["progress"]:
                    self._ends_sent = shared_counters.SharedCounter.attach(descriptors.pop())
                    continue
                messages.append(message)
                self._ends_heard += message[0] == "ends"
                for descriptor in descriptors:
                    os.close(descriptor)
        return messages

    def kinds(self) -> list[str]:
        """The same, without the details."""
        return [message[0] for message in self.hear()]

    def sent(self) -> None:
        """Says that it has sent all that it has heard of."""
        assert self._ends_sent is not None
        self._ends_sent.value = self._ends_heard

    def report(self, **of_channel: int) -> None:
        """What it says of channel 1."""
        self.link.send(["stats", {"active": of_channel.get("clients", 0), "channels": {1: of_channel}}])
        self.handle.hear()

    def close(self) -> None:
        """Both ends go."""
        self.link.close()
        self._ours.close()
        self.handle.close()
        if self._ends_sent is not None:
            self._ends_sent.close()


class Bench:
    """A hub; snapshots are made when the test says so."""

    def __init__(self, *feeds: feed.RawFeed, log_budget_bytes: int = 1 << 20) -> None:
        self.requested: list[HubChannel] = []
        self.hub = hub.Hub(
            feeds or [support.raw_feed()],
            log_budget_bytes=log_budget_bytes,
            segment_bytes=64 * KIBIBYTE,
            build_snapshot=self.requested.append,
        )
        self.workers: list[Worker] = []

    def add_worker(self, number: int = 1, *, tells_progress: bool = False) -> Worker:
        """Another worker."""
        worker = Worker(number)
        self.workers.append(worker)
        worker.attach(self.hub, tells_progress=tells_progress)
        return worker

    def make_snapshots(self) -> None:
        """Makes what was asked for."""
        while self.requested:
            build_snapshot(self.hub, self.requested.pop())

    def sync(self, *types: resources.ResourceType) -> None:
        """The types are known whole."""
        for type in types or (PODS,):
            self.hub.status(type, IN_SYNC)
        self.hub.batch_end()

    def put(self, name: str, *, size: int = 10, version: int = 1) -> None:
        """A batch of one object."""
        self.hub.apply(pod(name, str(version).rjust(size, "x"), version=version))
        self.hub.batch_end()

    def churn(self, kibibytes: int) -> None:
        """So much more log, at least."""
        for number in range(kibibytes // 8 + 1):
            self.put(f"p{number % 4}", size=8 * KIBIBYTE, version=number + 2)

    def open(self) -> HubChannel:
        """In sync, with one channel and its snapshot."""
        self.sync()
        self.hub.wanted(support.FEED, "native")
        self.make_snapshots()
        [channel] = self.hub.channels.values()
        return channel
