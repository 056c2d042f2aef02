"""Parts of channel tests without processes and sockets: objects for a feed, and clients that check what they get."""

import gc
import json
import os
import subprocess
import sys

from cache import objects, resources
from protocol import digest, formats, messages
from protocol.native import codec, connection, frames
from protocol.typha import connection as typha
from protocol.typha import encoder as typha_encoder
from protocol.typha import messages as typha_messages

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
    """Return an object as a watcher passes it to the sink."""
    metadata = {"name": name, "namespace": "default", "resourceVersion": str(version)}
    written = raw if raw is not None else json.dumps({"metadata": metadata, "spec": content}).encode()
    return objects.ObjectEvent(type, "default", name, str(version), written, "v1", "Pod", objects.Origin.EVENT)


def open_descriptors() -> int:
    """Return the number of open descriptors of this process."""
    return len(os.listdir("/proc/self/fd"))


def descriptors_before() -> int:
    """Return the number of open descriptors at the begin of a test.

    What earlier tests have left in reference cycles is gone then. Else it would go in the middle of this test.
    """
    gc.collect()
    return open_descriptors()


def changes_another_process_can_make(descriptor: int) -> list[str]:
    """Return the ways in which a hostile process with the descriptor can change the file."""
    command = [sys.executable, "-c", _TRY_TO_CHANGE, str(descriptor)]
    done = subprocess.run(command, pass_fds=(descriptor,), stdout=subprocess.PIPE, text=True, check=True)
    return done.stdout.split("\n")[:-1]


class ModelClient:
    """The map of a client that applies everything it gets. It checks every claim of the server."""

    def __init__(self) -> None:
        self.connection = connection.Connection(connection.Role.CLIENT)
        self.map: dict[str, messages.Update] = {}
        self.status: messages.SyncStatus | None = None
        """The last status since the beginning of the last snapshot."""
        self.snapshots = 0
        self.newest: dict[str, int] = {}
        """The last revision of each key since the end of the last snapshot, deletions included."""
        self.chunks: list[tuple[int, bool, int]] = []
        """(index, more, number of updates) of each chunk frame of the last snapshot."""
        self._next: dict[str, messages.Update] = {}
        self._chunk: dict[str, messages.Update] = {}
        self._announced = messages.SnapshotBegin(0, 0, 0)
        hello = codec.encode(messages.ServerHello(version=1, feed="pods", incarnation=bytes(16)))
        self.receive(frames.PREFACE + frames.pack_frame(hello))

    def values(self) -> dict[str, bytes]:
        """Return the values by key."""
        return {key: update.value for key, update in self.map.items() if update.value is not None}

    @property
    def building(self) -> dict[str, messages.Update]:
        """The complete chunks of a snapshot that has not ended."""
        return self._next

    def receive(self, data: bytes) -> None:
        """Process bytes from the connection."""
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
                self.newest.clear()
                self.snapshots += 1
            case messages.Updates():
                is_catching_up = self.status is messages.SyncStatus.CATCHING_UP
                assert is_catching_up or message.sequence - message.previous_sequence == len(message.updates)
                for update in message.updates:
                    self.take_update(update, is_catching_up=is_catching_up)
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

    def take_update(self, update: messages.Update, *, is_catching_up: bool) -> None:
        """Apply a change. It must be newer, and of the right type. While catching up, the key may be known or not."""
        known = self.map.get(update.key)
        revision = int(update.revision)
        newest = self.newest.get(update.key, int(known.revision) if known else 0)
        assert newest < revision or (is_catching_up and newest == revision), f"{update.key} went back"
        self.newest[update.key] = revision
        if update.value is None:
            assert update.update_type == messages.UpdateType.DELETED
            assert known is not None or is_catching_up, f"deletion of {update.key}, which is not there"
            self.map.pop(update.key, None)
            return
        expected = messages.UpdateType.NEW if known is None else messages.UpdateType.UPDATED
        assert update.update_type == expected or (is_catching_up and update.update_type == messages.UpdateType.UPDATED)
        self.map[update.key] = update


class TyphaModelClient:
    """The same for Typha's protocol, after the handshake. This protocol does not say when a client is catching up."""

    def __init__(self) -> None:
        self.connection = follow_typha()
        self.model = ModelClient()
        self.statuses: list[int] = []
        self.may_be_catching_up = False
        """The server knows that the client's position was dropped and that it is not back in the log."""

    def receive(self, data: bytes) -> None:
        """Process bytes from the connection."""
        self.connection.receive_data(data)
        while (message := self.connection.next_event()) is not None:
            match message:
                case typha_messages.SyncStatus():
                    self.statuses.append(message.status)
                case typha_messages.KeyValues():
                    for update in message.updates:
                        # Before the first status the client cannot know where the snapshot ends.
                        is_loose = self.may_be_catching_up or not self.statuses
                        self.model.take_update(update, is_catching_up=is_loose)


class LooseReader:
    """Reads updates of any wire format from any place after the handshake."""

    def __init__(self, wire_format: str) -> None:
        self._is_native = formats.replaces_by_snapshot(wire_format)
        self._restarts = wire_format == typha_encoder.SNAPPY

    def updates(self, data: bytes, *, after: int) -> list[messages.Update]:
        """Return the updates in the data for a client that had reached this sequence."""
        found: list[messages.Update] = []
        if self._is_native:
            splitter = frames.FrameSplitter()
            splitter.receive(data)
            while (frame := splitter.next_frame()) is not None:
                message = codec.decode(frames.unpack_payload(*frame))
                assert isinstance(message, messages.Updates)
                assert message.previous_sequence == after
                after = message.sequence
                found += message.updates
            return found
        client = follow_typha(restarts=self._restarts)
        client.receive_data(data)
        while (said := client.next_event()) is not None:
            assert isinstance(said, typha_messages.KeyValues)
            found += said.updates
        return found


def follow_typha(*, restarts: bool = True) -> typha.Connection:
    """Return a client of Typha's protocol after its handshake."""
    client, server = typha.Connection(typha.Role.CLIENT), typha.Connection(typha.Role.SERVER)
    client.send_hello(
        typha_messages.ClientHello(supports_decoder_restart=restarts, supported_compression_algorithms=("snappy",))
    )
    for _ in range(2):
        server.receive_data(client.data_to_send())
        while server.next_event() is not None:
            pass
        if server.state is typha.State.HELLO_RECEIVED:
            server.accept()
        client.receive_data(server.data_to_send())
        while client.next_event() is not None:
            pass
    return client
