"""docs/data-model.md: its examples are what `typha convert` prints, and its table names the kinds of the feeds."""

import pathlib
import re
from collections.abc import Callable
from typing import NamedTuple

import pytest

from cache.feeds.calico import syncers
from tests.harness import repository
from typha.cli import main

PAGE = repository.DOCS / "data-model.md"
WITHOUT_BUILT_IN = " | grep -v default-allow"
DOT = "●"


class Example(NamedTuple):
    """Objects on the page, a command, and its output."""

    objects: str
    command: str
    printed: str


EXAMPLES = [
    Example(*found.groups())
    for found in re.finditer(
        r"^```yaml\n(.*?)^```\n\n```console\n\$ typha (.*?)\n(.*?)^```$", PAGE.read_text("utf-8"), re.M | re.S
    )
]
Kinds = set[tuple[str, str, str]]


def test_the_page_has_its_examples() -> None:
    assert len(EXAMPLES) == 6
    assert PAGE.read_text("utf-8").count("$ typha convert ") == 6
    kinds = {re.findall(r"^kind: (\w+)$", example.objects, re.M)[0] for example in EXAMPLES}
    assert kinds == {"IPPool", "BGPConfiguration", "FelixConfiguration", "NetworkPolicy"}


@pytest.mark.parametrize("example", EXAMPLES, ids=[f"{number}" for number in range(len(EXAMPLES))])
def test_an_example_is_what_convert_prints(
    example: Example, tmp_path: pathlib.Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("CALICO_API_GROUP", raising=False)
    monkeypatch.chdir(tmp_path)
    command = example.command.removesuffix(WITHOUT_BUILT_IN)
    *arguments, name = command.split()
    pathlib.Path(name).write_text(example.objects, encoding="utf-8")
    main.run([*arguments, name])
    captured = capfd.readouterr()
    lines = captured.out.splitlines()
    if command != example.command:
        lines = [line for line in lines if "default-allow" not in line]
    assert [*lines, *captured.err.splitlines()] == example.printed.splitlines()


def on_the_page(row: Callable[[list[str]], Kinds]) -> Kinds:
    table = PAGE.read_text("utf-8").partition("| object | API |")[2].partition("\n\n")[0]
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in table.splitlines()[2:]]
    return set().union(*map(row, rows))


@pytest.mark.parametrize("group", syncers.Group)
def test_the_table_has_each_kind_of_each_feed(group: syncers.Group) -> None:
    def row(cells: list[str]) -> Kinds:
        kind, api, *dots, _ = cells
        return {(feed, kind, api.strip("`")) for feed, dot in zip(syncers.NAMES, dots, strict=True) if dot == DOT}

    def api(source: syncers.Source) -> str:
        if source.type.group == group.group:
            return "Calico"
        return f"{source.type.group}/{source.type.version}".lstrip("/")

    assert on_the_page(row) == {
        (spec.name, source.kind, api(source)) for spec in syncers.specs(group) for source in spec.sources
    }
