"""Keys with several claims: chooses the object whose item is visible, independent of history. Pure.

An agent's map must be a function of the present objects alone. Of all claims for a key, a fixed order chooses the
visible one: first the rank of the kind, then the name of the object. When it goes, the next one takes its place.
"""

from collections.abc import Iterator

import msgspec

from cache.feeds.calico import model


class Claim(msgspec.Struct, frozen=True, gc=False):
    """One object's item for a key."""

    rank: int
    """Rank of the object's kind. The lowest rank wins."""
    name: str
    """`namespace/name`, or the name of a cluster-wide object."""
    last_wins: bool
    """Which of several claims of one kind wins: the last in the byte order of names, or the first."""
    item: model.Item

    @property
    def owner(self) -> tuple[int, str]:
        """Identifies the claim among those for one key."""
        return self.rank, self.name


def _precedes(one: Claim, other: Claim) -> bool:
    if one.rank != other.rank:
        return one.rank < other.rank
    # Python orders text by code points, which equals the byte order of its UTF-8.
    return (one.name > other.name) if one.last_wins else (one.name < other.name)


class Claims:
    """All claimed keys. Nearly every key has one claim, which is stored without a list."""

    def __init__(self) -> None:
        self._claims: dict[str, Claim | list[Claim]] = {}

    def __contains__(self, key: str) -> bool:
        return key in self._claims

    def __len__(self) -> int:
        return len(self._claims)

    def of(self, key: str) -> Iterator[Claim]:
        """Yield the claims for a key, the visible one first."""
        held = self._claims.get(key)
        if isinstance(held, list):
            yield from held
        elif held is not None:
            yield held

    def put(self, claim: Claim) -> bool:
        """Add a claim, or replace its owner's last one. Return whether it is the visible one."""
        key = claim.item.key
        held = self._claims.get(key)
        if held is None or (not isinstance(held, list) and held.rank == claim.rank and held.name == claim.name):
            self._claims[key] = claim
            return True
        others = [other for other in self.of(key) if other.owner != claim.owner]
        place = next((index for index, other in enumerate(others) if _precedes(claim, other)), len(others))
        others.insert(place, claim)
        self._claims[key] = others if len(others) > 1 else claim
        return place == 0

    def drop(self, key: str, rank: int, name: str) -> tuple[bool, model.Item | None]:
        """Remove an owner's claim, if it has one. Return (whether it was visible, the item that is visible now)."""
        held = list(self.of(key))
        others = [other for other in held if other.owner != (rank, name)]
        if not others:
            self._claims.pop(key, None)
            return True, None
        self._claims[key] = others if len(others) > 1 else others[0]
        return others[0] is not held[0], others[0].item
