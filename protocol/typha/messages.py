"""Internal: the messages of Typha's protocol, as immutable values."""

import dataclasses
from typing import TypeAlias

import msgspec

from protocol import messages

FELIX = "felix"
SYNCER_TYPES = (FELIX, "bgp", "tunnel-ip-allocation", "node-status")
SNAPPY = "snappy"
MAX_AGENT_CHARS = 200
"""Limit for logs. A hello may contain a megabyte of text."""


def agent_text(info: str, version: str, hostname: str) -> str:
    """A client's identity for logs: info, version and host, printable and short."""
    text = " ".join(part[:MAX_AGENT_CHARS] for part in (info, version, hostname) if part)
    return printable(text, MAX_AGENT_CHARS)


def printable(text: str, most_chars: int) -> str:
    """The beginning of a text, without what a terminal acts on, and without what is no UTF-8."""
    text = text[:most_chars]
    return text if text.isprintable() else "".join(char if char.isprintable() else "?" for char in text)


class ClientHello(msgspec.Struct, frozen=True):
    """The client's first message. Old clients omit the fields that their version did not have."""

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
        """The syncer type. Clients that name none want felix."""
        return self.syncer_type or FELIX

    @property
    def agent(self) -> str:
        """The client's identity for logs."""
        return agent_text(self.info, self.version, self.hostname)

    @property
    def takes_snappy(self) -> bool:
        """Whether the client can restart its decoder on a compressed stream."""
        return self.supports_decoder_restart and SNAPPY in self.supported_compression_algorithms


class ServerHello(msgspec.Struct, frozen=True):
    """The server's first message. A client disconnects if the syncer type is not the one it asked for."""

    version: str = ""
    syncer_type: str = ""
    supports_node_resource_updates: bool = False
    server_connection_id: int = 0


class DecoderRestart(msgspec.Struct, frozen=True):
    """Announces a new gob stream, compressed if it names an algorithm. The client sends an `Ack` first."""

    message: str = ""
    compression_algorithm: str = ""


class Ack(msgspec.Struct, frozen=True):
    """The client has restarted its decoder."""


@dataclasses.dataclass(frozen=True, slots=True)
class SyncStatus:
    """A status: 0 to 2, as in `protocol.messages.SyncStatus`. The Go client passes on any other number."""

    status: int = 0


@dataclasses.dataclass(frozen=True, slots=True)
class Ping:
    """Asks for a pong. Times are in the format of `protocol.typha.timestamps`."""

    timestamp: bytes = b""


@dataclasses.dataclass(frozen=True, slots=True)
class Pong:
    """Answers a ping with the ping's time. The Go client omits its own time."""

    ping_timestamp: bytes = b""
    pong_timestamp: bytes = b""


@dataclasses.dataclass(frozen=True, slots=True)
class KeyValues:
    """Updates. A missing value is None: the encoding does not distinguish empty values from missing ones."""

    updates: tuple[messages.Update, ...] = dataclasses.field(default=(), repr=False)


Message: TypeAlias = ClientHello | ServerHello | DecoderRestart | Ack | SyncStatus | Ping | Pong | KeyValues
