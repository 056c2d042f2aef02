"""A strict client of Typha's protocol, on a real socket."""

import socket
import time

import msgspec

from protocol import messages
from protocol.typha import codec, connection, timestamps
from protocol.typha import messages as typha
from tests.harness import worker_stand

FELIX = typha.FELIX
HELLO = typha.ClientHello(
    hostname="node-1",
    info="test",
    version="v3.33.0",
    syncer_type=FELIX,
    supports_decoder_restart=True,
    supported_compression_algorithms=(typha.SNAPPY,),
    supports_modern_policy_keys=True,
)
"""The hello of current Calico agents."""
PLAIN_HELLO = msgspec.structs.replace(HELLO, supports_decoder_restart=False)
_CLOCKS_DIFFER_SECONDS = 60.0


def encoded(hello: typha.ClientHello) -> bytes:
    """The first bytes of a client."""
    client = connection.Connection(connection.Role.CLIENT)
    client.send_hello(hello)
    return client.data_to_send()


ACK = codec.encode(typha.Ack(), types=codec.CLIENT)


class TyphaPeer(worker_stand.Peer):
    """Checks everything that the Go client relies on, and that the updates of each key are consistent."""

    def __init__(self, end: socket.socket) -> None:
        super().__init__(end)
        self.typha = connection.Connection(connection.Role.CLIENT)
        self.greeting: typha.ServerHello | None = None
        self.restarts = 0
        self.is_loose = False
        """An unannounced catch-up may be running: unknown keys may be updated or deleted."""
        self.statuses: list[int] = []
        self.types: list[int] = []
        """Types of all updates, in order."""
        self.updates_at_status: list[int] = []

    def say_hello(self, hello: typha.ClientHello = HELLO) -> None:
        """Send the hello."""
        self.typha.send_hello(hello)
        self.send(self.typha.data_to_send())

    def _hear(self, data: bytes) -> bytes:
        self.typha.receive_data(data)
        while (message := self.typha.next_event()) is not None:
            self._note(message)
        return self.typha.data_to_send()

    def _note(self, message: typha.Message) -> None:
        match message:
            case typha.ServerHello():
                assert self.greeting is None
                self.greeting = message
            case typha.DecoderRestart():
                self.restarts += 1
            case typha.Ping():
                self.pings += 1
                sent_at = timestamps.to_unix_nanoseconds(message.timestamp) / timestamps.NANOSECONDS
                assert abs(time.time() - sent_at) < _CLOCKS_DIFFER_SECONDS
            case typha.SyncStatus():
                self.statuses.append(message.status)
                self.updates_at_status.append(self.updates)
                self.status = messages.SyncStatus(message.status)
                self.told.append(self.status)
            case typha.KeyValues():
                assert 0 < len(message.updates) <= 100
                for update in message.updates:
                    self._apply_update(update)

    def _apply_update(self, update: messages.Update) -> None:
        self.updates += 1
        self.types.append(update.update_type)
        if update.value is None:
            assert update.update_type == messages.UpdateType.DELETED
            self.deleted.append(update.key.rpartition("/")[2])
            assert self.is_loose or update.key in self.entries
            self.entries.pop(update.key, None)
        elif self.is_loose:
            assert update.update_type in (messages.UpdateType.NEW, messages.UpdateType.UPDATED)
            self.entries[update.key] = update.value
        else:
            is_known = update.key in self.entries
            assert update.update_type == (messages.UpdateType.UPDATED if is_known else messages.UpdateType.NEW)
            self.entries[update.key] = update.value


async def join(
    stage: worker_stand.WorkerStand, hello: typha.ClientHello = HELLO, *, receive_buffer_bytes: int | None = None
) -> TyphaPeer:
    """Connect a client that has sent its hello."""
    peer = await stage.join(TyphaPeer, receive_buffer_bytes=receive_buffer_bytes)
    peer.say_hello(hello)
    return peer
