"""The documentation as a site: it builds in strict mode, and a broken link or an unlisted page fails the build."""

import os
import pathlib
import re
import shutil
import subprocess
import sys

import pytest

from tests.harness.repository import DOCS, ROOT

pytestmark = pytest.mark.slow

SOURCES = ("mkdocs.yml", "README.md", "CONTRIBUTING.md", "SECURITY.md", "tools/docs_site.py", "docs")


def copy_sources(folder: pathlib.Path) -> None:
    """What the site is built from, as it stands in the work tree."""
    for name in SOURCES:
        source, target = ROOT / name, folder / name
        target.parent.mkdir(parents=True, exist_ok=True)
        if source.is_dir():
            shutil.copytree(source, target, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(source, target)


def build(folder: pathlib.Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict"],
        cwd=folder,
        env={**os.environ, "NO_MKDOCS_2_WARNING": "1"},
        capture_output=True,
        text=True,
        check=False,
        timeout=180,
    )


def test_the_site_builds_and_links_lead_to_pages(tmp_path: pathlib.Path) -> None:
    copy_sources(tmp_path)
    built = build(tmp_path)
    assert built.returncode == 0, built.stderr
    overview = (tmp_path / "build/docs/overview.html").read_text("utf-8")
    assert 'href="architecture.html"' in overview
    assert 'src="pictures/api-server-load.svg"' in overview
    assert 'class="mermaid"' in (tmp_path / "build/docs/architecture.html").read_text("utf-8")


def test_what_is_broken_or_unlisted_fails(tmp_path: pathlib.Path) -> None:
    copy_sources(tmp_path)
    with (tmp_path / "docs/glossary.md").open("a", encoding="utf-8") as page:
        page.write("\n[gone](gone.md), [no such heading](architecture.md#gone-heading)\n")
    (tmp_path / "docs" / "unlisted.md").write_text("# Unlisted\n", encoding="utf-8")
    with (tmp_path / "README.md").open("a", encoding="utf-8") as page:
        page.write(f"\n[gone]({'docs'}/gone-too.md)\n")
    built = build(tmp_path)
    assert built.returncode != 0
    for culprit in ("gone.md", "gone-heading", "unlisted.md", "gone-too.md"):
        assert culprit in built.stderr, built.stderr


def test_the_list_of_pages_has_every_page() -> None:
    listed = set(re.findall(r"\]\(([^)#]+\.md)\)", (DOCS / "README.md").read_text("utf-8")))
    pages = {path.relative_to(DOCS).as_posix() for path in DOCS.rglob("*.md")} - {"README.md"}
    assert pages <= listed, pages - listed
