"""A channel without processes and sockets: objects for a feed, a client that checks all it is sent, descriptors."""

import json
import os
import subprocess
import sys

from cache import objects, resources
from protocol import digest, messages
from protocol.native import codec, connection, frames

PODS = resources.ResourceType("", "v1", "pods")
NODES = resources.ResourceType("", "v1", "nodes")

_TRY_TO_CHANGE = """
import mmap, os, sys
descriptor = int(sys.argv[1])
size = os.fstat(descriptor).st_size
reopened = os.open(f"/proc/self/fd/{descriptor}", os.O_RDWR)
attempts = {
    "write": lambda: os.pwrite(descriptor, b"x", 0),
    "write reopened": lambda: os.pwrite(reopened, b"x", 0),
    "map": lambda: mmap.mmap(descriptor, size),
    "shrink": lambda: os.ftruncate(descriptor, 0),
    "grow": lambda: os.ftruncate(descriptor, size + 1),
}
for name, attempt in attempts.items():
    try:
        attempt()
    except PermissionError:
        continue
    print(name)
"""


def pod_event(
    name: str, *, version: int, content: object = None, raw: bytes | None = None, type: resources.ResourceType = PODS
) -> objects.ObjectEvent:
    """An object as a watcher passes it on."""
    metadata = {"name": name, "namespace": "default", "resourceVersion": str(version)}
    written = raw if raw is not None else json.dumps({"metadata": metadata, "spec": content}).encode()
    return objects.ObjectEvent(type, "default", name, str(version), written, "v1", "Pod", objects.Origin.EVENT)


def open_descriptors() -> int:
    """Number of open descriptors of this process."""
    return len(os.listdir("/proc/self/fd"))


def changes_another_process_can_make(descriptor: int) -> list[str]:
    """What a process that has been given the descriptor, and is as hostile as can be, can do to the file."""
    command = [sys.executable, "-c", _TRY_TO_CHANGE, str(descriptor)]
    done = subprocess.run(command, pass_fds=(descriptor,), stdout=subprocess.PIPE, text=True, check=True)
    return done.stdout.split("\n")[:-1]


class ModelClient:
    """The map that a client has when it believes all it is sent; every claim of the server is checked."""

    def __init__(self) -> None:
        self.connection = connection.Connection(connection.Role.CLIENT)
        self.map: dict[str, messages.Update] = {}
        self.status: messages.SyncStatus | None = None
        """The last one told since the last snapshot began."""
        self.snapshots = 0
        self.chunks: list[tuple[int, bool, int]] = []
        """(index, more, updates) of each chunk frame of the last snapshot."""
        self._next: dict[str, messages.Update] = {}
        self._chunk: dict[str, messages.Update] = {}
        self._announced = messages.SnapshotBegin(0, 0, 0)
        hello = codec.encode(messages.ServerHello(version=1, feed="pods", incarnation=bytes(16)))
        self.receive(frames.PREFACE + frames.pack_frame(hello))

    def values(self) -> dict[str, bytes]:
        """Key to value."""
        return {key: update.value for key, update in self.map.items() if update.value is not None}

    def receive(self, data: bytes) -> None:
        """Takes bytes off the wire."""
        self.connection.receive_data(data)
        while (message := self.connection.next_event()) is not None:
            self._take(message)

    def _take(self, message: messages.Message) -> None:
        match message:
            case messages.SnapshotBegin():
                self._announced = message
                self.status = None
                self._next, self._chunk, self.chunks = {}, {}, []
            case messages.SnapshotChunk():
                self._take_chunk(message)
            case messages.SnapshotEnd():
                values = [(key, update.value or b"") for key, update in self._next.items()]
                assert (message.keys, message.digest) == (len(values), digest.state_digest(values))
                assert message.keys == self._announced.keys
                assert sorted({index for index, _, _ in self.chunks}) == list(range(self._announced.chunks))
                self.map = self._next
                self.snapshots += 1
            case messages.Updates():
                assert message.sequence - message.previous_sequence == len(message.updates)
                for update in message.updates:
                    self._take_update(update)
            case messages.Status():
                self.status = message.status

    def _take_chunk(self, message: messages.SnapshotChunk) -> None:
        assert all(update.update_type == messages.UpdateType.NEW for update in message.updates)
        self.chunks.append((message.index, message.more, len(message.updates)))
        self._chunk.update({update.key: update for update in message.updates})
        if not message.more:
            pairs = [(key, update.value or b"") for key, update in self._chunk.items()]
            assert digest.state_digest(pairs) == message.digest
            assert not self._next.keys() & self._chunk.keys()
            self._next.update(self._chunk)
            self._chunk = {}

    def _take_update(self, update: messages.Update) -> None:
        known = self.map.get(update.key)
        if update.value is None:
            assert update.update_type == messages.UpdateType.DELETED
            assert known is not None, f"deletion of {update.key}, which is not there"
            del self.map[update.key]
            return
        expected = messages.UpdateType.NEW if known is None else messages.UpdateType.UPDATED
        assert update.update_type == expected
        self.map[update.key] = update
