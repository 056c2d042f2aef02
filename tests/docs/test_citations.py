"""Citations in sources and pages: the page is there, and has the section, rule or heading that is named.

The form is `docs/data-model.md, section 5.3`, `..., sections 5.6 and 5.8`, `..., rule 4` of a list below "Rules", or
`..., "Heading"` for a page without numbers. Pages cite each other by links: `[text](data-model.md), section 5.3`.
"""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.harness.repository import DOCS, ROOT
from tests.test_house_rules import tracked_files

_NUMBER = r"\d+(?:\.\d+)*"
_SEVERAL = rf"(?P<kinds>section|rule)s (?P<more>{_NUMBER}(?:(?:,| and) {_NUMBER})+)"
_PLACE = rf',? (?:(?P<kind>section|rule) (?P<one>{_NUMBER})|{_SEVERAL}|"(?P<heading>[^"]+)")'
_IN_TEXT = re.compile(rf"(?<![\w/.-])(?P<page>docs/[\w/-]+\.md|[A-Z]+\.md)(?:{_PLACE})?")
_IN_LINK = re.compile(rf"\]\((?P<page>[^)#:\s]+\.md)\)(?:{_PLACE})?")
_UNRESOLVED = re.compile(r"(?<![\w/-])(?:datamodel|parity|wire)(?:\.md)?,? sections?\b|\bspec of the wire\b|\(design, ")
"""Citations of texts that are not in this repository."""


class Citation(NamedTuple):
    """What a text cites, and where."""

    where: str
    page: Path
    kind: str
    names: tuple[str, ...]


def readable(path: Path) -> str:
    """A file's text with comments and line ends out of the way, so that a citation may go over two lines."""
    text = path.read_text("utf-8")
    return re.sub(r"\s*\n\s*(?:#:? )?", " ", text) if path.suffix == ".py" else re.sub(r"(?<!\n)\n(?!\n)", " ", text)


def citations(path: Path) -> Iterator[Citation]:
    text = readable(path)
    name = path.relative_to(ROOT).as_posix()
    found = [(match, ROOT) for match in _IN_TEXT.finditer(text)]
    if path.suffix == ".md":
        found += [(match, path.parent) for match in _IN_LINK.finditer(text)]
    for match, folder in found:
        kind, names = place(match)
        yield Citation(f"{name}: {match[0][:80]}", (folder / match["page"]).resolve(), kind, names)


def place(match: re.Match[str]) -> tuple[str, tuple[str, ...]]:
    """What of the page is cited: a kind, and the numbers or the heading."""
    if match["heading"]:
        return "heading", (match["heading"],)
    return match["kind"] or match["kinds"] or "", tuple(re.findall(_NUMBER, match["one"] or match["more"] or ""))


def has(page: str, kind: str, name: str) -> bool:
    """Whether a page has what is cited."""
    if kind == "section":
        return re.search(rf"^#+ {re.escape(name)}\.? ", page, re.M) is not None
    if kind == "rule":
        rules = page.partition("\n## Rules")[2].partition("\n## ")[0]
        return re.search(rf"^{re.escape(name)}\. ", rules, re.M) is not None
    return re.search(rf"^#+ (?:\d[\d.]* )?{re.escape(name)}$|^\*\*{re.escape(name)}\*\*", page, re.M) is not None


def sources() -> list[Path]:
    own = Path(__file__)
    return [path for path in tracked_files() if path.suffix in {".py", ".md"} and path != own]


def test_every_citation_leads_to_its_section() -> None:
    broken = []
    count = 0
    for citation in (one for path in sources() for one in citations(path)):
        count += 1
        if not citation.page.is_file():
            broken.append(f"{citation.where}: no such page")
            continue
        page = citation.page.read_text("utf-8")
        broken += [
            f"{citation.where}: no {citation.kind} {one}" for one in citation.names if not has(page, citation.kind, one)
        ]
    assert broken == [], "\n".join(broken)
    assert count > 100


def test_nothing_cites_what_a_reader_does_not_have() -> None:
    found = [
        f"{path.relative_to(ROOT)}: {match[0]}" for path in sources() for match in _UNRESOLVED.finditer(readable(path))
    ]
    assert found == [], "\n".join(found)


def test_a_numbered_page_has_each_section_that_it_names() -> None:
    broken = []
    for path in DOCS.rglob("*.md"):
        page = path.read_text("utf-8")
        if not re.search(r"^## 1\. ", page, re.M):
            continue
        own = re.sub(r"\]\([^)]+\),? sections? [\d., and]+", "", re.sub(r"(?<!\n)\n(?!\n)", " ", page))
        for match in re.finditer(r"(?<![\w.md,] )\bsections? (\d+(?:\.\d+)*)(?: and (\d+(?:\.\d+)*))?", own):
            broken += [f"{path.name}: section {one}" for one in match.groups() if one and not has(page, "section", one)]
    assert broken == []


@pytest.mark.parametrize(
    ("text", "kind", "names"),
    [
        ("docs/data-model.md, section 5.13). Pure.", "section", ("5.13",)),
        ("docs/data-model.md, sections 5.5, 5.8 and 5.9). Pure.", "section", ("5.5", "5.8", "5.9")),
        ("docs/architecture.md, rule 4.", "rule", ("4",)),
        ('docs/protocol.md, "Frames").', "heading", ("Frames",)),
        ("docs/metrics.md is generated", "", ()),
    ],
)
def test_the_forms_of_a_citation(text: str, kind: str, names: tuple[str, ...]) -> None:
    match = _IN_TEXT.search(text)
    assert match is not None
    assert place(match) == (kind, names)
