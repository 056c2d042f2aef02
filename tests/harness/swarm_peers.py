"""The byte stream of a native server, for tests of the swarm."""

import itertools
import json

from loadtest import WRITTEN_AT
from loadtest.swarm import agent, control, nativeagent
from protocol import digest, messages
from protocol.native import codec
from protocol.native import frames as native

INCARNATION = bytes(range(16))
NOW_NS = 1_700_000_000_000_000_000


def value(uid: str, *, content: int = 0, written_at_ns: int = 0) -> bytes:
    """An object's JSON."""
    metadata: dict[str, object] = {"name": "x", "uid": uid}
    if written_at_ns:
        metadata["annotations"] = {WRITTEN_AT: str(written_at_ns)}
    return json.dumps({"kind": "Pod", "metadata": metadata, "content": content}, separators=(",", ":")).encode()


def frame(message: messages.Message, *, compress: bool = False) -> bytes:
    """The frame of a message."""
    return native.pack_frame(codec.encode(message), compressor=native.make_compressor() if compress else None)


def hello(connection_id: int = 1, incarnation: bytes = INCARNATION) -> bytes:
    """The first bytes of a server."""
    answer = messages.ServerHello(version=1, feed="f", incarnation=incarnation, connection_id=connection_id)
    return native.PREFACE + frame(answer)


class Source:
    """A map, and the frames of its snapshots and changes."""

    def __init__(self, content: dict[str, bytes] | None = None, *, sequence: int = 1) -> None:
        self.content = dict(content or {})
        self.sequence = sequence

    @property
    def digest(self) -> int:
        return digest.state_digest(self.content.items())

    def snapshot(self, *, chunks: int = 2, frames_per_chunk: int = 2, compress: bool = False) -> list[bytes]:
        """A snapshot with the keys spread over chunks and frames, and the status."""
        parts: list[list[messages.Update]] = [[] for _ in range(chunks * frames_per_chunk)]
        for part, (key, content) in zip(itertools.cycle(parts), sorted(self.content.items()), strict=False):
            part.append(messages.Update(key, content, "1", messages.UpdateType.NEW))
        result = [frame(messages.SnapshotBegin(self.sequence, len(self.content), chunks))]
        for index in range(chunks):
            mine = parts[index * frames_per_chunk : (index + 1) * frames_per_chunk]
            total = digest.state_digest((update.key, update.value or b"") for part in mine for update in part)
            for number, part in enumerate(mine):
                more = number + 1 < len(mine)
                result.append(frame(messages.SnapshotChunk(index, total, more, tuple(part)), compress=compress))
        result.append(frame(messages.SnapshotEnd(self.sequence, len(self.content), self.digest)))
        result.append(frame(messages.Status(self.sequence, messages.SyncStatus.IN_SYNC)))
        return result

    def change(self, *changes: tuple[str, bytes | None]) -> bytes:
        """Change the map. Returns a frame with the updates."""
        updates = []
        for key, content in changes:
            kind = messages.UpdateType.UPDATED if key in self.content else messages.UpdateType.NEW
            if content is None:
                self.content.pop(key, None)
                kind = messages.UpdateType.DELETED
            else:
                self.content[key] = content
            updates.append(messages.Update(key, content, "2", kind))
        previous, self.sequence = self.sequence, self.sequence + 1
        return frame(messages.Updates(previous, self.sequence, tuple(updates)))


def connect(shared: agent.Shared, name: str = "a-0", group: control.Group | None = None) -> nativeagent.NativeAgent:
    """An agent whose handshake is done."""
    one = nativeagent.NativeAgent(name, shared, group or control.Group())
    one.connected(feed="f", compressed=False, now_ns=NOW_NS)
    one.receive(hello(), NOW_NS)
    return one


def feed(
    one: nativeagent.NativeAgent, data: list[bytes] | bytes, *, now_ns: int = NOW_NS, step: int | None = None
) -> bytes:
    """Give bytes to an agent, all at once or `step` at a time. Returns its answer."""
    stream = data if isinstance(data, bytes) else b"".join(data)
    answers = b""
    size = step or max(1, len(stream))
    for start in range(0, len(stream), size):
        answers += one.receive(stream[start : start + size], now_ns)
    return answers
