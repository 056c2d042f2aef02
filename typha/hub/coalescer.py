"""When the next updates leave the hub: at once while workers have little to send, together while they have more.

A frame costs the hub an encoding, and each client a share of a write and a call of its decoder. So what comes while
the workers are busy waits here, and becomes one frame with what follows: the more there is to do, the less it costs.
But a worker that goes from client to client gives those that it has not been to what is newer, too, in the same write:
with what came first while it was busy it goes round at once, and only what comes then has to wait.
"""

import asyncio
from collections.abc import Callable

from typha import clock

_monotonic = clock.monotonic

GATHER_SECONDS_MAX = 0.1
"""A worker that is busy for longer has a newcomers' storm to serve, or too many clients."""
UPDATES_MAX = 2_000
"""So many leave whoever is busy: the hub should not hold more than a burst."""
_UNDER_WAY_MAX = 2
"""More publications are not given to a worker that has yet to finish the first. With 5,000 clients, at 20 and at 100
updates/s, the p99 was 122 and 150 ms with one, 73 and 137 with two, 57 and 158 with three, 87 and 300 without a limit;
medians of three, and 58 and 124 of the bare loop."""
_LOOK_SECONDS_PER_CLIENT = 4e-6
"""Half of what a write takes: so there are a few looks in a pass, however many clients it has."""
_LOOK_SECONDS_MIN = 0.001
_LOOK_SECONDS_MAX = 0.02


class Coalescer:
    """Decides at each end of a batch; `run` publishes what has waited, as soon as workers have sent what they have.

    `under_way` says how many publications the busiest worker was told of since it last was done with all,
    `publish` publishes everything.
    """

    def __init__(self, under_way: Callable[[], int], publish: Callable[[], None]) -> None:
        self._under_way = under_way
        self._publish = publish
        self._look_seconds = _LOOK_SECONDS_MIN
        self._wake = asyncio.Event()
        self.since = 0.0
        """Monotonic time since which something waits; 0 for nothing."""

    def __repr__(self) -> str:
        return f"<Coalescer since={self.since} look_seconds={self._look_seconds}>"

    def note_clients(self, clients: int) -> None:
        """So many has the worker that has most."""
        self._look_seconds = min(max(clients * _LOOK_SECONDS_PER_CLIENT, _LOOK_SECONDS_MIN), _LOOK_SECONDS_MAX)

    def is_due(self, waiting: int) -> bool:
        """Whether so many changes leave now; those that do not are published by `run`."""
        if not waiting or waiting >= UPDATES_MAX or self._is_over():
            return True
        if not self.since:
            self.since = _monotonic()
            self._wake.set()
        return False

    def _is_over(self) -> bool:
        """Whether workers may be given more, or what waits has waited long enough."""
        if self._under_way() < _UNDER_WAY_MAX:
            return True
        return self.since > 0 and _monotonic() - self.since >= GATHER_SECONDS_MAX

    def published(self) -> None:
        """Nothing waits any more."""
        self.since = 0.0

    async def run(self) -> None:
        """Publishes what waits when its time has come, for ever."""
        while True:
            await self._wake.wait()
            self._wake.clear()
            while self.since:
                await asyncio.sleep(self._look_seconds)
                if self.since and self._is_over():
                    self._publish()
