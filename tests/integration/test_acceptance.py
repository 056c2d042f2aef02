"""The acceptance runs at a tenth of their size, without limits on times. `make acceptance` runs them in full size."""

import pathlib
import subprocess
import sys

import pytest

from tests.harness.repository import ROOT

LIMIT_SECONDS = 900
"""The longest part takes about 90 s on two idle cores."""
REAL = [pytest.mark.control_plane, pytest.mark.xdist_group("acceptance")]
"""It has a control plane of its own, and runs beside the tests of the shared one."""


@pytest.mark.slow
@pytest.mark.timeout(LIMIT_SECONDS + 30)
@pytest.mark.parametrize(
    "part", [pytest.param("real", marks=REAL), "crowd", "kill", "hostile-peers", "hostile-api", "starved"]
)
def test_acceptance_at_a_tenth(part: str, tmp_path: pathlib.Path) -> None:
    command = [
        sys.executable,
        "-m",
        "loadtest",
        "acceptance",
        "--scale",
        "0.1",
        "--only",
        part,
        "--folder",
        str(tmp_path),
    ]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=LIMIT_SECONDS, check=False)
    summary = done.stdout.partition("== summary")[2]
    assert done.returncode == 0, done.stdout[-20_000:] + done.stderr[-5_000:]
    assert "PASS" in summary
    assert "FAIL" not in summary
