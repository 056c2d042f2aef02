"""What simulated clients apply, some time after it has come, and what they say of it: the clients' own acknowledger."""

import random
from collections.abc import Callable
from typing import NamedTuple

from clients import applied
from protocol import messages
from protocol.native import codec, frames
from tests.simulation import world as worlds


class _Timer:
    """A call that can be called off."""

    def __init__(self, callback: Callable[[], None]) -> None:
        self._callback: Callable[[], None] | None = callback

    def cancel(self) -> None:
        """Call it off."""
        self._callback = None

    def ring(self) -> None:
        """Make the call."""
        if self._callback is not None:
            self._callback()


class _Timers:
    """The acknowledger's clock."""

    def __init__(self, world: worlds.World) -> None:
        self._world = world

    def time(self) -> float:
        """Seconds."""
        return self._world.now

    def call_later(self, delay: float, callback: Callable[[], None], /) -> applied.Timer:
        """Call back in virtual time."""
        timer = _Timer(callback)
        self._world.after(delay, timer.ring)
        return timer


class _Applied(NamedTuple):
    version: int
    total: int
    """Digest of the map."""
    base: int
    """If the map is a mixture: it contains everything up to this sequence, and some of what came later."""


class Reporter:
    """One client, over all its connections."""

    def __init__(self, world: worlds.World, *, apply_seconds_max: float) -> None:
        self._world = world
        self._random = random.Random(world.random.random())
        self._apply_seconds_max = apply_seconds_max
        self._acknowledger = applied.Acknowledger(_Timers(world))
        self._total = 0
        self._applied = _Applied(0, 0, 0)
        self._base = 0
        """The last sequence on this connection up to which the map has everything."""
        self._say: Callable[[bytes], None] = lambda _: None
        self._digest_at: Callable[[int], int] = lambda _: 0
        self.is_connected = False
        """The server wants to know what this client has applied."""
        self.said = 0
        """The sequence of the last message on this connection."""

    def connected(self, say: Callable[[bytes], None], digest_at: Callable[[int], int]) -> None:
        """A server wants to know. `digest_at` is that of the hub's map for this client at a sequence."""
        self._say, self._digest_at = say, digest_at
        self.is_connected, self.said, self._base = True, 0, 0
        self._acknowledger.connected(self._send)

    def disconnected(self) -> None:
        """The connection has ended."""
        self.is_connected = False
        self._acknowledger.disconnected()

    def moved(self, sequence: int, total: int, *, is_whole: bool = True) -> None:
        """The client has reached this sequence, and has its map if it is whole. 0 stands for none."""
        has_changed = total != self._total
        self._total = total
        self._acknowledger.received(sequence, has_changed=has_changed)
        self._base = sequence or self._base
        if has_changed:
            version = _Applied(self._acknowledger.version, total, 0 if is_whole else self._base)
            self._world.after(self._random.random() * self._apply_seconds_max, lambda: self._apply(version))

    def _apply(self, version: _Applied) -> None:
        if version.version > self._applied.version:
            self._applied = version
            self._acknowledger.applied(version.version)

    def _send(self, sequence: int) -> None:
        if self._digest_at(sequence) != self._applied.total and sequence > self._applied.base:
            raise worlds.Violation(f"says that it has applied {sequence}, and has not")
        self.said = sequence
        self._say(frames.pack_frame(codec.encode(messages.Applied(sequence))))

    def check(self, current: int, up_to: int) -> None:
        """Check what the server believes: the client's own word, and that nothing was left for it up to `up_to`."""
        if current > self.said:
            raise worlds.Violation(f"counts as having applied {current}, and has said {self.said}")
        if current and any(
            self._digest_at(sequence) != self._digest_at(current) for sequence in range(current, up_to + 1)
        ):
            raise worlds.Violation(f"has applied {current}, and counts as having applied what it gets up to {up_to}")
