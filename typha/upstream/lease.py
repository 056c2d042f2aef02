"""Holds the Lease of an elected fleet, or waits for it."""

import asyncio
import contextlib
import datetime

import msgspec
import structlog

from cache.kube import api, discovery, endpoints
from cache.watch import decoding
from typha import clock
from typha.observability import logs
from typha.peers import freshness
from typha.upstream import election

_log = structlog.get_logger("typha.upstream")
_monotonic = clock.monotonic
SUFFIX = "-source"
"""Of the Lease's name, after that of the Service."""
_ANSWER_SECONDS = 3.0
_LINE_SECONDS = 600.0
_CREATED = (200, 201)
_CONFLICT = 409


class Candidate:
    """Takes part in the election. Run `run` as a task.

    Raises:
        ValueError: namespace or name cannot be those of a Lease.
    """

    def __init__(self, *, identity: str, namespace: str, service: str) -> None:
        place = election.Place(namespace, service + SUFFIX)
        for part in place:
            if not endpoints.NAME.fullmatch(part):
                raise ValueError(f"not a name: {part[:60]!r}")
        self._election = election.Election(identity, place, timestamp=_timestamp)
        self._list_path = f"/apis/coordination.k8s.io/v1/namespaces/{place.namespace}/leases"
        self._path = f"{self._list_path}/{place.name}"
        self._lease: election.Lease | None = None
        self._problem = logs.LineLimit(1, seconds=_LINE_SECONDS)
        self._released = asyncio.Event()
        self._held = False

    @property
    def holds(self) -> bool:
        """Whether this replica is elected."""
        return not self._released.is_set() and self._election.holds(_monotonic())

    def release(self) -> None:
        """The service ends: another replica is to be elected."""
        self._released.set()

    async def run(self, session: api.KubeApi) -> None:
        """Takes part until the release, and then ends."""
        while not self._released.is_set():
            await self._take_part(session)
            self._note_change()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(freshness.jittered(election.RENEW_SECONDS)):
                    await self._released.wait()
        if self._lease is not None and self._lease.spec.holder_identity == self._election.identity:
            await self._exchange(session, "PUT", self._path, self._election.released(self._lease))

    def _note_change(self) -> None:
        if self.holds != self._held:
            self._held = self.holds
            _log.info("Elected to watch the API server" if self._held else "Not elected any more", lease=self._path)

    async def _take_part(self, session: api.KubeApi) -> None:
        if not self.holds:
            found = await self._exchange(session, "GET", self._path)
            if found is None:
                return
            self._election.observe(_monotonic(), self._lease)
        began_at = _monotonic()
        wanted = self._election.wanted(began_at, self._lease)
        if wanted is None:
            return
        method, path = ("POST", self._list_path) if self._lease is None else ("PUT", self._path)
        status = await self._exchange(session, method, path, wanted)
        if status in _CREATED and self._lease is not None:
            self._election.written(began_at, self._lease)
        elif status == _CONFLICT and await self._exchange(session, "GET", self._path) is not None:
            self._election.observe(_monotonic(), self._lease)

    async def _exchange(
        self, session: api.KubeApi, method: str, path: str, lease: election.Lease | None = None
    ) -> int | None:
        """Sends a request, and keeps the Lease that it returns; the status, or None if it failed."""
        body = None if lease is None else msgspec.json.encode(lease)
        try:
            answer = await discovery.exchange(session, method, path, json_body=body, answer_seconds=_ANSWER_SECONDS)
            if answer.status in _CREATED:
                self._lease = msgspec.json.decode(answer.body, type=election.Lease)
            elif answer.status == discovery.NOT_FOUND and method == "GET":
                self._lease = None
            elif answer.status != _CONFLICT:
                self._complain(f"{method}: {answer.status}: {answer.body[:200].decode('utf-8', 'replace')}")
                return None
        except api.Interrupted as error:
            self._complain(error.detail)
            return None
        except decoding.UNDECODABLE as error:
            self._complain(f"not a Lease: {str(error)[:200]}")
            return None
        return answer.status

    def _complain(self, problem: str) -> None:
        if self._problem.allows():
            _log.warning("Cannot take part in the election", lease=self._path, error=problem)


def _timestamp() -> str:
    seconds = clock.time_ns() / 1e9
    return datetime.datetime.fromtimestamp(seconds, datetime.UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
