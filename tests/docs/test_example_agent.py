"""docs/example_agent.py works as a program of its own."""

import asyncio
import json
import os
import re
import sys
import textwrap
from pathlib import Path

from clients import testing
from tests.harness.repository import ROOT

PODS = "/core/v1/pods/default/"


def pod(address: str) -> bytes:
    return json.dumps({"apiVersion": "v1", "kind": "Pod", "status": {"podIP": address}}).encode()


async def until_it_reads(path: Path, expected: str) -> None:
    async with asyncio.timeout(180):
        while True:
            if path.exists() and path.read_text() == expected:
                return
            await asyncio.sleep(0.02)


async def test_the_example_agent(tmp_path: Path) -> None:
    hosts = tmp_path / "hosts"
    content = {PODS + "a": pod("10.0.0.1"), PODS + "pending": b"{}", "/core/v1/nodes//n1": b"{}"}
    async with testing.Server(feeds={"workloads": content}) as server:
        arguments = [str(ROOT / "docs" / "example_agent.py"), server.address, "workloads", str(hosts)]
        environment = os.environ | {"PYTHONPATH": str(ROOT)}
        agent = await asyncio.create_subprocess_exec(sys.executable, *arguments, env=environment)
        try:
            await until_it_reads(hosts, "10.0.0.1 a.default\n")
            server.put("workloads", PODS + "b", pod("10.0.0.2"))
            await until_it_reads(hosts, "10.0.0.1 a.default\n10.0.0.2 b.default\n")
            server.disconnect_all()
            server.replace("workloads", {PODS + "b": pod("10.0.0.3")})
            await until_it_reads(hosts, "10.0.0.3 b.default\n")
            assert server.hellos[-1].agent == "example-agent"
        finally:
            agent.terminate()
            await agent.wait()


def test_the_example_is_short() -> None:
    assert len((ROOT / "docs" / "example_agent.py").read_text().splitlines()) <= 40


def test_what_the_page_shows_is_python() -> None:
    page = (ROOT / "docs" / "writing-an-agent.md").read_text()
    blocks = [block for block in re.findall(r"(?:^    .*\n|^\n)+", page, re.MULTILINE) if "async " in block]
    assert len(blocks) == 4
    for block in blocks:
        compile("async def shown():\n" + textwrap.indent(textwrap.dedent(block), "    "), "page", "exec")
