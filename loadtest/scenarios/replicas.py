"""Several replicas behind one Service, as Kubernetes runs them: probes, endpoints, roll-outs, partitions.

Each replica is a process of its own, and reaches the API server through a relay of its own, which can be cut. What a
kubelet and the endpoints' controller do is done here: the readiness probe decides who is among the addresses that
agents use, and the EndpointSlices in the API server tell the replicas of each other.
"""

import asyncio
import contextlib
import json
import os
import random
import signal
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Final, Self

from loadtest.environment import kubeconfig, processes, wall_clock
from loadtest.reporting import measure, report
from loadtest.scenarios.real import relay
from loadtest.verification import expected_state

PROBE_SECONDS: Final = 1.0
"""Between two readiness probes: the shortest that Kubernetes allows. The chart has 10 s, a run is too short for it."""
_NAMESPACE: Final = "kube-system"
_SERVICE: Final = "calico-typha"
_SLICES: Final = f"/apis/discovery.k8s.io/v1/namespaces/{_NAMESPACE}/endpointslices"
_WRITTEN: Final = (200, 201)

Addresses = list[tuple[str, int]]


def host_of(number: int) -> str:
    """The address of a replica: each has its own, because replicas count the addresses of the Service."""
    return f"127.0.0.{100 + number}"


class Replica:
    """One pod of the Deployment. It may be started again after a crash."""

    def __init__(self, number: int, folder: Path, api_server: str, environment: Mapping[str, str]) -> None:
        self.name = f"typha-{number}"
        self.is_ready = False
        """As the last probe has found."""
        self.is_terminating = False
        self._is_started = False
        server, _, port = api_server.rpartition("/")[2].partition(":")
        self.way = relay.Relay(server, int(port))
        """Its way to the API server."""
        self._host = host_of(number)
        self.clock: wall_clock.WallClock | None = None
        """Its wall clock; None if it is the machine's, because libfaketime is not installed."""
        self._folder = folder / self.name
        self._environment = environment
        self._service: processes.ServiceProcess | None = None
        self._stack = contextlib.AsyncExitStack()

    @property
    def service(self) -> processes.ServiceProcess:
        """Its processes."""
        assert self._service is not None
        return self._service

    async def prepare(self) -> None:
        """It gets its address, which the others may know before it has started."""
        report.prepare_folder(self._folder)
        await self._stack.enter_async_context(self.way)
        access = self._folder / "kubeconfig"
        kubeconfig.write(access, f"http://127.0.0.1:{self.way.port}")
        environment = dict(self._environment)
        if (library := wall_clock.library()) is not None:
            self.clock = wall_clock.WallClock(self._folder / "clock", library)
            environment |= self.clock.environment
        self._service = processes.ServiceProcess(self._folder, kubeconfig=access, settings=environment, host=self._host)

    async def start(self) -> None:
        """Start it, and return when it is ready. Raises ProcessError."""
        await self._stack.enter_async_context(self.service)
        self._is_started = True

    async def end(self) -> None:
        """End its processes and its relay."""
        await self._stack.aclose()

    async def probe(self) -> None:
        """One readiness probe."""
        self.is_ready = self._is_started and not self.is_terminating and await self.service.ready()

    @contextlib.contextmanager
    def suspended(self) -> Iterator[None]:
        """All its processes stand still, as in a virtual machine that is paused. To those outside its clock jumps."""
        pids = self.service.pids()
        for pid in pids:
            os.kill(pid, signal.SIGSTOP)
        try:
            yield
        finally:
            for pid in pids:
                os.kill(pid, signal.SIGCONT)

    def slice(self) -> dict[str, object]:
        """Its EndpointSlice. One for each replica, because their ports differ."""
        host, port = self.service.address
        return {
            "apiVersion": "discovery.k8s.io/v1",
            "kind": "EndpointSlice",
            "metadata": {
                "name": self.name,
                "namespace": _NAMESPACE,
                "labels": {"kubernetes.io/service-name": _SERVICE},
            },
            "addressType": "IPv4",
            "endpoints": [
                {
                    "addresses": [host],
                    "conditions": {"ready": self.is_ready, "terminating": self.is_terminating},
                    "targetRef": {"kind": "Pod", "namespace": _NAMESPACE, "name": self.name},
                }
            ],
            "ports": [{"name": "calico-typha", "port": port, "protocol": "TCP"}],
        }


class ServiceAddress(relay.Relay):
    """The Service's address, for clients that know nothing else: each connection goes to a replica that is ready."""

    def __init__(self) -> None:
        super().__init__("", 0)
        self.ready: Addresses = []

    def target(self) -> tuple[str, int] | None:
        """See the base class."""
        return random.choice(self.ready) if self.ready else None


class Deployment:
    """The replicas and their Service; an async context manager. `tell` gets the addresses that are ready.

    It has what a monitor asks of a service, for all replicas together.
    """

    def __init__(
        self,
        folder: Path,
        api_server: str,
        client: expected_state.ApiClient,
        environment: Mapping[str, str],
        *,
        tell: Callable[[Addresses], Awaitable[None]],
    ) -> None:
        self.replicas: list[Replica] = []
        self.address = ServiceAddress()
        self._folder = folder
        self._api_server = api_server
        self._client = client
        self._environment = environment
        self._tell = tell
        self._count = 0
        self._names: dict[tuple[str, int], str] = {}
        self._cpu_of_gone = measure.Cpu(0.0, 0.0)
        self._told: Addresses = []
        self._published: dict[str, object] = {}
        self._looks_one_by_one = asyncio.Lock()
        self._probing: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Self:
        await self.address.__aenter__()
        self._probing = asyncio.create_task(self._probe(), name="readiness probes")
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._probing is not None:
            self._probing.cancel()
            await asyncio.wait([self._probing])
        async with asyncio.TaskGroup() as group:
            for one in self.replicas:
                group.create_task(one.end(), name=f"end of {one.name}")
        await self.address.__aexit__()

    @property
    def ready(self) -> Addresses:
        """Where agents may connect."""
        return [one.service.address for one in self.replicas if one.is_ready]

    def name_of(self, address: tuple[str, int]) -> str:
        """The replica that has, or had, an address."""
        return self._names.get(address, f"{address[0]}:{address[1]}")

    async def add(self, count: int = 1) -> list[Replica]:
        """Start replicas, and return when all are ready and in the Service. Raises ProcessError.

        Their addresses are in the EndpointSlices before they are ready, as those of pods that start.
        """
        made = []
        for _ in range(count):
            self._count += 1
            one = Replica(self._count, self._folder, self._api_server, self._environment)
            await one.prepare()
            self._names[one.service.address] = one.name
            self.replicas.append(one)  # so that it is ended, whatever happens
            made.append(one)
        await self.look()
        async with asyncio.TaskGroup() as group:
            for one in made:
                group.create_task(one.start(), name=f"start of {one.name}")
        await self.look()
        return made

    async def remove(self, one: Replica, *, pre_stop_seconds: float, timeout_seconds: float) -> float:
        """Delete a pod: it leaves the Service at once, its preStop hook sleeps, then SIGTERM. Returns the drain's time.

        Raises ProcessError if it does not end in time, or with an error.
        """
        one.is_terminating = True
        await self.look()
        await asyncio.sleep(pre_stop_seconds)
        seconds = await one.service.drain(timeout_seconds=timeout_seconds)
        cpu = one.service.cpu()
        self._cpu_of_gone = measure.Cpu(self._cpu_of_gone.hub + cpu.hub, self._cpu_of_gone.workers + cpu.workers)
        self.replicas.remove(one)
        await one.end()
        await self.look()
        return seconds

    async def look(self) -> None:
        """Probe all replicas, and publish what has changed. Raises ApiRequestError."""
        async with self._looks_one_by_one:
            for one in self.replicas:
                await one.probe()
            slices: dict[str, object] = {one.name: one.slice() for one in self.replicas}
            for name in self._published.keys() - slices.keys():
                await self._client.request("DELETE", f"{_SLICES}/{name}")
            for name, value in slices.items():
                if self._published.get(name) != value:
                    await self._publish(name, value)
            self._published = slices
            if self.ready != self._told:
                self._told = self.address.ready = self.ready
                await self._tell(self._told)

    async def _publish(self, name: str, value: object) -> None:
        verb, path = ("PUT", f"{_SLICES}/{name}") if name in self._published else ("POST", _SLICES)
        headers = {"Content-Type": "application/json"}
        status, body = await self._client.request(verb, path, data=json.dumps(value), headers=headers)
        if status not in _WRITTEN:
            raise expected_state.ApiRequestError(f"{verb} {path}: {status} {body[:200]!r}")

    async def _probe(self) -> None:
        while True:
            await asyncio.sleep(PROBE_SECONDS)
            await self.look()

    # What a monitor asks of a service.

    def hubs(self) -> list[int]:
        """The hubs' process ids."""
        return [pid for one in self.replicas for pid in one.service.hubs()]

    def pids(self) -> list[int]:
        """All process ids."""
        return [pid for one in self.replicas for pid in one.service.pids()]

    def cpu(self) -> measure.Cpu:
        """CPU time of all replicas, also of those that have gone."""
        used = [self._cpu_of_gone, *(one.service.cpu() for one in self.replicas)]
        return measure.Cpu(sum(one.hub for one in used), sum(one.workers for one in used))

    async def counters(self) -> measure.Metrics:
        """The metrics of the first replica that is ready; all have about the same data."""
        first: Sequence[Replica] = [one for one in self.replicas if one.is_ready][:1]
        return await first[0].service.counters() if first else measure.Metrics("")
