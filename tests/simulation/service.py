"""One service: a hub process with its feed, and its workers, all in simulated processes.

They run the real code of the service: hub, snapshot builder, supervisor, servers. Only the parts that start a process,
open a socket or read a clock are replaced.
"""

import asyncio
import socket
from collections.abc import Coroutine
from typing import Any

from cache import resources
from cache.feeds import raw
from tests.harness import dictionaries
from tests.simulation import apiserver, expected_state, links, plans, process, sockets, transports
from tests.simulation import world as worlds
from typha import settings
from typha.hub import hub, policy, supervisor
from typha.ipc import messages
from typha.ipc.link import LinkBroken
from typha.worker import client, poller, transport
from typha.worker.server import Server

FEED = "felix"
TYPES = (resources.ResourceType("", "v1", "pods"), resources.ResourceType("", "v1", "nodes"))
MAX_VALUE_BYTES = 1 << 20
_HOUSEKEEPING_SECONDS = 1.0
_TRAINING_SECONDS = 0.3
EXIT_HUB_GONE = 3


class Worker:
    """A worker process."""

    def __init__(self, service: "Service", config: messages.WorkerConfig, link_end: links.End) -> None:
        plan = service.plan
        self.service = service
        self.config = config
        self.host = sockets.Host()
        self.transport: transport.Transport
        if plan.tls:
            through_tls = transports.TlsTransport()
            self.transport = through_tls
            self.listener = sockets.Listener(service.backlog, self.host, link_end.owner, through_tls.accepted)
        else:
            self.transport = transports.PlainTransport(self.host)
            self.listener = sockets.Listener(service.backlog, self.host, link_end.owner)
        self.link_end = link_end
        self.process = link_end.owner
        self.server: Server | None = None
        self.ended: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        self.process.on_exit.append(self._closed_by_kernel)

    async def main(self) -> int:
        """Run the worker as `typha.worker` does."""
        limits = self.service.plan.limits
        client_poller: poller.Poller[client.Client] = poller.Poller(
            self.listener,
            notsent_lowat_bytes=limits.notsent_lowat_bytes,
        )
        self.server = Server(
            self.config,
            limits,
            self.listener,
            self.link_end,
            client_poller=client_poller,
            bytes_through=self.transport,
        )
        try:
            await self.server.run()
        except LinkBroken:
            return EXIT_HUB_GONE
        return 0

    def _closed_by_kernel(self) -> None:
        self.host.close_all()
        self.listener.close()
        self.link_end.close()
        hub_process = self.service.process
        if hub_process.is_alive and not self.ended.done():
            code = self.process.exit_code if self.process.exit_code is not None else -9
            self.service.world.after(0.001, lambda: self._tell_end(code))

    def _tell_end(self, code: int) -> None:
        if not self.ended.done() and self.service.process.is_alive:
            self.ended.set_result(code)


class Supervisor(supervisor.Supervisor):
    """The supervisor of the service, with simulated processes."""

    def __init__(self, service: "Service", the_hub: hub.Hub, limits: policy.HubPolicy, listener: socket.socket) -> None:
        super().__init__(the_hub, settings.Settings(), limits, listener, serve_embedded=_no_embedded_worker)
        self.wanted = service.plan.workers
        self._service = service
        self.incarnation = f"{service.number:032x}"

    async def _run_process(self, number: int) -> int:
        service = self._service
        child = service.make_process(f"worker {number}.{service.next_worker()}")
        ours, theirs = links.pair(service.process, child, room_datagrams=service.plan.link_datagrams)
        with ours:
            worker = Worker(service, self._config(number), theirs)
            service.workers[number] = worker
            child.start(worker.main)
            ended = asyncio.create_task(_wait(worker.ended), name=f"worker {number} exit")
            try:
                with self._attached(number, ours) as broken:
                    await self._watch(number, ended, broken)
            finally:
                if service.process.is_alive:  # a dead hub does not kill its workers
                    if not ended.done():
                        child.kill()
                    await ended
        return ended.result()


async def _no_embedded_worker(*_: object) -> None:
    raise worlds.Violation("a worker inside the hub was not asked for")


async def _wait(ended: "asyncio.Future[int]") -> int:
    return await ended


class Service:
    """One run of the service: the process of its hub, and everything that ends with it."""

    def __init__(
        self,
        world: worlds.World,
        number: int,
        plan: plans.Plan,
        backlog: sockets.Backlog,
        server: apiserver.ApiServer,
    ) -> None:
        self.world = world
        self.number = number
        self.plan = plan
        self.backlog = backlog
        self.server = server
        self.expected = expected_state.ExpectedState(world)
        self.workers: dict[int, Worker] = {}
        self.watchers: list[apiserver.Watcher] = []
        self.process = self.make_process(f"hub {number}")
        self.host = sockets.Host()
        self.listener = sockets.Listener(backlog, self.host, self.process)
        self.hub: hub.Hub | None = None
        self.keeper: Supervisor | None = None
        self._stopping = asyncio.Event()
        self._started = 0
        self.process.on_exit.append(self._closed_by_kernel)
        self.process.start(self._main)

    def make_process(self, name: str) -> process.Process:
        """Create a process with the speed of the plan."""
        return process.Process(
            self.world,
            name,
            read_clock_seconds=self.plan.read_clock_seconds,
            wake_seconds_max=self.plan.wake_seconds_max,
        )

    def processes(self) -> list[process.Process]:
        """The processes of the hub and of the newest workers."""
        return [self.process, *(worker.process for worker in self.workers.values())]

    def next_worker(self) -> int:
        """Number of the next worker process."""
        self._started += 1
        return self._started

    @property
    def is_stopping(self) -> bool:
        """Whether the service has received SIGTERM."""
        return self._stopping.is_set()

    def stop(self) -> None:
        """Send SIGTERM to the service."""
        self.world.note(self.process.name, "receives SIGTERM")
        self._stopping.set()

    def _closed_by_kernel(self) -> None:
        self.listener.close()
        for worker in self.workers.values():
            if worker.link_end.other is not None:
                worker.link_end.other.close()

    async def _main(self) -> int:
        """Put the service together as `typha.service` does."""
        limits = self.plan.hub_limits
        self.hub = hub.Hub([self.make_feed()], limits)
        self.keeper = Supervisor(self, self.hub, limits, self.listener)
        try:
            async with asyncio.TaskGroup() as tasks:
                serving = tasks.create_task(self.keeper.run(), name="workers")
                jobs = [
                    self.hub.run_snapshots(),
                    self.hub.catch_ups.run(),
                    self.hub.run_coalescing(),
                    self.hub.run_projections(),
                    self._train_dictionaries(self.hub),
                ]
                jobs += self.sources(self.hub)
                jobs.append(self._keep_house(self.hub))
                background = [tasks.create_task(job) for job in jobs]
                await self._stopping.wait()
                self.listener.close()
                self.leave()
                self.keeper.drain(seconds=self.plan.drain_seconds, interval_seconds_max=1.0)
                await serving
                for task in background:
                    task.cancel()
        finally:
            self.hub.close()
        return 0

    def make_feed(self) -> expected_state.RecordedFeed:
        """The feed, for watchers."""
        spec = raw.FeedSpec(FEED, tuple(raw.ResourceSpec(type) for type in TYPES))
        return expected_state.RecordedFeed(spec, max_value_bytes=MAX_VALUE_BYTES, expected=self.expected)

    def sources(self, the_hub: hub.Hub) -> list[Coroutine[Any, Any, None]]:
        """What feeds the hub: watchers."""
        self.watchers = [apiserver.Watcher(self.server, type, the_hub) for type in TYPES]
        return [watcher.run() for watcher in self.watchers]

    def confirmed_at(self, watcher: apiserver.Watcher) -> float | None:
        """What the hub is told of when the API server last confirmed a type. Nobody asks this service for it."""
        return None

    def leave(self) -> None:
        """The service begins to drain."""

    async def _train_dictionaries(self, the_hub: hub.Hub) -> None:
        """As the hub does, but without a thread. Training them from this little would take long, so they are ready."""
        while True:
            job = await the_hub.dictionaries.next()
            await asyncio.sleep(_TRAINING_SECONDS)
            the_hub.dictionary_trained(job, dictionaries.trained(1 + job.number % 3))

    async def _keep_house(self, the_hub: hub.Hub) -> None:
        while True:
            await asyncio.sleep(_HOUSEKEEPING_SECONDS)
            for one in self.watchers:
                the_hub.set_unconfirmed(one.type, one.is_unconfirmed, self.confirmed_at(one))
            the_hub.look_after_channels()
