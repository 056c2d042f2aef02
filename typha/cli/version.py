"""`typha version`: the version and the origin of the build."""

import importlib.metadata
import os

import click

VERSION = f"v{importlib.metadata.version('typha')}"


def commit() -> str:
    """The Git commit of the build; the image's environment has it."""
    return os.environ.get("GIT_COMMIT", "unknown")


def text() -> str:
    """What the command prints, in the original's form."""
    date = os.environ.get("BUILD_DATE", "unknown")
    return f"Version:      {VERSION}\nBuild date:   {date}\nGit commit:   {commit()}"


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
def version() -> None:
    """Print the version, the build date and the Git commit."""
    click.echo(text())
