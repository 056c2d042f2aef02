"""Selectors: parsing, canonical form, and invalid ones."""

import contextlib
import re
import time

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from cache.feeds.calico import model, rules
from protocol import selector

LABELS = st.text(alphabet="abzAZ09_./-", min_size=1, max_size=8)
STRINGS = st.text(st.characters(exclude_characters="'\"", exclude_categories=["Cs"]), max_size=8)
SPACES = st.sampled_from(["", " ", "\t", "  "])


@st.composite
def quoted(draw: st.DrawFn) -> str:
    quote, other = draw(st.sampled_from([("'", '"'), ('"', "'")]))
    return quote + draw(STRINGS) + draw(st.sampled_from(["", other])) + quote


@st.composite
def leaves(draw: st.DrawFn) -> str:
    label, space = draw(LABELS), draw(SPACES)
    kind = draw(st.integers(0, 4))
    if kind == 0:
        return f"has({space}{label}{space})"
    if kind == 1:
        return draw(st.sampled_from(["all()", "global()", "all( )"]))
    if kind == 2:
        operator = draw(st.sampled_from([" in", " not in", " notin", " not  in"]))
        return f"{label}{operator}{space}{{{', '.join(draw(st.lists(quoted(), max_size=4)))}}}"
    operator = draw(st.sampled_from(["==", "!=", " contains", " starts with", " startswith", " ends\twith"]))
    return f"{label}{space}{operator}{space}{draw(quoted())}"


SELECTORS = st.recursive(
    leaves(),
    lambda inner: (
        st.tuples(st.sampled_from(["!", "!!", "! !!"]), inner).map("".join)
        | inner.map(lambda text: f"( {text})")
        | st.lists(inner, min_size=2, max_size=3).map(" && ".join)
        | st.lists(inner, min_size=2, max_size=3).map("||".join)
    ),
    max_leaves=8,
)


def without_double_negations(canonical: str) -> str:
    """Return the text without `!!`, except within strings."""
    return re.sub(r"""("[^"]*"|'[^']*')|!!""", lambda matched: matched[1] or "", canonical)


@pytest.mark.parametrize(
    ("text", "canonical"),
    [
        ("", "all()"),
        (" \t", "all()"),
        ("all( )", "all()"),
        ("global()", "global()"),
        ("a=='b'", 'a == "b"'),
        ('a != "b"', 'a != "b"'),
        ("a == 'say \"x\"'", "a == 'say \"x\"'"),
        ('a == "it\'s"', 'a == "it\'s"'),
        ("a contains'x'", 'a contains "x"'),
        ("a starts with 'x'", 'a starts with "x"'),
        ("a startswith 'x'", 'a starts with "x"'),
        ("a ends  with\t'x'", 'a ends with "x"'),
        ("a in {'c', 'b', 'c'}", 'a in {"b", "c"}'),
        ("a notin {}", "a not in {}"),
        ("a in {'b',}", 'a in {"b"}'),
        ("a in {'\"'}", "a in {'\"'}"),
        ("has( a.b/c-d_e )", "has(a.b/c-d_e)"),
        ("!!!has(a)", "!has(a)"),
        ("!!has(a)", "has(a)"),
        ("!(!(has(a)))", "!!has(a)"),
        ("!(!(x == 'y'))", '!!x == "y"'),
        ("!!(!(has(a)))", "!has(a)"),
        ("!(a == 'b' && has(c))", '!(a == "b" && has(c))'),
        ("has(a) && has(b) && has(c)", "(has(a) && has(b) && has(c))"),
        ("has(a) || has(b) && has(c)", "(has(a) || (has(b) && has(c)))"),
        ("(has(a) || has(b)) || has(c)", "((has(a) || has(b)) || has(c))"),
        ("(((has(a))))", "has(a)"),
        ("in in {'in'}", 'in in {"in"}'),
        ("not in {'a'}", 'not in {"a"}'),
        ("all == 'x' && has == 'y'", '(all == "x" && has == "y")'),
        ("a == ''", 'a == ""'),
        ("a == 'é\n😀'", 'a == "é\n😀"'),
    ],
)
def test_the_canonical_form(text: str, canonical: str) -> None:
    assert selector.canonical(text) == canonical


@pytest.mark.parametrize(
    "text",
    [
        "a",
        "a ==",
        "a == b",
        "a = 'b'",
        "a == 'b",
        "a == 'b' c",
        "a == 'b' && ",
        "&& a == 'b'",
        "has(a) & has(b)",
        "has(a) | has(b)",
        "(has(a)",
        "has(a))",
        "()",
        "!",
        "has()",
        "has(a",
        "has (a)",
        "has('a')",
        "all ()",
        "'a' == 'b'",
        "a in 'b'",
        "a in {b}",
        "a in {,}",
        "a in {'b' 'c'}",
        "a in {'b'",
        "a starts 'b'",
        "a starts with b",
        "a containsx 'b'",
        "a in{'b'} b",
        "not in in {'a'}",
        "é == 'b'",
        "a\n== 'b'",
        "a == 'b'\n",
        "a == 'b'\u00a0",
        "has(" + "a" * 513 + ")",
        "a" * 513 + " == 'b'",
        "a" * 512 + "contains 'b'",
    ],
)
def test_an_invalid_selector_raises(text: str) -> None:
    with pytest.raises(selector.SelectorError):
        selector.canonical(text)
    assert not rules.is_selector(text)


def test_the_longest_label_passes() -> None:
    assert rules.is_selector("a" * 512 + " == 'b'")


def test_every_label_gets_the_prefix_and_nothing_else_does() -> None:
    text = "a == 'a' && !has(b) || c in {'c'} && d not in {} && e contains 'e' && all() && global()"
    assert selector.canonical(text, prefix="pcns.") == (
        '((pcns.a == "a" && !has(pcns.b)) || '
        '(pcns.c in {"c"} && pcns.d not in {} && pcns.e contains "e" && all() && global()))'
    )


def test_too_deep_selectors_raise_their_own_error() -> None:
    deepest = "(" * selector.MAX_DEPTH + "all()" + ")" * selector.MAX_DEPTH
    assert selector.canonical(deepest) == "all()"
    with pytest.raises(selector.SelectorTooDeep, match="256 nested parentheses"):
        selector.canonical(f"({deepest})")


@pytest.mark.parametrize(
    "text",
    [
        "(" * 500_000,
        "!(" * 300_000 + "all()" + ")" * 300_000,
        "!" * 1_000_000 + "all()",
        " || ".join(f"a == 'v{index}'" for index in range(60_000)),
        "a in {" + ",".join(f"'v{index}'" for index in range(100_000)) + "}",
        "a" * 1_000_000,
        "a == '" + "x" * 1_000_000,
        "a " + "not" + " " * 1_000_000 + "on",
        "a starts" + " " * 1_000_000 + "with" + " " * 1_000_000 + "b",
    ],
)
def test_a_megabyte_costs_less_than_a_second(text: str) -> None:
    started = time.process_time()
    with contextlib.suppress(model.ConversionError):
        rules.is_selector(text)
    assert time.process_time() - started < 1


@example("!(!(x == 'y'))")
@example("!(!(!(has(x) && all())))")
@example("!(!(x == '!!' && y in {'!!'}))")
@given(SELECTORS)
def test_a_second_print_only_collapses_negations(text: str) -> None:
    """`!(!(x))` is printed as `!!x`, and that as `x`. Nothing else changes, and a third print changes nothing."""
    canonical = selector.canonical(text)
    assert selector.canonical(f" ({text})\t") == canonical
    stable = without_double_negations(canonical)
    assert selector.canonical(canonical) == stable
    assert selector.canonical(stable) == stable


@example("!(!(x == 'y'))")
@given(SELECTORS)
def test_a_prefix_changes_labels_only(text: str) -> None:
    prefixed = selector.canonical(text, prefix="pcns.")
    assert selector.canonical(prefixed) == without_double_negations(prefixed)
    assert selector.canonical(text, prefix="") == selector.canonical(text)


@given(st.text(alphabet="ab '\"(){},=!&|hasinotl\t-", max_size=30) | st.text(max_size=20))
def test_any_text_is_accepted_or_rejected(text: str) -> None:
    if rules.is_selector(text):
        assert rules.is_selector(selector.canonical(text))
