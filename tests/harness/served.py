"""`typha serve` as a process, with a simulated API server in the test's loop. No process outlives the test."""

import asyncio
import contextlib
import os
import pathlib
import re
import signal
import ssl
import sys
import time
from collections.abc import AsyncIterator, Callable
from typing import Self

import aiohttp

from cache import resources
from cache.feeds import raw
from clients import mirror
from loadtest.apiserver import resources as simulated
from loadtest.apiserver import simulator
from loadtest.apiserver.settings import SimulatorSettings
from loadtest.environment import kubeconfig
from tests.harness import worker_stand

FEED = "web"
COMMAND = (sys.executable, "-c", "from typha.cli import main; main.main()", "serve")
FEEDS_FILE = "feeds:\n  web:\n    resources:\n      - type: v1/pods\n"
TIMEOUT_SECONDS = 180.0
_PODS = resources.ResourceType("", "v1", "pods")


class Cluster:
    """A simulated API server, a kubeconfig for it, and a feeds file with its pods."""

    def __init__(self, folder: pathlib.Path, settings: SimulatorSettings | None = None) -> None:
        self.folder = folder
        self.kubeconfig = folder / "kubeconfig"
        self.feeds_file = folder / "feeds.yaml"
        self.feeds_file.write_text(FEEDS_FILE)
        self.simulator = simulator.Simulator(settings)
        self.open_files: int | None = None
        """Limit for each process of the service; None for that of the tests."""
        self.command: tuple[str, ...] = COMMAND
        """What starts the service."""

    async def __aenter__(self) -> Self:
        await self.simulator.start()
        kubeconfig.write(self.kubeconfig, self.simulator.url)
        self.put(*(f"p{number}" for number in range(20)))
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.simulator.stop()

    def put(self, *names: str, padding: str = "", node: str = "") -> None:
        """Create pods, or replace existing ones; `padding` makes them large, and `node` is where they run."""
        store = self.simulator.store
        known = store.objects(simulated.PODS)
        for name in names:
            metadata = {"name": name, "namespace": "default", "annotations": {"at": f"{time.monotonic_ns()}{padding}"}}
            write = store.replace if f"default/{name}" in known else store.create
            write(simulated.PODS, {"metadata": metadata, **({"spec": {"nodeName": node}} if node else {})})

    @property
    def content(self) -> dict[str, bytes]:
        """The keys and values that clients must have."""
        return {
            raw.object_key(_PODS, *key.split("/")): raw.object_value(value, api_version="v1", kind="Pod")
            for key, value in self.simulator.store.objects(simulated.PODS).items()
        }

    def variables(self) -> dict[str, str]:
        """The environment of the service: it finds the API server, and shares no port or file with other processes."""
        return {
            "KUBECONFIG": str(self.kubeconfig),
            "TYPHA_FEEDSFILE": str(self.feeds_file),
            "TYPHA_SERVERHOST": "127.0.0.1",
            "TYPHA_SERVERPORT": "-1",
            "TYPHA_SHUTDOWNCONNECTIONDROPINTERVALMAXSECS": "0.05",
            "TYPHA_LOGFILEPATH": "none",
            "TYPHA_LOGSEVERITYSYS": "none",
            "TYPHA_ADMINSOCKET": "none",  # that of a service that a test kills would stay in /dev/shm
            "TYPHA_PROMETHEUSMETRICSENABLED": "true",
            "TYPHA_PROMETHEUSMETRICSHOST": "127.0.0.1",
            "TYPHA_PROMETHEUSMETRICSPORT": "0",
        }


class Service:
    """One run of `typha serve`."""

    def __init__(self, process: asyncio.subprocess.Process, log: pathlib.Path) -> None:
        self.process = process
        self.log = log

    @property
    def text(self) -> str:
        """The whole lines of the log so far: a part of a line may have a part of a number."""
        written = self.log.read_bytes()
        return written[: written.rfind(b"\n") + 1].decode()

    async def logged(self, pattern: str) -> re.Match[str]:
        """Wait for the first match of the pattern in the log, and return it."""
        await worker_stand.eventually(lambda: re.search(pattern, self.text), seconds=TIMEOUT_SECONDS)
        found = re.search(pattern, self.text)
        assert found is not None
        return found

    async def address(self) -> str:
        """The address for clients, once the service listens."""
        found = await self.logged(r"typha/service\.py \d+: Listening .*port=(\d+)")
        return f"127.0.0.1:{found[1]}"

    def workers(self) -> list[int]:
        """The process ids of all workers that the log mentions, dead or alive, in order of start."""
        return [int(pid) for pid in re.findall(r"Worker started .*pid=(\d+)", self.text)]

    async def metric(self, name: str) -> float:
        """The value of a sample, given with its labels; 0 if it is missing."""
        line = await self.logged('.*server="metrics".*')
        number = re.search(r"port=(\d+)", line[0])
        assert number is not None
        async with (
            aiohttp.ClientSession() as session,
            session.get(f"http://127.0.0.1:{number[1]}/metrics") as response,
        ):
            text = await response.text()
        found = re.search(rf"^{re.escape(name)} (\S+)$", text, re.MULTILINE)
        return float(found[1]) if found else 0.0

    async def metric_is(self, name: str, value: float) -> None:
        """Wait until the sample has the value."""
        await self.metric_becomes(name, lambda seen: seen == value, f"is {value}")

    async def metric_becomes(self, name: str, is_so: Callable[[float], bool], what: str) -> None:
        """Wait until the sample's value is as wanted."""
        deadline = time.monotonic() + TIMEOUT_SECONDS
        while not is_so(seen := await self.metric(name)):
            assert time.monotonic() < deadline, f"{name} is {seen}: it never {what}"
            await asyncio.sleep(0.05)

    async def ends(self) -> int:
        """Wait for the end of the process, and return its exit code."""
        return await asyncio.wait_for(self.process.wait(), TIMEOUT_SECONDS)


def processes_of_session(session: int) -> list[int]:
    """The running processes of a session."""
    found = []
    for entry in os.listdir("/proc"):
        if entry.isdigit():
            with contextlib.suppress(OSError):
                state, _, _, of = pathlib.Path(f"/proc/{entry}/stat").read_text().rpartition(")")[2].split()[:4]
                if int(of) == session and state != "Z":
                    found.append(int(entry))
    return found


def _command(cluster: Cluster) -> tuple[str, ...]:
    open_files = cluster.open_files
    if open_files is None:
        return cluster.command
    interpreter, option, program, *rest = COMMAND
    limited = f"import resource; resource.setrlimit(resource.RLIMIT_NOFILE, ({open_files}, {open_files})); {program}"
    return interpreter, option, limited, *rest


@contextlib.asynccontextmanager
async def serving(cluster: Cluster, *arguments: str, **variables: str) -> AsyncIterator[Service]:
    """Run a service until the end of the block. A process that is left then is killed, and the test fails."""
    log = cluster.folder / f"typha-{time.monotonic_ns()}.log"
    inherited = {name: value for name, value in os.environ.items() if not name.upper().startswith("TYPHA_")}
    with log.open("wb") as output:
        process = await asyncio.create_subprocess_exec(
            *_command(cluster),
            *arguments,
            env={**inherited, **cluster.variables(), **variables},
            stdin=asyncio.subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            start_new_session=True,
        )
    service = Service(process, log)
    try:
        yield service
        if process.returncode is None:
            process.send_signal(signal.SIGTERM)
            await service.ends()
        await worker_stand.eventually(lambda: not processes_of_session(process.pid))
    finally:
        for pid in processes_of_session(process.pid):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        await process.wait()


@contextlib.asynccontextmanager
async def mirrors(
    address: str | list[str], count: int, *, tls: ssl.SSLContext | None = None
) -> AsyncIterator[list[mirror.Mirror]]:
    """Run clients of a service, in sync; of several addresses they choose themselves."""
    async with contextlib.AsyncExitStack() as stack:
        opened = [
            await stack.enter_async_context(mirror.Mirror(address, feed=FEED, agent=f"agent-{number}", tls=tls))
            for number in range(count)
        ]
        for one in opened:
            await one.wait_in_sync(timeout_seconds=TIMEOUT_SECONDS)
        yield opened


def holds(content: Callable[[], dict[str, bytes]], clients: list[mirror.Mirror]) -> Callable[[], bool]:
    """A condition: all clients are in sync and have this content."""

    def check() -> bool:
        wanted = content()
        return all(one.in_sync and {key: entry.value for key, entry in one.items()} == wanted for one in clients)

    return check


async def converged(cluster: Cluster, clients: list[mirror.Mirror]) -> None:
    """Wait until all clients are in sync and have the state of the API server."""
    await worker_stand.eventually(holds(lambda: cluster.content, clients), seconds=TIMEOUT_SECONDS)
