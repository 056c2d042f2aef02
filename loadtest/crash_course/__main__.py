"""`python -m loadtest.crash_course`: the crash course on this machine; SHELL=1 of make leaves it running."""

import sys
import time
from pathlib import Path

import click

from loadtest.crash_course import chapters, report, session, shell, topology
from loadtest.crash_course.course import Course


@click.command()
@click.option("--nodes", default=2, show_default=True, type=click.IntRange(2, topology.MAX_NODES))
@click.option("--report", "path", type=click.Path(dir_okay=False, path_type=Path), help="Write an HTML report here.")
@click.option("--shell", "is_interactive", is_flag=True, help="Leave it running, with a prompt, after the chapters.")
@click.option("--skip-chapters", is_flag=True, help="Only start everything, for --shell.")
@session.control_plane_option
def main(nodes: int, path: Path | None, is_interactive: bool, skip_chapters: bool, control_plane: str) -> None:
    """Run a network with Calico's roles on this machine, watch it work, break it, and see it heal."""
    begin = time.monotonic()
    with session.opened(nodes=nodes, control_plane=control_plane) as cluster:
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


if __name__ == "__main__":
    main()
