"""Resource types that come and go together, such as the custom resources of one API group. Pure.

One type that is not there is an older version of its owner's, or has been removed by intention: it counts as empty.
All of them missing at once is an API group that is gone, an uninstallation or an accident, and to count them as empty
would pass off an empty world. The watch machines of a family therefore keep what they know, and are not in sync,
until at least one of the types is served again.
"""

from collections.abc import Callable, Iterable

from cache import resources

OnGone = Callable[[], None]


class Family:
    """What the API server last said of each type, and who wants to know when the last one goes."""

    def __init__(self, types: Iterable[resources.ResourceType]) -> None:
        self._types = frozenset(types)
        self._is_served: dict[resources.ResourceType, bool] = {}
        self._on_gone: list[OnGone] = []
        self.is_gone = False
        """Each type has been asked for, and none is served."""
        self.returned_at = float("-inf")
        """When one was served again; the others may take a moment."""

    def __contains__(self, type: resources.ResourceType) -> bool:
        return type in self._types

    def join(self, on_gone: OnGone) -> None:
        """`on_gone` is called each time that the last type goes."""
        self._on_gone.append(on_gone)

    def served(self, type: resources.ResourceType, now: float) -> bool:
        """The API server serves the type; returns whether that ends a time in which it served none."""
        self._is_served[type] = True
        if not self.is_gone:
            return False
        self.is_gone = False
        self.returned_at = now
        return True

    def refused(self, type: resources.ResourceType) -> None:
        """The API server does not serve the type to us; whether there is one is unknown."""
        self._is_served[type] = False

    def missing(self, type: resources.ResourceType) -> bool:
        """The API server does not serve the type; returns whether it was the last one that was served."""
        self._is_served[type] = False
        if self.is_gone or len(self._is_served) < len(self._types) or any(self._is_served.values()):
            return False
        self.is_gone = True
        for tell in self._on_gone:
            tell()
        return True
