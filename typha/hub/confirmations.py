"""What workers tell other replicas of a replica's data: when each feed was last confirmed, and who feeds it."""

from collections.abc import Mapping, Sequence

from cache.feeds import feed
from typha.hub import policy, worker_link
from typha.ipc import messages as ipc


class Confirmations:
    """Keeps workers informed, to a few seconds. `feeds` and `workers` are those of the hub, and change."""

    def __init__(
        self, feeds: Mapping[str, feed.Feed], workers: worker_link.WorkerLinks, limits: policy.HubPolicy
    ) -> None:
        self._feeds = feeds
        self._workers = workers
        self._policy = limits
        self._told: dict[str, float] = {}
        """When each feed was last confirmed, as workers know it."""
        self._upstreams: list[bytes] | None = None

    def tell(self) -> None:
        """Tells all workers, if what they know is too old."""
        confirmed_at = {name: at for name, source in self._feeds.items() if (at := source.confirmed_at) is not None}
        told = self._told
        if confirmed_at.keys() == told.keys() and all(
            at - told[name] < self._policy.confirmed_told_seconds for name, at in confirmed_at.items()
        ):
            return
        self._told = confirmed_at
        self._workers.send(self._message)

    def set_upstreams(self, upstreams: Sequence[bytes] | None) -> None:
        """Tells all workers where the data comes from, see `protocol.messages.ServerHello`."""
        self._upstreams = None if upstreams is None else list(upstreams)
        self._workers.send(self._message)
        self._workers.flush()

    def tell_new(self, worker: worker_link.WorkerLink) -> None:
        """Tells a worker that has just been started."""
        if self._told or self._upstreams is not None:
            worker.send(self._message)

    @property
    def _message(self) -> ipc.NoteConfirmed:
        return ipc.NoteConfirmed(self._told, self._upstreams)
