"""What a row of the settings table is, and how one is written as a field of the `Settings` dataclass. Pure."""

import dataclasses
import enum
from typing import Any, TypeVar

from typha.settings import types

T = TypeVar("T")

_ROW = "row"


class Scope(enum.StrEnum):
    """Whose a setting is; it decides what an invalid value does (see `typha.settings.load`)."""

    ORIGINAL = "original"
    OURS = "ours"


@dataclasses.dataclass(frozen=True, slots=True)
class Row:
    """One setting. `name` is the file's key; environment variable, flag and attribute follow from it.

    `non_zero` refuses `none`. `fatal` makes an invalid value end the start even though the setting is the original's.
    """

    name: str
    attribute: str
    type: types.ValueType[Any]
    default: Any
    unit: str
    scope: Scope
    why: str
    help: str
    non_zero: bool
    fatal: bool

    @property
    def variable(self) -> str:
        """The environment variable in its canonical form (any case is accepted)."""
        return f"TYPHA_{self.name.upper()}"

    @property
    def flag(self) -> str:
        """The command-line flag of `typha serve`."""
        words = [("-" + c if _starts_word(self.name, i) else c) for i, c in enumerate(self.name)]
        return "--" + "".join(words).lower()

    @property
    def has_effect(self) -> bool:
        """Whether the service does anything with it."""
        return not self.help.startswith(NO_EFFECT)

    def parse(self, text: str) -> Any:
        """The value of a source's text, which is not empty.

        Raises:
            ValueError: with what was expected.
        """
        if text.lower() != "none":
            return self.type.parse(text)
        if self.non_zero:
            raise ValueError("expected a value other than none")
        return self.type.zero


NO_EFFECT = "Accepted, no effect: "
"""Begins the help of a setting that is parsed for the sake of existing deployments only."""


def original(
    name: str,
    value_type: types.ValueType[T],
    default: T,
    explanation: str,
    *,
    why: str = "the original's",
    unit: str = "",
    non_zero: bool = False,
    fatal: bool = False,
) -> T:
    """A field for a setting of the original's: same name, default and rules."""
    return _field(default, Row(name, "", value_type, default, unit, Scope.ORIGINAL, why, explanation, non_zero, fatal))


def ours(
    name: str,
    value_type: types.ValueType[T],
    default: T,
    explanation: str,
    *,
    why: str,
    unit: str = "",
) -> T:
    """A field for a setting of our own: an invalid value ends the start, and so does `none` for a number."""
    non_zero = isinstance(default, int | float) and not isinstance(default, bool)
    return _field(default, Row(name, "", value_type, default, unit, Scope.OURS, why, explanation, non_zero, True))


def rows(settings: type[Any]) -> tuple[Row, ...]:
    """The table: the rows of the dataclass's fields, in order."""
    found = []
    for field in dataclasses.fields(settings):
        if _ROW in field.metadata:
            found.append(dataclasses.replace(field.metadata[_ROW], attribute=field.name))
    return tuple(found)


def _field(default: T, row: Row) -> T:
    # To the type checker the field's default is a T, so that annotation, default and parser must agree.
    return dataclasses.field(default=default, metadata={_ROW: row})


def _starts_word(name: str, index: int) -> bool:
    """Whether a new word starts at `index`: aB, or the last capital of a run (ABc)."""
    if index == 0 or not name[index].isupper():
        return False
    return not name[index - 1].isupper() or name[index + 1 : index + 2].islower()
