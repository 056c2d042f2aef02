"""The simulated API server and the service as processes, started as a user would start them."""

import asyncio
import os
import signal
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import aiohttp
import msgspec
import yaml

from loadtest.environment import child, control_plane, kubeconfig
from loadtest.reporting import measure

FEED: Final = "loadtest"
TYPES: Final = (
    "v1/namespaces",
    "v1/nodes",
    "v1/pods",
    "v1/services",
    "discovery.k8s.io/v1/endpointslices",
    "networking.k8s.io/v1/networkpolicies",
)
SIMULATED_TYPES: Final = (*TYPES, "loadtest.example.com/v1/widgets")
HOST: Final = "127.0.0.1"
TYPHA: Final = Path(sys.executable).with_name("typha")
"""The service's command, from the environment in which the load test runs."""
POLL_INTERVAL_SECONDS: Final = 0.05
SCRAPE_TIMEOUT_SECONDS: Final = 5.0

ONLY_PODS: Final = {"pods": 1}
"""For `types` of a churn."""


class SimulatorProcess(child.Child):
    """`python -m loadtest.apiserver` as a process."""

    def __init__(
        self,
        folder: Path,
        *,
        nodes: int = 500,
        pods: int = 5000,
        pod_bytes: int = 0,
        calico: bool = False,
        watch_list: str = "on",
    ) -> None:
        super().__init__("apiserver", folder / "apiserver.log")
        self.kubeconfig = folder / "simulator.kubeconfig"
        self.url = ""
        self._command = [sys.executable, "-m", "loadtest.apiserver", "--nodes", str(nodes), "--pods", str(pods)]
        self._command += ["--pod-bytes", str(pod_bytes), "--watch-list", watch_list]
        self._command += ["--calico"] if calico else []
        self._pod_bytes = pod_bytes
        self._calico = calico
        self._session: aiohttp.ClientSession | None = None

    async def start(self) -> None:
        """Start it and write a kubeconfig file. Raises ProcessError."""
        await self._spawn(self._command, stdout=asyncio.subprocess.PIPE)
        self.url = (await self._read_ready_line())["url"]
        kubeconfig.write(self.kubeconfig, self.url)
        self._session = aiohttp.ClientSession()

    async def stop(self) -> None:
        """End it."""
        if self._session is not None:
            await self._session.close()
        await super().stop()

    async def control(self, method: str, what: str, body: object = None) -> dict[str, Any]:
        """Send a request to its control endpoint. Raises ProcessError if it is refused."""
        assert self._session is not None
        data = None if body is None else msgspec.json.encode(body)
        async with self._session.request(method, f"{self.url}/_sim/{what}", data=data) as answer:
            content: dict[str, Any] = await answer.json()
        if answer.status != 200:
            raise child.ProcessError(f"simulator: {method} {what}: {content}")
        return content

    async def start_churn(self, rate_per_second: float, **more: object) -> None:
        """Change objects at this rate from now on; `more` are members of `ChurnSettings`."""
        body = {"rate_per_second": rate_per_second, "label_times": self._calico, "pod_bytes": self._pod_bytes, **more}
        await self.control("POST", "churn", body)

    async def stop_churn(self) -> None:
        """Stop the changes."""
        await self.control("DELETE", "churn")

    async def update_pods(self, rate_per_second: float, seconds: float) -> None:
        """Update pods for a time, and create or delete nothing."""
        await self.start_churn(rate_per_second, duration_seconds=seconds, types=ONLY_PODS, create=0, delete=0)
        await asyncio.sleep(seconds)

    async def burst(self, count: int) -> None:
        """Make `count` changes at once."""
        await self.control("POST", "burst", {"count": count, "label_times": self._calico})

    async def counters(self) -> measure.Metrics:
        """Its metrics, which have kube-apiserver's names."""
        assert self._session is not None
        async with self._session.get(f"{self.url}/metrics") as answer:
            return measure.Metrics(await answer.text())


class ServiceProcess(child.Child):
    """`typha serve` as a process, which is its hub. Its ports stay the same after a kill and a new start."""

    log: Path

    def __init__(
        self,
        folder: Path,
        *,
        kubeconfig: Path,
        types: Sequence[str] = (),
        settings: Mapping[str, str] | None = None,
        ulimit: str = "",
        host: str = HOST,
    ) -> None:
        """Serve a raw feed of `types`, or without types Calico's feeds; `settings` are environment variables.

        `ulimit` is what the shell's ulimit gets before. Clients connect to `host`.
        """
        super().__init__("service", folder / "service.log")
        self.port, self._health_port, self.metrics_port = (control_plane.free_port(one) for one in (host, HOST, HOST))
        self.address = (host, self.port)
        feeds_file = folder / "feeds.yaml"
        feeds = {"feeds": {FEED: {"resources": [{"type": name} for name in types]}}}
        feeds_file.write_text(yaml.safe_dump(feeds, sort_keys=False))
        own = {name: value for name, value in os.environ.items() if not name.startswith(("TYPHA_", "KUBERNETES_"))}
        self._environment = {
            **own,
            "KUBECONFIG": str(kubeconfig),
            "TYPHA_SERVERHOST": host,
            "TYPHA_SERVERPORT": str(self.port),
            "TYPHA_FEEDSFILE": str(feeds_file) if types else "",
            # The cluster may be a real one: the service must create nothing in it.
            "TYPHA_CALICOFEEDS": "false" if types else "true",
            "TYPHA_READONLY": "true",
            "TYPHA_HEALTHENABLED": "true",
            "TYPHA_HEALTHHOST": HOST,
            "TYPHA_HEALTHPORT": str(self._health_port),
            "TYPHA_PROMETHEUSMETRICSENABLED": "true",
            "TYPHA_PROMETHEUSMETRICSHOST": HOST,
            "TYPHA_PROMETHEUSMETRICSPORT": str(self.metrics_port),
            "TYPHA_LOGFILEPATH": "none",
            "TYPHA_LOGSEVERITYSCREEN": "info",
            **(settings or {}),
        }
        shell = ["sh", "-c", f'ulimit {ulimit}; exec "$@"', "sh"] if ulimit else []
        self._command = [*shell, str(TYPHA), "serve"]
        self._cpu = measure.CpuMeter()
        self._session: aiohttp.ClientSession | None = None
        self.start_seconds = 0.0
        """How long the last start took, until it was ready."""
        self.start_cpu_seconds = 0.0
        """CPU time of all processes of the service until then."""

    def pids(self) -> list[int]:
        """All its processes, the hub first."""
        return [] if self._process is None else measure.process_tree(self._process.pid)

    def hubs(self) -> list[int]:
        """The hub's process id, if it runs."""
        return self.pids()[:1]

    def worker_pids(self) -> list[int]:
        """Its worker processes."""
        return self.pids()[1:]

    def cpu(self) -> measure.Cpu:
        """CPU time since its first start, with that of processes that have ended."""
        return self._cpu.sample(self.pids())

    async def start(self) -> float:
        """Start it and wait until it is ready; returns how long that took, in seconds. Raises ProcessError."""
        if self._session is None:
            self._session = aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=SCRAPE_TIMEOUT_SECONDS))
        begin = time.monotonic()
        await self._spawn(self._command, env=self._environment)
        while not await self.ready():
            self.check()
            if time.monotonic() - begin > child.START_TIMEOUT_SECONDS:
                raise child.ProcessError(
                    f"the service is not ready after {child.START_TIMEOUT_SECONDS:.0f} s; see {self.log}"
                )
            await asyncio.sleep(POLL_INTERVAL_SECONDS)
        self.start_seconds = time.monotonic() - begin
        self.start_cpu_seconds = sum(self.cpu())
        return self.start_seconds

    async def stop(self) -> None:
        """End it."""
        await super().stop()
        if self._session is not None:
            await self._session.close()

    async def drain(self, *, timeout_seconds: float) -> float:
        """SIGTERM; returns how long it took to end, in seconds. Raises ProcessError if it was too long, or an error."""
        process, begin = self.process, time.monotonic()
        process.terminate()
        try:
            async with asyncio.timeout(timeout_seconds):
                while process.returncode is None:
                    self.cpu()
                    await asyncio.sleep(POLL_INTERVAL_SECONDS)
        except TimeoutError:
            raise child.ProcessError(f"{self.name} has not drained after {timeout_seconds:.0f} s") from None
        if process.returncode:
            self.check()
        return time.monotonic() - begin

    async def kill(self) -> None:
        """Send SIGKILL to the hub only."""
        self.cpu()
        await super().kill()

    async def left_over(self, workers: Sequence[int]) -> list[int]:
        """Those of the workers of a killed service that still run after up to 15 s."""
        deadline = time.monotonic() + child.STOP_TIMEOUT_SECONDS
        while True:
            left = [pid for pid in workers if measure.process_tree(pid)]
            if not left or time.monotonic() > deadline:
                return left
            await asyncio.sleep(POLL_INTERVAL_SECONDS)

    def kill_worker(self) -> int:
        """Send SIGKILL to one worker; returns its process id. Raises ProcessError if there is none."""
        workers = self.worker_pids()
        if not workers:
            raise child.ProcessError("the service has no worker process")
        self.cpu()
        os.kill(workers[0], signal.SIGKILL)
        return workers[0]

    async def ready(self) -> bool:
        """Whether /readiness answers 200."""
        status, _ = await self._get(self._health_port, "/readiness")
        return status == 200

    async def counters(self) -> measure.Metrics:
        """Its metrics; empty while it does not answer. Raises ProcessError if it answers with an error."""
        status, text = await self._get(self.metrics_port, "/metrics")
        if status not in (0, 200):
            raise child.ProcessError(f"the service answers /metrics with {status}; see {self.log}")
        return measure.Metrics(text)

    async def _get(self, port: int, path: str) -> tuple[int, str]:
        assert self._session is not None
        try:
            async with self._session.get(f"http://{HOST}:{port}{path}") as answer:
                return answer.status, await answer.text()
        except (aiohttp.ClientError, TimeoutError):
            return 0, ""
