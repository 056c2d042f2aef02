"""The output of `typha watch`: JSON lines for programs, short lines for people."""

import base64
import json
import sys
from collections.abc import Iterable
from typing import BinaryIO, Protocol

import click

from protocol import messages

_JSON_STATUS = {
    messages.SyncStatus.WAITING: "waiting",
    messages.SyncStatus.RESYNC: "resync",
    messages.SyncStatus.IN_SYNC: "in-sync",
    # The output has three status names. A client that is catching up is not in sync.
    messages.SyncStatus.CATCHING_UP: "resync",
}
_SIGNS = {messages.UpdateType.NEW: "+", messages.UpdateType.UPDATED: "~", messages.UpdateType.DELETED: "-"}


class Output(Protocol):
    """Writes updates and statuses, and flushes after each call."""

    def write_updates(self, updates: Iterable[messages.Update]) -> None:
        """Writes updates, in order."""

    def write_status(self, status: messages.SyncStatus) -> None:
        """Writes a status."""


def update_line(update: messages.Update) -> str:
    """One update as a JSON object with key, value, revision, v3_resource_version, update_type and ttl, in this order.

    `value` is a string or null. A value that is not UTF-8 is written as `value_base64` in the same place.
    """
    content: dict[str, object] = {"key": update.key}
    try:
        content["value"] = None if update.value is None else update.value.decode()
    except UnicodeDecodeError:
        content["value_base64"] = base64.b64encode(update.value or b"").decode()
    content["revision"] = update.revision
    content["v3_resource_version"] = update.v3_resource_version
    content["update_type"] = int(update.update_type)
    content["ttl"] = update.ttl
    return json.dumps(content, ensure_ascii=False)


class JsonOutput:
    """One JSON object per line, in UTF-8 regardless of the locale."""

    def __init__(self) -> None:
        self._stream: BinaryIO = sys.stdout.buffer
        self._status = ""

    def write_updates(self, updates: Iterable[messages.Update]) -> None:
        """See Output."""
        for update in updates:
            self._stream.write(update_line(update).encode() + b"\n")
        self._stream.flush()

    def write_status(self, status: messages.SyncStatus) -> None:
        """See Output. Omits a status that equals the last one written."""
        label = _JSON_STATUS[status]
        if label != self._status:
            self._status = label
            self._stream.write(json.dumps({"status": label}).encode() + b"\n")
            self._stream.flush()


class TextOutput:
    """`+`, `~` or `-`, followed by the key, the size of the value and the revision."""

    def write_updates(self, updates: Iterable[messages.Update]) -> None:
        """See Output."""
        for update in updates:
            size = "" if update.value is None else f"  {len(update.value)} bytes"
            click.echo(f"{_SIGNS[messages.UpdateType(update.update_type)]} {update.key}{size}  @{update.revision}")

    def write_status(self, status: messages.SyncStatus) -> None:
        """See Output."""
        click.echo(f"= {status.label}")
