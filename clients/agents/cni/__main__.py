"""`python -m clients.agents.cni`: installs the plugin, and shows and repairs what IPAM has."""

import sys
from pathlib import Path

import click

_PROGRAM = """#!{interpreter} -IS
# The CNI plugin of {module}. Without site packages and without the package `clients` itself it starts in half the time.
import sys
import types

sys.path.extend({folders!r})
package = types.ModuleType("clients")
package.__path__ = [{package!r}]
sys.modules["clients"] = package

from {module}.plugin import main

sys.exit(main())
"""


@click.group()
def main() -> None:
    """The CNI plugin in the role of Calico's."""


@main.command()
@click.option("--bin-dir", default="/opt/cni/bin", show_default=True, type=click.Path(file_okay=False, path_type=Path))
@click.option("--name", default="calico", show_default=True, help="Name of the program, which is the network's `type`.")
def install(bin_dir: Path, name: str) -> None:
    """Write the program that container runtimes start."""
    import yaml

    root = Path(__file__).resolve().parents[3]
    text = _PROGRAM.format(
        interpreter=sys.executable,
        module=__spec__.parent if __spec__ else "clients.agents.cni",
        folders=[str(root), str(Path(yaml.__file__).resolve().parents[1])],
        package=str(root / "clients"),
    )
    bin_dir.mkdir(parents=True, exist_ok=True)
    temporary = bin_dir / f".{name}.new"
    temporary.write_text(text)
    temporary.chmod(0o755)
    temporary.rename(bin_dir / name)  # whole or not at all: a runtime may start it at any time
    click.echo(bin_dir / name)


if __name__ == "__main__":
    main()
