"""Sources of a bare loop's updates: a watch of the simulated API server, or a schedule."""

import json
import socket
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Final
from urllib.parse import urlsplit

import msgspec

from cache import objects, resources
from cache.feeds import raw
from cache.feeds.calico import feed, syncers
from loadtest import WRITTEN_AT
from loadtest.apiserver import population
from protocol import messages

PODS: Final = resources.ResourceType("", "v1", "pods")
READ_BYTES: Final = 1024 * 1024
MAX_VALUE_BYTES: Final = 8 * 1024 * 1024
CONNECT_TIMEOUT_SECONDS: Final = 10.0


class _Metadata(msgspec.Struct, gc=False):
    name: str = ""
    namespace: str = ""
    version: str = msgspec.field(name="resourceVersion", default="")


class _Named(msgspec.Struct, gc=False):
    metadata: _Metadata


class _Event(msgspec.Struct, gc=False):
    type: str
    object: msgspec.Raw


_decode_event = msgspec.json.Decoder(_Event).decode
_decode_name = msgspec.json.Decoder(_Named).decode


class WatchBroken(Exception):
    """The watch was refused or has ended; the message says how."""


Convert = Callable[[Sequence[bytes]], list[messages.Update]]
"""Converts lines of a watch of pods to updates."""


def _events(lines: Sequence[bytes]) -> Iterator[objects.ObjectEvent]:
    """The object events in these lines; a deletion has no JSON."""
    for line in lines:
        event = _decode_event(line)
        if event.type in ("ADDED", "MODIFIED", "DELETED"):
            content = bytes(event.object)
            metadata = _decode_name(content).metadata
            written = None if event.type == "DELETED" else content
            names = metadata.namespace, metadata.name
            yield objects.ObjectEvent(PODS, *names, metadata.version, written, "v1", "Pod", objects.Origin.EVENT)


def raw_updates(lines: Sequence[bytes]) -> list[messages.Update]:
    """The updates of a raw feed of pods. It keeps no state."""
    updates = []
    for event in _events(lines):
        key = raw.object_key(PODS, event.namespace, event.name)
        if event.raw is None:
            updates.append(messages.Update(key, None, "", messages.UpdateType.DELETED))
        else:
            value = raw.object_value(event.raw, api_version="v1", kind="Pod")
            updates.append(messages.Update(key, value, "1", messages.UpdateType.UPDATED))
    return updates


def felix_updates() -> Convert:
    """The updates of the felix feed, for pods only."""
    felix = next(spec for spec in syncers.specs(syncers.Group.V3) if spec.name == syncers.FELIX)
    known = feed.CalicoFeed(felix, max_value_bytes=MAX_VALUE_BYTES)

    def convert(lines: Sequence[bytes]) -> list[messages.Update]:
        for event in _events(lines):
            known.apply(event)
        taken = known.take()
        return [] if taken is None else list(taken.updates)

    return convert


class Watch:
    """A watch of pods from a version on. It uses HTTP/1.0, so that the body consists of lines only.

    The constructor and `take` raise WatchBroken.
    """

    def __init__(self, url: str, *, version: int, convert: Convert) -> None:
        self._convert = convert
        address = urlsplit(url)
        self._socket = socket.create_connection((address.hostname, address.port or 80), timeout=CONNECT_TIMEOUT_SECONDS)
        path = f"{PODS.list_path}?watch=true&allowWatchBookmarks=true&resourceVersion={version}"
        self._socket.sendall(f"GET {path} HTTP/1.0\r\nHost: {address.netloc}\r\n\r\n".encode())
        self._buffer = b""
        while b"\r\n\r\n" not in self._buffer:
            self._receive()
        head, _, self._buffer = self._buffer.partition(b"\r\n\r\n")
        if b" 200 " not in head.split(b"\r\n")[0]:
            raise WatchBroken(head.decode(errors="replace"))
        self._socket.setblocking(False)

    def fileno(self) -> int:
        """The descriptor that is readable when there may be updates."""
        return self._socket.fileno()

    def take(self) -> list[messages.Update]:
        """The updates in the complete lines of one read."""
        try:
            self._receive()
        except BlockingIOError:
            return []
        *lines, self._buffer = self._buffer.split(b"\n")
        return self._convert([line for line in lines if line])

    def close(self) -> None:
        """End the watch."""
        self._socket.close()

    def _receive(self) -> None:
        data = self._socket.recv(READ_BYTES)
        if not data:
            raise WatchBroken("the API server has ended the watch")
        self._buffer += data


class Schedule:
    """Updates of made-up pods at a rate, without an API server."""

    def __init__(self, *, objects: int) -> None:
        maker = population.Maker(population.Population(), seed=0)
        self._objects = [maker.pod(number) for number in range(objects)]
        self._number = 0
        self._begin = self._end = 0.0
        self._interval = 1.0

    def start(self, *, updates_per_second: float, seconds: float) -> None:
        """Make updates from now on, for a time."""
        self._number = 0
        self._interval = 1 / updates_per_second
        self._begin = time.monotonic()
        self._end = self._begin + seconds

    def due_in_seconds(self) -> float | None:
        """Time to the next update; None without one."""
        due = self._begin + self._number * self._interval
        return None if due >= self._end else max(0.0, due - time.monotonic())

    def take(self) -> list[messages.Update]:
        """The update that is due."""
        content = self._objects[self._number % len(self._objects)]
        self._number += 1
        metadata = content["metadata"]
        metadata["annotations"] = {**metadata["annotations"], WRITTEN_AT: str(time.time_ns())}
        key = raw.object_key(PODS, metadata["namespace"], metadata["name"])
        written = {"apiVersion": "v1", "kind": "Pod", **content}
        value = raw.object_value(json.dumps(written, separators=(",", ":")).encode(), api_version="v1", kind="Pod")
        return [messages.Update(key, value, "1", messages.UpdateType.UPDATED)]
