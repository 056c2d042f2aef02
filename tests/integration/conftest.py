"""Fixtures of the integration tests: the peer written in Go."""

import shutil
import subprocess

import pytest

from tests.harness import repository

GOBPEER = repository.ROOT / "tools" / "gobpeer"
_left_out = pytest.StashKey[int]()


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Deselect the tests that need Go if Go is not installed."""
    if shutil.which("go") is not None:
        return
    left_out = [item for item in items if item.get_closest_marker("go")]
    items[:] = [item for item in items if not item.get_closest_marker("go")]
    config.hook.pytest_deselected(items=left_out)
    config.stash[_left_out] = len(left_out)


def pytest_report_collectionfinish(config: pytest.Config) -> list[str]:
    """Report the deselected tests."""
    count = config.stash.get(_left_out, 0)
    return [f"{count} tests deselected: they need Go, which is not in PATH"] if count else []


@pytest.fixture(scope="session")
def gobpeer() -> str:
    """The path of the Go program. It is built once per session, outside the repository."""
    built = subprocess.run([GOBPEER / "build.sh"], stdout=subprocess.PIPE, text=True, check=True)
    return built.stdout.strip()
