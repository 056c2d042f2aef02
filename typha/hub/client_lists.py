"""Who is connected: asks all workers, and waits for their answers, but for none that is silent for a second."""

import asyncio
from typing import NamedTuple

from typha import clock
from typha.hub import worker_link
from typha.ipc import messages

_monotonic = clock.monotonic

PATIENCE_SECONDS = 1.0
"""A worker that sends no slice for this long is left out: an operator who looks for a stuck worker must not wait."""
AGE_SECONDS = 1.0
"""A list that is younger answers the next request, too. However many ask, workers make at most one list a second."""


class Connected(NamedTuple):
    """A connection, and the number of its worker."""

    worker: int
    client: messages.ConnectedClient


class ClientList(NamedTuple):
    """All connections of the workers that have answered."""

    clients: list[Connected]
    missing: list[int]
    """Workers that did not answer in time."""


class ClientLists:
    """Makes one list at a time."""

    def __init__(self, workers: worker_link.WorkerLinks) -> None:
        self._workers = workers
        self._lock = asyncio.Lock()
        self._request = 0
        self._slices: dict[worker_link.WorkerLink, list[messages.ConnectedClient]] = {}
        """What the workers have sent that are not done."""
        self._done: list[Connected] = []
        self._heard = asyncio.Event()
        self._made: ClientList | None = None

    def take(self, worker: worker_link.WorkerLink, message: messages.ClientSlice) -> None:
        """A worker has sent a slice. One that nobody waits for, or that comes too late, is dropped."""
        if message.request != self._request or worker not in self._slices:
            return
        self._slices[worker] += message.clients
        if message.is_last:
            self._done += [Connected(worker.number, one) for one in self._slices.pop(worker)]
        self._heard.set()

    async def newest(self) -> ClientList:
        """The connections of now, or of a second ago."""
        async with self._lock:
            if self._made is None:
                self._made = await self._make()
                asyncio.get_running_loop().call_later(AGE_SECONDS, self._forget)
            return self._made

    def _forget(self) -> None:
        self._made = None

    async def _make(self) -> ClientList:
        self._request += 1
        self._slices = {worker: [] for worker in self._workers.values() if worker.ready}
        missing = [worker.number for worker in self._workers.values() if not worker.ready]
        self._done = []
        self._workers.send(messages.ListClients(self._request))
        deadline = _monotonic() + messages.LIST_SECONDS_MAX
        try:
            while self._slices and _monotonic() < deadline:
                self._heard.clear()
                try:
                    await asyncio.wait_for(self._heard.wait(), PATIENCE_SECONDS)
                except TimeoutError:
                    break
            missing += [worker.number for worker in self._slices]
            return ClientList(self._done, missing)
        finally:
            self._request += 1  # from here on, slices are late
            self._slices, self._done = {}, []
