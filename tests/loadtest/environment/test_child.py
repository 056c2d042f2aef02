"""Tests of loadtest.environment.child, with real subprocesses."""

import asyncio
import sys
from pathlib import Path

import pytest

from loadtest.environment import child


class Script(child.Child):
    """A Python script that prints a ready line."""

    def __init__(self, folder: Path, code: str, *, has_input: bool = False) -> None:
        super().__init__("script", folder / "script.log")
        self._code = code
        self._has_input = has_input
        self.ready: dict[str, object] = {}

    async def start(self) -> None:
        options = {"stdin": asyncio.subprocess.PIPE} if self._has_input else {}
        await self._spawn([sys.executable, "-c", self._code], stdout=asyncio.subprocess.PIPE, **options)
        self.ready = await self._read_ready_line()


async def test_a_script_that_fails_is_reported_with_its_log(tmp_path: Path) -> None:
    with pytest.raises(child.ProcessError, match=r"script ended with status 3(?s:.*)no such luck"):
        async with Script(tmp_path, "import sys; print('no such luck', file=sys.stderr); sys.exit(3)"):
            pass


@pytest.mark.parametrize(("wait", "has_input"), [("sys.stdin.read()", True), ("signal.pause()", False)])
async def test_it_ends_when_its_input_closes_or_at_sigterm(tmp_path: Path, wait: str, has_input: bool) -> None:
    code = f"import signal, sys; print('{{\"port\": 7}}', flush=True); {wait}"
    script = Script(tmp_path, code, has_input=has_input)
    async with script:
        assert script.ready == {"port": 7}
        script.check()
        process = script.process
    assert process.returncode == (0 if has_input else -15)
    with pytest.raises(child.ProcessError, match="does not run"):
        _ = script.pid


async def test_one_that_ignores_sigterm_is_killed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(child, "STOP_TIMEOUT_SECONDS", 0.1)
    code = "import signal; signal.signal(15, signal.SIG_IGN); print('{}', flush=True); signal.pause()"
    async with Script(tmp_path, code) as script:
        process = script.process
    assert process.returncode == -9
