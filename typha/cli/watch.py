"""`typha watch`: follows a feed from the shell, as text for people or with --json for programs."""

import asyncio
import contextlib
import os
import ssl
import sys
from collections.abc import Coroutine

import click

import clients
from cache.kube import tls_contexts
from typha.cli import watch_output

EXIT_TIMEOUT = 3
EXIT_REFUSED = 4
EXIT_INTERRUPTED = 130
"""128 + SIGINT, as shells do."""


@click.command(name="watch", short_help="Follow a feed: print its updates and its status.")
@click.argument("servers", metavar="[HOST:PORT]...", nargs=-1)
@click.option("--feed", required=True, help="Name of the feed. With --protocol typha: the syncer type.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object per line.")
@click.option("--until-in-sync", is_flag=True, help="Print all keys when the feed is in sync, sorted, and exit.")
@click.option(
    "--timeout",
    "timeout_seconds",
    type=click.FloatRange(min=0, min_open=True),
    default=60.0,
    show_default=True,
    metavar="SECONDS",
    help="With --until-in-sync: exit with code 3 after this time.",
)
@click.option(
    "--protocol",
    type=click.Choice([protocol.value for protocol in clients.Protocol]),
    default=clients.Protocol.NATIVE.value,
    show_default=True,
    help="typha: the protocol of Calico's Typha, which this service speaks too.",
)
@click.option(
    "--agent-release",
    metavar="VERSION",
    help="With --protocol typha: the release of Calico whose agent to be, such as v3.31.7. Default: the newest.",
)
@click.option("--agent", default="typha-watch", show_default=True, help="Name of this client in the server's log.")
@click.option("--ca-file", type=click.Path(exists=True, dir_okay=False), help="Connect by TLS; trust this CA (PEM).")
@click.option("--cert-file", type=click.Path(exists=True, dir_okay=False), help="Client certificate (PEM).")
@click.option("--key-file", type=click.Path(exists=True, dir_okay=False), help="Private key of the certificate (PEM).")
@click.option("--server-name", help="Name in the server's certificate, if it differs from HOST.")
@click.pass_context
def watch(
    context: click.Context,
    *,
    servers: tuple[str, ...],
    feed: str,
    as_json: bool,
    until_in_sync: bool,
    timeout_seconds: float,
    protocol: str,
    agent_release: str | None,
    agent: str,
    ca_file: str | None,
    cert_file: str | None,
    key_file: str | None,
    server_name: str | None,
) -> None:
    """Follow a feed of the server at HOST:PORT (default localhost:5473), without end or until it is in sync.

    Prints updates and statuses to standard output, and everything about the connection to standard error. Exit codes:
    2 wrong usage, 3 --timeout has passed, 4 the server refused the client.
    """
    if agent_release is not None and protocol != clients.Protocol.TYPHA.value:
        raise click.UsageError("--agent-release needs --protocol typha")
    tls = _make_tls(ca_file=ca_file, cert_file=cert_file, key_file=key_file)
    try:
        follower = clients.Follower(
            servers or (f"localhost:{clients.DEFAULT_PORT}",),
            feed=feed,
            agent=agent,
            tls=tls,
            server_name=server_name,
            protocol=clients.Protocol(protocol),
            agent_release=agent_release or "",
        )
    except ValueError as error:
        raise click.BadParameter(str(error), param_hint="HOST:PORT") from error
    output = watch_output.JsonOutput() if as_json else watch_output.TextOutput()
    context.exit(
        _run(follower, output, timeout_seconds=timeout_seconds if until_in_sync else None, until_in_sync=until_in_sync)
    )


def _make_tls(*, ca_file: str | None, cert_file: str | None, key_file: str | None) -> ssl.SSLContext | None:
    if not (ca_file or cert_file or key_file):
        return None
    if key_file and not cert_file:
        raise click.UsageError("--key-file needs --cert-file")
    try:
        authorities = tls_contexts.NamedFile("--ca-file", ca_file).read() if ca_file else b""
        if ca_file and not authorities:
            raise tls_contexts.TlsUnusable(f"--ca-file {ca_file}: contains no certificate")
        context = tls_contexts.client_context(authorities=authorities, source=f"--ca-file {ca_file}")
        if cert_file:
            certificate = tls_contexts.NamedFile("--cert-file", cert_file)
            key = tls_contexts.NamedFile("--key-file", key_file or cert_file)
            tls_contexts.identify(context, certificate.read(), key.read(), f"{certificate}, {key}")
    except tls_contexts.TlsUnusable as error:
        raise click.UsageError(str(error)) from error
    return context


def _run(
    follower: clients.Follower,
    output: watch_output.Output,
    *,
    timeout_seconds: float | None,
    until_in_sync: bool,
) -> int:
    watching = _watch_until_in_sync(follower, output) if until_in_sync else _watch(follower, output)
    try:
        asyncio.run(_limit(watching, timeout_seconds))
    except TimeoutError:
        click.echo(f"feed {follower.hello.feed} was not in sync within {timeout_seconds:g} s", err=True)
        return EXIT_TIMEOUT
    except clients.Refused as refusal:
        click.echo(watch_output.printable(f"refused by {refusal}"), err=True)
        return EXIT_REFUSED
    except BrokenPipeError:
        # The reader of our output has gone. Without this, Python would report a second error when it flushes at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except KeyboardInterrupt:
        return EXIT_INTERRUPTED
    return 0


async def _limit(watching: Coroutine[None, None, None], timeout_seconds: float | None) -> None:
    async with asyncio.timeout(timeout_seconds):
        await watching


async def _watch(follower: clients.Follower, output: watch_output.Output) -> None:
    async with contextlib.aclosing(follower.events()) as events:
        async for event in events:
            match event:
                case clients.Batch():
                    output.write_updates(event.updates)
                case clients.StatusChanged():
                    output.write_status(event.status)
                case _:
                    _report(event)


async def _watch_until_in_sync(follower: clients.Follower, output: watch_output.Output) -> None:
    entries: dict[str, clients.Update] = {}
    async with contextlib.aclosing(follower.events()) as events:
        async for event in events:
            match event:
                case clients.Batch():
                    for update in event.updates:
                        entries[update.key] = update
                    for update in event.refreshed:
                        entries[update.key] = update
                case clients.StatusChanged(clients.SyncStatus.IN_SYNC):
                    break
                case clients.StatusChanged():
                    pass
                case _:
                    _report(event)
    alive = [update for update in entries.values() if update.value is not None]
    alive.sort(key=lambda update: update.key.encode())
    output.write_updates([update._replace(update_type=int(clients.UpdateType.NEW)) for update in alive])


def _report(event: clients.Connected | clients.Disconnected) -> None:
    """Reports a change of the connection on standard error.

    Raises:
        Refused: the server refused this client for a reason that a retry does not remove.
    """
    match event:
        case clients.Connected():
            click.echo(f"connected to {event.address}", err=True)
        case clients.Disconnected(error=clients.Refused() as refusal) if not refusal.is_transient:
            raise refusal
        case clients.Disconnected():
            text = f"{event.error}; next attempt in {event.retry_in_seconds:.1f} s"
            click.echo(watch_output.printable(text), err=True)
