"""`python -m loadtest.crash_course`: the crash course on this machine; SHELL=1 of make leaves it running."""

import contextlib
import os
import re
import shutil
import signal
import sys
import tempfile
import time
from pathlib import Path
from types import FrameType
from typing import Final

import click

from loadtest.crash_course import chapters, report, requirements, shell, topology
from loadtest.crash_course.cluster import Cluster
from loadtest.crash_course.course import Course
from loadtest.crash_course.namespaces import Namespaces

_FOLDER: Final = "crash-course"


@click.command()
@click.option("--nodes", default=2, show_default=True, type=click.IntRange(2, topology.MAX_NODES))
@click.option("--report", "path", type=click.Path(dir_okay=False, path_type=Path), help="Write an HTML report here.")
@click.option("--shell", "is_interactive", is_flag=True, help="Leave it running, with a prompt, after the chapters.")
@click.option("--skip-chapters", is_flag=True, help="Only start everything, for --shell.")
@click.option(
    "--control-plane",
    default="simulated",
    show_default=True,
    type=click.Choice(["simulated", "real"]),
    help="The API server; the real one is built by make control-plane.",
)
def main(nodes: int, path: Path | None, is_interactive: bool, skip_chapters: bool, control_plane: str) -> None:
    """Run a network with Calico's roles on this machine, watch it work, break it, and see it heal."""
    if problem := requirements.missing():
        raise click.ClickException(problem)
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, _end)
    _remove_leftovers()
    begin = time.monotonic()
    with (
        tempfile.TemporaryDirectory(prefix=f"{_FOLDER}-{os.getpid()}-") as folder,
        Namespaces("cn") as spaces,
        contextlib.ExitStack() as closing,
    ):
        cluster = Cluster(spaces, Path(folder), nodes=nodes, is_real=control_plane == "real")
        closing.callback(cluster.close)
        closing.callback(_be_undisturbed)
        course = Course(cluster)
        try:
            cluster.start()
            if skip_chapters:
                chapters.start(course)
            else:
                chapters.run(course)
        except Exception as error:
            course.fail(error)
        is_passed = report.summarize(course, time.monotonic() - begin)
        if path is not None:
            path.write_text(report.page(course))
            click.echo(f"report: {path}")
        if not is_passed:
            click.echo(cluster.log_tails())
        if is_interactive:
            shell.run(cluster)
    sys.exit(0 if is_passed else 1)


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


if __name__ == "__main__":
    main()
