"""Tests of `python -m loadtest` as a process."""

import asyncio
import signal
import sys
from pathlib import Path

import pytest
from click import testing

from loadtest import __main__ as command
from loadtest.reporting import measure

SMALL = ("--agents", "20", "--public-agents", "2", "--pods", "20", "--nodes", "2", "--duration", "60")


@pytest.mark.slow
async def test_sigterm_leaves_no_process_behind(tmp_path: Path) -> None:
    arguments = ("-m", "loadtest", "run", "--scenario", "steady", *SMALL, "--folder", str(tmp_path))
    process = await asyncio.create_subprocess_exec(
        sys.executable, *arguments, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT
    )
    assert process.stdout is not None
    async with asyncio.timeout(180):
        assert b"agents" in await process.stdout.readline()
    children = measure.process_tree(process.pid)[1:]
    assert len(children) >= 4, "simulator, service and swarm"
    process.send_signal(signal.SIGTERM)
    async with asyncio.timeout(180):
        await process.communicate()
    assert process.returncode == command.EXIT_TERMINATED
    assert [pid for pid in children if measure.process_tree(pid)] == []


def test_typhas_protocol_needs_one_of_calicos_feeds() -> None:
    arguments = ["run", "--scenario", "steady", "--protocol", "mixed", "--feed", "loadtest"]
    result = testing.CliRunner().invoke(command.main, arguments)
    assert result.exit_code == 2
    assert "Typha's protocol has Calico's feeds alone" in result.output
