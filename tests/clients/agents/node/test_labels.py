"""The label index: equal to a scan of everything, without one."""

import random
from collections.abc import Mapping

from clients.agents.node.labels import LabelIndex, Moved
from protocol import selector

NAMES = ("app", "env", "team")
VALUES = ("a", "b", "c")
PARENTS = ("p1", "p2", "p3")
SELECTORS = (
    "all()",
    "app == 'a'",
    "app in {'a', 'b'}",
    "app in {}",
    "env != 'a'",
    "has(team) && app == 'b'",
    "!has(team)",
    "app == 'a' || env == 'b'",
    "team starts with 'a' || (team == 'b' && env not in {'c'})",
)


class Model:
    """The same by brute force."""

    def __init__(self) -> None:
        self.items: dict[int, tuple[Mapping[str, str], tuple[str, ...]]] = {}
        self.selectors: dict[str, selector.Selector] = {}
        self.parents: dict[str, Mapping[str, str]] = {}

    def labels(self, item: int) -> dict[str, str]:
        own, parents = self.items[item]
        labels: dict[str, str] = {}
        for parent in reversed(parents):
            labels.update(self.parents.get(parent, {}))
        return {**labels, **own}

    def matches(self, item: int) -> set[str]:
        labels = self.labels(item)
        return {name for name, parsed in self.selectors.items() if parsed.matches(labels)}


def random_labels(chance: random.Random) -> dict[str, str]:
    return {name: chance.choice(VALUES) for name in NAMES if chance.random() < 0.5}


def test_random_changes_equal_a_scan() -> None:
    """After each change, and what the index says has moved is the difference."""
    chance = random.Random(1)
    index: LabelIndex[int, str] = LabelIndex()
    model = Model()
    told: dict[int, set[str]] = {}
    for _ in range(4000):
        moves: list[Moved[int, str]] = []
        match chance.randrange(6):
            case 0 | 1:
                item = chance.randrange(8)
                parents = tuple(chance.choices(PARENTS, k=chance.randrange(4)))  # also the same twice
                model.items[item] = random_labels(chance), parents
                index.set_item(item, *model.items[item])
                told[item] = set(index.matches(item))
            case 2:
                item = chance.randrange(8)
                model.items.pop(item, None)
                index.remove_item(item)
                told.pop(item, None)
            case 3:
                parent = chance.choice(PARENTS)
                model.parents[parent] = random_labels(chance)
                moves = index.set_parent(parent, model.parents[parent])
            case 4:
                name = f"s{chance.randrange(6)}"
                model.selectors[name] = selector.parse(chance.choice(SELECTORS))
                moves = index.set_selector(name, model.selectors[name])
            case 5:
                name = f"s{chance.randrange(6)}"
                model.selectors.pop(name, None)
                moves = index.remove_selector(name)
        for moved in moves:
            for item in moved.items:
                assert not told[item] & moved.gained
                assert told[item] >= moved.lost
                told[item] = (told[item] | moved.gained) - moved.lost
        for item in model.items:
            assert index.labels(item) == model.labels(item)
            assert index.matches(item) == model.matches(item) == told[item]


def crowded() -> LabelIndex[int, str]:
    """A thousand items with as many selectors, of which each selects ten items."""
    index: LabelIndex[int, str] = LabelIndex()
    for number in range(1000):
        text = f"orchestrator == 'k8s' && app == 'app-{number % 100}' && has(env)"
        index.set_selector(f"s{number}", selector.parse(text))
    for number in range(1000):
        labels = {"orchestrator": "k8s", "app": f"app-{number % 100}", "env": "prod", "pod": f"pod-{number}"}
        index.set_item(number, labels, ())
    return index


def test_a_new_item_is_compared_with_the_selectors_that_name_its_labels() -> None:
    index = crowded()
    before = index.evaluations
    index.set_item(1000, {"orchestrator": "k8s", "app": "app-7", "env": "test"}, ())
    assert len(index.matches(1000)) == 10
    assert index.evaluations - before < 30


def test_an_item_like_another_is_compared_with_nothing() -> None:
    index = crowded()
    index.set_item(1000, {"orchestrator": "k8s", "app": "app-7", "env": "test"}, ())
    before = index.evaluations
    index.set_item(1001, {"orchestrator": "k8s", "app": "app-7", "env": "test"}, ())
    assert index.matches(1001) == index.matches(1000)
    assert index.evaluations == before


def test_a_new_selector_is_compared_with_the_items_that_have_its_rarest_label() -> None:
    index = crowded()
    before = index.evaluations
    [*moves] = index.set_selector("new", selector.parse("orchestrator == 'k8s' && has(env) && app == 'app-7'"))
    assert sum(len(moved.items) for moved in moves) == 10
    assert index.evaluations - before == 10


def test_nothing_is_left_of_what_has_gone() -> None:
    index = crowded()
    for number in range(1000):
        index.remove_item(number)
        index.remove_selector(f"s{number}")
    for name in ("_classes", "_class_of", "_by_parent", "_by_label", "_selectors", "_filed", "_places", "_unfiled"):
        assert not getattr(index, name), name
