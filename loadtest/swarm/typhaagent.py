"""An agent of the swarm that speaks Typha's protocol: what it does with the bytes of its connection. Pure.

The protocol has no snapshots, sequences or digests. A connection begins with every key as new, and the first in-sync
status ends this. So the agent keeps its map until then, and a missed update shows in its map only. It is not built on
`protocol.typha.connection`, which decodes every message for every agent.
"""

from typing import Final

from loadtest.swarm import agent, control, frames, typha_frames
from protocol import errors
from protocol import messages as common
from protocol.typha import client, codec, messages

_FOLLOWING: Final = agent.Phase.FOLLOWING
_NO_INCARNATION: Final = b"typha"
_MAX_KNOWN_STATUS: Final = common.SyncStatus.IN_SYNC


class TyphaAgent(agent.Agent):
    """An agent of Typha's protocol. Its `sequence` is the highest serial of a message (`typha_frames.Message`)."""

    __slots__ = ("_buffer", "_feed", "_position")

    def __init__(self, name: str, shared: agent.Shared, group: control.Group) -> None:
        super().__init__(name, shared, group)
        self._buffer = bytearray()
        self._position = shared.positions.start
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
            version=client.NEWEST_VERSION,
            syncer_type=feed,
            supports_decoder_restart=compressed,
            supported_compression_algorithms=(messages.SNAPPY,) if compressed else (),
            supports_modern_policy_keys=True,
        )
        return codec.CLIENT.definitions + codec.encode(hello, types=codec.CLIENT)

    def disconnected(self, now_ns: int) -> None:
        """The connection has ended; the map stays."""
        super().disconnected(now_ns)
        self._buffer = bytearray()
        self._position = self._shared.positions.start

    def receive(self, data: bytes, now_ns: int) -> bytes:
        """See the base class."""
        self._hear(len(data), now_ns)
        buffer, position = self._buffer, self._position
        if self.phase == _FOLLOWING and not buffer:
            whole = position.reads.get(data)
            if whole is not None:
                for message in whole:
                    self._take(message, now_ns)
                return self._take_answer()
        buffer += data
        begun_with = len(buffer) == len(data)
        taken: list[typha_frames.Message] = []
        positions = self._shared.positions
        while size := typha_frames.first_frame_bytes(self._position, buffer):
            frame = bytes(buffer[:size])
            del buffer[:size]
            found, self._position = positions.step(self._position, frame)
            for message in found:
                self._take(message, now_ns)
            taken += found
        if begun_with and not buffer and self._position is position and len(data) <= frames.MAX_CACHED_READ_BYTES:
            position.reads.put(data, tuple(taken))
        return self._take_answer()

    def _take(self, message: typha_frames.Message, now_ns: int) -> None:
        self.group.frames += 1
        if self.phase != _FOLLOWING or not message.serial:
            self._take_other(message, now_ns)
            return
        self._update(message, message.serial, now_ns)
        if message.serial > self.sequence:
            self.sequence = message.serial

    def _take_other(self, message: typha_frames.Message, now_ns: int) -> None:
        match self.phase, message.message:
            case agent.Phase.RETURNING, messages.KeyValues():
                self._next_map = self._shared.table.update(self._next_map, message).map
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
                self.connected_ns = now_ns
            case phase, other:
                raise errors.RemoteProtocolError(f"unexpected {type(other).__name__} while {phase.name.lower()}")

    def _take_status(self, number: int, now_ns: int) -> None:
        """Before the first in-sync status the data is incomplete, and unknown numbers say nothing."""
        if number > _MAX_KNOWN_STATUS:
            return
        self.status = common.SyncStatus(number)
        if self.phase == agent.Phase.RETURNING and self.status is common.SyncStatus.IN_SYNC:
            self.group.snapshots += 1
            self._swap_in_snapshot(now_ns)
        self._note_in_sync(now_ns)
