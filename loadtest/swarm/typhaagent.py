"""One agent of the swarm that speaks Typha's protocol: what it does with the bytes of its connection. Pure.

The protocol has no snapshots, sequences or digests: a connection begins with every key as new, and the first "in sync"
says that these were all. So the agent keeps its map until then, and what it has missed shows in its map alone. Like the
native agents it moves from one shared state to the next as its own bytes say; it is not built on
`protocol.typha.connection`, because that decodes every message for every agent.
"""

from typing import Final

from loadtest.swarm import agent, frames, histogram, typha_frames
from protocol import errors
from protocol import messages as common
from protocol.typha import codec, messages

_bucket_of = histogram.bucket_of
_FOLLOWING: Final = agent.Phase.FOLLOWING
_NO_INCARNATION: Final = b"typha"
_MAX_KNOWN_STATUS: Final = common.SyncStatus.IN_SYNC


class TyphaAgent(agent.Agent):
    """An agent of Typha's protocol; `sequence` is the highest serial of a message, see `gobpieces.Message`."""

    __slots__ = ("_answer", "_buffer", "_feed", "_place")

    def __init__(self, name: str, shared: agent.Shared, group: agent.Group) -> None:
        super().__init__(name, shared, group)
        self._buffer = bytearray()
        self._place = shared.places.start
        self._answer = b""
        self._feed = ""

    def connected(self, *, feed: str, compressed: bool, now_ns: int) -> bytes:
        """A new connection is up; returns the bytes to send first."""
        self._begin(now_ns)
        self.phase = agent.Phase.HELLO
        self.incarnation = _NO_INCARNATION
        self._feed = feed
        hello = messages.ClientHello(
            hostname=self.name,
            info="loadtest",
            version="loadtest",
            syncer_type=feed,
            supports_decoder_restart=compressed,
            supported_compression_algorithms=(messages.SNAPPY,) if compressed else (),
            supports_modern_policy_keys=True,
        )
        return codec.CLIENT.definitions + codec.encode(hello, types=codec.CLIENT)

    def disconnected(self, now_ns: int) -> None:
        """The connection is gone; the map stays as it is."""
        super().disconnected(now_ns)
        self._buffer = bytearray()
        self._place = self._shared.places.start
        self._answer = b""

    def receive(self, data: bytes, now_ns: int) -> bytes:
        """See the base class."""
        self._hear(len(data), now_ns)
        buffer, place = self._buffer, self._place
        if self.phase == _FOLLOWING and not buffer:
            whole = place.reads.get(data)
            if whole is not None:
                for message in whole:
                    self._take(message, now_ns)
                return self._take_answer()
        buffer += data
        begun_with = len(buffer) == len(data)
        taken: list[typha_frames.Message] = []
        places = self._shared.places
        while size := typha_frames.first_piece_bytes(self._place, buffer):
            piece = bytes(buffer[:size])
            del buffer[:size]
            found, self._place = places.step(self._place, piece)
            for message in found:
                self._take(message, now_ns)
            taken += found
        if begun_with and not buffer and self._place is place and len(data) <= frames.MAX_CACHED_READ_BYTES:
            place.reads.put(data, tuple(taken))
        return self._take_answer()

    def _take_answer(self) -> bytes:
        answer, self._answer = self._answer, b""
        return answer

    def _take(self, message: typha_frames.Message, now_ns: int) -> None:
        group = self.group
        group.frames += 1
        if self.phase != _FOLLOWING or not message.serial:
            self._take_other(message, now_ns)
            return
        step = self.state.next.get(message)
        if step is None:
            step = self._shared.table.update(self.state, message)
            self._shared.timeline.reached(_NO_INCARNATION, message.serial, now_ns)
        self.state = step.state
        if message.serial > self.sequence:
            self.sequence = message.serial
        group.updates += len(message.changes)
        if step.gone:
            self._see_deletions(step, now_ns)
        live_since = self.live_since_ns
        if live_since:
            counts = group.latency.counts
            for written_at in message.written_at:
                if written_at >= live_since:
                    counts[_bucket_of((now_ns - written_at) // 1000)] += 1

    def _take_other(self, message: typha_frames.Message, now_ns: int) -> None:
        match self.phase, message.message:
            case agent.Phase.RETURNING, messages.KeyValues():
                self._next_state = self._shared.table.update(self._next_state, message).state
                self.sequence = max(self.sequence, message.serial)
            case agent.Phase.RETURNING | agent.Phase.FOLLOWING, messages.SyncStatus(status=number):
                self._take_status(number, now_ns)
            case agent.Phase.RETURNING | agent.Phase.FOLLOWING, messages.Ping():
                self._answer += message.answer
            case agent.Phase.RETURNING, messages.DecoderRestart():
                self._answer += message.answer
            case agent.Phase.HELLO, messages.ServerHello() as hello:
                if (hello.syncer_type or messages.FELIX) != self._feed:
                    raise errors.RemoteProtocolError(f"asked for {self._feed}, the server has {hello.syncer_type!r}")
                self.phase = agent.Phase.RETURNING
            case phase, other:
                raise errors.RemoteProtocolError(f"unexpected {type(other).__name__} while {phase.name.lower()}")

    def _take_status(self, number: int, now_ns: int) -> None:
        """Before the first "in sync" the data is incomplete, whatever else is said; unknown numbers say nothing."""
        if number > _MAX_KNOWN_STATUS:
            return
        self.status = common.SyncStatus(number)
        if self.phase == agent.Phase.RETURNING and self.status is common.SyncStatus.IN_SYNC:
            self.group.snapshots += 1
            self._arrive(now_ns)
        self._note_in_sync(now_ns)
