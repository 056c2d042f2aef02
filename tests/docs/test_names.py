"""Names of code on pages about the code: each dotted name is a module of this repository, or something in one."""

import ast
import functools
import re
from pathlib import Path

import pytest

from tests.harness.repository import DOCS, ROOT

pytestmark = pytest.mark.slow

PAGES = [DOCS / "architecture.md", *sorted((DOCS / "decisions").glob("*.md"))]
_DOTTED = re.compile(r"`((?:protocol|cache|typha|clients|loadtest|tests)(?:\.\w+)+)`")
_MEMBER = re.compile(r"`([A-Z][a-z]\w*\.\w+)`")
_CONSTANT = re.compile(r"`(_?[A-Z]+_[A-Z_]+)`")
_NOT_OURS = re.compile(r"OP_|TYPHA_|CALICO_|TEST_|TCP_|SOCK_|SO_|EPOLL|MSG_|CONFIG_|TLS_|CATCHING_UP")
"""The system's names, variables of the environment, and a state of the cursor."""


@functools.cache
def modules() -> list[ast.Module]:
    """The sources that pages speak of."""
    folders = ("protocol", "cache", "typha", "clients", "loadtest")
    return [ast.parse(path.read_bytes()) for folder in folders for path in (ROOT / folder).rglob("*.py")]


def is_somewhere(names: list[str]) -> bool:
    """Whether any module defines it."""
    return any(defined(module.body, names) for module in modules())


def defined(body: list[ast.stmt], names: list[str]) -> bool:
    """Whether a module's or class's body defines the first of the names, and that the second, and so on."""
    if not names:
        return True
    for node in body:
        match node:
            case ast.ClassDef(name=name) | ast.FunctionDef(name=name) | ast.AsyncFunctionDef(name=name):
                found, inner = name, node.body
            case ast.Assign(targets=[ast.Name(id=name)]) | ast.AnnAssign(target=ast.Name(id=name)):
                found, inner = name, []
            case _:
                continue
        if found == names[0]:
            return defined(inner, names[1:])
    return False


def exists(dotted: str) -> bool:
    """Whether a dotted name is a package or module, or something that a module defines."""
    names = dotted.split(".")
    for count in range(len(names), 0, -1):
        path = ROOT.joinpath(*names[:count])
        module = path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
        if module.is_file():
            return defined(ast.parse(module.read_bytes()).body, names[count:])
    return False


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_names_on_the_page_exist(page: Path) -> None:
    text = page.read_text("utf-8")
    constants = [name for name in _CONSTANT.findall(text) if not _NOT_OURS.match(name)]
    missing = [name for name in _DOTTED.findall(text) if not exists(name)]
    missing += [name for name in _MEMBER.findall(text) if not is_somewhere(name.split("."))]
    missing += [name for name in constants if not is_somewhere([name])]
    assert missing == []


def test_a_name_is_looked_up_to_its_end() -> None:
    assert exists("cache.state.cursor.Cursor.become_following")
    assert exists("cache.state")
    assert not exists("cache.state.cursor.Cursor.become_nothing")
    assert not exists("cache.state.nothing")
    assert is_somewhere(["Policy", "send_bytes"])
    assert not is_somewhere(["Policy", "nothing"])
