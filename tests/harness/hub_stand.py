"""A hub without processes: workers whose links the test reads, and snapshots that are built when it says so."""

import os

from cache import resources
from cache.feeds import feed
from protocol import messages
from tests.harness import worker_stand
from tests.harness.worker_stand import PODS, build_snapshot, pod
from typha.hub import hub, policy, worker_link
from typha.hub.channel import HubChannel
from typha.ipc import link, shared_counters
from typha.ipc import messages as ipc

IN_SYNC = messages.SyncStatus.IN_SYNC
KIBIBYTE = 1024
LIMITS = policy.HubPolicy(log_budget_bytes=1 << 20, segment_bytes=64 * KIBIBYTE)


class Worker:
    """The other end of a worker's link, and the hub's handle of it."""

    def __init__(self, number: int = 1) -> None:
        ours, theirs = link.pair()
        self.broken: list[Exception] = []
        self.watching: list[bool] = []
        self.link = link.Link(theirs, ipc.FOR_WORKER)
        self.handle = worker_link.WorkerLink(number, ours, self.broken.append, self.watching.append)
        self._hub: hub.Hub | None = None
        self._publishes_sent: shared_counters.SharedCounter | None = None
        self._publishes_heard = 0

    def attach(self, to: hub.Hub, *, tells_progress: bool = False) -> None:
        """The hub gets to know it; without its progress it is taken to have sent everything at once."""
        self._hub = to
        to.add_worker(self.handle)
        if not tells_progress:
            self.handle.close()
            self.handle.is_attached = True

    def hear(self) -> list[ipc.ToWorker]:
        """All messages since the last call."""
        messages: list[ipc.ToWorker] = []
        while batch := list(self.link.receive()):
            for message, descriptors in batch:
                if isinstance(message, ipc.ShareCounter):
                    self._publishes_sent = shared_counters.SharedCounter.attach(descriptors.pop())
                    continue
                messages.append(message)
                self._publishes_heard += isinstance(message, ipc.Publish)
                for descriptor in descriptors:
                    os.close(descriptor)
        return messages

    def kinds(self) -> list[type]:
        """The same, without the details."""
        return [type(message) for message in self.hear()]

    def say(self, message: ipc.ToHub) -> None:
        """Sends the hub a message, which hears it at once."""
        assert self._hub is not None
        self.link.send(message)
        self._hub.hear(self.handle)

    def sent(self) -> None:
        """Says that it has sent all that it has heard of."""
        assert self._publishes_sent is not None
        self._publishes_sent.value = self._publishes_heard

    def report(self, *, number: int = 1, **of_channel: int) -> None:
        """Reports on a channel, and no other."""
        channel = ipc.ChannelReport(**of_channel)
        self.say(ipc.Report(ipc.WorkerCounts(), active=channel.clients, channels={number: channel}))

    def close(self) -> None:
        """Both ends go."""
        self.link.close()
        self.handle.link.close()
        self.handle.close()
        if self._publishes_sent is not None:
            self._publishes_sent.close()


class HubStand:
    """A hub; snapshots are built when the test says so."""

    def __init__(self, *feeds: feed.Feed, limits: policy.HubPolicy = LIMITS) -> None:
        self.hub = hub.Hub(feeds or [worker_stand.raw_feed()], limits)
        self.workers: list[Worker] = []

    def add_worker(self, number: int = 1, *, tells_progress: bool = False) -> Worker:
        """Another worker."""
        worker = Worker(number)
        self.workers.append(worker)
        worker.attach(self.hub, tells_progress=tells_progress)
        return worker

    def make_snapshots(self) -> None:
        """Makes what was asked for."""
        while (channel := self.hub.snapshots.take()) is not None:
            build_snapshot(self.hub, channel)

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
        self.hub.want_channel(worker_stand.FEED, "native")
        self.make_snapshots()
        [channel] = self.hub.channels.values()
        return channel
