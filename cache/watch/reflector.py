"""The known objects of one resource type, and the changes to them that the sink receives. Pure.

Each object takes one string and one integer, which the garbage collector does not track.
"""

from collections.abc import Iterable
from typing import TypeAlias

from cache import objects, resources
from cache.watch import decoding
from cache.watch.health import WatchCounters

Version: TypeAlias = int | str
"""A resourceVersion. A decimal one is an integer, which is comparable and takes half the memory; others stay text."""

_DISTRUSTED: Version = -1
_SHOWN_CHARS = 80
UNDECODABLE = "undecodable"
NO_IDENTITY = "no-identity"
WRONG_KIND = "wrong-kind"


class TooManyObjects(Exception):
    """The API server sent more objects of the type than the limit."""


def _version_of(text: str) -> Version:
    return int(text) if text.isdecimal() and text.isascii() and len(text) <= 20 else text


class Reflector:
    """Mirrors the objects of one type, and passes every difference to the sink in the same call.

    An object's identity is `namespace/name`. Neither part can contain the separator.
    """

    def __init__(
        self,
        type: resources.ResourceType,
        sink: objects.WatchSink,
        *,
        counters: WatchCounters,
        objects_max: int,
    ) -> None:
        self._type = type
        self._sink = sink
        self._counters = counters
        self._objects_max = objects_max
        self._api_version = f"{type.group}/{type.version}" if type.group else type.version
        self._kind = ""
        """The kind of the objects, once one has come."""
        self._versions: dict[str, Version] = {}
        self.move_to("")

    def __len__(self) -> int:
        return len(self._versions)

    @property
    def position(self) -> str:
        """The newest version seen in order. Empty until the first list is complete."""
        return self._position

    def identities(self) -> Iterable[str]:
        """Return the identities of all live objects."""
        return self._versions.keys()

    def move_to(self, version: str) -> None:
        """Set the position, forwards or backwards."""
        self._position = version
        self._position_version = _version_of(version)

    def advance(self, version: str) -> bool:
        """Move the position forwards to a version. Return False, without moving, if the position is newer."""
        if not version:
            return True
        old, new = self._position_version, _version_of(version)
        if isinstance(old, int) and isinstance(new, int) and new < old:
            return False
        self._position = version
        self._position_version = new
        return True

    def distrust_versions(self) -> None:
        """Treat every object as changed when it is seen next.

        After the server's history went back (etcd restored from a backup), a known version may have other content.
        """
        self._versions = dict.fromkeys(self._versions, _DISTRUSTED)

    def upsert(
        self,
        envelope: decoding.Envelope,
        raw: bytes,
        origin: objects.Origin,
        *,
        api_version: str = "",
        kind: str = "",
    ) -> str:
        """Add or update a live object. Return its identity, or an empty string if its name is unusable.

        `api_version` and `kind` are used if the object itself lacks them.

        Raises:
            TooManyObjects.
        """
        self._counters.events += 1
        metadata = envelope.metadata
        if not envelope.is_sane or not self._is_of_type(envelope):
            self._reject(envelope)
            return ""
        identity = f"{metadata.namespace}/{metadata.name}"
        text = metadata.resource_version
        version = _version_of(text)
        known = self._versions.get(identity)
        if known == version and text:
            self._counters.objects_unchanged += 1
            return identity
        if known is None and len(self._versions) >= self._objects_max:
            raise TooManyObjects(f"more than {self._objects_max} objects")
        self._sink.apply(
            objects.ObjectEvent(
                self._type,
                metadata.namespace,
                metadata.name,
                text,
                raw,
                envelope.api_version or api_version,
                envelope.kind or kind,
                origin,
            )
        )
        self._versions[identity] = version  # not before: if there is no memory for the object, it must come again
        return identity

    def remove(self, envelope: decoding.Envelope, raw: bytes, origin: objects.Origin) -> str:
        """Remove an object that the API server reports as deleted. Return its identity, as `upsert` does."""
        self._counters.events += 1
        metadata = envelope.metadata
        if not envelope.is_sane or not self._is_of_type(envelope):
            self._reject(envelope)
            return ""
        identity = f"{metadata.namespace}/{metadata.name}"
        if identity in self._versions:
            self._sink.delete(
                objects.ObjectEvent(
                    self._type,
                    metadata.namespace,
                    metadata.name,
                    metadata.resource_version,
                    raw,
                    envelope.api_version,
                    envelope.kind,
                    origin,
                )
            )
            del self._versions[identity]
        return identity

    def skip(self, error: decoding.InvalidObject) -> str:
        """Leave out an object that cannot be decoded. Return its identity, or an empty string if that is unknown."""
        self._counters.events += 1
        self._skipped(error.namespace, error.name, UNDECODABLE, str(error))
        return f"{error.namespace}/{error.name}" if error.name else ""

    def forget(self, identity: str, origin: objects.Origin) -> None:
        """Remove an object of unknown last state, if it is known."""
        if identity in self._versions:
            namespace, _, name = identity.partition("/")
            self._sink.delete(objects.ObjectEvent(self._type, namespace, name, self._position, None, "", "", origin))
            del self._versions[identity]

    def sweep(self, stale: list[str], *, count: int, version: str) -> None:
        """Remove up to `count` objects from the end of `stale`. They were missing from the list at `version`."""
        for identity in stale[-count:]:
            if identity in self._versions:
                namespace, _, name = identity.partition("/")
                self._sink.delete(
                    objects.ObjectEvent(self._type, namespace, name, version, None, "", "", objects.Origin.LIST)
                )
                del self._versions[identity]
                self._counters.objects_swept += 1
        del stale[-count:]

    def _is_of_type(self, envelope: decoding.Envelope) -> bool:
        """Whether apiVersion and kind are those of the type. Items of a list may have none."""
        kind = envelope.kind
        if kind and kind != self._kind:
            if not decoding.may_be_kind_of(kind, self._type):
                return False
            self._kind = kind
        return envelope.api_version == self._api_version or not envelope.api_version

    def _reject(self, envelope: decoding.Envelope) -> None:
        metadata = envelope.metadata
        if envelope.is_sane:
            detail = f"apiVersion {envelope.api_version[:_SHOWN_CHARS]!r}, kind {envelope.kind[:_SHOWN_CHARS]!r}"
            self._skipped(metadata.namespace, metadata.name, WRONG_KIND, detail)
        else:
            self._skipped(metadata.namespace, metadata.name, NO_IDENTITY, "its name, namespace or version is unusable")

    def _skipped(self, namespace: str, name: str, reason: str, detail: str) -> None:
        self._counters.objects_rejected += 1
        shown = namespace[:_SHOWN_CHARS], name[:_SHOWN_CHARS]
        self._sink.skipped(objects.SkippedObject(self._type, *shown, reason, detail))
