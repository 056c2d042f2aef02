"""The servers that are compared, on the same simulated API server: the service and the bare loop."""

import asyncio
import contextlib
import dataclasses
import enum
import sys
from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from typing import Final

from cache.feeds.calico import syncers
from loadtest.bench.bare import greeting
from loadtest.environment import certificates, child, measurement, processes
from loadtest.reporting import measure
from loadtest.swarm import control, supervisor

RAMP_PER_SECOND: Final = 2500.0
IN_SYNC_TIMEOUT_SECONDS: Final = 120.0
FEEDS: Final = {control.Protocol.NATIVE: processes.FEED, control.Protocol.TYPHA: syncers.FELIX}


class Side(enum.Enum):
    """One of the servers."""

    BARE = "bare"
    SERVICE = "service"
    SEND = "bare-send"
    """The bare loop without a watch: it makes up its updates by a schedule."""
    GO = "go"
    """A server on Go's TLS that sends a recorded snapshot and no updates."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Setup:
    """What all targets of a comparison share."""

    folder: Path
    simulator: processes.SimulatorProcess
    protocol: control.Protocol = control.Protocol.NATIVE
    tls: certificates.Certificates | None = None
    """For mutual TLS between targets and agents."""

    @property
    def is_calico(self) -> bool:
        """Typha's protocol has Calico's feeds alone; native agents follow a raw feed."""
        return self.protocol is control.Protocol.TYPHA

    @property
    def feed(self) -> str:
        """The feed that the agents follow."""
        return FEEDS[self.protocol]

    def service(self, environment: Mapping[str, str] | None = None) -> processes.ServiceProcess:
        """The service on this API server."""
        return processes.ServiceProcess(
            self.folder,
            kubeconfig=self.simulator.kubeconfig,
            types=() if self.is_calico else processes.SIMULATED_TYPES,
            settings=environment,
        )

    @contextlib.asynccontextmanager
    async def open_swarm(self, target: measurement.Target, agents: int) -> AsyncIterator[supervisor.Swarm]:
        """Agents of a target that are in sync and quiet. Raises SwarmError if one sees the protocol broken."""
        plan = supervisor.SwarmPlan(
            feed=self.feed,
            agents=agents,
            protocols=(self.protocol,),
            ramp_per_second=RAMP_PER_SECOND,
            tls=self.tls.agents if self.tls is not None else None,
        )
        async with supervisor.Swarm([target.address], plan) as swarm:
            await swarm.wait_in_sync(timeout_seconds=IN_SYNC_TIMEOUT_SECONDS)
            await measurement.until_quiet(swarm)
            yield swarm
            if errors := swarm.totals().protocol_errors:
                raise supervisor.SwarmError(f"{errors[0]} (agents of {target.address})")


class BareProcess(child.Child):
    """A bare loop, or another server with its output, as a process."""

    def __init__(self, log: Path, command: list[str], *, has_schedule: bool = False) -> None:
        super().__init__("the bare loop", log)
        self.address = (processes.HOST, 0)
        self.has_schedule = has_schedule
        self._command = command

    async def start(self) -> None:
        """Start it, and return when it listens. Raises ProcessError."""
        await self._spawn(self._command, stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE)
        self.address = (processes.HOST, int((await self._read_ready_line())["port"]))

    def pids(self) -> list[int]:
        """Its one process."""
        return [self.pid]

    def cpu(self) -> measure.Cpu:
        """CPU time so far."""
        return measure.Cpu(measure.cpu_seconds(self.pid))

    async def start_updates(self, updates_per_second: float, seconds: float) -> None:
        """Start its own updates, if it has a schedule."""
        await self.write(f"{updates_per_second} {seconds}\n".encode())


@contextlib.asynccontextmanager
async def open_target(side: Side, setup: Setup) -> AsyncIterator[measurement.Target]:
    """Start a target, and end it. Raises ProcessError."""
    if side is Side.SERVICE:
        async with setup.service(setup.tls.environment if setup.tls is not None else None) as service:
            yield service
        return
    if side is Side.GO and setup.tls is not None:
        command = [
            await child.build_go_program("gotls"),
            *(f"-{n}={v}" for n, v in zip(("cert", "key", "ca"), setup.tls.server_files, strict=True)),
        ]
        for number, part in enumerate(greeting.load(await recording_file(setup)).parts):
            file = setup.folder / f"recording-part-{number}"
            file.write_bytes(part)
            command.append(str(file))
        async with BareProcess(setup.folder / "go.log", command) as server:
            yield server
        return
    arguments = [sys.executable, "-m", "loadtest.bench.bare", "--recording", str(await recording_file(setup))]
    if setup.tls is not None:
        arguments += ["--tls", *setup.tls.server_files]
    if side is Side.BARE:
        state = await setup.simulator.control("GET", "stats")
        arguments += ["--watch", setup.simulator.url, "--version", str(state["version"])]
    log = setup.folder / f"{side.value}.log"
    async with BareProcess(log, arguments, has_schedule=side is Side.SEND) as bare:
        yield bare


async def recording_file(setup: Setup) -> Path:
    """The service's greeting of a new client, recorded once for a folder; it is the same with and without TLS."""
    file = setup.folder / f"recording-{setup.protocol.value}"
    if not file.exists():
        async with setup.service() as service:
            recording = await asyncio.to_thread(
                greeting.record, service.address, protocol=setup.protocol, feed=setup.feed
            )
        recording.save(file)
    return file
