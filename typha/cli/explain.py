"""`typha explain`: what became of one object: its keys in each feed, why it was refused, and which clients have it."""

import time
from collections.abc import Iterable

import click
import msgspec

from typha.admin import answers, client, kinds
from typha.cli import tables, watch_output

EXIT_NOT_FOUND = 1
_BEHIND_SHOWN = 10
_RESOURCES = {
    **dict.fromkeys(("namespace", "ns"), "namespaces"),
    **dict.fromkeys(("serviceaccount", "sa"), "serviceaccounts"),
    **dict.fromkeys(("clusternetworkpolicy", "cnp", "kubernetesclusternetworkpolicy"), "clusternetworkpolicies"),
}
_BY_KIND = {
    "WorkloadEndpoint": "pods",
    "KubernetesNetworkPolicy": "networkpolicies",
    "KubernetesClusterNetworkPolicy": "clusternetworkpolicies",
    "KubernetesService": "services",
    "KubernetesEndpointSlice": "endpointslices",
    "LiveMigration": "virtualmachineinstancemigrations",
}
_CLUSTER_WIDE = frozenset({"nodes", "namespaces", "clusternetworkpolicies"})


@click.command(name="explain", short_help="Show what became of one object, and which clients have it.")
@click.argument("kind_name", metavar="KIND")
@click.argument("name", metavar="NAME")
@click.option("-n", "--namespace", default="default", show_default=True, help="Namespace, for kinds that have them.")
@click.option("--group", help="API group, where several have the kind. Default: all of them.")
@click.option("--json", "as_json", is_flag=True, help="JSON instead of text.")
@click.option("--server", default="", metavar="PATH", help="Admin socket. Default: the service on this host.")
def explain(*, kind_name: str, name: str, namespace: str, group: str | None, as_json: bool, server: str) -> int:
    """Show the keys that an object became, with their sequence and time, and the clients that have them.

    KIND is a pod, a policy, or any other kind of object that the service watches. Exit code 1: nothing is known of it.
    """
    resource = resource_of(kind_name)
    kind = kinds.find(kind_name)
    is_namespaced = resource not in _CLUSTER_WIDE and (kind is None or kind.is_namespaced)
    try:
        service = client.Service(server)
        answer = service.get(
            "/v1/explain", resource=resource, name=name, group=group, namespace=namespace if is_namespaced else ""
        )
        found = msgspec.convert(answer, answers.Explanation)
    except (client.Unanswered, msgspec.ValidationError) as error:
        click.echo(watch_output.printable(f"typha explain: error: {error}"), err=True)
        return EXIT_NOT_FOUND
    known = [one for one in found.objects if _is_known(one)]
    if as_json:
        text_of = msgspec.json.format(msgspec.json.encode(found).decode(), indent=2)
        click.echo(watch_output.printable_json(text_of))
    elif not known:
        full_name = f"{namespace}/{name}" if is_namespaced else name
        click.echo(watch_output.printable(f"{resource} {full_name}: no feed has a key of it, and none refused it"))
    else:
        now = time.time()
        lines = [line for one in known for line in text(one, now)]
        if not found.complete:
            lines.append("A worker did not name all of its clients in time: some are missing here.")
        click.echo("\n".join(watch_output.printable(line) for line in lines))
    return 0 if known else EXIT_NOT_FOUND


def resource_of(kind_name: str) -> str:
    """The API's resource, such as pods, for a kind or an alias of one."""
    lower = kind_name.lower()
    if lower in _RESOURCES:
        return _RESOURCES[lower]
    kind = kinds.find(lower)
    if kind is not None:
        return _BY_KIND.get(kind.name, kind.aliases[0])
    return lower if lower.endswith("s") else f"{lower}s"


def _is_known(one: answers.Explained) -> bool:
    return one.refusal is not None or any(fate.keys or fate.refusal for fate in one.feeds)


def text(one: answers.Explained, now: float) -> Iterable[str]:
    """The lines for people."""
    yield f"{one.type} {f'{one.namespace}/' if one.namespace else ''}{one.name}"
    if one.refusal is not None:
        yield f"  {_refusal_text(one.refusal, now)}"
    for fate in one.feeds:
        if not fate.keys and fate.refusal is None:
            yield f"  feed {fate.feed}: no keys"
            continue
        has = fate.clients - fate.clients_behind
        sent = f", sent to {has} of {fate.clients} clients" if fate.keys else ""
        if fate.keys and fate.reporting:
            sent += f", applied by {fate.applied} of the {fate.reporting} that report it"
        yield f"  feed {fate.feed}: {len(fate.keys)} key{'' if len(fate.keys) == 1 else 's'}{sent}"
        for key in fate.keys:
            yield f"    {key.key}"
            yield f"      {_key_text(key, now)}"
        if fate.refusal is not None:
            yield f"    {_refusal_text(fate.refusal, now)}"
        for behind in fate.behind[:_BEHIND_SHOWN]:
            yield (
                f"    not yet: {behind.node or behind.address} ({behind.state}, at sequence {behind.sequence}, "
                f"lag {tables.duration(behind.lag_seconds)}, worker {behind.worker})"
            )
        if fate.clients_behind > _BEHIND_SHOWN:
            yield f"    not yet: {fate.clients_behind - _BEHIND_SHOWN} more clients"


def _key_text(key: answers.HeldKey, now: float) -> str:
    if key.value_bytes is None:
        parts = ["no value"]
    else:
        at = "published longer ago than is remembered"
        if key.at is not None:
            at = f"published {tables.duration(now - key.at)} ago"
        parts = [f"sequence {key.sequence}", at, f"revision {key.revision or '-'}", tables.size(key.value_bytes)]
    return ", ".join([*parts, *([key.note] if key.note else [])])


def _refusal_text(refusal: answers.Refusal, now: float) -> str:
    what = "doubted, but carried" if refusal.is_carried else "refused"
    return f"{what} {tables.duration(now - refusal.at)} ago: {refusal.reason}: {refusal.detail}"
