"""Questions of the hub to all workers, which answer in parts. A worker that says nothing for a second is not waited
for: an operator who looks for a stuck worker must not wait for it."""

import asyncio
from collections.abc import Callable, Sequence
from typing import Generic, NamedTuple, TypeVar

from typha import clock
from typha.hub import worker_link
from typha.ipc import messages

_monotonic = clock.monotonic

PATIENCE_SECONDS = 1.0

Part = TypeVar("Part")


class Answers(NamedTuple, Generic[Part]):
    """What the workers have answered."""

    parts: dict[int, list[Part]]
    """By worker, in order; of one that is not done in time, what it has said."""
    missing: list[int]
    """Workers that are not done in time."""


class Question(Generic[Part]):
    """One kind of question. One is asked at a time.

    Args:
        make: the message with a number, which comes back with the answers.
    """

    def __init__(self, workers: worker_link.WorkerLinks, make: Callable[[int], messages.ToWorker]) -> None:
        self._workers = workers
        self._make = make
        self._lock = asyncio.Lock()
        self._request = 0
        self._waiting: dict[worker_link.WorkerLink, list[Part]] = {}
        """Workers that are not done, and their parts."""
        self._done: dict[int, list[Part]] = {}
        self._heard = asyncio.Event()

    def take(self, worker: worker_link.WorkerLink, request: int, parts: Sequence[Part], *, is_last: bool) -> None:
        """A worker has answered. What nobody waits for, or what comes too late, is dropped."""
        if request != self._request or worker not in self._waiting:
            return
        self._waiting[worker] += parts
        if is_last:
            self._done[worker.number] = self._waiting.pop(worker)
        self._heard.set()

    async def ask(self) -> Answers[Part]:
        """Asks all workers, after a question that is being asked."""
        async with self._lock:
            self._request += 1
            self._waiting = {worker: [] for worker in self._workers.values() if worker.ready}
            missing = [worker.number for worker in self._workers.values() if not worker.ready]
            self._done = {}
            self._workers.send(self._make(self._request))
            deadline = _monotonic() + messages.LIST_SECONDS_MAX
            try:
                while self._waiting and _monotonic() < deadline:
                    self._heard.clear()
                    try:
                        await asyncio.wait_for(self._heard.wait(), PATIENCE_SECONDS)
                    except TimeoutError:
                        break
                begun = {worker.number: parts for worker, parts in self._waiting.items()}
                return Answers(
                    self._done | {number: parts for number, parts in begun.items() if parts}, sorted([*missing, *begun])
                )
            finally:
                self._request += 1  # from here on, answers are late
                self._waiting, self._done = {}, {}
