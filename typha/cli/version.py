"""`typha version`: the version and the origin of the build."""

import importlib.metadata
import os

import click


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
def version() -> None:
    """Print the version, the build date and the Git commit."""
    click.echo(f"Version:      v{importlib.metadata.version('typha')}")
    click.echo(f"Build date:   {os.environ.get('BUILD_DATE', 'unknown')}")
    click.echo(f"Git commit:   {os.environ.get('GIT_COMMIT', 'unknown')}")
