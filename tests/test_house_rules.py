"""Rules of the house that no linter knows: tests that mirror sources, nothing that belongs to one machine."""

import functools
import os
import re
import subprocess
import tokenize
import tomllib
from pathlib import Path

import pytest

from tests.harness.repository import ROOT

PACKAGES = ("protocol", "cache", "typha", "clients", "loadtest")

# Whole-system stories and tests of the repository itself have no source of their own to mirror.
WITHOUT_A_SOURCE = (
    "tests/integration/",
    "tests/simulation/",
    "tests/docs/",
    "tests/deploy/",
    "tests/fuzz/",
    "tests/test_",
)
SUBJECTS = (
    "browser",
    "cancellation",
    "dictionaries",
    "elected",
    "evaluation",
    "faults",
    "golden",
    "histories",
    "hostile_peers",
    "hostile_worker",
    "metrics",
    "pipeline",
    "projections",
    "refusals",
    "resume",
    "served",
    "silence",
    "slow_clients",
    "subscriptions",
    "update_times",
)
"""Tests that are about more than one module: test_<something>_<subject>.py, or test_<subject>.py."""

# Written in pieces, so that this file does not break its own rules.
FORBIDDEN = {
    "an absolute path of one machine": re.compile(r"/(?:work|root|home)/[a-z.]|/tm" + r"p/bash_jobs"),
    "a package registry's host": re.compile(
        r"(?:py" + r"pi|python" + r"hosted|crates|proxy\.go" + r"lang|npm" + r"js|deb\.deb" + r"ian)\.org|crates\.io"
    ),
    "work left for later": re.compile(r"\b(?:TO" + r"DO|FIX" + r"ME|XX" + r"X)\b"),
    "a silenced checker": re.compile(r"#\s*type:\s*" + r"ignore|pytest\.(?:mark\.)?(?:sk" + r"ip|xf" + r"ail)\b"),
    "a stub": re.compile(r"\bNotImplemented" + r"Error\b"),
}
# go.sum and the locked requirements are generated; hashes may spell anything.
TEXT_SUFFIXES = {
    ".py",
    ".md",
    ".toml",
    ".yaml",
    ".yml",
    ".txt",
    ".sh",
    ".go",
    ".mod",
    ".json",
    ".html",
    ".css",
    ".js",
    ".ini",
    ".cfg",
}


@functools.cache
def tracked_files() -> tuple[Path, ...]:
    """The repository's files: those that git knows, or will know once they are added."""
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    listing = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, check=True).stdout
    paths = sorted(ROOT / name for name in os.fsdecode(listing).split("\0") if name)
    return tuple(path for path in paths if path.is_file())


def sources(*folders: str) -> list[Path]:
    """The Python files below the given top-level folders."""
    return [path for path in tracked_files() if path.suffix == ".py" and path.relative_to(ROOT).parts[0] in folders]


def name(path: Path) -> str:
    """A path as seen from the repository's root."""
    return path.relative_to(ROOT).as_posix()


def test_there_is_something_to_check() -> None:
    for package in PACKAGES:
        assert sources(package), f"no tracked source in {package}/"


def test_every_module_says_what_it_is_for() -> None:
    silent = []
    for path in sources(*PACKAGES, "tests"):
        with tokenize.open(path) as file:
            tokens = tokenize.generate_tokens(file.readline)  # parsing all files whole would take seconds
            first = next(token for token in tokens if token.type not in (tokenize.COMMENT, tokenize.NL))
        if first.type not in (tokenize.STRING, tokenize.ENDMARKER):
            silent.append(name(path))
    assert silent == []


def test_tests_mirror_sources() -> None:
    """tests/<package>/test_<module>.py tests <package>/<module>.py, or the package <package>/<module>/."""
    strays = []
    for path in sources("tests"):
        if not path.name.startswith("test_") or name(path).startswith(WITHOUT_A_SOURCE):
            continue
        if path.stem.endswith(SUBJECTS):
            continue
        source = ROOT / path.parent.relative_to(ROOT / "tests") / path.name.removeprefix("test_")
        dunder = source.with_name(f"__{source.stem}__.py")  # test_main.py is for __main__.py
        if not source.is_file() and not dunder.is_file() and not source.with_suffix("").is_dir():
            strays.append(name(path))
    assert strays == []


@pytest.mark.parametrize("rule", FORBIDDEN)
def test_no_file_contains(rule: str) -> None:
    found = []
    for path in tracked_files():
        if path.suffix not in TEXT_SUFFIXES and path.suffix:
            continue
        for number, line in enumerate(path.read_text(errors="replace").splitlines(), start=1):
            if FORBIDDEN[rule].search(line):
                found.append(f"{name(path)}:{number}: {line.strip()[:80]}")
    assert found == [], f"{rule} in\n" + "\n".join(found)


def test_links_between_documents_lead_somewhere() -> None:
    broken = []
    for path in tracked_files():
        if path.suffix != ".md":
            continue
        for target in re.findall(r"\]\(([^)#\s]+)[^)]*\)", path.read_text()):
            if "://" not in target and not (path.parent / target).exists():
                broken.append(f"{name(path)}: {target}")
    assert broken == []


def test_locked_requirements_hold_every_dependency() -> None:
    """What pyproject.toml asks for is locked, with hashes and without the address of an index."""
    configuration = tomllib.loads((ROOT / "pyproject.toml").read_text())
    project, groups = configuration["project"], configuration["dependency-groups"]
    own = "typha-rustls"  # from native/, and in no registry
    extras = [entry for group in project["optional-dependencies"].values() for entry in group if own not in entry]
    asked = {
        "runtime.txt": project["dependencies"],
        "dev.txt": [*project["dependencies"], *extras, *groups["build"]],
        "build.txt": groups["build"],
        "go.txt": groups["go"],
        "native.txt": groups["native"],
    }
    for file, entries in asked.items():
        text = (ROOT / "requirements" / file).read_text()
        locked = dict(re.findall(r"^([a-z0-9-]+)==(\S+).*\\\n    --hash=sha256:", text, re.MULTILINE))
        names = {re.split(r"[^A-Za-z0-9-]", entry)[0].lower() for entry in entries} - {project["name"]}
        assert names - locked.keys() == set(), f"run `make lock`: not in requirements/{file}"
        assert "://" not in text
        assert "--index" not in text


def test_the_lock_of_the_native_module_holds_every_crate() -> None:
    """With a checksum for each crate of a registry, and without the registry's address: native/lock.sh."""
    packages = tomllib.loads((ROOT / "native" / "Cargo.lock.in").read_text())["package"]
    asked = tomllib.loads((ROOT / "native" / "Cargo.toml").read_text())
    names = {package["name"] for package in packages}
    assert {
        options.get("package", crate) if isinstance(options, dict) else crate
        for crate, options in asked["dependencies"].items()
    } <= names
    assert {package["name"] for package in packages if "checksum" not in package} == {asked["package"]["name"]}
    assert not any("source" in package for package in packages)
