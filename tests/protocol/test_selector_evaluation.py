"""Selectors: evaluation against an independent one, what indexes need, and the validator of the feeds."""

import random

import pytest

from cache.feeds.calico import rules
from protocol import selector

SELECTORS = 10_000
LABEL_NAMES = ("app", "env", "projectcalico.org/namespace", "pcns.team", "a-b_c.d/e")
VALUES = ("", "web", "we", "db", "prod", "x'y", 'x"y', "web-1", "éé", "and && or")

Labels = dict[str, str]
Tree = tuple[object, ...]
"""An independent form of a selector: an operator and its operands."""


def random_tree(chance: random.Random, depth: int) -> Tree:
    kind = chance.choice(("leaf", "leaf", "not", "and", "or")) if depth else "leaf"
    if kind == "leaf":
        return random_leaf(chance)
    if kind == "not":
        return "not", random_tree(chance, depth - 1)
    return kind, [random_tree(chance, depth - 1) for _ in range(chance.randint(2, 3))]


def random_leaf(chance: random.Random) -> Tree:
    operator = chance.choice(
        ("==", "!=", "in", "not in", "has", "contains", "starts with", "ends with", "all", "global")
    )
    label = chance.choice(LABEL_NAMES)
    if operator in ("all", "global"):
        return (operator,)
    if operator == "has":
        return operator, label
    if operator in ("in", "not in"):
        return operator, label, chance.sample(VALUES, chance.randint(0, 3))
    return operator, label, chance.choice(VALUES)


def spell(tree: Tree, chance: random.Random) -> str:
    """Writes a selector in one of the ways that the language allows."""
    operator, *operands = tree
    space = chance.choice(("", " ", "\t", "  "))
    match operator, operands:
        case "not", [(*inner,)]:
            return f"!{space}{enclose(tuple(inner), chance)}"
        case "and" | "or", [list(parts)]:
            sign = "&&" if operator == "and" else "||"
            return f"{space}{sign}{space}".join(enclose(part, chance) for part in parts)
        case "all" | "global", []:
            return f"{operator}({space})"
        case "has", [label]:
            return f"has({space}{label}{space})"
        case "in" | "not in", [label, list(values)]:
            return f"{label} {operator}{space}{{{', '.join(quoted(value, chance) for value in values)}}}"
        case "==" | "!=", [label, str(value)]:
            return f"{label}{space}{operator}{space}{quoted(value, chance)}"
        case _, [label, str(value)]:
            return f"{label} {operator}{space}{quoted(value, chance)}"
    raise AssertionError(tree)


def enclose(tree: Tree, chance: random.Random) -> str:
    text = spell(tree, chance)
    return f"({text})" if tree[0] in ("and", "or") or chance.random() < 0.1 else text


def quoted(value: str, chance: random.Random) -> str:
    quotes = [quote for quote in "'\"" if quote not in value]
    quote = chance.choice(quotes)
    return f"{quote}{value}{quote}"


def holds(tree: Tree, labels: Labels) -> bool:
    """Evaluates a tree by the definition of the language, and by nothing of the implementation."""
    operator, *operands = tree
    match operator, operands:
        case "all" | "global", []:
            return True
        case "not", [(*inner,)]:
            return not holds(tuple(inner), labels)
        case "and", [list(parts)]:
            return all(holds(part, labels) for part in parts)
        case "or", [list(parts)]:
            return any(holds(part, labels) for part in parts)
        case "has", [str(label)]:
            return label in labels
        case "==", [str(label), value]:
            return label in labels and labels[label] == value
        case "!=", [str(label), value]:
            return label not in labels or labels[label] != value
        case "in", [str(label), list(values)]:
            return label in labels and labels[label] in values
        case "not in", [str(label), list(values)]:
            return label not in labels or labels[label] not in values
        case "contains", [str(label), str(value)]:
            return label in labels and labels[label].find(value) >= 0
        case "starts with", [str(label), str(value)]:
            return label in labels and labels[label][: len(value)] == value
        case "ends with", [str(label), str(value)]:
            return label in labels and labels[label][len(labels[label]) - len(value) :] == value
    raise AssertionError(tree)


def random_labels(chance: random.Random) -> Labels:
    return {name: chance.choice(VALUES) for name in LABEL_NAMES if chance.random() < 0.6}


def test_random_selectors() -> None:
    """Each one parses, is valid for the feeds, and means what it says; its canonical form means the same."""
    chance = random.Random(1)
    matches = 0
    for _ in range(SELECTORS):
        tree = random_tree(chance, depth=3)
        text = spell(tree, chance)
        parsed = selector.parse(text)
        assert rules.is_selector(text)
        assert rules.canonical(text, "") == parsed.text
        again = selector.parse(parsed.text)
        for labels in [random_labels(chance) for _ in range(4)]:
            expected = holds(tree, labels)
            matches += expected
            assert parsed.matches(labels) is expected, (text, labels)
            assert again.matches(labels) is expected, (parsed.text, labels)
            if expected:
                assert_meets(parsed.restrictions(), labels, text)
    assert SELECTORS < matches < 3 * SELECTORS, "neither outcome is rare"


def assert_meets(restrictions: selector.Restrictions, labels: Labels, text: str) -> None:
    """Restrictions are necessary: labels that match meet them."""
    for label, values in restrictions.items():
        assert label in labels, (text, label)
        assert values is None or labels[label] in values, (text, label)


def test_broken_selectors_are_refused_by_both() -> None:
    chance = random.Random(2)
    refused = 0
    for _ in range(SELECTORS // 10):
        text = spell(random_tree(chance, depth=3), chance)
        position = chance.randrange(len(text))
        broken = text[:position] + chance.choice("(){}'&|!=,") + text[position + 1 :]
        try:
            selector.parse(broken)
        except selector.SelectorError:
            refused += 1
            assert not rules.is_selector(broken)
        else:
            assert rules.is_selector(broken)
    assert refused > SELECTORS // 20


@pytest.mark.parametrize(
    ("text", "restrictions"),
    [
        ("a == 'x'", {"a": {"x"}}),
        ("a in {'x', 'y'} && has(b)", {"a": {"x", "y"}, "b": None}),
        ("a in {'x', 'y'} && a == 'y'", {"a": {"y"}}),
        ("a == 'x' || a == 'y'", {"a": {"x", "y"}}),
        ("a == 'x' && has(a)", {"a": {"x"}}),
        ("a == 'x' || b == 'y'", {}),
        ("a == 'x' || (a starts with 'y' && b == 'z')", {"a": None}),
        ("!(a != 'x')", {"a": {"x"}}),
        ("!(a not in {'x'} || b != 'y')", {"a": {"x"}, "b": {"y"}}),
        ("!(a == 'x')", {}),
        ("a != 'x'", {}),
        ("all()", {}),
    ],
)
def test_restrictions(text: str, restrictions: dict[str, set[str] | None]) -> None:
    assert selector.parse(text).restrictions() == restrictions


def test_the_deepest_selector_is_evaluated() -> None:
    """Without too much recursion, also when every level has both operators and a negation."""
    text = "!(a == 'x' || b == 'y' && " * selector.MAX_DEPTH + "has(c)" + ")" * selector.MAX_DEPTH
    parsed = selector.parse(text)
    assert parsed.matches({"b": "y", "c": ""}) is True
    assert isinstance(parsed.restrictions(), dict)
    with pytest.raises(selector.SelectorTooDeep):
        selector.parse(f"({text})")
