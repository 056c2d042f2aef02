"""An agent of the swarm that speaks the native protocol: what it does with the bytes of its connection. Pure.

It checks its own sequence of frames by the rules of `protocol.native.connection`. It is not built on `Connection`,
which decodes every frame for every agent.
"""

from typing import Final

from loadtest.swarm import agent, control, frames, shared_maps
from protocol import errors, messages, reasons
from protocol.native import codec
from protocol.native import frames as native

_Phase = agent.Phase

_FOLLOWING: Final = _Phase.FOLLOWING
_ZSTD: Final = frozenset({messages.Feature.ZSTD.value})
_FRAMES_WITH_PINGS: Final = (_Phase.READY, _Phase.SNAPSHOT, _Phase.RETURNING, _Phase.FOLLOWING)


class NativeAgent(agent.Agent):
    """An agent of the native protocol."""

    __slots__ = ("_partial", "_splitter")

    def __init__(self, name: str, shared: agent.Shared, group: control.Group) -> None:
        super().__init__(name, shared, group)
        self._splitter = native.FrameSplitter()
        self._partial: shared_maps.PartialSnapshot | None = None

    def connected(self, *, feed: str, compressed: bool, now_ns: int) -> bytes:
        """A new connection is up; returns the bytes to send first."""
        self._begin(now_ns)
        self.phase = _Phase.PREFACE
        features = _ZSTD if compressed else frozenset[str]()
        hello = messages.ClientHello(feed=feed, agent=self.name, node=self.name, features=features, software="loadtest")
        return native.PREFACE + native.pack_frame(codec.encode(hello))

    def disconnected(self, now_ns: int) -> None:
        """The connection has ended; the map stays."""
        super().disconnected(now_ns)
        self._splitter = native.FrameSplitter()
        self._partial = None

    def receive(self, data: bytes, now_ns: int) -> bytes:
        """See the base class."""
        self._hear(len(data), now_ns)
        splitter = self._splitter
        if self.phase == _FOLLOWING and not splitter.pending_bytes:
            whole = self._shared.cache.reads.get(data)
            if whole is not None:
                for frame in whole:
                    self._take(frame, now_ns)
                return self._take_answer()
        splitter.receive(data)
        if self.phase < _Phase.READY:
            if not self._handshake():
                return b""
            self.connected_ns = now_ns
        taken: list[frames.Frame] = []
        while self.phase != _Phase.ENDED and (part := splitter.next_frame()) is not None:
            taken.append(self._take_expected(*part) or self._take_new(*part, now_ns))
        if not splitter.pending_bytes:
            splitter.receive(b"")  # releases the bytes of the frames it has returned
            if len(data) <= frames.MAX_CACHED_READ_BYTES and sum(frame.size_bytes for frame in taken) == len(data):
                self._shared.cache.reads.put(data, tuple(taken))
        return self._take_answer()

    def _handshake(self) -> bool:
        """Take preface and server-hello, which differs for each connection; returns whether they are complete."""
        splitter = self._splitter
        if self.phase == _Phase.PREFACE:
            received = splitter.peek(len(native.PREFACE))
            if not native.PREFACE.startswith(received):
                raise errors.RemoteProtocolError(
                    f"the first bytes are {received!r}", reason=reasons.DisconnectReason.BAD_PREFACE
                )
            if len(received) < len(native.PREFACE):
                return False
            splitter.skip(len(received))
            self.phase = _Phase.HELLO
        part = splitter.next_frame()
        if part is None:
            return False
        match codec.decode(native.unpack_payload(*part)):
            case messages.ServerHello(incarnation=incarnation):
                self.incarnation = incarnation
                self.phase = _Phase.READY
            case messages.Goodbye() as goodbye:
                self._goodbye(goodbye)
            case other:
                raise errors.RemoteProtocolError(f"unexpected {type(other).__name__} in place of a hello")
        return True

    def _take_expected(self, flags: int, body: bytes) -> frames.Frame | None:
        """Take the chunk frame that another agent received at this point, if the bytes are the same.

        A short cut: in a storm thousands of agents receive a thousand frames each.
        """
        partial = self._partial
        if partial is None:
            return None
        frame = partial.expected
        if frame is None or frame.body != body or frame.flags != flags:
            return None
        following = partial.next.get(frame)
        if not isinstance(following, shared_maps.PartialSnapshot):
            return None
        self._partial = following
        self.group.frames += 1
        return frame

    def _take_new(self, flags: int, body: bytes, now_ns: int) -> frames.Frame:
        frame = self._shared.cache.decode(flags, body)
        self._take(frame, now_ns)
        return frame

    def _take(self, frame: frames.Frame, now_ns: int) -> None:
        self.group.frames += 1
        if self.phase != _FOLLOWING or frame.previous_sequence < 0:
            self._take_other(frame, now_ns)
            return
        if frame.previous_sequence != self.sequence or frame.sequence < frame.previous_sequence:
            self._check_follows(frame)
        self._update(frame, frame.sequence, now_ns)
        self.sequence = frame.sequence

    def _take_other(self, frame: frames.Frame, now_ns: int) -> None:
        table = self._shared.table
        match self.phase, frame.message:
            case phase, messages.Ping() if phase in _FRAMES_WITH_PINGS:
                self._answer += native.pack_frame(codec.encode(messages.Pong(self.sequence)))
            case _Phase.RETURNING | _Phase.FOLLOWING, messages.Status() as status:
                self._take_status(status, now_ns)
            case _Phase.RETURNING, messages.Updates():
                # Updates after a snapshot that has not replaced the map yet.
                self._check_follows(frame)
                self._next_map = table.update(self._next_map, frame).map
                self.sequence = frame.sequence
                self.group.updates += len(frame.changes)
            case _Phase.READY | _Phase.RETURNING | _Phase.FOLLOWING, messages.SnapshotBegin():
                self._partial = table.begin(frame)
                self.phase = _Phase.SNAPSHOT
            case _Phase.SNAPSHOT, messages.SnapshotChunk() if self._partial is not None:
                self._partial = table.chunk(self._partial, frame)
            case _Phase.SNAPSHOT, messages.SnapshotEnd() as end if self._partial is not None:
                self._next_map = table.end(self._partial, frame)
                self._partial = None
                self.group.snapshots += 1
                self.sequence = end.sequence
                self.phase = _Phase.RETURNING
            case phase, messages.Goodbye() as goodbye if phase in _FRAMES_WITH_PINGS:
                self._goodbye(goodbye)
            case phase, message:
                raise errors.RemoteProtocolError(f"unexpected {type(message).__name__} while {phase.name.lower()}")

    def _check_follows(self, frame: frames.Frame) -> None:
        if frame.previous_sequence != self.sequence or frame.sequence < frame.previous_sequence:
            raise errors.RemoteProtocolError(
                f"updates {frame.previous_sequence}..{frame.sequence} do not follow on {self.sequence}"
            )

    def _take_status(self, status: messages.Status, now_ns: int) -> None:
        is_catching_up = status.status == messages.SyncStatus.CATCHING_UP
        if status.sequence > self.sequence or (status.sequence < self.sequence and not is_catching_up):
            raise errors.RemoteProtocolError(f"status of {status.sequence} does not follow on {self.sequence}")
        self.sequence = status.sequence  # while catching up, the server sends later changes again
        if self.phase == _Phase.RETURNING and not is_catching_up:
            self._swap_in_snapshot(now_ns)
            self._shared.timeline.reached(self.incarnation, self.sequence, now_ns)
        self.status = status.status
        self._note_in_sync(now_ns)

    def _goodbye(self, goodbye: messages.Goodbye) -> None:
        self.phase = _Phase.ENDED
        self.in_sync = False
        self.retry_after_seconds = goodbye.retry_after_milliseconds / 1000
        self.servers = goodbye.servers
        self.group.goodbyes[goodbye.reason] = self.group.goodbyes.get(goodbye.reason, 0) + 1
