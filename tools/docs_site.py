"""MkDocs hook: puts the pages of the root, which stand outside docs/, on the site as pages of their own."""

import os
import pathlib
import re

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT_PAGES = {
    "README.md": "overview.md",
    "CONTRIBUTING.md": "contributing.md",
    "SECURITY.md": "reporting-vulnerabilities.md",
}
"""Name in the repository's root -> name on the site."""
_LINK = re.compile(r"(?<=\]\()([^)#\s:]+)(?=[)#\s])")


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Adds the pages from the repository's root."""
    root = pathlib.Path(config.docs_dir).parent
    for name, on_site in ROOT_PAGES.items():
        files.append(File.generated(config, on_site, content=(root / name).read_text(encoding="utf-8")))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Points each link between docs/ and the repository's root to where its target is on the site."""
    in_root = page.file.src_uri in ROOT_PAGES.values()
    folder = "" if in_root else os.path.join("docs", os.path.dirname(page.file.src_uri))

    def moved(link: re.Match[str]) -> str:
        path = os.path.normpath(os.path.join(folder, link[0]))
        on_site = ROOT_PAGES.get(path) or path.removeprefix("docs/")
        if on_site == path:
            return link[0]  # not a page of the site: MkDocs reports it
        return os.path.relpath(on_site, os.path.dirname(page.file.src_uri) or ".")

    return _LINK.sub(moved, markdown)
