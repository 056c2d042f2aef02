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


def printable(text: str) -> str:
    """The text with everything escaped that a terminal would act on instead of showing it, such as escape sequences."""
    return text if text.isprintable() else "".join(char if char.isprintable() else ascii(char)[1:-1] for char in text)


def printable_json(text: str) -> str:
    """JSON with the same characters escaped, in JSON's way. Line ends stay, and so does the meaning.

    A command in a pod cannot know whether a terminal is at the other end of `kubectl exec`.
    """
    if text.replace("\n", "").isprintable():
        return text
    return "".join(char if char.isprintable() or char == "\n" else json.dumps(char)[1:-1] for char in text)


def update_line(update: messages.Update, *, ascii_only: bool = False) -> str:
    """One update as a JSON object with key, value, revision, v3_resource_version, update_type and ttl, in this order.

    `value` is a string or null. A value that is not UTF-8 is written as `value_base64` in the same place. With
    `ascii_only`, all other characters are escaped, and without it those that a terminal would act on.
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
    return printable_json(json.dumps(content, ensure_ascii=ascii_only))


class JsonOutput:
    """One JSON object per line, in UTF-8 regardless of the locale; in ASCII on a terminal."""

    def __init__(self) -> None:
        self._stream: BinaryIO = sys.stdout.buffer
        self._ascii_only = sys.stdout.isatty()
        self._status = ""

    def write_updates(self, updates: Iterable[messages.Update]) -> None:
        """See Output."""
        for update in updates:
            self._stream.write(update_line(update, ascii_only=self._ascii_only).encode() + b"\n")
        self._stream.flush()

    def write_status(self, status: messages.SyncStatus) -> None:
        """See Output. Omits a status that equals the last one written."""
        label = _JSON_STATUS[status]
        if label != self._status:
            self._status = label
            self._stream.write(json.dumps({"status": label}).encode() + b"\n")
            self._stream.flush()


class TextOutput:
    """`+`, `~` or `-`, followed by the key, the size of the value and the revision. See `printable`."""

    def write_updates(self, updates: Iterable[messages.Update]) -> None:
        """See Output."""
        for update in updates:
            size = "" if update.value is None else f"  {len(update.value)} bytes"
            key, revision = printable(update.key), printable(update.revision)
            click.echo(f"{_SIGNS[messages.UpdateType(update.update_type)]} {key}{size}  @{revision}")

    def write_status(self, status: messages.SyncStatus) -> None:
        """See Output."""
        click.echo(f"= {status.label}")
