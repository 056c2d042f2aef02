"""Which selectors match which items, kept incrementally. Pure.

Items (endpoints, network sets) have labels of their own and inherit those of their parents (profiles); their own win,
then the first parent's. Items with the same labels and parents share one `_Class`, because they match the same
selectors: a cluster has far fewer kinds of pods than pods, so most changes evaluate no selector at all.

Nothing is scanned. A selector is filed under a label that it requires, if it requires one (`Selector.restrictions`);
a class finds its candidates by its labels, and a selector finds candidate classes likewise
(docs/decisions/label-classes.md).
"""

import sys
from collections.abc import Hashable, Iterable, Mapping, Set
from typing import Generic, NamedTuple, TypeVar

from protocol import selector

Item = TypeVar("Item", bound=Hashable)
Name = TypeVar("Name", bound=Hashable)

_Pair = tuple[str, str | None]
"""A label and its value. The value None stands for any value."""


class Moved(NamedTuple, Generic[Item, Name]):
    """Items for which some selectors have begun or ceased to match."""

    items: Set[Item]
    gained: Set[Name]
    lost: Set[Name]


class _Identity(NamedTuple):
    """What the items of a class have in common."""

    labels: frozenset[tuple[str, str]]
    parents: tuple[str, ...]


class _Class(Generic[Item, Name]):
    """Items that have the same labels and parents."""

    __slots__ = ("identity", "items", "labels", "matches")

    def __init__(self, identity: _Identity) -> None:
        self.identity = identity
        self.labels: dict[str, str] = {}
        """Its own labels and the inherited ones."""
        self.items: set[Item] = set()
        self.matches: set[Name] = set()


class LabelIndex(Generic[Item, Name]):
    """Selectors by name, items with labels, and parents by name."""

    def __init__(self) -> None:
        self._classes: dict[_Identity, _Class[Item, Name]] = {}
        self._class_of: dict[Item, _Class[Item, Name]] = {}
        self._by_parent: dict[str, set[_Class[Item, Name]]] = {}
        self._by_label: dict[str, dict[str, set[_Class[Item, Name]]]] = {}
        """Classes by a label, own or inherited, and its value."""
        self._parent_labels: dict[str, Mapping[str, str]] = {}
        self._selectors: dict[Name, selector.Selector] = {}
        self._filed: dict[_Pair, set[Name]] = {}
        """Selectors by a label that they require."""
        self._places: dict[Name, tuple[_Pair, ...]] = {}
        self._unfiled: set[Name] = set()
        """Selectors that require no label."""
        self.evaluations = 0
        """How many times a selector has been evaluated."""

    def matches(self, item: Item) -> Set[Name]:
        """The selectors that match an item. It changes as the index does; items with the same labels share it."""
        found = self._class_of.get(item)
        return found.matches if found is not None else frozenset()

    def labels(self, item: Item) -> Mapping[str, str]:
        """The labels of an item, inherited ones included."""
        found = self._class_of.get(item)
        return found.labels if found is not None else {}

    def set_item(self, item: Item, labels: Mapping[str, str], parents: tuple[str, ...]) -> None:
        """Adds an item, or changes its labels. Compare `matches` before and after."""
        identity = _Identity(frozenset(labels.items()), parents)
        known = self._class_of.get(item)
        if known is not None:
            if known.identity == identity:
                return
            self._leave(item, known)
        joined = self._classes.get(identity)
        if joined is None:
            joined = self._new_class(identity)
        joined.items.add(item)
        self._class_of[item] = joined

    def remove_item(self, item: Item) -> None:
        """Removes an item, if it is there."""
        known = self._class_of.pop(item, None)
        if known is not None:
            self._leave(item, known)

    def set_selector(self, name: Name, parsed: selector.Selector) -> list[Moved[Item, Name]]:
        """Adds a selector, or replaces the one of that name."""
        if name in self._selectors:
            before = {id(found): found for found in self._matching(name)}
            self._unfile(name)
        else:
            before = {}
        self._selectors[name] = parsed
        self._file(name, parsed)
        moved = []
        this = frozenset((name,))
        for candidate in self._candidate_classes(parsed):
            self.evaluations += 1
            if parsed.matches(candidate.labels) and before.pop(id(candidate), None) is None:
                candidate.matches.add(name)
                moved.append(Moved(candidate.items, this, frozenset()))
        for lost in before.values():
            lost.matches.discard(name)
            moved.append(Moved(lost.items, frozenset(), this))
        return moved

    def remove_selector(self, name: Name) -> list[Moved[Item, Name]]:
        """Removes a selector, if it is there."""
        if name not in self._selectors:
            return []
        moved: list[Moved[Item, Name]] = []
        for found in self._matching(name):
            found.matches.discard(name)
            moved.append(Moved(found.items, frozenset(), frozenset((name,))))
        self._unfile(name)
        return moved

    def set_parent(self, parent: str, labels: Mapping[str, str]) -> list[Moved[Item, Name]]:
        """Sets the labels that a parent gives to its items; none removes them."""
        if self._parent_labels.get(parent, {}) == labels:
            return []
        if labels:
            self._parent_labels[parent] = labels
        else:
            del self._parent_labels[parent]
        moved = []
        for changed in self._by_parent.get(parent, ()):
            before = changed.matches
            self._unfile_class(changed)
            self._fill(changed)
            if before != changed.matches:
                moved.append(Moved(changed.items, changed.matches - before, before - changed.matches))
        return moved

    # Classes

    def _new_class(self, wanted: _Identity) -> _Class[Item, Name]:
        # Texts that were decoded on their own are shared with those of other classes: that is most of an index's size.
        pairs = frozenset((sys.intern(label), sys.intern(value)) for label, value in wanted.labels)
        identity = _Identity(pairs, tuple(map(sys.intern, wanted.parents)))
        created: _Class[Item, Name] = _Class(identity)
        self._classes[identity] = created
        for parent in frozenset(identity.parents):
            self._by_parent.setdefault(parent, set()).add(created)
        self._fill(created)
        return created

    def _fill(self, target: _Class[Item, Name]) -> None:
        """Computes the labels and matches of a class, and files it by its labels."""
        labels: dict[str, str] = {}
        for parent in reversed(target.identity.parents):
            labels.update(self._parent_labels.get(parent, {}))
        labels.update(target.identity.labels)
        target.labels = labels
        matches: set[Name] = set()
        candidates: list[Iterable[Name]] = [self._unfiled]
        for label, value in labels.items():
            self._by_label.setdefault(label, {}).setdefault(value, set()).add(target)
            for pair in ((label, value), (label, None)):
                filed = self._filed.get(pair)
                if filed:
                    candidates.append(filed)
        selectors = self._selectors
        for names in candidates:
            for name in names:
                self.evaluations += 1
                if selectors[name].matches(labels):
                    matches.add(name)
        target.matches = matches

    def _unfile_class(self, target: _Class[Item, Name]) -> None:
        for label, value in target.labels.items():
            by_value = self._by_label[label]
            _discard(by_value, value, target)
            if not by_value:
                del self._by_label[label]

    def _leave(self, item: Item, left: _Class[Item, Name]) -> None:
        left.items.discard(item)
        if left.items:
            return
        del self._classes[left.identity]
        self._unfile_class(left)
        for parent in frozenset(left.identity.parents):  # one can be named twice
            _discard(self._by_parent, parent, left)

    # Selectors

    def _file(self, name: Name, parsed: selector.Selector) -> None:
        """Files a selector under the label that it requires whose place is least crowded."""
        places = min(_places(parsed), key=lambda pairs: sum(len(self._filed.get(p, ())) for p in pairs), default=None)
        if places is None:
            self._unfiled.add(name)
            return
        self._places[name] = places
        for place in places:
            self._filed.setdefault(place, set()).add(name)

    def _unfile(self, name: Name) -> None:
        del self._selectors[name]
        self._unfiled.discard(name)
        for place in self._places.pop(name, ()):
            _discard(self._filed, place, name)

    def _candidate_classes(self, parsed: selector.Selector) -> Iterable[_Class[Item, Name]]:
        """All classes that a selector may match: those with the rarest of the labels that it requires."""
        rarest = min(
            (self._with_label(label, values) for label, values in parsed.restrictions().items()),
            key=lambda found: sum(map(len, found)),
            default=None,
        )
        if rarest is None:
            return tuple(self._classes.values())
        return [found for classes in rarest for found in classes]

    def _with_label(self, label: str, values: frozenset[str] | None) -> list[set[_Class[Item, Name]]]:
        """The classes that have a label with one of some values, or with any."""
        by_value = self._by_label.get(label, {})
        if values is None:
            return list(by_value.values())
        return [by_value[value] for value in values if value in by_value]

    def _matching(self, name: Name) -> list[_Class[Item, Name]]:
        return [found for found in self._candidate_classes(self._selectors[name]) if name in found.matches]


def _places(parsed: selector.Selector) -> list[tuple[_Pair, ...]]:
    """The ways to file a selector: for each label that it requires, the values of which it must have one."""
    return [
        ((label, None),) if values is None else tuple((label, value) for value in values)
        for label, values in parsed.restrictions().items()
    ]


_Key = TypeVar("_Key")
_Value = TypeVar("_Value")


def _discard(index: dict[_Key, set[_Value]], key: _Key, value: _Value) -> None:
    """Removes a value from a set of an index, and the set once it is empty."""
    values = index[key]
    values.discard(value)
    if not values:
        del index[key]
