"""Settings and variables as people read them: value, source and effect, without secrets. Pure."""

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from typha.settings import sources
from typha.settings.loading import Loaded
from typha.settings.table import KUBERNETES_VARIABLES, NO_EFFECT, SETTINGS, variable_value

_DEFAULT = "default"
_VALUE_LENGTH_LIMIT = 300


class Shown(NamedTuple):
    """A setting or variable."""

    name: str
    value: str
    """`none` for nothing; `(redacted)` for a secret."""
    source: str
    """Environment, command line, path of the file, default, or what the value follows from."""
    is_default: bool
    has_effect: bool
    effect: str


def described(loaded: Loaded) -> Iterator[Shown]:
    """Every setting."""
    for row in SETTINGS:
        value = getattr(loaded.settings, row.attribute)
        source = loaded.given.get(row.name) or loaded.derived.get(row.name) or _DEFAULT
        text, effect = _text(row.name, value), row.help.removeprefix(NO_EFFECT)
        yield Shown(
            row.name, text, sources.printable(source, _VALUE_LENGTH_LIMIT), value == row.default, row.has_effect, effect
        )


def variables(environment: Mapping[str, str]) -> Iterator[Shown]:
    """The variables without the prefix TYPHA_."""
    for variable in KUBERNETES_VARIABLES:
        name, value = variable_value(variable, environment)
        source = "environment" if value else _DEFAULT
        shown = _text(name, value) if value else variable.default
        has_effect = not variable.help.startswith(NO_EFFECT)
        yield Shown(name, shown, source, not value, has_effect, variable.help.removeprefix(NO_EFFECT))


def _text(name: str, value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    text = f"{value:g}" if isinstance(value, float) else str(value)
    return sources.printable(sources.redacted(name, text), _VALUE_LENGTH_LIMIT) or "none"
