"""The bill of materials is the lock file, name by name and hash by hash."""

import json
import pathlib
import re
import subprocess
import sys
import tomllib
from importlib import metadata
from typing import Any

import pytest

from tests.harness import certificates
from tests.harness.repository import ROOT

LOCK = ROOT / "requirements" / "runtime.txt"
PINNED = re.compile(r"^([a-z0-9._-]+)==(\S+)([^\n]*(?:\n    --hash=\S+(?: \\)?)+)", re.M)


def locked() -> dict[tuple[str, str], set[str]]:
    """Hashes by name and version."""
    return {
        (name, version): set(re.findall(r"--hash=sha256:([0-9a-f]{64})", rest))
        for name, version, rest in PINNED.findall(LOCK.read_text())
    }


def hashes_of(component: dict[str, Any]) -> set[str]:
    references = component.get("externalReferences", [])
    return {one["content"] for part in (component, *references) for one in part.get("hashes", ())}


def test_the_bill_has_what_the_lock_file_has(tmp_path: pathlib.Path) -> None:
    assert len(locked()) == LOCK.read_text().count("==")
    recipe = (ROOT / "Makefile").read_text()
    [arguments] = re.findall(r"cyclonedx-py (requirements .*) --output-file", recipe)
    made = tmp_path / "typha.cdx.json"
    command = [pathlib.Path(sys.executable).with_name("cyclonedx-py"), *arguments.split(), "--output-file", made, LOCK]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
    bill = json.loads(made.read_text())
    assert bill["bomFormat"] == "CycloneDX"
    components = {(one["name"].lower().replace("_", "-"), one["version"]): one for one in bill["components"]}
    assert {key: hashes_of(component) for key, component in components.items()} == locked()
    assert all(component["purl"].startswith("pkg:pypi/") for component in components.values())
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    about = bill["metadata"]["component"]
    assert (about["name"], about["version"]) == (project["name"], project["version"])


@certificates.needs_rustls
def test_the_bill_of_the_native_module_has_locked_crates_only() -> None:
    files = metadata.files("typha-rustls") or []
    [listed] = [file for file in files if file.name.endswith(".cyclonedx.json")]
    crates = tomllib.loads((ROOT / "native" / "Cargo.lock.in").read_text())["package"]
    checksums = {(crate["name"], crate["version"]): crate.get("checksum") for crate in crates}
    bill = json.loads(listed.read_text())
    found = {(one["name"], one["version"]): next(iter(hashes_of(one)), None) for one in bill["components"]}
    assert {name for name, _ in found} >= {"aws-lc-rs", "aws-lc-sys", "pyo3", "rustls", "rustls-webpki", "x509-parser"}
    assert found.items() <= checksums.items()


@pytest.mark.image
def test_the_image_has_the_locked_versions_and_no_others(image: pathlib.Path) -> None:
    installed = {
        tuple(folder.name.removesuffix(".dist-info").rsplit("-", 1))
        for folder in (image / "bundle/rootfs/opt/typha/lib/python3.13/site-packages").glob("*.dist-info")
    }
    found = {(name.lower().replace("_", "-"), version) for name, version in installed}
    only_older_pythons = {name for name in locked() if name[0] == "typing-extensions"}
    assert (
        found - {name for name in found if name[0] in ("typha", "typha-rustls")} == set(locked()) - only_older_pythons
    )
