"""What Typha's protocol says, as plain immutable values."""

import dataclasses
from typing import TypeAlias

import msgspec

from protocol import messages

FELIX = "felix"
SYNCER_TYPES = (FELIX, "bgp", "tunnel-ip-allocation", "node-status")
SNAPPY = "snappy"
MAX_AGENT_CHARS = 200
"""For logs; a hello may hold a megabyte of text."""


class ClientHello(msgspec.Struct, frozen=True):
    """The client's first message. Old clients leave out what their version did not know."""

    hostname: str = ""
    info: str = ""
    version: str = ""
    syncer_type: str = ""
    supports_decoder_restart: bool = False
    supported_compression_algorithms: tuple[str, ...] = ()
    supports_modern_policy_keys: bool = False
    client_connection_id: int = 0

    @property
    def feed(self) -> str:
        """The syncer type, with what its absence means."""
        return self.syncer_type or FELIX

    @property
    def agent(self) -> str:
        """Who it is, for logs: info, version and host, printable and short."""
        text = " ".join(part[:MAX_AGENT_CHARS] for part in (self.info, self.version, self.hostname) if part)
        text = text[:MAX_AGENT_CHARS]
        return text if text.isprintable() else "".join(char if char.isprintable() else "?" for char in text)

    @property
    def takes_snappy(self) -> bool:
        """Whether it can be told to restart its decoder on a compressed stream."""
        return self.supports_decoder_restart and SNAPPY in self.supported_compression_algorithms


class ServerHello(msgspec.Struct, frozen=True):
    """The server's first message; clients leave if the syncer type is not theirs."""

    version: str = ""
    syncer_type: str = ""
    supports_node_resource_updates: bool = False
    server_connection_id: int = 0


class DecoderRestart(msgspec.Struct, frozen=True):
    """Behind it a new gob stream begins, compressed if an algorithm is named; the client sends an `Ack` first."""

    message: str = ""
    compression_algorithm: str = ""


class Ack(msgspec.Struct, frozen=True):
    """The client's decoder has been restarted."""


@dataclasses.dataclass(frozen=True, slots=True)
class SyncStatus:
    """Numbers as in `protocol.messages.SyncStatus`, 0 to 2; the Go client passes on any other."""

    status: int = 0


@dataclasses.dataclass(frozen=True, slots=True)
class Ping:
    """Asks for a pong; times are `protocol.typha.timestamps`."""

    timestamp: bytes = b""


@dataclasses.dataclass(frozen=True, slots=True)
class Pong:
    """Answers a ping with its time; the Go client leaves its own out."""

    ping_timestamp: bytes = b""
    pong_timestamp: bytes = b""


@dataclasses.dataclass(frozen=True, slots=True)
class KeyValues:
    """Changes. A value that is not there is None: empty values cannot be told from absent ones, whatever the type."""

    updates: tuple[messages.Update, ...] = dataclasses.field(default=(), repr=False)


Message: TypeAlias = ClientHello | ServerHello | DecoderRestart | Ack | SyncStatus | Ping | Pong | KeyValues
