"""Checks that all locked dependencies of the service have wheels, with locked hashes, for the image's architectures.

Asks the package index, so it is not part of the tests: `make wheels`. Nothing is installed. The exit code is 1 if an
architecture of `REQUIRED` lacks a wheel; the others are only reported.
"""

import concurrent.futures
import json
import pathlib
import re
import subprocess
import sys
from typing import Final

ROOT: Final = pathlib.Path(__file__).resolve().parents[1]
PYTHONS: Final = ("3.12", "3.13")
"""The image's, and the one before, of images that others make."""
REQUIRED: Final = ("x86_64", "aarch64")
OTHERS: Final = ("ppc64le", "s390x")
"""Calico has images for them, and this service has not."""
MANYLINUX: Final = ("manylinux2014", *(f"manylinux_2_{minor}" for minor in range(17, 42)))
"""Up to the C library of Debian 13."""
LINE: Final = re.compile(r"^([A-Za-z0-9._-]+)==(\S+)( ;.*)? \\$", re.M)


def missing(lock: pathlib.Path, python: str, architecture: str) -> list[str]:
    """The packages of a lock file that have no locked wheel, with the reason."""
    text = lock.read_text()
    locked = set(re.findall(r"--hash=sha256:([0-9a-f]{64})", text))
    found = []
    for name, version, _ in LINE.findall(text):
        command = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--dry-run"]
        command += ["--ignore-installed", "--no-deps", "--only-binary=:all:", "--report=-", "--target=/nowhere"]
        command += [f"--python-version={python}", "--implementation=cp", f"--abi=cp{python.replace('.', '')}"]
        command += ["--abi=abi3", "--abi=none", *(f"--platform={tag}_{architecture}" for tag in MANYLINUX)]
        result = subprocess.run([*command, f"{name}=={version}"], capture_output=True, text=True, check=False)
        if result.returncode != 0:
            found.append(f"{name} {version}: no wheel")
            continue
        [entry] = json.loads(result.stdout)["install"]
        if entry["download_info"]["archive_info"]["hashes"]["sha256"] not in locked:
            found.append(f"{name} {version}: a wheel that is not locked")
    return found


def main() -> int:
    """Print a table; return the exit code."""
    lock = ROOT / "requirements" / "runtime.txt"
    wanted = [(python, architecture) for architecture in (*REQUIRED, *OTHERS) for python in PYTHONS]
    with concurrent.futures.ThreadPoolExecutor(2) as pool:
        results = list(pool.map(lambda one: missing(lock, *one), wanted))
    for (python, architecture), lacking in zip(wanted, results, strict=True):
        sys.stdout.write(f"{architecture:8} {python}: {', '.join(lacking) or 'all wheels'}\n")
    return int(
        any(lacking for (_, architecture), lacking in zip(wanted, results, strict=True) if architecture in REQUIRED)
    )


if __name__ == "__main__":
    sys.exit(main())
