"""`typha status`: who is connected, to one service or to several replicas, and whether the replicas agree."""

import asyncio
import collections
import os
import sys
import time
from collections.abc import Callable, Coroutine, Iterable, Sequence

import click
import msgspec

from typha.admin import answers, client, replicas
from typha.cli import tables, watch_output

EXIT_NO_ANSWER = 1
EXIT_SOME_UNANSWERED = 3
_LIMIT_DEFAULT = 50
_LIMIT_MAX = 10_000
_LOOK_AGAIN_SECONDS = 1.0
"""Between two looks at replicas that differ. A change reaches all replicas within milliseconds."""
_OVERVIEW_MAX = 10
_CLEAR = "\x1b[H\x1b[2J"
_SORTS: dict[str, Callable[[answers.Client], tuple[object, ...]]] = {
    "node": lambda one: (one.node, one.address),
    "lag": lambda one: (-one.lag_seconds, -one.lag_bytes, one.node),
    "lag-bytes": lambda one: (-one.lag_bytes, one.node),
    "applied": lambda one: (one.applied is None, -one.applied_lag_seconds, one.node),
    "bytes": lambda one: (-one.bytes_sent, one.node),
    "age": lambda one: (-one.age_seconds, one.node),
    "version": lambda one: (one.version, one.node),
    "feed": lambda one: (one.feed, one.node),
    "state": lambda one: (one.state, one.node),
}
_STATES = ("handshake", "held", "snapshot", "following", "catching-up", "closing")


class Question(msgspec.Struct, frozen=True, kw_only=True):
    """Which clients are asked for."""

    sort: str
    limit: int
    feed: str | None
    node: str | None
    state: str | None

    def arguments(self) -> list[str]:
        """The same for `typha status` in a pod."""
        given = {"--sort": self.sort, "--limit": str(self.limit)}
        given |= {"--feed": self.feed or "", "--node": self.node or "", "--state": self.state or ""}
        return [part for name, value in given.items() if value for part in (name, value)]


def ask_server(server: str, question: Question) -> replicas.Replica:
    """What one service says of itself and of its clients; a failure is in the result."""
    try:
        service = client.Service(server)
        status = msgspec.convert(service.get("/v1/status"), answers.Status)
        query = msgspec.structs.asdict(question)
        clients = msgspec.convert(service.get("/v1/clients", **query), answers.Clients)
    except (client.Unanswered, msgspec.ValidationError) as error:
        return replicas.Replica(server=server or "this host", error=str(error))
    return replicas.Replica(server=server or status.service.pod, status=status, clients=clients)


async def ask_servers(servers: Sequence[str], question: Question) -> list[replicas.Replica]:
    """What each of the services says, in the same order."""
    asked = (asyncio.to_thread(ask_server, server, question) for server in servers or ("",))
    return list(await asyncio.gather(*asked))


Ask = Callable[[], Coroutine[None, None, list[replicas.Replica]]]


async def look(ask: Ask) -> replicas.Fleet:
    """Asks all replicas, and again those that seem to differ."""
    found = await ask()
    before = found
    if replicas.may_differ(found):
        await asyncio.sleep(_LOOK_AGAIN_SECONDS)
        found = await ask()
    return replicas.Fleet(replicas=found, findings=replicas.compare(found, before=before))


@click.command(name="status", short_help="Show who is connected to running services.")
@click.option(
    "--server",
    "servers",
    multiple=True,
    metavar="PATH|URL",
    help="Admin socket, or http(s) URL of a status page. Several are compared. Default: the service on this host.",
)
@click.option("--service", metavar="NAMESPACE/NAME", help="All pods of this Service, by exec in each pod.")
@click.option("--container", metavar="NAME", help="With --service: the container. Default: the pod's default.")
@click.option("--sort", type=click.Choice(list(_SORTS)), default="lag", show_default=True, help="Order of the clients.")
@click.option("--feed", help="Clients of this feed only.")
@click.option("--node", help="Clients of this node only.")
@click.option("--state", type=click.Choice(_STATES), help="Clients in this state only.")
@click.option(
    "--limit",
    type=click.IntRange(0, _LIMIT_MAX),
    default=_LIMIT_DEFAULT,
    show_default=True,
    help="Clients to show at most.",
)
@click.option("--watch", "watches", is_flag=True, help="Repeat until interrupted.")
@click.option(
    "--interval",
    "interval_seconds",
    type=click.FloatRange(min=1.0),
    default=2.0,
    show_default=True,
    metavar="SECONDS",
    help="With --watch: time between two looks.",
)
@click.option("--json", "as_json", is_flag=True, help="JSON instead of tables; with --watch, one object per line.")
def status(
    *,
    servers: tuple[str, ...],
    service: str | None,
    container: str | None,
    sort: str,
    feed: str | None,
    node: str | None,
    state: str | None,
    limit: int,
    watches: bool,
    interval_seconds: float,
    as_json: bool,
) -> int:
    """Show replicas, feeds and clients.

    Exit codes: 1 if no service answers, 3 if some replicas do not.
    """
    question = Question(sort=sort, limit=limit, feed=feed, node=node, state=state)
    ask: Ask
    if service is not None:
        if servers:
            raise click.UsageError("--service and --server exclude each other")
        from typha.cli import pod_exec  # late: it needs the Kubernetes session

        ask = pod_exec.asker(service, container, question)
    else:

        def ask() -> Coroutine[None, None, list[replicas.Replica]]:
            return ask_servers(servers, question)

    try:
        return asyncio.run(_run(ask, question, as_json=as_json, interval_seconds=interval_seconds if watches else None))
    except BrokenPipeError:  # the reader has gone; without this, Python reports a second error when it flushes at exit
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0


async def _run(ask: Ask, question: Question, *, as_json: bool, interval_seconds: float | None) -> int:
    while True:
        begun = time.monotonic()
        fleet = await look(ask)
        if as_json:
            encoded = msgspec.json.encode(fleet).decode()
            text_of = encoded if interval_seconds else msgspec.json.format(encoded, indent=2)
            click.echo(watch_output.printable_json(text_of))
        else:
            clear = _CLEAR if interval_seconds and sys.stdout.isatty() else ""
            click.echo(clear + "\n".join(text(fleet, question)))
        sys.stdout.flush()
        if interval_seconds is None:
            unanswered = sum(one.status is None for one in fleet.replicas)
            if unanswered == len(fleet.replicas):
                return EXIT_NO_ANSWER
            return EXIT_SOME_UNANSWERED if unanswered else 0
        await asyncio.sleep(max(0.0, begun + interval_seconds - time.monotonic()))


def text(fleet: replicas.Fleet, question: Question) -> Iterable[str]:
    """The lines for people."""
    known = [one for one in fleet.replicas if one.status is not None]
    if known:
        yield from _replica_table(known)
        yield ""
        yield from _feed_table(known)
        yield ""
        yield from _overview(known)
        yield from _applied(known)
        yield ""
        yield from _client_table(known, question)
        yield ""
    for finding in fleet.findings:
        yield watch_output.printable(f"! {finding}")
    if known and not fleet.findings:
        yield "All replicas agree." if len(known) > 1 else "Nothing is wrong."


def _replica_table(known: Sequence[replicas.Replica]) -> list[str]:
    connections = sum(one.status.service.open_connections for one in known if one.status)
    rows = []
    for one in known:
        if one.status is None:
            continue
        service = one.status.service
        confirmed = [kind.confirmed_seconds for kind in one.status.kinds]
        oldest = max((seconds for seconds in confirmed if seconds is not None), default=None)
        share = f" ({service.open_connections / connections:.0%})" if connections and len(known) > 1 else ""
        ready = sum(worker.ready for worker in service.workers)
        rows.append(
            (
                one.server,
                service.version,
                tables.duration(service.now - service.started_at),
                f"{service.open_connections}{share}",
                f"{ready}/{service.workers_wanted}",
                tables.duration(oldest),
                ", ".join(filter(None, ("draining" if service.is_draining else "serving", service.source))),
            )
        )
    return tables.lines(("REPLICA", "VERSION", "UP", "CONNECTIONS", "WORKERS", "CONFIRMED", "STATE"), rows)


def _feed_table(known: Sequence[replicas.Replica]) -> list[str]:
    rows = []
    for one in known:
        for feed in one.status.feeds if one.status else ():
            now = one.status.service.now if one.status else 0.0
            rows.append(
                (
                    feed.feed,
                    one.server,
                    feed.status,
                    str(feed.keys),
                    feed.digest[:8],
                    str(feed.sequence),
                    f"{feed.clients} ({feed.held} held)" if feed.held else str(feed.clients),
                    tables.duration(feed.lag_seconds),
                    tables.duration(None if feed.changed_at is None else now - feed.changed_at),
                    tables.size(feed.snapshot_bytes),
                    tables.size(feed.log_bytes),
                )
            )
    rows.sort()
    header = (
        *("FEED", "REPLICA", "STATUS", "KEYS", "DIGEST", "SEQUENCE", "CLIENTS", "LAG MAX"),
        *("CHANGED", "SNAPSHOT", "LOG"),
    )
    return tables.lines(header, rows)


def _overview(known: Sequence[replicas.Replica]) -> Iterable[str]:
    """How many connections are in each state, and of each version, over all replicas."""
    lists = [one.clients for one in known if one.clients]
    for title, counts in (("STATES", [one.states for one in lists]), ("VERSIONS", [one.versions for one in lists])):
        total = sum((collections.Counter(part) for part in counts), collections.Counter[str]())
        shown = ", ".join(f"{name or 'none'} {count}" for name, count in total.most_common(_OVERVIEW_MAX))
        yield watch_output.printable(f"{title}   {shown or '-'}")


def _applied(known: Sequence[replicas.Replica]) -> Iterable[str]:
    """How far the clients are that report what they have applied, and who is last."""
    feeds = [feed for one in known if one.status for feed in one.status.feeds]
    for name in sorted({feed.feed for feed in feeds if feed.reporting}):
        of_name = [feed for feed in feeds if feed.feed == name]
        reporting, applied = sum(feed.reporting for feed in of_name), sum(feed.applied for feed in of_name)
        silent = sum(feed.clients for feed in of_name) - reporting
        text_of = f"APPLIED   {name}: {applied} of {reporting} clients have applied everything"
        yield watch_output.printable(text_of + (f"; {silent} do not report it" if silent > 0 else ""))
    late = [one for replica in known if replica.clients for one in replica.clients.slowest_to_apply]
    late.sort(key=lambda one: -one.applied_lag_seconds)
    if late:
        shown = ", ".join(f"{one.node} {tables.duration(one.applied_lag_seconds)}" for one in late[:_OVERVIEW_MAX])
        yield watch_output.printable(f"SLOWEST   {shown}")


def _client_table(known: Sequence[replicas.Replica], question: Question) -> Iterable[str]:
    key = _SORTS[question.sort]
    found = [(key(one), replica.server, one) for replica in known if replica.clients for one in replica.clients.clients]
    found.sort(key=lambda item: item[:2])
    total = sum(replica.clients.total for replica in known if replica.clients)
    several = len(known) > 1
    reported = any(one.applied is not None for *_, one in found)
    rows = [
        (
            one.node,
            *([server] if several else []),
            one.version,
            f"{one.feed} [{one.subscription}]" if one.subscription else one.feed,
            one.format,
            one.state,
            tables.duration(one.lag_seconds),
            tables.size(one.lag_bytes),
            *([tables.duration(None if one.applied is None else one.applied_lag_seconds)] if reported else []),
            tables.size(one.bytes_sent),
            tables.duration(one.age_seconds),
            str(one.worker),
            one.tls_name,
            one.address,
        )
        for _, server, one in found[: question.limit]
    ]
    header = (
        "NODE",
        *(["REPLICA"] if several else []),
        "VERSION",
        "FEED",
        "FORMAT",
        "STATE",
        "LAG",
        "LAG BYTES",
        *(["APPLIED LAG"] if reported else []),
    )
    yield from tables.lines((*header, "SENT", "AGE", "WORKER", "TLS NAME", "ADDRESS"), rows)
    if len(rows) < total:
        yield f"{len(rows)} of {total} connections; --limit shows more"
