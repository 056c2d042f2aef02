"""Logging: formats of lines, escaping, limits, destinations, and a queue that does not block."""

import asyncio
import contextlib
import io
import json
import logging
import pathlib
import re
import sys
import threading
from collections.abc import Iterator
from typing import Any

import pytest
import structlog

from typha import settings
from typha.observability import logs


@pytest.fixture(autouse=True)
def _restored_logging() -> Iterator[None]:
    root = logging.getLogger()
    handlers, level = list(root.handlers), root.level
    yield
    for handler in list(root.handlers):
        root.removeHandler(handler)
    for handler in handlers:
        root.addHandler(handler)
    root.setLevel(level)
    structlog.reset_defaults()


def configured(**changes: Any) -> settings.Settings:
    return settings.Settings(**{"log_file_path": "", "log_severity_sys": "", **changes})


def logged(event: str, *, level: str = "info", using: settings.Settings | None = None, **fields: Any) -> str:
    """The line that is written for an event."""
    screen = io.StringIO()
    pipeline = logs.configure(using or configured(), screen=screen)
    getattr(structlog.get_logger("typha.test"), level)(event, **fields)
    pipeline.close()
    return screen.getvalue()


def test_text_lines() -> None:
    line = logged("Accepted", peer="10.0.0.1", count=3, age=0.25, ok=True, nothing=None)
    assert re.fullmatch(
        r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d\.\d{3} \[INFO\]\[\d+\] typha/test\.py \d+: Accepted "
        r'age=0\.25 count=3 nothing=null ok=true peer="10\.0\.0\.1"\n',
        line,
    )


def test_json_lines() -> None:
    line = logged("Accepted", using=configured(log_format="json"), peer="a\nb", level_="x", pid=7, rate=float("nan"))
    found = json.loads(line)
    assert (found["level"], found["logger"], found["message"], found["peer"]) == (
        "INFO",
        "typha.test",
        "Accepted",
        "a\nb",
    )
    assert found["pid_"] == 7
    assert found["rate"] == "nan"
    assert line.count("\n") == 1


def test_a_peer_cannot_forge_a_line() -> None:
    line = logged("Hello\nfake", name='x" y="z\r\n2026', colour="\x1b[31m", hidden="a\u202eb", unicode="é")
    assert line.count("\n") == 1
    assert 'name="x\\" y=\\"z\\r\\n2026"' in line
    assert "Hello\\nfake" in line
    assert 'colour="\\x1b[31m"' in line
    assert 'hidden="a\\u202eb"' in line
    assert 'unicode="é"' in line


def test_long_messages_and_values_are_cut() -> None:
    line = logged("x" * 10_000, value="y" * 1_000_000, data=b"\x00" * 1_000_000)
    assert len(line) < 10_000
    assert "(1000000 characters)" in line


def test_the_number_of_fields_is_limited() -> None:
    many: dict[str, Any] = {f"field_{i}": i for i in range(200)}
    assert logged("x", **many).count("=") == logs.FIELDS_LIMIT


def test_an_exception_is_one_line_with_its_traceback() -> None:
    screen = io.StringIO()
    pipeline = logs.configure(configured(), screen=screen)
    try:
        raise ValueError("bad")
    except ValueError:
        structlog.get_logger("typha.test").exception("Failed")
    pipeline.close()
    [line] = screen.getvalue().splitlines()
    assert 'error="ValueError: bad"' in line
    assert 'traceback="Traceback (most recent call last):\\n' in line
    assert "[ERROR]" in line


def test_tracebacks_are_logged_at_a_limited_rate() -> None:
    screen = io.StringIO()
    pipeline = logs.configure(configured(), screen=screen)
    for _ in range(100):
        try:
            raise ValueError("bad")
        except ValueError:
            structlog.get_logger("typha.test").exception("Failed")
    pipeline.close()
    lines = screen.getvalue().splitlines()
    assert len(lines) == 100
    assert all('error="ValueError: bad"' in line for line in lines)
    assert sum("traceback=" in line for line in lines) == 20


def test_records_of_other_loggers_have_the_same_format() -> None:
    screen = io.StringIO()
    pipeline = logs.configure(configured(), screen=screen)
    logging.getLogger("asyncio").info("noise")
    logging.getLogger("asyncio").error("task %s failed", "a")
    pipeline.close()
    assert re.search(r"\] asyncio\.py \d+: task a failed\n\Z", screen.getvalue())
    assert "noise" not in screen.getvalue()


def test_severity_of_the_screen() -> None:
    warnings_only = configured(log_severity_screen="WARNING")
    assert logged("Detail", using=warnings_only) == ""
    assert "[WARNING]" in logged("Trouble", level="warning", using=warnings_only)
    assert "[FATAL]" in logged("End", level="critical")
    assert logged("Off", level="critical", using=configured(log_severity_screen="")) == ""


def test_file_and_its_severity(tmp_path: pathlib.Path) -> None:
    path = tmp_path / "deep" / "typha.log"
    using = configured(log_file_path=str(path), log_severity_file="ERROR")
    assert "Detail" in logged("Detail", using=using)
    assert path.read_text() == ""
    logged("Trouble", level="error", using=using)
    assert "Trouble" in path.read_text()


def test_the_file_is_reopened_after_a_rotation(tmp_path: pathlib.Path) -> None:
    path = tmp_path / "typha.log"
    using = configured(log_file_path=str(path))
    logged("First", using=using)
    pipeline = logs.configure(using, screen=io.StringIO())
    path.rename(tmp_path / "typha.log.1")
    structlog.get_logger("typha.test").info("Second")
    pipeline.close()
    assert "Second" in path.read_text()
    assert "Second" not in (tmp_path / "typha.log.1").read_text()


def test_a_file_that_is_set_must_open(tmp_path: pathlib.Path) -> None:
    (tmp_path / "file").touch()
    using = configured(log_file_path=str(tmp_path / "file" / "typha.log"))
    with pytest.raises(settings.ConfigurationError, match=r"^LogFilePath: "):
        logs.configure(using, file_given=True)
    assert "Cannot open the log file, continuing without it" in logged("Hello", using=using)


def test_worker_logs_to_standard_error(capsys: pytest.CaptureFixture[str]) -> None:
    pipeline = logs.configure_worker(configured())
    structlog.get_logger("typha.worker").info("Started")
    pipeline.close()
    assert re.search(r"typha/worker\.py \d+: Started", capsys.readouterr().err)
    assert sys.stdout is not sys.stderr


class StuckStream(io.StringIO):
    """A destination that blocks until `released` is set."""

    def __init__(self) -> None:
        super().__init__()
        self.entered = threading.Event()
        self.released = threading.Event()

    def write(self, text: str) -> int:
        self.entered.set()
        assert self.released.wait(30)
        return super().write(text)


def test_a_stuck_destination_drops_lines_and_does_not_block_the_logger() -> None:
    screen = StuckStream()
    pipeline = logs.configure(configured(), screen=screen)
    log = structlog.get_logger("typha.test")
    before = logs.COUNTERS.dropped
    log.info("Line")
    assert screen.entered.wait(30)
    for _ in range(logs.QUEUE_LINES_LIMIT + 50):
        log.info("Line")
    dropped = logs.COUNTERS.dropped - before
    assert dropped == 50
    screen.released.set()
    while ": After" not in screen.getvalue():
        log.info("After")
    pipeline.close()
    text = screen.getvalue()
    assert re.search(r"typha/logs\.py \d+: Log lines were dropped dropped=", text)
    assert text.index("Log lines were dropped") < text.index("After")


def test_closing_gives_up_on_a_stuck_destination() -> None:
    screen = StuckStream()
    pipeline = logs.configure(configured(), screen=screen)
    structlog.get_logger("typha.test").info("Line")
    assert screen.entered.wait(30)
    pipeline.close(timeout_seconds=0.05)
    screen.released.set()


def test_a_full_disk_costs_lines_and_nothing_else() -> None:
    before = logs.COUNTERS.errors
    pipeline = logs.configure(configured(log_file_path="/dev/full", log_severity_screen=""), file_given=True)
    log = structlog.get_logger("typha.test")
    for _ in range(100):
        log.info("Line")
    pipeline.close()
    assert logs.COUNTERS.errors - before >= 100


def test_the_file_is_not_for_everybody(tmp_path: pathlib.Path) -> None:
    path = tmp_path / "typha.log"
    pipeline = logs.configure(configured(log_file_path=str(path)), file_given=True)
    pipeline.close()
    assert path.stat().st_mode & 0o777 == 0o640


def test_a_line_limit() -> None:
    now = 0.0
    limit = logs.LineLimit(2, seconds=10.0, now=lambda: now)
    assert [limit.allows() for _ in range(5)] == [True, True, False, False, False]
    now = 9.9
    assert not limit.allows()
    now = 10.0
    assert limit.allows()
    assert limit.take_suppressed() == 4
    assert limit.take_suppressed() == 0


async def test_errors_of_the_event_loop_are_logged_at_a_limited_rate() -> None:
    loop = asyncio.get_running_loop()
    before = loop.get_exception_handler()
    logs.limit_loop_errors(loop)
    try:
        with structlog.testing.capture_logs() as lines:
            for _ in range(1000):
                loop.call_exception_handler({"message": "failed", "exception": OSError("no descriptors")})
    finally:
        loop.set_exception_handler(before)
    assert len(lines) == 10
    assert lines[0]["event"] == "failed"


def test_errors_of_a_destination_are_counted() -> None:
    screen = io.StringIO()
    screen.close()
    before = logs.COUNTERS.errors
    pipeline = logs.configure(configured(), screen=screen)
    structlog.get_logger("typha.test").info("Line")
    pipeline.close()
    assert logs.COUNTERS.errors == before + 1


def test_recent_lines_are_bounded_and_quote_no_object() -> None:
    screen = io.StringIO()
    assert logs.recent_lines() == []
    with contextlib.closing(logs.configure(settings.Settings(log_file_path="", log_severity_sys=""), screen=screen)):
        for number in range(logs.RECENT_LINES_MAX + 10):
            structlog.get_logger("typha.worker").info("A line", number=number, detail="of a peer")
        structlog.get_logger("typha.hub").warning("Object cannot be carried", key="/a", detail="S3cretMark")
        structlog.get_logger("typha.worker").info("x" * 10_000)
        lines = logs.recent_lines()
    assert len(lines) == logs.RECENT_LINES_MAX
    assert 'detail="of a peer"' in lines[0]
    assert 'detail="(left out)"' in lines[-2]
    assert max(map(len, lines)) <= 2100
    assert not any("S3cretMark" in line for line in lines)
    assert "S3cretMark" in screen.getvalue()
    assert logs.recent_lines() == []
