"""The status page on a port of its own, with the data that a test gives it in place of a service's."""

import asyncio
import contextlib
import copy
import time
from collections.abc import AsyncIterator
from typing import Any

import msgspec

from typha import listening
from typha.admin import page, server

HOST = "127.0.0.1"


def client(number: int, *, lag_seconds: float = 0.0, **fields: Any) -> dict[str, Any]:
    """A client as /v1/clients has it."""
    return {
        "node": f"node-{number:04}",
        "address": f"10.0.{number // 250}.{number % 250}:40000",
        "version": "v3.31.0",
        "info": "felix",
        "release": "3.31",
        "feed": "felix",
        "format": "typha+snappy",
        "state": "following",
        "lag_seconds": lag_seconds,
        "lag_bytes": int(lag_seconds * 1000),
        "sequence": 1000,
        "bytes_sent": 1_000_000 + number,
        "age_seconds": 100.0 + number,
        "worker": 1 + number % 2,
        "tls_name": "",
        "number": number,
        **fields,
    }


def feed(name: str = "felix", **fields: Any) -> dict[str, Any]:
    """A feed as /v1/status has it."""
    return {
        "feed": name,
        "status": "in-sync",
        "keys": 7000,
        "value_bytes": 3_500_000,
        "digest": "0" * 16,
        "sequence": 1000,
        "clients": 0,
        "held": 0,
        "lag_seconds": 0.0,
        "formats": ["typha+snappy"],
        "snapshot_bytes": 700_000,
        "log_bytes": 350_000,
        "changed_at": time.time() - 1,
        **fields,
    }


def kind(type: str = "core/v1/pods", **fields: Any) -> dict[str, Any]:
    """A kind as /v1/status has it."""
    return {"type": type, "state": "in-sync", "objects": 10, "confirmed_seconds": 2.0, "feeds": ["felix"], **fields}


def point(at: float, **fields: Any) -> dict[str, Any]:
    """A point of /v1/history."""
    return {
        "at": at,
        "clients": 10,
        "deliveries": 100_000,
        "bytes_sent": 5_000_000,
        "latency_p50": 0.004,
        "latency_p99": 0.02,
        "ends": {},
        **fields,
    }


class Data:
    """What the page is told. A test changes it at any time."""

    def __init__(self, clients: int = 3) -> None:
        self.clients = [client(number) for number in range(clients)]
        self.feeds = [feed(clients=clients), feed("bgp", formats=[])]
        self.kinds = [kind(), kind("projectcalico.org/v3/ippools")]
        self.points = [point(time.time() - 10 * number) for number in range(60, 0, -1)]
        self.ends: list[dict[str, Any]] = []
        self.service: dict[str, Any] = {
            "version": "0.1.0",
            "pod": "typha-6d4f",
            "incarnation": "ab" * 16,
            "started_at": time.time() - 3700,
            "is_draining": False,
            "workers": [{"worker": 1, "ready": True, "connections": clients}],
            "port": 5473,
            "open_connections": clients,
        }
        self.asked: dict[str, list[float]] = {"/v1/status": [], "/v1/clients": [], "/v1/history": [], "/v1/ends": []}
        """When each path was asked for, by the loop's clock."""

    @property
    def pages(self) -> dict[str, server.Page]:
        """The pages of the data."""
        return {path: self._page(path) for path in self.asked}

    def _page(self, path: str) -> server.Page:
        async def answer(_query: server.Query) -> server.Answer:
            self.asked[path].append(asyncio.get_running_loop().time())
            return server.Answer(msgspec.json.encode(self._value(path)))

        return answer

    def _value(self, path: str) -> dict[str, Any]:
        match path:
            case "/v1/status":
                service = {**self.service, "now": time.time()}
                return copy.deepcopy({"service": service, "feeds": self.feeds, "kinds": self.kinds})
            case "/v1/clients":
                return {"clients": self.clients, "total": len(self.clients), "complete": True, "missing_workers": []}
            case "/v1/history":
                return {"interval_seconds": 10.0, "points": self.points}
        return {"ends": self.ends}


class Served:
    """The port of a page. `stop` and `start` take it away and bring it back."""

    def __init__(self, data: Data) -> None:
        self.server = server.AdminServer(
            "status-page",
            page.pages(data.pages),
            limits=page.LIMITS,
            headers=page.HEADERS,
            answers_to=page.answers_to("status.example"),
        )
        self.port = 0
        self._task: asyncio.Task[None] | None = None

    @property
    def url(self) -> str:
        """The address of the page."""
        return f"http://{HOST}:{self.port}/"

    def start(self) -> None:
        """Listen, on the same port as before."""
        listeners = listening.open_all(HOST, self.port, backlog=16, found=None)
        self.port = listeners[0].getsockname()[1]
        self._task = asyncio.create_task(self.server.run(listeners), name="status page")

    async def stop(self) -> None:
        """Close the port."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait([self._task])
            self._task = None


@contextlib.asynccontextmanager
async def served(data: Data) -> AsyncIterator[Served]:
    """The page with this data until the end of the block."""
    made = Served(data)
    made.start()
    try:
        yield made
    finally:
        await made.stop()
