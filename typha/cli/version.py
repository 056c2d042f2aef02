"""`typha version`: the version and the origin of the build."""

import os

import click

from typha import build


def text() -> str:
    """What the command prints, in the original's form."""
    date = os.environ.get("BUILD_DATE", "unknown")
    return f"Version:      {build.VERSION}\nBuild date:   {date}\nGit commit:   {build.commit()}"


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
def version() -> None:
    """Print the version, the build date and the Git commit."""
    click.echo(text())
