"""`typha rbac`: prints the role that the service needs, from the same lists that it watches by."""

import os
from typing import Any, Final

import click
import yaml

from cache.feeds.calico import syncers
from typha import settings
from typha.cli import serve
from typha.hub import bootstrap
from typha.peers import watch
from typha.preflight import permissions
from typha.settings import feeds_file, machine
from typha.upstream import source

_GROUP: Final = "api_group"
_NAME: Final = "role_name"


def _rbac(**arguments: Any) -> int:
    groups = [group for group in syncers.Group if arguments[_GROUP] in (None, group.value)]
    del arguments[_GROUP]
    name = arguments.pop(_NAME)
    try:
        configured = serve.read(arguments, machine.read()).settings
        needed = list(_needed(configured, groups))
    except settings.ConfigurationError as error:
        click.echo(f"typha: error: {error}", err=True)
        return serve.EXIT_BAD_CONFIGURATION
    role = {
        "apiVersion": "rbac.authorization.k8s.io/v1",
        "kind": "ClusterRole",
        "metadata": {"name": name},
        "rules": permissions.rules(needed),
    }
    click.echo(yaml.safe_dump(role, sort_keys=False), nl=False)
    return 0


def _needed(configured: settings.Settings, groups: list[syncers.Group]) -> list[permissions.Verbs]:
    """Raises ConfigurationError: the feeds file is invalid."""
    needed: list[permissions.Verbs] = []
    specs = feeds_file.load(configured.feeds_file) if configured.feeds_file else []
    types = [resource.type for spec in specs for resource in spec.resources]
    if configured.calico_feeds not in bootstrap.NEVER:
        for group in groups:
            types += permissions.calico_types(group, use_pod_cidr=settings.uses_pod_cidrs(os.environ))
            if not configured.read_only:
                needed.append(permissions.creating(group))
    if configured.connection_rebalancing_mode == watch.KUBERNETES:
        types.append(permissions.ENDPOINT_SLICES)
    if configured.upstream == source.ELECTED:
        needed.append({permissions.LEASES: permissions.ELECTING})
    return [dict.fromkeys(types, permissions.READING), *needed]


rbac = click.Command(
    "rbac",
    callback=_rbac,
    params=[
        click.Option(
            ["--api-group", _GROUP],
            type=click.Choice([group.value for group in syncers.Group]),
            help="The API group of Calico's custom resources. Default: both, because the service chooses at start.",
        ),
        click.Option(["--name", _NAME], metavar="NAME", default="calico-typha", show_default=True, help="Of the role."),
        *serve.parameters(),
    ],
    help="Print the ClusterRole that `typha serve` needs with the same flags, environment and file, and nothing more. "
    "Exit codes: 0, 2 bad arguments or settings.",
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 120},
)
