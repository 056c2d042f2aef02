"""The processes of a load test: the simulated API server and the service, as a user would start them."""

import asyncio
import json
import os
import signal
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

import aiohttp
import yaml

from loadtest.environment import control_plane, kubeconfig
from loadtest.reporting import measure

FEED: Final = "loadtest"
HOST: Final = "127.0.0.1"
TYPHA: Final = Path(sys.executable).with_name("typha")
"""The service's command, in the environment that this runs in."""
START_TIMEOUT_SECONDS: Final = 60.0
STOP_TIMEOUT_SECONDS: Final = 15.0
POLL_INTERVAL_SECONDS: Final = 0.05
SCRAPE_TIMEOUT_SECONDS: Final = 5.0


class ProcessError(Exception):
    """A process of the load test did not start, or ended; the message says where its log is."""


async def wait_or_kill(process: asyncio.subprocess.Process, timeout_seconds: float) -> None:
    """Gives a process that has been told to end its time, and then no more."""
    try:
        async with asyncio.timeout(timeout_seconds):
            await process.wait()
    except TimeoutError:
        process.kill()
        await process.wait()


class _Child:
    """A subprocess with its output in a file."""

    def __init__(self, name: str, folder: Path) -> None:
        self.name = name
        self.log = folder / f"{name}.log"
        self.process: asyncio.subprocess.Process | None = None

    @property
    def pid(self) -> int:
        """Its process id while it runs."""
        if self.process is None:
            raise ProcessError(f"{self.name} does not run")
        return self.process.pid

    async def spawn(self, command: Sequence[str], environment: Mapping[str, str], *, stdout: int | None = None) -> None:
        with self.log.open("ab") as log:
            self.process = await asyncio.create_subprocess_exec(
                *command,
                env=dict(environment),
                stdin=asyncio.subprocess.DEVNULL,
                stdout=log if stdout is None else stdout,
                stderr=log,
                start_new_session=True,  # Ctrl-C is for the load test, which then ends its processes
            )

    def check(self) -> None:
        """Raises ProcessError if the process has ended."""
        if self.process is None or self.process.returncode is not None:
            status = None if self.process is None else self.process.returncode
            tail = "\n".join(self.log.read_text(errors="replace").splitlines()[-10:])
            raise ProcessError(f"{self.name} ended with status {status}; the end of {self.log}:\n{tail}")

    async def stop(self) -> None:
        process, self.process = self.process, None
        if process is None or process.returncode is not None:
            return
        process.terminate()
        await wait_or_kill(process, STOP_TIMEOUT_SECONDS)

    async def kill(self) -> None:
        """SIGKILL."""
        process, self.process = self.process, None
        if process is not None and process.returncode is None:
            process.kill()
            await process.wait()


class Simulator:
    """`python -m loadtest.apiserver` as a process; `arguments` are its own."""

    def __init__(self, folder: Path, *, arguments: Sequence[str] = ()) -> None:
        self.kubeconfig = folder / "simulator.kubeconfig"
        self.url = ""
        self.objects: dict[str, int] = {}
        self._arguments = list(arguments)
        self._child = _Child("apiserver", folder)
        self._session: aiohttp.ClientSession | None = None

    @property
    def pid(self) -> int:
        """Its process id."""
        return self._child.pid

    async def __aenter__(self) -> Self:
        command = [sys.executable, "-m", "loadtest.apiserver", *self._arguments]
        await self._child.spawn(command, os.environ, stdout=asyncio.subprocess.PIPE)
        process = self._child.process
        assert process is not None
        assert process.stdout is not None
        try:
            async with asyncio.timeout(START_TIMEOUT_SECONDS):
                line = await process.stdout.readline()
            if not line:
                await process.wait()
                self._child.check()
        except BaseException:
            await self._child.stop()
            raise
        ready = json.loads(line)
        self.url = ready["url"]
        self.objects = ready["objects"]
        kubeconfig.write(self.kubeconfig, self.url)
        self._session = aiohttp.ClientSession()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._session is not None:
            await self._session.close()
        await self._child.stop()

    async def control(self, method: str, what: str, body: object = None) -> dict[str, Any]:
        """A request to its control endpoint. Raises ProcessError if it is refused."""
        assert self._session is not None
        data = None if body is None else json.dumps(body).encode()
        async with self._session.request(method, f"{self.url}/_sim/{what}", data=data) as answer:
            content: dict[str, Any] = await answer.json()
        if answer.status != 200:
            raise ProcessError(f"simulator: {method} {what}: {content}")
        return content

    async def metrics(self) -> str:
        """Its /metrics page, with kube-apiserver's names."""
        assert self._session is not None
        async with self._session.get(f"{self.url}/metrics") as answer:
            return await answer.text()


class Service:
    """`typha serve` as a process on fixed ports, so that it can be killed and started again."""

    def __init__(
        self,
        folder: Path,
        *,
        kubeconfig_file: Path,
        types: Sequence[str],
        calico: bool = False,
        settings: Mapping[str, str] | None = None,
    ) -> None:
        """With a raw feed of `types`, if there are any, or with Calico's feeds."""
        self.port, self._health_port, self._metrics_port = _distinct_ports(3)
        self.address = (HOST, self.port)
        feeds_file = folder / "feeds.yaml"
        feeds = {"feeds": {FEED: {"resources": [{"type": name} for name in types]}}}
        feeds_file.write_text(yaml.safe_dump(feeds, sort_keys=False))
        own = {name: value for name, value in os.environ.items() if not name.startswith(("TYPHA_", "KUBERNETES_"))}
        self._environment = {
            **own,
            "KUBECONFIG": str(kubeconfig_file),
            "TYPHA_SERVERHOST": HOST,
            "TYPHA_SERVERPORT": str(self.port),
            "TYPHA_FEEDSFILE": str(feeds_file) if types else "",
            # The cluster may be somebody's own: nothing is created in it, whatever is installed there.
            "TYPHA_CALICOFEEDS": "true" if calico else "false",
            "TYPHA_READONLY": "true",
            "TYPHA_HEALTHENABLED": "true",
            "TYPHA_HEALTHHOST": HOST,
            "TYPHA_HEALTHPORT": str(self._health_port),
            "TYPHA_PROMETHEUSMETRICSENABLED": "true",
            "TYPHA_PROMETHEUSMETRICSHOST": HOST,
            "TYPHA_PROMETHEUSMETRICSPORT": str(self._metrics_port),
            "TYPHA_LOGFILEPATH": "none",
            "TYPHA_LOGSEVERITYSCREEN": "info",
            **(settings or {}),
        }
        self.cpu = measure.CpuMeter()
        self._child = _Child("service", folder)
        self._session: aiohttp.ClientSession | None = None

    @property
    def log(self) -> Path:
        """The file with its log."""
        return self._child.log

    @property
    def hub_pid(self) -> int:
        """Process id of its hub."""
        return self._child.pid

    def pids(self) -> list[int]:
        """All its processes, the hub first."""
        return [] if self._child.process is None else measure.process_tree(self._child.process.pid)

    def worker_pids(self) -> list[int]:
        """Its worker processes."""
        return self.pids()[1:]

    async def __aenter__(self) -> Self:
        timeout = aiohttp.ClientTimeout(total=SCRAPE_TIMEOUT_SECONDS)
        self._session = aiohttp.ClientSession(timeout=timeout)
        try:
            await self.start()
        except BaseException:
            await self.__aexit__(None, None, None)
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self._child.stop()
        if self._session is not None:
            await self._session.close()

    async def start(self, *, wait: bool = True) -> float:
        """Starts it and waits until it says that it is ready; returns how long that took. Raises ProcessError."""
        begin = time.monotonic()
        await self._child.spawn([str(TYPHA), "serve"], self._environment)
        while wait and not await self.ready():
            self._child.check()
            if time.monotonic() - begin > START_TIMEOUT_SECONDS:
                raise ProcessError(f"the service is not ready after {START_TIMEOUT_SECONDS:.0f} s; see {self.log}")
            await asyncio.sleep(POLL_INTERVAL_SECONDS)
        return time.monotonic() - begin

    async def kill(self) -> None:
        """SIGKILL to the hub, and to nothing else."""
        self.cpu.sample(self.pids())
        await self._child.kill()

    async def left_over(self, workers: Sequence[int]) -> list[int]:
        """Which of these workers of a killed service still live, after a while that is long enough to notice."""
        deadline = time.monotonic() + STOP_TIMEOUT_SECONDS
        while True:
            left = [pid for pid in workers if measure.process_tree(pid)]
            if not left or time.monotonic() > deadline:
                return left
            await asyncio.sleep(POLL_INTERVAL_SECONDS)

    def kill_worker(self) -> int:
        """SIGKILL to one worker; returns its process id. Raises ProcessError if there is none."""
        workers = self.worker_pids()
        if not workers:
            raise ProcessError("the service has no worker process")
        self.cpu.sample(workers)
        os.kill(workers[0], signal.SIGKILL)
        return workers[0]

    def check(self) -> None:
        """Raises ProcessError if it has ended by itself."""
        self._child.check()

    async def ready(self) -> bool:
        """Whether /readiness says so."""
        status, _ = await self._get(self._health_port, "/readiness")
        return status == 200

    async def counters(self) -> measure.Counters:
        """Its metrics; empty while it does not answer. Raises ProcessError if it answers with an error."""
        status, text = await self._get(self._metrics_port, "/metrics")
        if status not in (0, 200):
            raise ProcessError(f"the service answers /metrics with {status}; see {self.log}")
        return measure.Counters(text)

    async def _get(self, port: int, path: str) -> tuple[int, str]:
        assert self._session is not None
        try:
            async with self._session.get(f"http://{HOST}:{port}{path}") as answer:
                return answer.status, await answer.text()
        except (aiohttp.ClientError, TimeoutError):
            return 0, ""


def _distinct_ports(count: int) -> list[int]:
    ports: set[int] = set()
    while len(ports) < count:
        ports.add(control_plane.free_port(HOST))
    return sorted(ports)
