"""Calico's selector language: validation, and the canonical form with prefixed labels. Pure.

One pass parses and prints. It has its own stack, so deep selectors cause no recursion. The language has no limit of
depth; this implementation allows `MAX_DEPTH` nested parentheses.
"""

import functools
import re
from collections.abc import Iterable

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


class _Group:
    """The contents of one pair of parentheses so far: finished alternatives, and the terms of the current one."""

    __slots__ = ("alternatives", "negated", "terms")

    def __init__(self, negated: bool) -> None:
        self.negated = negated
        self.alternatives: list[str] = []
        self.terms: list[str] = []

    def end_alternative(self) -> None:
        self.alternatives.append(_joined(self.terms, " && "))
        self.terms = []

    def text(self) -> str:
        self.end_alternative()
        text = _joined(self.alternatives, " || ")
        return f"!{text}" if self.negated else text


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
    if _BLANK.fullmatch(text):
        return "all()"
    stack = [_Group(negated=False)]
    position = 0
    while True:
        negated, opened, position = _operand_start(text, position)
        if opened:
            stack.append(_Group(negated))
            if len(stack) > MAX_DEPTH + 1:
                raise SelectorTooDeep(f"more than {MAX_DEPTH} nested parentheses, at {position}")
            continue
        operand, position = _leaf(text, position, prefix)
        stack[-1].terms.append(f"!{operand}" if negated else operand)
        position = _close(text, position, stack)
        if position < 0:
            return stack[0].text()


def _operand_start(text: str, position: int) -> tuple[bool, bool, int]:
    """Read any number of `!` and an optional parenthesis: (negated, opened, position after)."""
    negated = False
    while matched := _NOT_OR_PARENTHESIS.match(text, position):
        position = matched.end()
        if matched[1] == "(":
            return negated, True, position
        negated = not negated
    return negated, False, position


def _close(text: str, position: int, stack: list[_Group]) -> int:
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
        stack[-1].terms.append(group.text())


def _leaf(text: str, position: int, prefix: str) -> tuple[str, int]:
    """Read a comparison, set operation, has(), all() or global(): (canonical text, position after)."""
    if matched := _HAS.match(text, position):
        return f"has({prefix}{_label(matched[1])})", matched.end()
    if matched := _CONSTANT.match(text, position):
        return f"{matched[1]}()", matched.end()
    matched = _LABEL.match(text, position)
    if matched is None:
        raise SelectorError(f"expected a term at {position}: {text[position : position + 40]!r}")
    label = prefix + _label(matched[1])
    position = matched.end()
    if matched := _COMPARISON.match(text, position):
        operator = matched[1] or matched[2] or f"{matched[3]} with"
        return f"{label} {operator} {quote(matched[4][1:-1])}", matched.end()
    matched = _SET_OPERATOR.match(text, position)
    if matched is None:
        raise SelectorError(f"expected an operator and its value at {position}: {text[position : position + 40]!r}")
    values, position = _set_members(text, matched.end())
    operator = "not in" if matched[1].startswith("not") else "in"
    return f"{label} {operator} {set_text(values)}", position


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


def _joined(terms: list[str], operator: str) -> str:
    return terms[0] if len(terms) == 1 else f"({operator.join(terms)})"


_cached_canonical = functools.lru_cache(maxsize=_CACHE_ENTRIES)(_canonical)
