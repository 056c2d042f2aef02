"""Logging: one line per event, as text or JSON, written by a separate thread.

The text format is the original's: `2026-11-23 09:57:24.904 [INFO][123] typha/hub.py 4711: Message key="value"`, with
the fields sorted by name. The number is no line number, which would change with every release, but a checksum of the
message. Text from peers is escaped and cut, so that one event is always one line. A full queue drops lines and counts
them.
"""

import asyncio
import contextlib
import datetime
import functools
import io
import json
import logging
import logging.handlers
import math
import os
import queue
import sys
import time
import zlib
from collections import deque
from collections.abc import Callable, Iterable
from typing import IO, Any, TypeAlias

import structlog

from typha import clock, settings

QUEUE_LINES_LIMIT = 1000
"""Ten times the limit of the original; about 10 MB at most."""

MESSAGE_LENGTH_LIMIT = 2000
VALUE_LENGTH_LIMIT = 1000
TRACEBACK_LENGTH_LIMIT = 6000
FIELDS_LIMIT = 40

_LOOP_ERRORS_PER_MINUTE = 10
_TRACEBACKS_PER_MINUTE = 20
"""Further errors are logged without. If a peer finds a way to a defect, it must not fill the log with tracebacks."""
RECENT_LINES_MAX = 500
"""Lines that each process remembers, for an archive for support: some 100 kB, and 1 MB at most."""
_RECENT_CHARS_MAX = 2000
_QUOTING_LOGGER, _QUOTING_FIELD = "typha.hub", "detail"
"""Details of refused objects quote them, and an object may hold what only some people may see."""
_FILE_MODE = 0o640
_STOP_TIMEOUT_SECONDS = 2.0
_SYSLOG_SOCKET = "/dev/log"
_SYSLOG_TAG = "calico-typha: "
_QUIET_LOGGERS = ("asyncio", "aiohttp", "kubernetes_asyncio", "concurrent")
_LEVELS = {"CRITICAL": "FATAL"}
_ESCAPES = {'"': '\\"', "\\": "\\\\", "\n": "\\n", "\r": "\\r", "\t": "\\t"}

Plain: TypeAlias = str | int | float | bool | None


class Counters:
    """Lines that a destination failed to write, and lines dropped because the queue was full."""

    __slots__ = ("dropped", "errors")

    def __init__(self) -> None:
        self.errors = 0
        self.dropped = 0


COUNTERS = Counters()
"""A process has one logging setup, so it has one set of counters."""


class LineLimit:
    """Allows a number of lines in a time, for events that a peer can cause. Counts the other ones."""

    def __init__(self, lines: int, *, seconds: float = 1.0, now: Callable[[], float] = clock.monotonic) -> None:
        self._lines = lines
        self._seconds = seconds
        self._now = now
        self._began = -math.inf
        self._asked = 0
        self.suppressed = 0
        """Lines that were not allowed since `take_suppressed`."""

    def __repr__(self) -> str:
        return f"LineLimit({self._lines} in {self._seconds:g} s, {self.suppressed} suppressed)"

    def allows(self) -> bool:
        """Whether there may be a line now."""
        now = self._now()
        if now - self._began >= self._seconds:
            self._began, self._asked = now, 0
        self._asked += 1
        if self._asked <= self._lines:
            return True
        self.suppressed += 1
        return False

    @property
    def left_seconds(self) -> float:
        """Seconds until lines are allowed again, if they are not now."""
        return max(0.0, self._began + self._seconds - self._now())

    def take_suppressed(self) -> int:
        """The number of suppressed lines, for the next line to report. It starts again from 0."""
        suppressed, self.suppressed = self.suppressed, 0
        return suppressed


def limit_loop_errors(loop: asyncio.AbstractEventLoop) -> None:
    """Log errors that asyncio reports, with their tracebacks, at a limited rate."""
    limit = LineLimit(_LOOP_ERRORS_PER_MINUTE, seconds=60.0)
    log = structlog.get_logger("typha.loop")

    def handle(_loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        if limit.allows():
            log.error(
                context.get("message") or "Error in the event loop",
                exc_info=context.get("exception"),
                other_errors_not_logged=limit.take_suppressed(),
            )

    loop.set_exception_handler(handle)


class LogPipeline:
    """The handler of the root logger, the queue, the writing thread and the destinations."""

    def __init__(
        self, handlers: list[logging.Handler], formatter: logging.Formatter, *, level: int, wait: bool
    ) -> None:
        self._lines: queue.Queue[Any] = queue.Queue(QUEUE_LINES_LIMIT)
        self._handlers = handlers
        self._levels = [handler.level for handler in handlers]
        self._head = _BoundedHandler(self._lines, formatter, wait=wait)
        self._listener = _Listener(self._lines, handlers)
        self._level = level
        self.is_debugging = False

    @property
    def recent(self) -> Iterable[str]:
        """See `recent_lines`."""
        return self._head.recent

    @property
    def destinations(self) -> str:
        """Where lines go, for the first of them."""
        names = [
            handler.baseFilename
            if isinstance(handler, _FileHandler)
            else ("syslog" if isinstance(handler, _SysLogHandler) else "screen")
            for handler in self._handlers
        ]
        return ", ".join(names)

    def start(self) -> None:
        """Replace the handlers of the root logger, and start the writing thread."""
        root = logging.getLogger()
        for handler in list(root.handlers):
            root.removeHandler(handler)
        root.addHandler(self._head)
        self._set_level(self._level)
        self._listener.start()

    def _set_level(self, level: int) -> None:
        logging.getLogger().setLevel(level)
        for name in _QUIET_LOGGERS:
            logging.getLogger(name).setLevel(max(level, logging.WARNING))
        _configure_structlog(level)

    def switch_debug(self, is_debugging: bool) -> None:
        """Log everything to every destination that is in use, or what the settings ask for."""
        if is_debugging == self.is_debugging:
            return
        log = structlog.get_logger("typha.logs")
        if not is_debugging:
            log.info("Logging what the settings ask for")  # before the change, which may hide it
        self.is_debugging = is_debugging
        for handler, level in zip(self._handlers, self._levels, strict=True):
            handler.setLevel(logging.DEBUG if is_debugging else level)
        self._set_level(logging.DEBUG if is_debugging and self._handlers else self._level)
        if is_debugging:
            log.info("Logging at level debug")

    def reopen_file(self) -> None:
        """Open the log file again, by its path, as soon as the writing thread gets to it."""
        for handler in self._handlers:
            if isinstance(handler, _FileHandler):
                handler.must_reopen = True
                with contextlib.suppress(queue.Full):  # then the next line does it
                    self._lines.put_nowait(functools.partial(handler.reopen, self._head.report))

    def close(self, *, timeout_seconds: float = _STOP_TIMEOUT_SECONDS) -> None:
        """Stop accepting lines, write the queued ones within the timeout, and close the destinations.

        Errors of the destinations are counted, so the process ends with its own exit code.
        """
        logging.getLogger().removeHandler(self._head)
        if _Process.pipeline is self:
            _Process.pipeline = None
        self._listener.stop(timeout_seconds)
        for handler in self._handlers:
            try:
                handler.close()
            except OSError:  # it writes what is left, and the disk may be full
                COUNTERS.errors += 1


class _Process:
    """The logging setup of the process, while there is one."""

    pipeline: LogPipeline | None = None


def reopen_file() -> None:
    """Open the process's log file again; see `LogPipeline`."""
    if _Process.pipeline is not None:
        _Process.pipeline.reopen_file()


def recent_lines() -> list[str]:
    """The newest lines of this process, the oldest first; without details that may quote an object of the cluster."""
    return list(_Process.pipeline.recent) if _Process.pipeline is not None else []


def switch_debug(is_debugging: bool) -> None:
    """Switch the process's level; see `LogPipeline`."""
    if _Process.pipeline is not None:
        _Process.pipeline.switch_debug(is_debugging)


def is_debugging() -> bool:
    """Whether `switch_debug` has been called for more than the settings ask for."""
    return _Process.pipeline is not None and _Process.pipeline.is_debugging


def is_enabled(level: str) -> bool:
    """Whether some destination takes lines of this level; for those that cost something to make."""
    return logging.getLogger().isEnabledFor(getattr(logging, level.upper()))


def configure(configured: settings.Settings, *, file_given: bool = False, screen: IO[str] | None = None) -> LogPipeline:
    """Set up logging for the process: for structlog, and for the loggers of the standard library.

    Args:
        file_given: a source sets LogFilePath, so the file must open. The default file may fail to open.
        screen: destination for LogSeverityScreen. None means standard output.

    Raises:
        settings.ConfigurationError: the log file must open and does not, or no thread can be started.
    """
    handlers: list[logging.Handler] = []
    problems: list[settings.Notice] = []
    if configured.log_severity_screen:
        handlers.append(_with_level(_StreamHandler(screen or sys.stdout), configured.log_severity_screen))
    if configured.log_file_path and configured.log_severity_file:
        file = _open_file(configured.log_file_path, problems, must_open=file_given)
        handlers += [_with_level(file, configured.log_severity_file)] if file else []
    if configured.log_severity_sys and os.path.exists(_SYSLOG_SOCKET):
        syslog = _open_syslog(problems)
        handlers += [_with_level(syslog, configured.log_severity_sys)] if syslog else []
    pipeline = _start(handlers, configured.log_format, wait=configured.debug_disable_log_dropping)
    log = structlog.get_logger("typha.logs")
    for problem in problems:
        log.warning(problem.event, **problem.fields)
    return pipeline


def configure_worker(configured: settings.Settings) -> LogPipeline:
    """Set up logging for a worker process: as in the hub, but to standard error, which the worker inherits."""
    return configure(configured, screen=sys.stderr)


def _start(handlers: list[logging.Handler], log_format: str, *, wait: bool) -> LogPipeline:
    level = min((handler.level for handler in handlers), default=logging.CRITICAL)
    pipeline = LogPipeline(
        handlers, JsonFormatter() if log_format == "json" else TextFormatter(), level=level, wait=wait
    )
    try:
        pipeline.start()
    except RuntimeError as error:
        raise settings.ConfigurationError("threads", f"none can be started for the log: {error}") from error
    _Process.pipeline = pipeline
    return pipeline


def _configure_structlog(level: int) -> None:
    structlog.configure(
        processors=[structlog.contextvars.merge_contextvars, _to_record],
        wrapper_class=structlog.make_filtering_bound_logger(level),
        logger_factory=structlog.stdlib.LoggerFactory(),
        cache_logger_on_first_use=False,
    )


def _to_record(_logger: Any, _method: str, event: structlog.typing.EventDict) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Convert an event of structlog to arguments of a standard logger. The formatters read `fields` from the record."""
    message = event.pop("event", "")
    keywords = {name: event.pop(name) for name in ("exc_info", "stack_info") if name in event}
    return (message,), {"extra": {"fields": dict(event)}, **keywords}


def _with_level(handler: logging.Handler, severity: str) -> logging.Handler:
    handler.setLevel(severity)
    return handler


def _open_file(path: str, problems: list[settings.Notice], *, must_open: bool) -> logging.Handler | None:
    try:
        os.makedirs(os.path.dirname(path) or ".", exist_ok=True)
        return _FileHandler(path, encoding="utf-8")
    except OSError as error:
        if must_open:
            raise settings.ConfigurationError("LogFilePath", f"{path} cannot be opened: {error.strerror}") from error
        fields = {"path": path, "error": error.strerror}
        problems.append(settings.Notice("warning", "Cannot open the log file, continuing without it", fields))
        return None


def _open_syslog(problems: list[settings.Notice]) -> logging.Handler | None:
    try:
        handler = _SysLogHandler(_SYSLOG_SOCKET, logging.handlers.SysLogHandler.LOG_USER)
    except OSError as error:
        fields = {"path": _SYSLOG_SOCKET, "error": error.strerror}
        problems.append(settings.Notice("warning", "Cannot reach syslog, continuing without it", fields))
        return None
    handler.ident = _SYSLOG_TAG
    return handler


class _Counting(logging.Handler):
    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802 (overrides)
        COUNTERS.errors += 1


class _StreamHandler(_Counting, logging.StreamHandler[IO[str]]):
    pass


class _FileHandler(_Counting, logging.handlers.WatchedFileHandler):
    must_reopen = False

    def reopen(self, report: Callable[..., None]) -> None:
        """Open the file again, unless that is done; goes on with the old one if the path cannot be opened."""
        if not self.must_reopen:
            return
        self.must_reopen = False
        try:
            stream = self._open()
        except OSError as error:
            COUNTERS.errors += 1
            report("Cannot reopen the log file, keeping the old one", path=self.baseFilename, error=error.strerror)
            return
        with contextlib.suppress(OSError):  # the disk may be full
            if self.stream is not None:
                self.stream.close()
        self.stream = stream
        self._statstream()

    def _open(self) -> io.TextIOWrapper:
        # The lines name peers and objects, so the file is not for every user of the host.
        descriptor = os.open(self.baseFilename, os.O_WRONLY | os.O_CREAT | os.O_APPEND, _FILE_MODE)
        return open(descriptor, "a", encoding=self.encoding)

    def emit(self, record: logging.LogRecord) -> None:
        try:
            super().emit(record)
        except OSError:  # the base does not handle a failure to reopen the file after a rotation
            self.handleError(record)


class _SysLogHandler(_Counting, logging.handlers.SysLogHandler):
    pass


class _BoundedHandler(_Counting, logging.handlers.QueueHandler):
    """Formats lines and queues them. Drops lines while the queue is full, and reports their number afterwards."""

    def __init__(self, lines: queue.Queue[Any], formatter: logging.Formatter, *, wait: bool) -> None:
        super().__init__(lines)
        self._lines = lines
        self._wait = wait
        self._unreported = 0
        self._tracebacks = LineLimit(_TRACEBACKS_PER_MINUTE, seconds=60.0)
        self.setFormatter(formatter)
        self.recent: deque[str] = deque(maxlen=RECENT_LINES_MAX)

    def emit(self, record: logging.LogRecord) -> None:
        if self._lines.full() and not self._wait:  # checked before formatting, so that a dropped line costs little
            COUNTERS.dropped += 1
            self._unreported += 1
            return
        if self._unreported:
            dropped, self._unreported = self._unreported, 0
            super().emit(_warning("Log lines were dropped", dropped=dropped))
        if record.exc_info and not self._tracebacks.allows():
            error, record.exc_info = record.exc_info[1], None
            record.fields = {"error": error, **getattr(record, "fields", {})}
        super().emit(record)

    def report(self, event: str, **fields: Any) -> None:
        """A warning of the writing thread, which must not wait for room in its own queue."""
        with contextlib.suppress(queue.Full):
            self._lines.put_nowait(self.prepare(_warning(event, **fields)))

    def prepare(self, record: logging.LogRecord) -> logging.LogRecord:
        # A new record that holds only the line: the arguments of the original record may change before it is written.
        line = self.format(record)
        self.recent.append(_cut(self._public(record, line), _RECENT_CHARS_MAX))
        return logging.LogRecord(record.name, record.levelno, "", 0, line, None, None)

    def _public(self, record: logging.LogRecord, line: str) -> str:
        """The line without details, which may quote an object of the cluster."""
        fields: dict[str, Any] = getattr(record, "fields", {})
        if record.name != _QUOTING_LOGGER or _QUOTING_FIELD not in fields:
            return line
        public = logging.makeLogRecord(record.__dict__)
        public.fields = {**fields, _QUOTING_FIELD: "(left out)"}
        return self.format(public)

    def enqueue(self, record: logging.LogRecord) -> None:
        if self._wait:
            self._lines.put(record)
            return
        try:
            self._lines.put_nowait(record)
        except queue.Full:
            COUNTERS.dropped += 1
            self._unreported += 1


def _warning(event: str, **fields: Any) -> logging.LogRecord:
    record = logging.LogRecord("typha.logs", logging.WARNING, "", 0, event, None, None)
    record.fields = fields
    return record


class _Listener(logging.handlers.QueueListener):
    """The writing thread. It takes lines, and things to do between two lines."""

    def __init__(self, lines: queue.Queue[Any], handlers: list[logging.Handler]) -> None:
        super().__init__(lines, *handlers, respect_handler_level=True)
        self._lines = lines

    def handle(self, record: Any) -> None:
        if isinstance(record, logging.LogRecord):
            super().handle(record)
        else:
            record()

    def stop(self, timeout_seconds: float = _STOP_TIMEOUT_SECONDS) -> None:
        """Write the queued lines and end the thread. Gives up after the timeout, because a destination may hang."""
        thread, self._thread = self._thread, None
        if thread is None:
            return
        deadline = time.monotonic() + timeout_seconds
        try:
            self._lines.put(None, timeout=timeout_seconds)
        except queue.Full:
            return
        thread.join(max(0.0, deadline - time.monotonic()))


class TextFormatter(logging.Formatter):
    """Text: `2026-11-23 09:57:24.904 [INFO][123] typha/hub.py 4711: Message count=3 key="value"`, in UTC.

    Parsers of the original's lines expect a file and a number. Both stay the same from release to release: the file is
    the logger's name as a path, and the number belongs to the message. Fields are sorted by name; structlog's are in
    the record's attribute `fields`, and records of other loggers have none.
    """

    def format(self, record: logging.LogRecord) -> str:
        time = datetime.datetime.fromtimestamp(record.created, datetime.UTC)
        stamp = f"{time:%Y-%m-%d %H:%M:%S}.{time.microsecond // 1000:03d}"
        source = f"{_file(record.name)} {_number(str(record.msg))}"
        head = f"{stamp} [{_level(record)}][{record.process}] {source}: {escaped(_message(record))}"
        return " ".join((head, *(f"{escaped(name)}={_text(value)}" for name, value in _fields(self, record))))


class JsonFormatter(logging.Formatter):
    """JSON: one object with time (RFC 3339, UTC), level, pid, logger, message, and the fields."""

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
    """Escape line ends, control characters and invisible characters, so that a peer cannot forge or hide a line."""
    if text.isprintable() and '"' not in text and "\\" not in text:
        return text
    return "".join(_ESCAPES.get(c) or (c if c.isprintable() else c.encode("unicode_escape").decode()) for c in text)


@functools.lru_cache(maxsize=256)
def _file(logger_name: str) -> str:
    return f"{logger_name.replace('.', '/')}.py"


@functools.lru_cache(maxsize=1024)
def _number(message: str) -> int:
    """1 to 9999, from the message before its arguments are filled in."""
    return zlib.crc32(message.encode(errors="replace")) % 9999 + 1


def _level(record: logging.LogRecord) -> str:
    return _LEVELS.get(record.levelname, record.levelname)


def _message(record: logging.LogRecord) -> str:
    return _cut(record.getMessage(), MESSAGE_LENGTH_LIMIT)


def _fields(formatter: logging.Formatter, record: logging.LogRecord) -> list[tuple[str, Plain]]:
    """The record's fields as (name, value), sorted, limited in length and converted to plain values."""
    given: dict[str, Any] = getattr(record, "fields", {})
    fields = {_cut(str(name), VALUE_LENGTH_LIMIT): _plain(value) for name, value in list(given.items())[:FIELDS_LIMIT]}
    if record.exc_info and record.exc_info[1] is not None:
        fields.setdefault("error", _plain(record.exc_info[1]))
        fields["traceback"] = formatter.formatException(record.exc_info)[-TRACEBACK_LENGTH_LIMIT:]  # the end says most
    return sorted(fields.items())


def _plain(value: Any) -> Plain:
    if value is None or isinstance(value, bool | int):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else str(value)  # JSON has neither NaN nor infinity
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
