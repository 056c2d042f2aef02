"""The history of the API server by key: what each key was, and when. Whatever a replica serves must have been true."""

import bisect
from typing import NamedTuple

from cache import resources
from cache.feeds import raw
from protocol import digest
from tests.simulation import apiserver
from tests.simulation import world as worlds
from tests.simulation.expected_state import ABSENT

_BEFORE = -1e9


class _Moment(NamedTuple):
    since: float
    digest: int


class Truth:
    """Takes each write of the API server."""

    def __init__(self, world: worlds.World) -> None:
        self._world = world
        self._keys: dict[str, list[_Moment]] = {}
        self._places: dict[tuple[str, int], list[int]] = {}
        """Where in the history of a key it had a digest."""

    def written(self, type: resources.ResourceType, name: str, text: str | None) -> None:
        """The API server has written an object, or deleted it (text None)."""
        key = raw.object_key(type, apiserver.NAMESPACE, name)
        now = ABSENT
        if text is not None:
            value = raw.object_value(text.encode(), api_version="v1", kind=apiserver.kind_of(type))
            now = digest.pair_digest(key.encode(), value)
        moments = self._moments(key)
        self._places.setdefault((key, now), []).append(len(moments))
        moments.append(_Moment(self._world.now, now))

    def _moments(self, key: str) -> list[_Moment]:
        if key not in self._keys:
            self._keys[key] = [_Moment(_BEFORE, ABSENT)]
            self._places[key, ABSENT] = [0]
        return self._keys[key]

    @property
    def keys(self) -> list[str]:
        """Every key that there has ever been."""
        return list(self._keys)

    def place(self, key: str, now: int, *, not_before: int) -> int | None:
        """The first place in a key's history, from this one on, at which it had a digest; None if there is none."""
        self._moments(key)
        places = self._places.get((key, now), [])
        found = bisect.bisect_left(places, not_before)
        return places[found] if found < len(places) else None

    def last_true_at(self, key: str, now: int) -> float:
        """When the key last had this digest: the end of that time, or the present."""
        moments, places = self._moments(key), self._places.get((key, now), [])
        if not places:
            return _BEFORE
        after = places[-1] + 1
        return moments[after].since if after < len(moments) else self._world.now
