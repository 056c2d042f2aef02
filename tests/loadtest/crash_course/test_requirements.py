"""What the course asks for before it begins."""

import os
import shutil

import pytest

from loadtest.crash_course import requirements


def test_missing_programs_are_named_by_their_packages(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    monkeypatch.setattr(shutil, "which", lambda program: None if program in ("bird", "birdc", "nft") else "/bin/true")
    assert requirements.missing() == "not installed: bird2, nftables (make packages, or apt-get install)"
    monkeypatch.setattr(shutil, "which", lambda _: "/bin/true")
    assert requirements.missing() == ""


def test_root_is_needed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    assert "root is needed" in requirements.missing()
