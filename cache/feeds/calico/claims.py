"""Who holds a key: several objects may claim one, and the one that shows must not depend on history. Pure.

An agent's map is a function of the present objects alone, so of all claims the one that shows is chosen by a fixed
order: first the kind's rank, then the object's name. When it goes, the next one takes over.
"""

from collections.abc import Iterator

import msgspec

from cache.feeds.calico import model


class Claim(msgspec.Struct, frozen=True, gc=False):
    """One object's item for a key."""

    rank: int
    """Of its kind; the lowest shows."""
    name: str
    """`namespace/name`, or the name of a cluster-wide object."""
    last_shows: bool
    """Among claims of one kind: the last in byte order of the names, else the first."""
    item: model.Item

    @property
    def owner(self) -> tuple[int, str]:
        """What tells the claims for one key apart."""
        return self.rank, self.name


def _beats(one: Claim, other: Claim) -> bool:
    if one.rank != other.rank:
        return one.rank < other.rank
    # Python orders text by code points, which is the byte order of its UTF-8.
    return (one.name > other.name) if one.last_shows else (one.name < other.name)


class Claims:
    """All keys that some object claims. Nearly every key has one claim, which then stands alone."""

    def __init__(self) -> None:
        self._claims: dict[str, Claim | list[Claim]] = {}

    def __contains__(self, key: str) -> bool:
        return key in self._claims

    def __len__(self) -> int:
        return len(self._claims)

    def of(self, key: str) -> Iterator[Claim]:
        """The claims for a key; the first one shows."""
        held = self._claims.get(key)
        if isinstance(held, list):
            yield from held
        elif held is not None:
            yield held

    def put(self, claim: Claim) -> bool:
        """The claim is new, or takes the place of its owner's last one; says whether it is the one that shows."""
        key = claim.item.key
        held = self._claims.get(key)
        if held is None or (not isinstance(held, list) and held.rank == claim.rank and held.name == claim.name):
            self._claims[key] = claim
            return True
        others = [other for other in self.of(key) if other.owner != claim.owner]
        place = next((index for index, other in enumerate(others) if _beats(claim, other)), len(others))
        others.insert(place, claim)
        self._claims[key] = others if len(others) > 1 else claim
        return place == 0

    def drop(self, key: str, rank: int, name: str) -> tuple[bool, model.Item | None]:
        """Takes an owner's claim away: (whether it showed, the item that shows now)."""
        held = list(self.of(key))
        others = [other for other in held if other.owner != (rank, name)]
        if not others:
            del self._claims[key]
            return True, None
        self._claims[key] = others if len(others) > 1 else others[0]
        return others[0] is not held[0], others[0].item
