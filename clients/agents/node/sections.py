"""Maps that know what has changed in them since they were last asked. Pure."""

from typing import Generic, TypeVar

from clients.agents.node import desired

Value = TypeVar("Value")


class Section(Generic[Value]):
    """One section of the desired state."""

    def __init__(self) -> None:
        self.values: dict[str, Value] = {}
        self._before: dict[str, Value | None] = {}
        """The values, as of the last `take`, of the keys that were touched since."""

    def put(self, key: str, value: Value | None) -> None:
        """Sets a value; None removes the key."""
        known = self.values.get(key)
        if known == value:
            return
        self._before.setdefault(key, known)
        if value is None:
            del self.values[key]
        else:
            self.values[key] = value

    def take(self) -> desired.Changes[Value]:
        """The real differences since the last call."""
        if not self._before:
            return desired.Changes()
        before, self._before = self._before, {}
        changed: dict[str, Value] = {}
        removed = set()
        for key, old in before.items():
            now = self.values.get(key)
            if now is None:
                if old is not None:
                    removed.add(key)
            elif now != old:
                changed[key] = now
        return desired.Changes(changed, frozenset(removed))
