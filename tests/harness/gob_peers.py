"""The byte stream of a server of Typha's protocol, for tests of the swarm."""

from loadtest.swarm import agent, control, typhaagent
from protocol import digest, messages
from protocol.typha import connection, encoder
from tests.harness.swarm_peers import NOW_NS

FELIX = "felix"


class Server:
    """A map, and the bytes for one client. They come from the real server connection."""

    def __init__(self, content: dict[str, bytes] | None = None) -> None:
        self.content = dict(content or {})
        self.encoders = {compress: encoder.TyphaEncoder(compress=compress) for compress in (False, True)}

    @property
    def digest(self) -> int:
        """The digest of the map."""
        return digest.state_digest(self.content.items())

    def greet(self, one: typhaagent.TyphaAgent, *, compress: bool, step: int | None = None, serial: int = 1) -> bytes:
        """Do the whole handshake. Returns the client's bytes."""
        end = connection.Connection(connection.Role.SERVER)
        said = one.connected(feed=FELIX, compressed=compress, now_ns=NOW_NS)
        end.receive_data(said)
        end.next_event()
        wire_format = end.accept(version="v", connection_id=serial)
        assert wire_format == (encoder.SNAPPY if compress else encoder.PLAIN)
        answer = give(one, end.data_to_send(), step=step)
        said += answer
        end.receive_data(answer)
        assert (end.next_event() is not None) == compress
        give(one, end.data_to_send(), step=step)
        return said

    def snapshot(self, *, compress: bool) -> bytes:
        """A snapshot of the map."""
        updates = [messages.Update(key, value, "1", messages.UpdateType.NEW) for key, value in self.content.items()]
        return self.encoders[compress].snapshot_chunk(0, 0, updates)

    def status(self, status: messages.SyncStatus = messages.SyncStatus.IN_SYNC, *, compress: bool) -> bytes:
        """A status."""
        return self.encoders[compress].status(0, status).data

    def change(self, *changes: tuple[str, bytes | None], compress: bool) -> bytes:
        """Change the map. Returns a frame with the updates."""
        updates = []
        for key, value in changes:
            kind = messages.UpdateType.UPDATED if key in self.content else messages.UpdateType.NEW
            if value is None:
                self.content.pop(key, None)
                kind = messages.UpdateType.DELETED
            else:
                self.content[key] = value
            updates.append(messages.Update(key, value, str(len(self.content)), kind))
        return b"".join(frame.data for frame in self.encoders[compress].updates(0, updates))


def make(shared: agent.Shared, name: str = "a-0") -> typhaagent.TyphaAgent:
    """An agent."""
    return typhaagent.TyphaAgent(name, shared, control.Group())


def give(one: typhaagent.TyphaAgent, data: bytes, *, now_ns: int = NOW_NS, step: int | None = None) -> bytes:
    """Give bytes to an agent, all at once or `step` at a time. Returns its answer."""
    size = step or max(1, len(data))
    return b"".join(one.receive(data[start : start + size], now_ns) for start in range(0, len(data), size))
