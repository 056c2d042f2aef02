"""`typha check`: tells before the service takes the original's place what would go wrong, and what to do."""

import asyncio
import collections
import contextlib
import json
import logging
import os
import shutil
import textwrap
import time
from collections.abc import Iterable, Iterator
from typing import Any, Final

import click
import structlog

from typha import settings
from typha.cli import serve
from typha.preflight import cluster, host, replicas
from typha.preflight.findings import Finding, Status, worst
from typha.settings import machine

EXIT_FAILED = 1

_JSON: Final = "as_json"
_CLUSTER_ONLY: Final = "cluster_only"
_ACCOUNT: Final = "service_account"
_WIDTH_MAX: Final = 120


def _check(**arguments: Any) -> int:
    as_json, cluster_only = arguments.pop(_JSON), arguments.pop(_CLUSTER_ONLY)
    account = _account(arguments.pop(_ACCOUNT))
    try:
        loaded = serve.read(arguments, machine.read())
        with _without_log():
            findings = list(_findings(loaded, account, cluster_only=cluster_only))
    except settings.ConfigurationError as error:
        click.echo(f"typha: error: {error}", err=True)
        return serve.EXIT_BAD_CONFIGURATION
    if as_json:
        rows = [{**finding._asdict(), "status": finding.status.value} for finding in findings]
        click.echo(json.dumps({"result": worst(findings).value, "findings": rows}, indent=2))
    else:
        click.echo("\n".join(table(findings)))
    return EXIT_FAILED if worst(findings) is Status.FAILED else 0


@contextlib.contextmanager
def _without_log() -> Iterator[None]:
    """Modules of the service log; here only the findings speak."""
    before = structlog.get_config()
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.CRITICAL))
    try:
        yield
    finally:
        structlog.configure(**before)


def _account(text: str | None) -> cluster.Account | None:
    if text is None:
        return None
    namespace, slash, name = text.partition("/")
    if not (namespace and slash and name):
        raise click.BadParameter("expected NAMESPACE/NAME", param_hint="--service-account")
    return cluster.Account(namespace, name)


def _findings(loaded: settings.Loaded, account: cluster.Account | None, *, cluster_only: bool) -> Iterator[Finding]:
    yield from asyncio.run(cluster.examine(loaded.settings, os.environ, account=account))
    if not cluster_only:
        yield from asyncio.run(replicas.upstreams(loaded.settings))
        yield from host.ports(loaded.settings)
        yield from host.certificates(loaded.settings, os.environ, time.time())
    for notice in loaded.notices:
        if notice.level in ("warning", "error"):
            fields = ", ".join(f"{name} {value}" for name, value in notice.fields.items())
            yield Finding(Status.WARNING, "settings", f"{notice.event}: {fields}")


def table(findings: Iterable[Finding]) -> Iterator[str]:
    """A table, with what to do below a finding, and a line with the numbers."""
    findings = list(findings)
    cells = [("STATUS", "CHECK", "FOUND"), *((one.status.value, one.check, one.found) for one in findings)]
    first, second = (max(len(row[column]) for row in cells) + 2 for column in (0, 1))
    width = max(_WIDTH_MAX // 2, min(_WIDTH_MAX, shutil.get_terminal_size((_WIDTH_MAX, 24)).columns) - first - second)
    indent = " " * (first + second)
    for (status, check, found), advice in zip(cells, ["", *(one.advice for one in findings)], strict=True):
        begin, *rest = textwrap.wrap(found, width, break_on_hyphens=False) or [""]
        yield f"{status:<{first}}{check:<{second}}{begin}"
        yield from (indent + line for line in rest)
        if advice and status != Status.OK.value:
            yield from (indent + line for line in textwrap.wrap(f"-> {advice}", width, break_on_hyphens=False))
    counts = collections.Counter(one.status for one in findings)
    yield ""
    yield ", ".join(f"{counts[status]} {status.value}" for status in Status)


check = click.Command(
    "check",
    callback=_check,
    params=[
        click.Option(["--json", _JSON], is_flag=True, help="JSON instead of a table."),
        click.Option(
            ["--cluster-only", _CLUSTER_ONLY],
            is_flag=True,
            help="Leave out the ports and certificate files of this machine, if the service will run elsewhere.",
        ),
        click.Option(
            ["--service-account", _ACCOUNT],
            metavar="NAMESPACE/NAME",
            help="Ask for the permissions of this service account instead, such as calico-system/calico-typha.",
        ),
        *serve.parameters(),
    ],
    help="Tell what would go wrong if `typha serve` started with the same flags, environment and file: access to the "
    "API server, permissions, Calico's kinds, the agents' releases, the operator, ports, certificates and settings. "
    "Changes nothing. Exit codes: 0 nothing failed, 1 something failed, 2 bad arguments or settings.",
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 120},
)
