"""Reads the sources of settings: flags, environment and an INI file, each as raw text by lower-case name."""

import dataclasses
import os
import re
import stat
from collections.abc import Iterable, Mapping

PREFIX = "typha_"
FILE_BYTES_LIMIT = 1024 * 1024

REDACTED = "(redacted)"

_QUOTES = "\"'`"
_SECRET_NAME = re.compile(r"token|passw|secret|credential|(?:key|cert)$", re.IGNORECASE)
_SECRET_TEXT = re.compile(r"PRIVATE KEY|^ey[\w-]+\.[\w-]+\.", re.ASCII)
"""A PEM file or a token where its path belongs."""
_USER_IN_URL = re.compile(r"(?<=://)[^/?#\s]*@|^[^/?#\s]+:[^/?#\s]*@")


class ConfigurationError(Exception):
    """The service cannot start with this configuration. `str()` is one line that begins with the culprit's name."""

    def __init__(self, culprit: str, problem: str) -> None:
        super().__init__(f"{culprit}: {problem}")
        self.culprit = culprit
        self.problem = problem


@dataclasses.dataclass(frozen=True, slots=True)
class Source:
    """The raw values of one source."""

    label: str
    """What messages call the source."""
    values: Mapping[str, tuple[str, str]]
    """(name as written, value) by lower-case name."""
    repeated: tuple[str, ...] = ()
    """Names that occur more than once, as written. `values` has the last value."""


def from_environment(environment: Mapping[str, str]) -> Source:
    """The variables with the prefix TYPHA_, in any case."""
    variables = ((name, value) for name, value in environment.items() if name[: len(PREFIX)].lower() == PREFIX)
    return _source("environment", variables, prefix_length=len(PREFIX))


def from_flags(flags: Mapping[str, str]) -> Source:
    """The flags of the command line, by setting name."""
    return _source("command line", flags.items())


def from_file(path: str, *, must_exist: bool) -> Source:
    """The keys of an INI file. A missing file has no keys, unless `must_exist` is set.

    Raises:
        ConfigurationError: the file is missing, unreadable, larger than 1 MiB, or not an INI file.
    """
    try:
        text = read(path)
    except FileNotFoundError:
        if must_exist:
            raise ConfigurationError(path, "no such file") from None
        return Source(path, {})
    return _source(path, parse_ini(path, text))


def read(path: str) -> str:
    """Read the text of a configuration file.

    Raises:
        FileNotFoundError: the file does not exist.
        ConfigurationError: the file is unreadable, a pipe, larger than 1 MiB, or not UTF-8.
    """
    try:
        # A pipe without a writer would keep the service from starting, without a word.
        with open(os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY), "rb") as file:
            if stat.S_ISFIFO(os.fstat(file.fileno()).st_mode):
                raise ConfigurationError(path, "is a pipe, not a file")
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
    """Yield the (key, value) pairs of an INI text in order, ignoring sections.

    `;` and `#` begin a comment, also after a value. Quotes around a value are removed. A backslash at the end of a line
    continues the value on the next line. `path` is used only in error messages.

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
                raise ConfigurationError(path, f"line {number}: section without a closing ]")
            continue
        delimiter = min((at for at in (line.find("="), line.find(":")) if at >= 0), default=-1)
        key = line[:delimiter].strip().strip(_QUOTES)
        if delimiter < 0 or not key:
            raise ConfigurationError(path, f"line {number}: expected name = value")
        value = line[delimiter + 1 :].strip()
        while value.endswith("\\"):
            value = value[:-1] + next(lines, (0, ""))[1].strip()
        yield key, _without_comment_and_quotes(value)


def printable(text: str, limit: int) -> str:
    """Text from outside for a one-line message: escaped, and cut after `limit` characters."""
    shown = text.encode("unicode_escape").decode("ascii")
    return shown if len(shown) <= limit else shown[:limit] + "..."


def redacted(name: str, text: str) -> str:
    """The value of a setting or variable, without what looks like a secret."""
    if text and (_SECRET_NAME.search(name) or _SECRET_TEXT.search(text)):
        return REDACTED
    return _USER_IN_URL.sub(f"{REDACTED}@", text)


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
    if value[:1] == "`" and "`" in value[1:]:  # only in backquotes, # and ; do not begin a comment
        return value[1 : value.rindex("`")]
    for mark in "#;":
        value = value.partition(mark)[0].rstrip()
    if len(value) >= 2 and value[0] == value[-1] and value[0] in _QUOTES:
        return value[1:-1]
    return value
