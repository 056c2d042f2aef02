"""The course's narrator: chapters of steps. Each step shows a command with its output, and checks it."""

import dataclasses
import functools
import sys
import time
from collections.abc import Callable
from typing import Final

import click

from loadtest.crash_course.cluster import TYPHA, Cluster
from loadtest.crash_course.namespaces import CommandFailed

MAX_SHOWN_LINES: Final = 24
"""Longer outputs are cut on the terminal and in the report."""


@dataclasses.dataclass(frozen=True)
class Step:
    """What one step has shown."""

    chapter: str
    title: str
    command: str
    output: str
    is_passed: bool
    checked: str
    """What had to hold, or why it does not."""
    seconds: float


@dataclasses.dataclass(frozen=True)
class Note:
    """Text between the steps; a correction says what the course's text has wrong."""

    chapter: str
    text: str
    is_correction: bool = False


class Course:
    """A run of the course; `record` is what the report shows."""

    def __init__(self, cluster: Cluster) -> None:
        self.cluster = cluster
        self.record: list[Step | Note] = []
        self.matrices: dict[str, dict[tuple[str, str], bool]] = {}
        """Verdicts of connections, from and to, by the moment that the matrix shows."""
        self._chapter = ""

    @property
    def steps(self) -> list[Step]:
        """The steps so far."""
        return [entry for entry in self.record if isinstance(entry, Step)]

    def chapter(self, title: str, text: str) -> None:
        """Begin a chapter."""
        self._chapter = title
        click.secho(f"\n{title}", bold=True)
        self.tell(text)

    def tell(self, text: str) -> None:
        """Explain something."""
        self.record.append(Note(self._chapter, text))
        click.echo(f"  {text}")

    def correct(self, text: str) -> None:
        """Say what the text of the course has wrong."""
        self.record.append(Note(self._chapter, text, is_correction=True))
        click.secho(f"  Correction: {text}", fg="yellow")

    def step(
        self,
        title: str,
        where: str,
        command: str,
        *,
        shows: str | Callable[[str], bool],
        checked: str,
        wait_seconds: float = 20.0,
        wanted_failure: bool = False,
    ) -> str:
        """Run a shell command in the namespace `where` until its output is right; returns the output.

        `shows` is a text that it has to contain, or a condition. With `wanted_failure` the command has to fail, and
        `shows` looks at the error.
        """

        is_right = shows if callable(shows) else _contains(shows)

        def run() -> tuple[str, bool]:
            try:
                output = self.cluster.spaces.run(where, "sh", "-c", command)
            except CommandFailed as error:
                text = str(error).partition(f"{command} : ")[2] or str(error)
                return text.strip(), wanted_failure and is_right(text)
            return output.strip(), not wanted_failure and is_right(output)

        return self._show(title, f"{where}# {command}", run, checked=checked, wait_seconds=wait_seconds)

    def act(
        self, title: str, command: str, action: Callable[[], str], *, shows: Callable[[str], bool], checked: str
    ) -> str:
        """A step whose command is done by the course itself, such as what a kubelet does."""

        def run() -> tuple[str, bool]:
            output = action()
            return output.strip(), shows(output)

        return self._show(title, command, run, checked=checked, wait_seconds=0.0)

    def fail(self, error: Exception) -> None:
        """The course cannot go on: a step that failed, so that neither the table nor the report hides it."""
        text = f"{type(error).__name__}: {error}"
        self._show(
            "The course ends here", "", lambda: (text, False), checked="what comes next is left out", wait_seconds=0
        )

    def _as_typed(self, command: str) -> str:
        """A command without this machine's paths."""
        shorter = ((str(TYPHA), "typha"), (sys.executable, "python"), (f"{self.cluster.folder}/", ""))
        return functools.reduce(lambda text, pair: text.replace(*pair), shorter, command)

    def _show(
        self, title: str, command: str, run: Callable[[], tuple[str, bool]], *, checked: str, wait_seconds: float
    ) -> str:
        begin = time.monotonic()
        output, is_passed = run()
        while not is_passed and time.monotonic() - begin < wait_seconds:
            time.sleep(0.1)
            output, is_passed = run()
        seconds = time.monotonic() - begin
        command = self._as_typed(command)
        lines = output.splitlines()
        shown = "\n".join(lines[:MAX_SHOWN_LINES] + (["..."] if len(lines) > MAX_SHOWN_LINES else []))
        self.record.append(Step(self._chapter, title, command, shown, is_passed, checked, seconds))
        click.echo(f"\n  {title}")
        click.secho(f"    {command}", fg="cyan")
        for line in shown.splitlines():
            click.echo(f"      {line}")
        click.secho(
            f"    {'ok' if is_passed else 'FAILED'}: {checked} ({seconds:.1f} s)", fg="green" if is_passed else "red"
        )
        return output


def _contains(text: str) -> Callable[[str], bool]:
    return lambda output: text in output
