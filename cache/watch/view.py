"""What a watcher remembers: of each live object its identity and version, and of the type its position. Pure.

Per object this is one string and one integer, which the garbage collector does not track.
"""

from collections.abc import Iterable
from typing import TypeAlias

from cache.watch import decoding

Version: TypeAlias = int | str
"""A resourceVersion: an integer where it is a decimal one (comparable, and half the memory), else as written."""

_DISTRUSTED: Version = -1


def version_of(text: str) -> Version:
    """The compact form of a resourceVersion."""
    return int(text) if text.isdecimal() and text.isascii() and len(text) <= 20 else text


def identity_of(namespace: str, name: str) -> str:
    """One string for an object within its type; neither part can contain the separator."""
    return f"{namespace}/{name}"


class View:
    """The live objects of one type as far as they are known, and the version up to which they are."""

    __slots__ = ("_position", "_position_version", "_versions")

    def __init__(self) -> None:
        self._versions: dict[str, Version] = {}
        self.move_to("")

    def __len__(self) -> int:
        return len(self._versions)

    @property
    def position(self) -> str:
        """The newest version seen in order, or empty: nothing was ever complete."""
        return self._position

    def move_to(self, text: str) -> None:
        """Sets the position, forwards or back."""
        self._position = text
        self._position_version = version_of(text)

    def identities(self) -> Iterable[str]:
        """The identities of all live objects."""
        return self._versions.keys()

    def observe(self, identity: str, envelope: decoding.Envelope) -> bool:
        """Takes in an object; returns whether it is new or differs from what was known."""
        text = envelope.metadata.resource_version
        version = version_of(text)
        if self._versions.get(identity) == version and text:
            return False
        self._versions[identity] = version
        return True

    def forget(self, identity: str) -> bool:
        """Takes out an object; returns whether it was there."""
        return self._versions.pop(identity, None) is not None

    def advance(self, text: str) -> bool:
        """Moves the position on to a version; returns False, without moving, if that is older than the position."""
        if not text:
            return True
        old, new = self._position_version, version_of(text)
        if isinstance(old, int) and isinstance(new, int) and new < old:
            return False
        self._position = text
        self._position_version = new
        return True

    def distrust_versions(self) -> None:
        """Makes every object differ when it is seen next: after the server's history went back (etcd restored from a
        backup) the same version may stand for another content."""
        self._versions = dict.fromkeys(self._versions, _DISTRUSTED)
