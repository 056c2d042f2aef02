"""Internal: Calico's selector language: parsing, validation, the canonical form with prefixed labels, evaluation.

Values of Calico's feeds contain selectors. The server validates them and prints their canonical form; agents evaluate
them. One pass parses and prints. It has its own stack, so deep selectors cause no recursion. The language has no limit
of depth; this implementation allows `MAX_DEPTH` nested parentheses.
"""

import functools
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Generic, NamedTuple, Protocol, TypeVar

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
_CONSTANTS = frozenset({_ALL, "global()"})
_HAS_LABEL = "has"
_SET_OPERATORS = frozenset({"in", "not in"})
_HOLD_WITHOUT_LABEL = frozenset({"!=", "not in"})


class _Leaf:
    """A comparison, set operation, has(), all() or global()."""

    __slots__ = ("_label", "_negated", "_operator", "_value", "_values")

    def __init__(self, operator: str, label: str, values: Sequence[str], negated: bool) -> None:
        self._operator = operator
        self._label = label
        self._value = values[0] if values else ""
        self._values = frozenset(values) if operator in _SET_OPERATORS else frozenset()
        self._negated = negated

    def matches(self, labels: Mapping[str, str]) -> bool:
        return self._holds(labels) is not self._negated

    def _holds(self, labels: Mapping[str, str]) -> bool:
        operator = self._operator
        if operator in _CONSTANTS:
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
        if negated or operator in _CONSTANTS or operator in _HOLD_WITHOUT_LABEL:
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


Term = TypeVar("Term")


class _Maker(Protocol[Term]):
    """What is made of the terms of a selector while it is read."""

    def leaf(self, operator: str, label: str, values: Sequence[str], *, negated: bool) -> Term:
        """A comparison, set operation, has(), all() or global()."""

    def group(self, terms: list[Term], *, is_any: bool) -> Term:
        """Several terms of which all must match, or any."""

    def negated(self, term: Term) -> Term:
        """The contrary of what stands in parentheses."""


class _Printer:
    """Makes the canonical form."""

    def leaf(self, operator: str, label: str, values: Sequence[str], *, negated: bool) -> str:
        sign = "!" if negated else ""
        if operator in _CONSTANTS:
            return f"{sign}{operator}"
        if operator == _HAS_LABEL:
            return f"{sign}has({label})"
        literal = set_text(values) if operator in _SET_OPERATORS else quote(values[0])
        return f"{sign}{label} {operator} {literal}"

    def group(self, terms: list[str], *, is_any: bool) -> str:
        return f"({(' || ' if is_any else ' && ').join(terms)})"

    def negated(self, term: str) -> str:
        return f"!{term}"


class _Builder:
    """Makes what can be evaluated."""

    def leaf(self, operator: str, label: str, values: Sequence[str], *, negated: bool) -> _Leaf | _Group:
        return _Leaf(operator, label, values, negated)

    def group(self, terms: list[_Leaf | _Group], *, is_any: bool) -> _Leaf | _Group:
        return _Group(tuple(terms), is_any=is_any)

    def negated(self, term: _Leaf | _Group) -> _Leaf | _Group:
        return _Group((term,), is_any=True, negated=True)


class _Parentheses(Generic[Term]):
    """The contents of one pair of parentheses so far: finished alternatives, and the terms of the current one."""

    __slots__ = ("alternatives", "is_negated", "maker", "terms")

    def __init__(self, maker: _Maker[Term], *, is_negated: bool) -> None:
        self.maker = maker
        self.is_negated = is_negated
        self.alternatives: list[Term] = []
        self.terms: list[Term] = []

    def end_alternative(self) -> None:
        terms = self.terms
        self.alternatives.append(terms[0] if len(terms) == 1 else self.maker.group(terms, is_any=False))
        self.terms = []

    def term(self) -> Term:
        self.end_alternative()
        alternatives = self.alternatives
        term = alternatives[0] if len(alternatives) == 1 else self.maker.group(alternatives, is_any=True)
        return self.maker.negated(term) if self.is_negated else term


def parse(text: str, *, prefix: str = "") -> Selector:
    """Parse a selector, with `prefix` before each label name. The empty text is `all()`.

    Raises:
        SelectorError: it does not parse.
    """
    return Selector(canonical(text, prefix=prefix), _read(text, prefix, _Builder()))


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
    return _read(text, prefix, _Printer())


def _read(text: str, prefix: str, maker: _Maker[Term]) -> Term:
    if _BLANK.fullmatch(text):
        return maker.leaf(_ALL, "", (), negated=False)
    stack = [_Parentheses(maker, is_negated=False)]
    position = 0
    while True:
        negated, opened, position = _operand_start(text, position)
        if opened:
            stack.append(_Parentheses(maker, is_negated=negated))
            if len(stack) > MAX_DEPTH + 1:
                raise SelectorTooDeep(f"more than {MAX_DEPTH} nested parentheses, at {position}")
            continue
        operator, label, values, position = _leaf(text, position)
        stack[-1].terms.append(maker.leaf(operator, prefix + label, values, negated=negated))
        position = _close(text, position, stack)
        if position < 0:
            return stack[0].term()


def _operand_start(text: str, position: int) -> tuple[bool, bool, int]:
    """Read any number of `!` and an optional parenthesis: (negated, opened, position after)."""
    negated = False
    while matched := _NOT_OR_PARENTHESIS.match(text, position):
        position = matched.end()
        if matched[1] == "(":
            return negated, True, position
        negated = not negated
    return negated, False, position


def _close(text: str, position: int, stack: list[_Parentheses[Term]]) -> int:
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


def _leaf(text: str, position: int) -> tuple[str, str, Sequence[str], int]:
    """Read a comparison, set operation, has(), all() or global(): (operator, label, values, position after)."""
    if matched := _HAS.match(text, position):
        return _HAS_LABEL, _label(matched[1]), (), matched.end()
    if matched := _CONSTANT.match(text, position):
        return f"{matched[1]}()", "", (), matched.end()
    matched = _LABEL.match(text, position)
    if matched is None:
        raise SelectorError(f"expected a term at {position}: {text[position : position + 40]!r}")
    label = _label(matched[1])
    position = matched.end()
    if matched := _COMPARISON.match(text, position):
        return matched[1] or matched[2] or f"{matched[3]} with", label, (matched[4][1:-1],), matched.end()
    matched = _SET_OPERATOR.match(text, position)
    if matched is None:
        raise SelectorError(f"expected an operator and its value at {position}: {text[position : position + 40]!r}")
    values, position = _set_members(text, matched.end())
    return "not in" if matched[1].startswith("not") else "in", label, values, position


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


_cached_canonical = functools.lru_cache(maxsize=_CACHE_ENTRIES)(_canonical)
