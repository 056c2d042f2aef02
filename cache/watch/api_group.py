"""Resource types that are installed and removed together, such as the custom resources of one API group. Pure.

A single missing type belongs to an older version of its owner, or was removed on purpose: it counts as empty. If all
types of the group are missing, the group was uninstalled, perhaps by accident. Reporting it as empty would make agents
delete everything. The watch machines of the group therefore keep the objects they know, and leave the in-sync state,
until the API server serves at least one of the types again.
"""

from collections.abc import Callable, Iterable

from cache import resources

OnGone = Callable[[], None]


class ApiGroup:
    """The API server's last answer for each type of the group, and the machines to inform when the last type goes."""

    def __init__(self, types: Iterable[resources.ResourceType]) -> None:
        self._types = frozenset(types)
        self._is_served: dict[resources.ResourceType, bool] = {}
        self._on_gone: list[OnGone] = []
        self.is_gone = False
        """Every type has been requested, and the API server serves none of them."""
        self.returned_at = float("-inf")
        """Time at which a type was served again. The other types may follow a moment later."""

    def __contains__(self, type: resources.ResourceType) -> bool:
        return type in self._types

    def subscribe(self, on_gone: OnGone) -> None:
        """Call `on_gone` every time the last served type goes."""
        self._on_gone.append(on_gone)

    def served(self, type: resources.ResourceType, now: float) -> bool:
        """Record that the API server serves the type. Return whether it served no type of the group before."""
        self._is_served[type] = True
        if not self.is_gone:
            return False
        self.is_gone = False
        self.returned_at = now
        return True

    def forbidden(self, type: resources.ResourceType) -> None:
        """Record that we may not read the type. Whether it is installed is unknown."""
        self._is_served[type] = False

    def missing(self, type: resources.ResourceType) -> bool:
        """Record that the API server does not serve the type. Return whether it was the last served one."""
        self._is_served[type] = False
        if self.is_gone or len(self._is_served) < len(self._types) or any(self._is_served.values()):
            return False
        self.is_gone = True
        for on_gone in self._on_gone:
            on_gone()
        return True
