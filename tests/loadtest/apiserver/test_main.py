"""Tests of the simulator as a process."""

import asyncio
import json
import signal
import sys
from pathlib import Path

import aiohttp
from click.testing import CliRunner

from loadtest.apiserver.__main__ import main
from tests.harness.apiserver_client import Api


async def test_it_prints_its_address_serves_and_ends_at_sigterm(tmp_path: Path) -> None:
    script = tmp_path / "faults.json"
    script.write_text('{"kind": "error", "code": 500, "verb": "GET"}')
    arguments = ["--nodes", "3", "--pods", "20", "--services", "2", "--widgets", "1", "--churn", "50"]
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "loadtest.apiserver", *arguments, "--faults", str(script), stdout=asyncio.subprocess.PIPE
    )
    assert process.stdout is not None
    async with asyncio.timeout(180):
        ready = json.loads(await process.stdout.readline())
        assert ready["objects"]["core/v1/nodes"] == 3
        async with aiohttp.ClientSession() as session:
            api = Api(session, ready["url"])
            pages = await api.pages("/api/v1/pods", limit=7)
            assert len(pages) >= 2
            async with api.watch("/api/v1/pods", resourceVersion=pages[0]["metadata"]["resourceVersion"]) as watch:
                await watch.event()
                process.send_signal(signal.SIGTERM)
                assert await process.wait() == 0
        assert await process.stdout.read() == b""


def test_a_broken_script_is_refused(tmp_path: Path) -> None:
    script = tmp_path / "faults.json"
    script.write_text('{"kind": "dragon"}')
    result = CliRunner().invoke(main, ["--faults", str(script)])
    assert result.exit_code == 2
    assert "--faults" in result.output
