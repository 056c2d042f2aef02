"""Logging: one line per event, written by a thread of its own; a full queue drops lines and counts them.

The text format is the original's: `2026-11-23 09:57:24.904 [INFO][123] typha.hub: Message key="value"`, fields sorted.
Everything that may come from a peer is escaped and cut, so that a line is a line.
"""

import logging
import logging.handlers
import os
import queue
import sys
import time
from typing import IO, Any

import structlog

from typha import settings
from typha.observability.log_format import JsonFormatter, TextFormatter

QUEUE_LINES_LIMIT = 1000
"""Ten times the original's; at most some 10 MB."""

_STOP_TIMEOUT_SECONDS = 2.0
_SYSLOG_SOCKET = "/dev/log"
_SYSLOG_TAG = "calico-typha: "
_QUIET_LOGGERS = ("asyncio", "aiohttp", "kubernetes_asyncio", "concurrent")


class Counters:
    """Lines that could not be written, and lines dropped because the queue was full."""

    __slots__ = ("dropped", "errors")

    def __init__(self) -> None:
        self.errors = 0
        self.dropped = 0


COUNTERS = Counters()
"""Logging is one per process, and so are its counters."""


class LogPipeline:
    """Root handler, queue, writing thread and destinations; `close` writes what is queued (at most 2 s)."""

    def __init__(
        self, handlers: list[logging.Handler], formatter: logging.Formatter, *, level: int, wait: bool
    ) -> None:
        lines: queue.Queue[Any] = queue.Queue(QUEUE_LINES_LIMIT)
        self._handlers = handlers
        self._head = _BoundedHandler(lines, formatter, wait=wait)
        self._listener = _Listener(lines, handlers)
        self._level = level

    def start(self) -> None:
        """Take the place of the root logger's handlers."""
        root = logging.getLogger()
        for handler in list(root.handlers):
            root.removeHandler(handler)
        root.addHandler(self._head)
        root.setLevel(self._level)
        for name in _QUIET_LOGGERS:  # what libraries have to say at INFO is theirs
            logging.getLogger(name).setLevel(max(self._level, logging.WARNING))
        self._listener.start()

    def close(self) -> None:
        """Stop taking lines, write what is queued, and close the destinations."""
        logging.getLogger().removeHandler(self._head)
        self._listener.stop()
        for handler in self._handlers:
            handler.close()


def configure(configured: settings.Settings, *, file_given: bool = False, screen: IO[str] | None = None) -> LogPipeline:
    """Set up logging of the process, for structlog and the standard library's loggers alike.

    Args:
        file_given: LogFilePath was set by somebody, so that it must open; the default path need not.
        screen: where the screen's lines go; standard output if None.

    Raises:
        settings.ConfigurationError: the given log file cannot be opened.
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
    """Set up logging of a worker process: as the hub's, the screen being the standard error that it inherits."""
    return configure(configured, screen=sys.stderr)


def _start(handlers: list[logging.Handler], log_format: str, *, wait: bool) -> LogPipeline:
    level = min((handler.level for handler in handlers), default=logging.CRITICAL)
    pipeline = LogPipeline(
        handlers, JsonFormatter() if log_format == "json" else TextFormatter(), level=level, wait=wait
    )
    _configure_structlog(level)
    pipeline.start()
    return pipeline


def _configure_structlog(level: int) -> None:
    structlog.configure(
        processors=[structlog.contextvars.merge_contextvars, _to_record],
        wrapper_class=structlog.make_filtering_bound_logger(level),
        logger_factory=structlog.stdlib.LoggerFactory(),
        cache_logger_on_first_use=False,
    )


def _to_record(_logger: Any, _method: str, event: structlog.typing.EventDict) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """structlog's event as arguments of a standard logger: the formatters find the fields in the record."""
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
        problems.append(settings.Notice("warning", "Log file cannot be opened, going on without", fields))
        return None


def _open_syslog(problems: list[settings.Notice]) -> logging.Handler | None:
    try:
        handler = _SysLogHandler(_SYSLOG_SOCKET, logging.handlers.SysLogHandler.LOG_USER)
    except OSError as error:
        fields = {"path": _SYSLOG_SOCKET, "error": error.strerror}
        problems.append(settings.Notice("warning", "Syslog cannot be reached, going on without", fields))
        return None
    handler.ident = _SYSLOG_TAG
    return handler


class _Counting(logging.Handler):
    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802 (the base's name)
        COUNTERS.errors += 1


class _StreamHandler(_Counting, logging.StreamHandler[IO[str]]):
    pass


class _FileHandler(_Counting, logging.handlers.WatchedFileHandler):
    def emit(self, record: logging.LogRecord) -> None:
        try:
            super().emit(record)
        except OSError:  # opening anew after a rotation failed; the base lets this one through
            self.handleError(record)


class _SysLogHandler(_Counting, logging.handlers.SysLogHandler):
    pass


class _BoundedHandler(_Counting, logging.handlers.QueueHandler):
    """Formats and queues lines; full means dropped, said by one line once there is room again."""

    def __init__(self, lines: queue.Queue[Any], formatter: logging.Formatter, *, wait: bool) -> None:
        super().__init__(lines)
        self._lines = lines
        self._wait = wait
        self._unreported = 0
        self.setFormatter(formatter)

    def emit(self, record: logging.LogRecord) -> None:
        if self._lines.full() and not self._wait:  # before formatting: a storm of lines must cost nothing
            COUNTERS.dropped += 1
            self._unreported += 1
            return
        if self._unreported:
            dropped, self._unreported = self._unreported, 0
            report = logging.LogRecord(
                "typha.observability.logs", logging.WARNING, "", 0, "Log lines were dropped", None, None
            )
            report.fields = {"dropped": dropped}
            super().emit(report)
        super().emit(record)

    def prepare(self, record: logging.LogRecord) -> logging.LogRecord:
        # A record of its own, holding nothing but the line: what it was made of may change or be freed.
        return logging.LogRecord(record.name, record.levelno, "", 0, self.format(record), None, None)

    def enqueue(self, record: logging.LogRecord) -> None:
        if self._wait:
            self._lines.put(record)
            return
        try:
            self._lines.put_nowait(record)
        except queue.Full:
            COUNTERS.dropped += 1
            self._unreported += 1


class _Listener(logging.handlers.QueueListener):
    """The writing thread; stopping never waits for longer than two seconds, even if a destination hangs."""

    def __init__(self, lines: queue.Queue[Any], handlers: list[logging.Handler]) -> None:
        super().__init__(lines, *handlers, respect_handler_level=True)
        self._lines = lines

    def stop(self) -> None:
        thread, self._thread = self._thread, None
        if thread is None:
            return
        deadline = time.monotonic() + _STOP_TIMEOUT_SECONDS
        try:
            self._lines.put(None, timeout=_STOP_TIMEOUT_SECONDS)
        except queue.Full:
            return
        thread.join(max(0.0, deadline - time.monotonic()))
