"""What is compared, each as a process on the same simulated API server: the service, and the bare loop."""

import asyncio
import contextlib
import dataclasses
import enum
import json
import sys
from collections.abc import AsyncIterator, Callable, Mapping
from pathlib import Path
from typing import Final

from cache.feeds.calico import syncers
from loadtest import demo
from loadtest.bench.bare import greeting
from loadtest.environment import certificates, processes
from loadtest.reporting import measure
from loadtest.swarm import control

START_TIMEOUT_SECONDS: Final = 30.0
STOP_TIMEOUT_SECONDS: Final = 10.0


class Side(enum.Enum):
    """Who serves the agents."""

    BARE = "bare"
    SERVICE = "service"
    SEND = "bare-send"
    """The bare loop without a watch, by its own schedule."""


@dataclasses.dataclass(frozen=True, slots=True)
class Contender:
    """One that runs. `begin` starts updates if they are of its own schedule: (a second, seconds)."""

    address: tuple[str, int]
    pids: Callable[[], list[int]]
    check: Callable[[], None]
    """Raises ProcessError if it has ended."""
    service: processes.Service | None = None
    begin: Callable[[float, float], None] | None = None

    def cpu_seconds(self) -> float:
        """So far, of all its processes."""
        return sum(measure.cpu_seconds(pid) for pid in self.pids())

    def memory_bytes(self) -> int:
        """Every page once, without the kernel's sockets."""
        return measure.memory(self.pids()).total_bytes


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Ground:
    """What all contenders of a comparison share."""

    folder: Path
    simulator: processes.Simulator
    protocol: control.Protocol = control.Protocol.NATIVE
    environment: Mapping[str, str] = dataclasses.field(default_factory=dict)
    """Of the service."""
    tls: certificates.Certificates | None = None
    """Mutual TLS between the contenders and the agents."""

    @property
    def is_calico(self) -> bool:
        """Typha's protocol has Calico's feeds alone; native agents follow a raw one."""
        return self.protocol is control.Protocol.TYPHA

    @property
    def feed(self) -> str:
        """What the agents follow."""
        return syncers.FELIX if self.is_calico else processes.FEED


@contextlib.asynccontextmanager
async def open_contender(side: Side, ground: Ground) -> AsyncIterator[Contender]:
    """Starts it and ends it. Raises ProcessError."""
    if side is Side.SERVICE:
        environment = ground.tls.environment if ground.tls is not None else {}
        async with _service(ground, {**ground.environment, **environment}) as service:
            yield Contender(service.address, service.pids, service.check, service)
        return
    file = await recording_file(ground)
    arguments = ["--recording", str(file)]
    if ground.tls is not None:
        arguments += ["--tls", *ground.tls.server_files]
    if side is Side.BARE:
        state = await ground.simulator.control("GET", "stats")
        arguments += ["--watch", ground.simulator.url, "--version", str(state["version"])]
    async with _bare(ground.folder / f"{side.value}.log", arguments) as contender:
        yield contender if side is Side.SEND else dataclasses.replace(contender, begin=None)


async def recording_file(ground: Ground) -> Path:
    """What the service sends a newcomer, recorded once for a folder; the same with TLS and without."""
    file = ground.folder / f"recording-{ground.protocol.value}"
    if not file.exists():
        async with _service(ground, ground.environment) as service:
            recording = await asyncio.to_thread(
                greeting.record, service.address, protocol=ground.protocol, feed=ground.feed
            )
        recording.save(file)
    return file


def _service(ground: Ground, environment: Mapping[str, str]) -> processes.Service:
    return processes.Service(
        ground.folder,
        kubeconfig_file=ground.simulator.kubeconfig,
        types=() if ground.is_calico else demo.SIMULATED_TYPES,
        calico=ground.is_calico,
        settings=environment,
    )


@contextlib.asynccontextmanager
async def _bare(log: Path, arguments: list[str]) -> AsyncIterator[Contender]:
    with log.open("ab") as output:
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            "loadtest.bench.bare",
            *arguments,
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=output,
            start_new_session=True,  # as the service: Linux schedules sessions as groups (sched(7), autogroup)
        )
    assert process.stdin is not None
    assert process.stdout is not None
    stdin = process.stdin

    def check() -> None:
        if process.returncode is not None:
            tail = "\n".join(log.read_text(errors="replace").splitlines()[-5:])
            raise processes.ProcessError(f"the bare loop ended with status {process.returncode}; {log}:\n{tail}")

    def begin(updates_per_second: float, seconds: float) -> None:
        stdin.write(f"{updates_per_second} {seconds}\n".encode())

    try:
        async with asyncio.timeout(START_TIMEOUT_SECONDS):
            line = await process.stdout.readline()
        if not line:
            await process.wait()
            check()
        address = processes.HOST, int(json.loads(line)["port"])
        yield Contender(address, lambda: [process.pid], check, begin=begin)
    finally:
        stdin.close()
        await processes.wait_or_kill(process, STOP_TIMEOUT_SECONDS)
