"""Formats of log lines: text as the original writes it, or JSON. Pure.

Fields of structlog come in the record's attribute `fields`; records of other loggers have none.
"""

import datetime
import json
import logging
import math
from typing import Any, TypeAlias

Plain: TypeAlias = str | int | float | bool | None

MESSAGE_LENGTH_LIMIT = 2000
VALUE_LENGTH_LIMIT = 1000
TRACEBACK_LENGTH_LIMIT = 6000
FIELDS_LIMIT = 40

_LEVELS = {"CRITICAL": "FATAL"}
_ESCAPES = {'"': '\\"', "\\": "\\\\", "\n": "\\n", "\r": "\\r", "\t": "\\t"}


class TextFormatter(logging.Formatter):
    """`2026-11-23 09:57:24.904 [INFO][123] logger: Message count=3 key="value"`, in UTC, fields sorted by name."""

    def format(self, record: logging.LogRecord) -> str:
        time = datetime.datetime.fromtimestamp(record.created, datetime.UTC)
        stamp = f"{time:%Y-%m-%d %H:%M:%S}.{time.microsecond // 1000:03d}"
        head = f"{stamp} [{_level(record)}][{record.process}] {record.name}: {escaped(_message(record))}"
        return " ".join((head, *(f"{escaped(name)}={_text(value)}" for name, value in _fields(self, record))))


class JsonFormatter(logging.Formatter):
    """One JSON object: time (RFC 3339, UTC), level, pid, logger, message, then the fields."""

    def format(self, record: logging.LogRecord) -> str:
        time = datetime.datetime.fromtimestamp(record.created, datetime.UTC)
        line: dict[str, Plain] = {
            "time": time.isoformat(timespec="milliseconds").replace("+00:00", "Z"),
            "level": _level(record),
            "pid": record.process,
            "logger": record.name,
            "message": _message(record),
        }
        fields = {f"{name}_" if name in line else name: value for name, value in _fields(self, record)}
        return json.dumps({**line, **fields})


def escaped(text: str) -> str:
    """The text without line ends, control characters and invisible ones, so that nobody forges or hides a line."""
    if text.isprintable() and '"' not in text and "\\" not in text:
        return text
    return "".join(_ESCAPES.get(c) or (c if c.isprintable() else c.encode("unicode_escape").decode()) for c in text)


def _level(record: logging.LogRecord) -> str:
    return _LEVELS.get(record.levelname, record.levelname)


def _message(record: logging.LogRecord) -> str:
    return _cut(record.getMessage(), MESSAGE_LENGTH_LIMIT)


def _fields(formatter: logging.Formatter, record: logging.LogRecord) -> list[tuple[str, Plain]]:
    """The record's fields by name, cut and plain."""
    given: dict[str, Any] = getattr(record, "fields", {})
    fields = {_cut(str(name), VALUE_LENGTH_LIMIT): _plain(value) for name, value in list(given.items())[:FIELDS_LIMIT]}
    if record.exc_info and record.exc_info[1] is not None:
        fields.setdefault("error", _plain(record.exc_info[1]))
        # The end of a traceback is what matters.
        fields["traceback"] = formatter.formatException(record.exc_info)[-TRACEBACK_LENGTH_LIMIT:]
    return sorted(fields.items())


def _plain(value: Any) -> Plain:
    if value is None or isinstance(value, bool | int):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else str(value)  # JSON has no NaN and no infinity
    return _string(value)


def _string(value: Any) -> str:
    if isinstance(value, BaseException):
        text = str(value)
        return _cut(f"{type(value).__name__}: {text}" if text else type(value).__name__, VALUE_LENGTH_LIMIT)
    if isinstance(value, bytes):
        return _cut(repr(value[:VALUE_LENGTH_LIMIT]), VALUE_LENGTH_LIMIT)
    return _cut(str(value), VALUE_LENGTH_LIMIT)


def _text(value: Plain) -> str:
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, float):
        return f"{value:.6g}"
    return str(value) if isinstance(value, int) else f'"{escaped(value)}"'


def _cut(text: str, limit: int) -> str:
    return text if len(text) <= limit else f"{text[:limit]}... ({len(text)} characters)"
