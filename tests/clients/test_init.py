"""The public names: the documentation lists them all, its examples run, and the docs use nothing else."""

import ast
import asyncio
import contextlib
import os
import re
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path

import pytest

import clients
from clients import testing
from tests.harness.repository import ROOT

PUBLIC = {"clients": set(clients.__all__) | {"testing"}, "clients.testing": set(testing.__all__)}
FEEDS = {"workloads": {"/core/v1/pods/default/web-1": b"ready"}}
EXAMPLES = re.findall(r"::\n\n((?:    .*\n|\n)+)", clients.__doc__ or "")


def test_the_guide_names_every_public_name() -> None:
    assert set(re.findall(r"`(\w+)`", clients.__doc__ or "")) >= set(clients.__all__)


def test_every_public_name_has_a_docstring() -> None:
    values = {name for name in clients.__all__ if name.isupper()} | {"Event", "OnChange", "OnEvent"}
    assert [name for name in clients.__all__ if name not in values and not getattr(clients, name).__doc__] == []


def test_all_other_modules_say_that_they_are_internal() -> None:
    modules = {path.stem: ast.get_docstring(ast.parse(path.read_text())) for path in (ROOT / "clients").glob("*.py")}
    public = {stem for stem, text in modules.items() if not (text or "").startswith("Internal: ")}
    assert public == {"__init__", "testing"}


def test_an_agent_does_not_import_the_test_server() -> None:
    assert "testing" not in clients.__all__
    assert "import testing" not in Path(clients.__file__).read_text()


@pytest.mark.parametrize(
    ("example", "expected"),
    list(
        zip(
            EXAMPLES,
            [
                "1 keys\n/core/v1/pods/default/web-1 b'ready'\n",
                "/core/v1/pods/default/web-1 b'ready'\nstatus: in-sync\n",
            ],
            strict=True,
        )
    ),
    ids=["mirror", "follow"],
)
async def test_an_example_runs(example: str, expected: str) -> None:
    async with testing.Server(feeds=FEEDS) as server:
        program = textwrap.dedent(example).replace("localhost:5473", server.address)
        assert server.address in program
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-u", "-c", program),
            stdout=asyncio.subprocess.PIPE,
            env=os.environ | {"PYTHONPATH": str(ROOT)},
        )
        try:
            assert process.stdout is not None
            async with asyncio.timeout(180):
                output = await process.stdout.readexactly(len(expected))
        finally:
            with contextlib.suppress(ProcessLookupError):
                process.kill()
            await process.communicate()
    assert output.decode() == expected


# The docs.


def imported_names(source: str) -> Iterator[tuple[str, str]]:
    """(module, name) of each import from this project, and of each attribute of an imported module."""
    tree = ast.parse(source)
    modules = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] in ("clients", "protocol"):
            for alias in node.names:
                yield str(node.module), alias.name
                modules[alias.asname or alias.name] = f"{node.module}.{alias.name}"
        elif isinstance(node, ast.Import):
            modules |= {alias.asname or alias.name: alias.name for alias in node.names}
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            module = modules.get(node.value.id, "")
            if module.split(".")[0] in ("clients", "protocol"):
                yield module, node.attr


def internal_names(source: str) -> list[tuple[str, str]]:
    return [(module, name) for module, name in imported_names(source) if name not in PUBLIC.get(module, set())]


def test_internal_names_are_found() -> None:
    program = (
        "import clients\nfrom clients import Mirror, mirror, testing\nclients.errors\nclients.follow\ntesting._Peer"
    )
    assert internal_names(program) == [("clients", "mirror"), ("clients", "errors"), ("clients.testing", "_Peer")]


def test_the_example_agent_uses_only_public_names() -> None:
    source = (ROOT / "docs" / "example_agent.py").read_text()
    assert ("clients", "Mirror") in imported_names(source)
    assert internal_names(source) == []


def test_the_page_uses_only_public_names() -> None:
    page = (ROOT / "docs" / "writing-an-agent.md").read_text()
    blocks = re.findall(r"(?:^    .*\n|^\n)+", page, re.MULTILINE) + re.findall(
        r"^```python\n(.*?)^```", page, re.M | re.S
    )
    used = set()
    for block in blocks:
        if "async " in block:
            program = "async def shown():\n" + textwrap.indent(textwrap.dedent(block), "    ")
            assert internal_names(program) == []
            used |= {node.id for node in ast.walk(ast.parse(program)) if isinstance(node, ast.Name)}
    assert used >= {"Mirror", "follow", "Batch", "StatusChanged", "Disconnected"}
    internal = {path.stem for path in (ROOT / "clients").glob("*.py")} - {"__init__", "testing"}
    assert re.findall(rf"\b(?:clients\.)?(?:{'|'.join(internal)})\.[A-Z]\w+", page) == []
    assert re.findall(rf"`clients\.(?!testing\b|{'|'.join(clients.__all__)})\w+", page) == []
