"""The control endpoint /_sim/ of a simulator in another process: statistics, churn, faults and types.

GET    /_sim/stats          counters and state
POST   /_sim/churn          start (members of ChurnSettings), replaces a running one; DELETE stops it
POST   /_sim/burst          {"count": N} and members of ChurnSettings
POST   /_sim/faults         one Fault or a list; DELETE removes all
POST   /_sim/types          install a type: {"group", "version", "name", "kind", "namespaced", "custom"}
DELETE /_sim/types          remove a type: the same body
"""

import json
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any

import msgspec
from aiohttp import web

from loadtest.apiserver import churn, faults
from loadtest.apiserver.errors import ApiError
from loadtest.apiserver.resources import Resource

if TYPE_CHECKING:
    from loadtest.apiserver.simulator import Simulator

PREFIX = "/_sim/"
#: A restart waits this long before it closes connections, so that the caller gets the answer.
ANSWER_SECONDS = 0.05
MAX_BURST = 1_000_000


class _Burst(msgspec.Struct):
    count: int
    types: dict[str, float] | None = None
    label_times: bool = False


class Control:
    """Answers the requests under /_sim/."""

    def __init__(self, simulator: "Simulator") -> None:
        self._simulator = simulator
        self._routes: dict[tuple[str, str], Callable[[bytes], Awaitable[Any]]] = {
            ("GET", "stats"): self._stats,
            ("POST", "churn"): self._start_churn,
            ("DELETE", "churn"): self._stop_churn,
            ("POST", "burst"): self._burst,
            ("POST", "faults"): self._faults,
            ("DELETE", "faults"): self._clear,
            ("POST", "types"): self._install,
            ("DELETE", "types"): self._uninstall,
        }

    async def handle(self, request: web.Request) -> web.Response:
        """Answer one request; with 400 and `error` if it cannot be done."""
        route = self._routes.get((request.method, request.path.removeprefix(PREFIX)))
        if route is None:
            return web.json_response({"error": f"no such control: {request.method} {request.path}"}, status=404)
        try:
            answer = await route(await request.read())
        except (ValueError, msgspec.DecodeError, ApiError) as error:
            return web.json_response({"error": str(error)}, status=400)
        return web.json_response(answer, dumps=lambda value: json.dumps(value, ensure_ascii=False))

    async def _stats(self, _: bytes) -> dict[str, Any]:
        return self._simulator.statistics()

    async def _start_churn(self, body: bytes) -> dict[str, Any]:
        self._simulator.churn.start(msgspec.json.decode(body or b"{}", type=churn.ChurnSettings))
        return self._simulator.churn.statistics()

    async def _stop_churn(self, _: bytes) -> dict[str, Any]:
        self._simulator.churn.stop()
        await self._simulator.churn.wait()
        return {"version": self._simulator.store.version, **self._simulator.churn.statistics()}

    async def _burst(self, body: bytes) -> dict[str, Any]:
        burst = msgspec.json.decode(body, type=_Burst)
        if not 0 < burst.count <= MAX_BURST:
            raise ValueError(f"burst: count must be between 1 and {MAX_BURST}, not {burst.count}")
        types = burst.types or churn.ChurnSettings().types
        settings = churn.ChurnSettings(types=types, label_times=burst.label_times)
        await self._simulator.churn.burst(burst.count, settings)
        return {"version": self._simulator.store.version}

    async def _faults(self, body: bytes) -> dict[str, Any]:
        script = faults.parse(body)
        self._simulator.schedule(script)
        return {"accepted": len(script), "version": self._simulator.store.version}

    async def _clear(self, _: bytes) -> dict[str, Any]:
        self._simulator.clear_faults()
        return {}

    async def _install(self, body: bytes) -> dict[str, Any]:
        resource = msgspec.json.decode(body, type=Resource)
        self._simulator.store.install(resource)
        return {"path": resource.path}

    async def _uninstall(self, body: bytes) -> dict[str, Any]:
        resource = msgspec.json.decode(body, type=Resource)
        self._simulator.uninstall(resource)
        return {}
