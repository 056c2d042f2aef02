"""Sources of settings: flags, environment and an INI file, each as raw text by lower-case name. Pure but for `read`."""

import dataclasses
from collections.abc import Iterable, Mapping

PREFIX = "typha_"
FILE_BYTES_LIMIT = 1024 * 1024

_QUOTES = "\"'`"


class ConfigurationError(Exception):
    """A configuration the service does not start with. `str()` is one line that begins with the culprit's name."""

    def __init__(self, culprit: str, problem: str) -> None:
        super().__init__(f"{culprit}: {problem}")
        self.culprit = culprit
        self.problem = problem


@dataclasses.dataclass(frozen=True, slots=True)
class Source:
    """The raw values of one source, by lower-case name, each with the name as it was written there."""

    label: str
    values: Mapping[str, tuple[str, str]]
    repeated: tuple[str, ...] = ()
    """Names given more than once, of which the last value counts."""


def from_environment(environment: Mapping[str, str]) -> Source:
    """The TYPHA_ variables, in any case; of a name given twice the later counts."""
    variables = ((name, value) for name, value in environment.items() if name[: len(PREFIX)].lower() == PREFIX)
    return _source("environment", variables, prefix_length=len(PREFIX))


def from_flags(flags: Mapping[str, str]) -> Source:
    """The command line's flags, by setting name."""
    return _source("command line", flags.items())


def from_file(path: str, *, must_exist: bool) -> Source:
    """The keys of an INI file; none if the file is missing and need not exist.

    Raises:
        ConfigurationError: it cannot be read, is larger than 1 MiB, or is no INI file.
    """
    try:
        text = read(path)
    except FileNotFoundError:
        if must_exist:
            raise ConfigurationError(path, "no such file") from None
        return Source(path, {})
    return _source(path, parse_ini(path, text))


def read(path: str) -> str:
    """A configuration file's text.

    Raises:
        FileNotFoundError: there is none.
        ConfigurationError: it cannot be read, is larger than 1 MiB, or is not UTF-8.
    """
    try:
        with open(path, "rb") as file:
            data = file.read(FILE_BYTES_LIMIT + 1)
    except FileNotFoundError:
        raise
    except OSError as error:
        raise ConfigurationError(path, f"cannot be read: {error.strerror}") from error
    if len(data) > FILE_BYTES_LIMIT:
        raise ConfigurationError(path, f"larger than {FILE_BYTES_LIMIT} bytes")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ConfigurationError(path, f"not UTF-8 at byte {error.start}") from error


def parse_ini(path: str, text: str) -> Iterable[tuple[str, str]]:
    """(key, value) pairs of an INI text, sections ignored, in the order in which they count.

    `;` and `#` begin a comment, behind a value, too; a value in quotes loses them; a backslash at a line's end goes on
    with the next line. `path` is for messages only.

    Raises:
        ConfigurationError: a line is neither a section nor `name = value`.
    """
    lines = iter(enumerate(text.splitlines(), start=1))
    for number, line in lines:
        line = line.strip()
        if not line or line[0] in "#;":
            continue
        if line[0] == "[":
            if "]" not in line:
                raise ConfigurationError(path, f"line {number}: section without ]")
            continue
        delimiter = min((at for at in (line.find("="), line.find(":")) if at >= 0), default=-1)
        key = line[:delimiter].strip().strip(_QUOTES)
        if delimiter < 0 or not key:
            raise ConfigurationError(path, f"line {number}: expected name = value")
        value = line[delimiter + 1 :].strip()
        while value.endswith("\\"):
            value = value[:-1] + next(lines, (0, ""))[1].strip()
        yield key, _without_comment_and_quotes(value)


def _source(label: str, pairs: Iterable[tuple[str, str]], *, prefix_length: int = 0) -> Source:
    values: dict[str, tuple[str, str]] = {}
    repeated = []
    for name, value in pairs:
        key = name[prefix_length:].lower()
        if key in values:
            repeated.append(name)
        values[key] = (name, value)
    return Source(label, values, tuple(repeated))


def _without_comment_and_quotes(value: str) -> str:
    if value[:1] == "`" and "`" in value[1:]:  # the one kind of quotes in which # and ; are no comments
        return value[1 : value.rindex("`")]
    for mark in "#;":
        value = value.partition(mark)[0].rstrip()
    if len(value) >= 2 and value[0] == value[-1] and value[0] in _QUOTES:
        return value[1:-1]
    return value
