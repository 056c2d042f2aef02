"""`python -m clients.agents.cni`: installs the plugin, shows and repairs what IPAM has, sets tunnel addresses."""

import functools
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import click

from clients.agents.cni import apiserver, ipam, kubeconfig, leaks, records
from clients.agents.cni.records import Block

TUNNEL_ADDRESS: Final = "projectcalico.org/IPv4VXLANTunnelAddr"

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


_kubeconfig = click.option("--kubeconfig", "path", required=True, type=click.Path(exists=True, dir_okay=False))


@main.command("tunnel-address")
@_kubeconfig
@click.option("--node", required=True, help="Name of the node.")
def tunnel_address(path: str, node: str) -> None:
    """Give a node an address for its VXLAN device, if it has none, and write it to the node."""
    with _server(path) as server:
        attributes = records.tunnel_attributes(node)
        found = server.run(ipam.addresses(attributes.handle))
        if not found:
            pools = server.run(ipam.read_pools(use="Tunnel", left_out=functools.partial(click.echo, err=True)))
            limits = server.run(ipam.read_limits())
            found = [server.run(ipam.assign(ipam.Node(node, time.time()), attributes, pools, limits))]
        server.annotate_node(node, {TUNNEL_ADDRESS: found[0]})
        click.echo(found[0])


@main.group("ipam")
def ipam_group() -> None:
    """Show and repair what IPAM has."""


@ipam_group.command()
@_kubeconfig
def show(path: str) -> None:
    """Show pools and blocks, and how much of them is used."""
    with _server(path) as server:
        pools = server.run(ipam.read_pools(left_out=functools.partial(click.echo, err=True)))
        blocks = [Block.parse(value) for value in server.run(_listed("ipamblocks"))]
        click.echo(f"{'KIND':<6} {'CIDR':<20} {'OWNER':<12} {'USED':>6} {'FREE':>6}")
        for pool in pools:
            inside = [block for block in blocks if block.network.subnet_of(pool.network)]
            used = sum(len(block.used) for block in inside)
            click.echo(f"{'pool':<6} {pool.network!s:<20} {'':<12} {used:>6} {pool.network.num_addresses - used:>6}")
        for block in sorted(blocks, key=lambda block: block.network):
            click.echo(
                f"{'block':<6} {block.cidr:<20} {block.node:<12} {len(block.used):>6} {len(block.unallocated):>6}"
            )


@ipam_group.command()
@_kubeconfig
@click.option("--release", is_flag=True, help="Release what leaks.")
def check(path: str, *, release: bool) -> None:
    """Find addresses and objects that nobody uses. Exit code 1 means that there are some."""
    with _server(path) as server:
        # The blocks are read before the pods: a pod that comes meanwhile does not look like a leak.
        found = server.run(leaks.read(time.time(), _pods(server)))
        for leak in found:
            click.echo(f"{leak.subject}: {leak.reason}{f' ({leak.handle})' if leak.handle else ''}")
        if release:
            for leak in found:
                if leak.handle:
                    server.run(ipam.release(leak.handle))
            click.echo(f"released: {sum(bool(leak.handle) for leak in found)}")
    sys.exit(1 if found and not release else 0)


def _pods(server: apiserver.ApiServer) -> Iterator[records.JsonObject]:
    """The pods, which are read when the first is asked for."""
    yield from server.pods()


def _listed(resource: str) -> ipam.Steps[list[records.JsonObject]]:
    values: list[records.JsonObject] = yield ipam.List(resource, {})
    return values


@contextmanager
def _server(path: str) -> Iterator[apiserver.ApiServer]:
    try:
        server = apiserver.ApiServer(kubeconfig.load(path))
        try:
            yield server
        finally:
            server.close()
    except (
        apiserver.Unavailable,
        apiserver.Refused,
        ipam.IpamError,
        ipam.Missing,
        kubeconfig.BadKubeconfig,
        records.Malformed,
    ) as error:
        raise click.ClickException(str(error)) from error


if __name__ == "__main__":
    main()
