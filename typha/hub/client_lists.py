"""Who is connected: the connections of all workers. One list a second at most, however many ask for it."""

import asyncio
from typing import NamedTuple

from typha.hub import questions, worker_link
from typha.ipc import messages

AGE_SECONDS = 1.0
"""A list that is younger answers the next request, too."""


class Connected(NamedTuple):
    """A connection, and the number of its worker."""

    worker: int
    client: messages.ConnectedClient


class ClientList(NamedTuple):
    """The connections that the workers have named."""

    clients: list[Connected]
    missing: list[int]
    """Workers that did not name all in time."""


class ClientLists:
    """Makes one list at a time."""

    def __init__(self, workers: worker_link.WorkerLinks) -> None:
        self._question: questions.Question[messages.ConnectedClient] = questions.Question(workers, messages.ListClients)
        self._lock = asyncio.Lock()
        self._made: ClientList | None = None

    def take(self, worker: worker_link.WorkerLink, message: messages.ClientSlice) -> None:
        """A worker has sent a slice."""
        self._question.take(worker, message.request, message.clients, is_last=message.is_last)

    async def newest(self) -> ClientList:
        """The connections of now, or of a second ago."""
        async with self._lock:
            if self._made is None:
                answers = await self._question.ask()
                found = [Connected(worker, one) for worker, parts in answers.parts.items() for one in parts]
                self._made = ClientList(found, answers.missing)
                asyncio.get_running_loop().call_later(AGE_SECONDS, self._forget)
            return self._made

    def _forget(self) -> None:
        self._made = None
