"""A cluster for the time of a `with` block, which removes everything at its end, also after Ctrl-C and SIGTERM."""

import contextlib
import os
import re
import shutil
import signal
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from types import FrameType
from typing import Final

import click

from loadtest.crash_course import requirements
from loadtest.crash_course.cluster import Cluster
from loadtest.crash_course.namespaces import Namespaces

_FOLDER: Final = "crash-course"

control_plane_option = click.option(
    "--control-plane",
    default="simulated",
    show_default=True,
    type=click.Choice(["simulated", "real"]),
    help="The API server; the real one is built by make control-plane.",
)


@contextlib.contextmanager
def opened(*, nodes: int, control_plane: str, replicas: int = 1) -> Iterator[Cluster]:
    """A cluster of which nothing runs yet. Raises ClickException if the machine lacks something."""
    if problem := requirements.missing():
        raise click.ClickException(problem)
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, _end)
    with (
        tempfile.TemporaryDirectory(prefix=f"{_FOLDER}-{os.getpid()}-") as folder,
        Namespaces("cn") as spaces,
        contextlib.ExitStack() as closing,
    ):
        _remove_leftovers()  # after the namespaces, whose processes write to those folders
        cluster = Cluster(spaces, Path(folder), nodes=nodes, is_real=control_plane == "real", replicas=replicas)
        closing.callback(cluster.close)
        closing.callback(_be_undisturbed)
        yield cluster


def _end(number: int, frame: FrameType | None) -> None:
    """SIGTERM and a closed terminal end the course as Ctrl-C does: everything is removed."""
    sys.exit(128 + number)


def _be_undisturbed() -> None:
    """Another Ctrl-C must not end the removal."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)


def _remove_leftovers() -> None:
    """Remove the folders of own courses that were killed."""
    for path in Path(tempfile.gettempdir()).glob(f"{_FOLDER}-*"):
        found = re.match(rf"{_FOLDER}-(\d+)-", path.name)
        if found and not Path("/proc", found[1]).exists() and path.lstat().st_uid == os.geteuid():
            shutil.rmtree(path, ignore_errors=True)
