"""Calico's selector language: parsing, validation, the canonical form with prefixed labels, and evaluation. Pure.

Values of Calico's feeds contain selectors. The server validates them and prints their canonical form; agents evaluate
them. One pass parses and prints. It has its own stack, so deep selectors cause no recursion. The language has no limit
of depth; this implementation allows `MAX_DEPTH` nested parentheses.
"""

import functools
import re
from collections.abc import Iterable, Mapping
from typing import NamedTuple

MAX_DEPTH = 256
_MAX_LABEL_LENGTH = 512
_CACHED_LENGTH = 1024
_CACHE_ENTRIES = 4096

_IDENTIFIER = r"[A-Za-z0-9_./-]"
_SPACE = r"[ \t]*+"
_END_OF_WORD = rf"(?!{_IDENTIFIER})"
_STRING = r"""(?:"[^"]*"|'[^']*')"""
_NOT_OR_PARENTHESIS = re.compile(rf"{_SPACE}([!(])")
_HAS = re.compile(rf"{_SPACE}has\({_SPACE}({_IDENTIFIER}+){_SPACE}\)")
_CONSTANT = re.compile(rf"{_SPACE}(all|global)\({_SPACE}\)")
_LABEL = re.compile(rf"{_SPACE}({_IDENTIFIER}++)")
_COMPARISON = re.compile(
    rf"{_SPACE}(?:(==|!=)|(contains){_END_OF_WORD}|(starts|ends){_SPACE}with{_SPACE}{_END_OF_WORD}){_SPACE}({_STRING})"
)
_SET_OPERATOR = re.compile(rf"{_SPACE}(not{_SPACE}in{_SPACE}|in){_END_OF_WORD}{_SPACE}\{{")
_SET_MEMBER = re.compile(rf"{_SPACE}({_STRING}){_SPACE}(,?)")
_SET_END = re.compile(rf"{_SPACE}\}}")
_BETWEEN = re.compile(rf"{_SPACE}(&&|\|\||\)|\Z)")
_BLANK = re.compile(_SPACE)


class SelectorError(ValueError):
    """A text is not a selector. The message says what is wrong, and where."""


class SelectorTooDeep(SelectorError):
    """More than `MAX_DEPTH` nested parentheses."""


Restrictions = Mapping[str, frozenset[str] | None]
"""What labels must have for a selector to match: one of some values, or any value (None). It may match nothing."""


class Selector(NamedTuple):
    """A parsed selector."""

    text: str
    """The canonical form."""
    root: "_Leaf | _Group"

    def matches(self, labels: Mapping[str, str]) -> bool:
        """Whether a set of labels is selected."""
        return self.root.matches(labels)

    def restrictions(self) -> Restrictions:
        """What is necessary for a match, not what is sufficient: an index of labels finds candidates with it."""
        return self.root.restrictions(negated=False)


_ALL = "all()"
_HAS_LABEL = "has"
_HOLD_WITHOUT_LABEL = frozenset({"!=", "not in"})


class _Leaf:
    """A comparison, set operation, has(), all() or global()."""

    __slots__ = ("_label", "_negated", "_operator", "_value", "_values")

    def __init__(
        self,
        operator: str,
        label: str = "",
        value: str = "",
        values: Iterable[str] = (),
        negated: bool = False,
    ) -> None:
        self._operator = operator
        self._label = label
        self._value = value
        self._values = frozenset(values)
        self._negated = negated

    def matches(self, labels: Mapping[str, str]) -> bool:
        return self._holds(labels) is not self._negated

    def _holds(self, labels: Mapping[str, str]) -> bool:
        operator = self._operator
        if operator == _ALL:
            return True
        value = labels.get(self._label)
        if value is None:
            return operator in _HOLD_WITHOUT_LABEL
        if operator == "==":
            return value == self._value
        if operator == _HAS_LABEL:
            return True
        if operator == "in":
            return value in self._values
        if operator == "!=":
            return value != self._value
        if operator == "not in":
            return value not in self._values
        if operator == "contains":
            return self._value in value
        if operator == "starts with":
            return value.startswith(self._value)
        return value.endswith(self._value)

    def restrictions(self, *, negated: bool) -> Restrictions:
        """See `Selector.restrictions`; `negated` is about the leaf as a whole."""
        negated = negated is not self._negated
        operator = self._operator
        if operator == ("!=" if negated else "=="):
            return {self._label: frozenset((self._value,))}
        if operator == ("not in" if negated else "in"):
            return {self._label: self._values}
        if negated or operator == _ALL or operator in _HOLD_WITHOUT_LABEL:
            return {}
        return {self._label: None}


class _Group:
    """Terms of which all must match, or any. The recursion is at most two levels for each pair of parentheses."""

    __slots__ = ("_is_any", "_negated", "_terms")

    def __init__(self, terms: "tuple[_Leaf | _Group, ...]", *, is_any: bool, negated: bool = False) -> None:
        self._terms = terms
        self._is_any = is_any
        self._negated = negated

    def matches(self, labels: Mapping[str, str]) -> bool:
        is_any = self._is_any
        for term in self._terms:
            if term.matches(labels) is is_any:
                return is_any is not self._negated
        return is_any is self._negated

    def restrictions(self, *, negated: bool) -> Restrictions:
        """See `Selector.restrictions`; `negated` is about the group as a whole."""
        negated = negated is not self._negated
        # A negated group is the other kind of group, of negated terms.
        if self._is_any is negated:
            merged: dict[str, frozenset[str] | None] = {}
            for term in self._terms:
                for label, values in term.restrictions(negated=negated).items():
                    known = merged.get(label)
                    merged[label] = known if values is None else values if known is None else known & values
            return merged
        result: Restrictions | None = None
        for term in self._terms:
            found = term.restrictions(negated=negated)
            result = found if result is None else _common(result, found)
            if not result:
                break
        return result or {}


def _common(left: Restrictions, right: Restrictions) -> Restrictions:
    """What is necessary if either of two selectors has to match."""
    merged: dict[str, frozenset[str] | None] = {}
    for label in left.keys() & right.keys():
        values, others = left[label], right[label]
        merged[label] = None if values is None or others is None else values | others
    return merged


class _Term(NamedTuple):
    text: str
    node: _Leaf | _Group


class _Parentheses:
    """The contents of one pair of parentheses so far: finished alternatives, and the terms of the current one."""

    __slots__ = ("alternatives", "negated", "terms")

    def __init__(self, negated: bool) -> None:
        self.negated = negated
        self.alternatives: list[_Term] = []
        self.terms: list[_Term] = []

    def end_alternative(self) -> None:
        self.alternatives.append(_joined(self.terms, " && ", is_any=False))
        self.terms = []

    def term(self) -> _Term:
        self.end_alternative()
        term = _joined(self.alternatives, " || ", is_any=True)
        if not self.negated:
            return term
        return _Term(f"!{term.text}", _Group((term.node,), is_any=True, negated=True))


def parse(text: str, *, prefix: str = "") -> Selector:
    """Parse a selector, with `prefix` before each label name. The empty text is `all()`.

    Raises:
        SelectorError: it does not parse.
    """
    if _BLANK.fullmatch(text):
        return Selector("all()", _Leaf(_ALL))
    stack = [_Parentheses(negated=False)]
    position = 0
    while True:
        negated, opened, position = _operand_start(text, position)
        if opened:
            stack.append(_Parentheses(negated))
            if len(stack) > MAX_DEPTH + 1:
                raise SelectorTooDeep(f"more than {MAX_DEPTH} nested parentheses, at {position}")
            continue
        operand, position = _leaf(text, position, prefix, negated)
        stack[-1].terms.append(operand)
        position = _close(text, position, stack)
        if position < 0:
            return Selector(*stack[0].term())


def canonical(text: str, *, prefix: str = "") -> str:
    """Print a selector in its canonical form, with `prefix` before each label name. The empty text gives `all()`.

    Raises:
        SelectorError: it does not parse.
    """
    if len(text) <= _CACHED_LENGTH:
        return _cached_canonical(text, prefix)
    return _canonical(text, prefix)


def quote(value: str) -> str:
    """Return a string literal. The language cannot express a value with both kinds of quotes, so none occurs."""
    return f"'{value}'" if '"' in value else f'"{value}"'


def set_text(values: Iterable[str]) -> str:
    """Return a set literal: sorted in byte order, without duplicates."""
    return "{" + ", ".join(map(quote, sorted(set(values)))) + "}"


def _canonical(text: str, prefix: str) -> str:
    return parse(text, prefix=prefix).text


def _operand_start(text: str, position: int) -> tuple[bool, bool, int]:
    """Read any number of `!` and an optional parenthesis: (negated, opened, position after)."""
    negated = False
    while matched := _NOT_OR_PARENTHESIS.match(text, position):
        position = matched.end()
        if matched[1] == "(":
            return negated, True, position
        negated = not negated
    return negated, False, position


def _close(text: str, position: int, stack: list[_Parentheses]) -> int:
    """Read what follows an operand, up to the next operand. Return -1 at the end of the text."""
    while True:
        matched = _BETWEEN.match(text, position)
        if matched is None:
            raise SelectorError(f"expected an operator at {position}: {text[position : position + 40]!r}")
        position = matched.end()
        token = matched[1]
        if token == "&&":
            return position
        if token == "||":
            stack[-1].end_alternative()
            return position
        if token == "":
            if len(stack) > 1:
                raise SelectorError("expected ) at the end")
            return -1
        if len(stack) == 1:
            raise SelectorError(f"unexpected ) at {position - 1}")
        group = stack.pop()
        stack[-1].terms.append(group.term())


def _leaf(text: str, position: int, prefix: str, negated: bool) -> tuple[_Term, int]:
    """Read a comparison, set operation, has(), all() or global(), and negate it if asked: (term, position after)."""
    sign = "!" if negated else ""
    if matched := _HAS.match(text, position):
        label = prefix + _label(matched[1])
        return _Term(f"{sign}has({label})", _Leaf(_HAS_LABEL, label, negated=negated)), matched.end()
    if matched := _CONSTANT.match(text, position):
        return _Term(f"{sign}{matched[1]}()", _Leaf(_ALL, negated=negated)), matched.end()
    matched = _LABEL.match(text, position)
    if matched is None:
        raise SelectorError(f"expected a term at {position}: {text[position : position + 40]!r}")
    label = prefix + _label(matched[1])
    position = matched.end()
    if matched := _COMPARISON.match(text, position):
        operator, value = matched[1] or matched[2] or f"{matched[3]} with", matched[4][1:-1]
        leaf = _Leaf(operator, label, value, negated=negated)
        return _Term(f"{sign}{label} {operator} {quote(value)}", leaf), matched.end()
    matched = _SET_OPERATOR.match(text, position)
    if matched is None:
        raise SelectorError(f"expected an operator and its value at {position}: {text[position : position + 40]!r}")
    values, position = _set_members(text, matched.end())
    operator = "not in" if matched[1].startswith("not") else "in"
    leaf = _Leaf(operator, label, values=values, negated=negated)
    return _Term(f"{sign}{label} {operator} {set_text(values)}", leaf), position


def _set_members(text: str, position: int) -> tuple[list[str], int]:
    values = []
    while matched := _SET_MEMBER.match(text, position):
        values.append(matched[1][1:-1])
        position = matched.end()
        if not matched[2]:
            break
    end = _SET_END.match(text, position)
    if end is None:
        raise SelectorError(f"expected }} at {position}: {text[position : position + 40]!r}")
    return values, end.end()


def _label(name: str) -> str:
    if len(name) > _MAX_LABEL_LENGTH:
        raise SelectorError(f"a label longer than {_MAX_LABEL_LENGTH} characters: {name[:40]!r}...")
    return name


def _joined(terms: list[_Term], operator: str, *, is_any: bool) -> _Term:
    if len(terms) == 1:
        return terms[0]
    nodes = tuple(term.node for term in terms)
    return _Term(f"({operator.join(term.text for term in terms)})", _Group(nodes, is_any=is_any))


_cached_canonical = functools.lru_cache(maxsize=_CACHE_ENTRIES)(_canonical)
