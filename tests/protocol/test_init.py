"""The public names: they exist, the documentation lists them, its example runs, and importing them is cheap."""

import ast
import asyncio
import os
import re
import subprocess
import sys
import textwrap

import pytest

import protocol
from clients import testing
from tests.harness.repository import ROOT


def test_every_public_name_exists_and_is_documented() -> None:
    assert [name for name in protocol.__all__ if getattr(protocol, name) is None] == []
    assert set(re.findall(r"`(\w+)`", protocol.__doc__ or "")) >= set(protocol.__all__)


def test_another_name_does_not_exist() -> None:
    name = "Connexion"
    with pytest.raises(AttributeError, match="'protocol' has no attribute 'Connexion'"):
        getattr(protocol, name)


def test_all_other_modules_say_that_they_are_internal() -> None:
    texts = {
        path.relative_to(ROOT).as_posix(): ast.get_docstring(ast.parse(path.read_text())) or ""
        for path in (ROOT / "protocol").rglob("*.py")
    }
    public = {path for path, text in texts.items() if not text.startswith("Internal: ")}
    assert public == {"protocol/__init__.py", "protocol/messages.py"}


def test_messages_do_not_load_the_compression_libraries() -> None:
    program = "import sys; import protocol; protocol.messages.Ping(); print(*sys.modules)"
    result = subprocess.run(
        [sys.executable, "-c", program],
        capture_output=True,
        text=True,
        check=True,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
    )
    assert not {"msgpack", "zstandard", "cramjam", "google_crc32c"} & set(result.stdout.split())


async def test_the_example_runs() -> None:
    [example] = re.findall(r"::\n\n((?:    .*\n|\n)+)", protocol.__doc__ or "")
    async with testing.Server(feeds={"workloads": {"/a": b"1"}}, chunks=1) as server:
        host, port = server.address.split(":")
        program = textwrap.dedent(example).replace('("localhost", 5473)', f'("{host}", {port})')
        assert host in program
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-u", "-c", program),
            stdout=asyncio.subprocess.PIPE,
            env=os.environ | {"PYTHONPATH": str(ROOT)},
        )
        assert process.stdout is not None
        async with asyncio.timeout(180):
            lines = [(await process.stdout.readline()).decode().split("(")[0] for _ in range(5)]
            server.goodbye()
            rest, _ = await process.communicate()
    assert lines == ["ServerHello", "SnapshotBegin", "SnapshotChunk", "SnapshotEnd", "Status"]
    assert rest.decode().splitlines()[-1].startswith("Goodbye(")
    assert process.returncode == 0
