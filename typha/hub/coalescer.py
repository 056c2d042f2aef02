"""Coalescing: updates leave the hub at once while workers have little to send, together while they have more.

A frame costs the hub an encoding, and each client a share of a write and a call of its decoder. So updates that come
while the workers are busy wait here, and become one frame with what follows: the more there is to do, the less each
update costs. A worker that goes from client to client gives those that it has not reached what is newer as well, in the
same write. Therefore what comes first while it is busy leaves at once; only what follows has to wait.
"""

import asyncio

from typha import clock
from typha.hub import policy

_monotonic = clock.monotonic

_LOOK_SECONDS_PER_CLIENT = 4e-6
"""Half of what a write takes: so there are a few checks during a pass, however many clients it has."""
_LOOK_SECONDS_MIN = 0.001
_LOOK_SECONDS_MAX = 0.02


class Coalescer:
    """Decides at the end of each batch whether it is published now; what waits is published by its owner.

    `under_way` is everywhere the number of publishes that the busiest worker has not finished.
    """

    def __init__(self, limits: policy.HubPolicy) -> None:
        self._policy = limits
        self.look_seconds = _LOOK_SECONDS_MIN
        """How often to check while something waits."""
        self._wake = asyncio.Event()
        self.since = 0.0
        """Monotonic time since which something waits; 0 for nothing."""
        self.is_unfinished = False
        """Whether the last commit was only a part: the next turn goes on, whatever the workers do."""

    def __repr__(self) -> str:
        return f"<Coalescer since={self.since} look_seconds={self.look_seconds}>"

    def note_clients(self, clients: int) -> None:
        """Client count of the busiest worker."""
        self.look_seconds = min(max(clients * _LOOK_SECONDS_PER_CLIENT, _LOOK_SECONDS_MIN), _LOOK_SECONDS_MAX)

    def is_due(self, updates: int, under_way: int) -> bool:
        """Whether this many updates are published now; if not, they wait from here on."""
        if not updates or updates >= self._policy.coalesced_updates_max or self.is_over(under_way):
            return True
        if not self.since:
            self.since = _monotonic()
            self._wake.set()
        return False

    def is_over(self, under_way: int) -> bool:
        """Whether workers may be given more, or what waits has waited long enough."""
        if self.is_unfinished or under_way < self._policy.publishes_under_way_max:
            return True
        return self.since > 0 and _monotonic() - self.since >= self._policy.coalesce_seconds_max

    def published(self, *, is_unfinished: bool = False) -> None:
        """Nothing waits any more, or the rest of what has waited."""
        self.is_unfinished = is_unfinished
        if not is_unfinished:
            self.since = 0.0
        else:
            self.since = self.since or _monotonic()
            self._wake.set()

    async def pause(self) -> None:
        """Returns when it is time to look whether what waits may be published: at once for the rest of a commit."""
        await asyncio.sleep(0.0 if self.is_unfinished else self.look_seconds)

    async def something_waits(self) -> None:
        """Returns once updates wait, or have waited since the last call."""
        await self._wake.wait()
        self._wake.clear()
