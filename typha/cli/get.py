"""`typha get`: what the agents of a running service hold, in the form of `calicoctl get`."""

import json
import os
import sys
from collections.abc import Iterable, Iterator

import click
import msgspec
import yaml

from protocol import messages
from typha.admin import answers, client, kinds
from typha.cli import tables, watch_output

_RESTARTS_MAX = 5
_ENTRIES_MAX = 2_000_000
_FORMATS = ("table", "wide", "yaml", "json", "raw", "name")
_CELL_CHARS_MAX = 200
EXIT_FAILED = 1


@click.command(name="get", short_help="Show what the agents of a running service hold.")
@click.argument("kind_name", metavar="[KIND]", required=False)
@click.argument("names", metavar="[NAME]...", nargs=-1)
@click.option("-n", "--namespace", default="default", show_default=True, help="Namespace, for kinds that have them.")
@click.option("-A", "-a", "--all-namespaces", is_flag=True, help="All namespaces.")
@click.option("-o", "--output", type=click.Choice(_FORMATS), default="table", show_default=True, help="Form.")
@click.option("-f", "--feed", help="Keys and values of this feed; KIND is a resource then, such as pods.")
@click.option("--server", default="", metavar="PATH", help="Admin socket. Default: the service on this host.")
def get(
    *,
    kind_name: str | None,
    names: tuple[str, ...],
    namespace: str,
    all_namespaces: bool,
    output: str,
    feed: str | None,
    server: str,
) -> int:
    """Show resources of a KIND, by name or all.

    Kinds of Calico's feeds are those of `calicoctl get`, with their aliases, and some more. Without a kind, or with an
    unknown one, the error names them.
    """
    kind = kinds.find(kind_name) if kind_name and feed is None else None
    if kind is None and feed is None:
        known = ", ".join(one.name for one in kinds.KINDS)
        raise click.UsageError(
            f"KIND is one of {known}, or one of their aliases" if kind_name else f"KIND is missing: {known}"
        )
    try:
        service = client.Service(server)
        if kind is None:
            return _show_raw_feed(service, feed or "", kind_name, names, None if all_namespaces else namespace, output)
        return _show(service, kind, names, None if all_namespaces else namespace, output)
    except client.Unanswered as error:
        click.echo(watch_output.printable(f"typha get: error: {error}"), err=True)
        return EXIT_FAILED
    except BrokenPipeError:  # the reader has gone; without this, Python reports a second error when it flushes at exit
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0


def entries(service: client.Service, feed: str, prefix: str) -> list[answers.Entry]:
    """All keys of a feed that begin with a prefix.

    Raises:
        client.Unanswered: they cannot be had.
    """
    for _ in range(_RESTARTS_MAX):
        try:
            return list(_pages(service, feed, prefix))
        except client.Changed:
            continue
        except msgspec.ValidationError as error:
            raise client.Unanswered(f"{service.name}: not an answer of this kind: {error}") from error
    raise client.Unanswered(f"{service.name}: feed {feed} grows too fast to be read in pages")


def _pages(service: client.Service, feed: str, prefix: str) -> Iterator[answers.Entry]:
    after, count = "", 0
    while True:
        answer = service.get("/v1/objects", feed=feed, prefix=prefix, after=after or None)
        page = msgspec.convert(answer, answers.Objects)
        yield from page.entries
        count += len(page.entries)
        if not page.next:
            return
        if page.next == after or count > _ENTRIES_MAX:
            raise client.Unanswered(f"{service.name}: the pages do not end")
        after = page.next


def _show(service: client.Service, kind: kinds.Kind, names: tuple[str, ...], namespace: str | None, output: str) -> int:
    found = entries(service, kind.feed, kind.prefix)

    def names_of(resource: kinds.Members) -> set[str]:
        return {kinds.name_of(resource).name, (resource.get("spec") or {}).get("pod", "")}

    def is_chosen(resource: kinds.Members) -> bool:
        return (not names or not names_of(resource).isdisjoint(names)) and (
            not kind.is_namespaced or namespace in (None, kinds.name_of(resource).namespace)
        )

    shown = [resource for resource in kinds.resources(kind, found) if is_chosen(resource)]
    code = _name_absent(kind.name, names, {name for resource in shown for name in names_of(resource)})
    if output == "raw":
        chosen = kinds.entries_of(kind, found)
        _print_raw(entry for entry in chosen if any(map(is_chosen, kinds.resources(kind, [entry]))))
        return code
    if names and not shown:
        return code
    if output in ("yaml", "json"):
        _print_resources(kind, shown, is_one=len(names) == 1, as_yaml=output == "yaml")
        return code
    columns = dict(kind.wide if output == "wide" else kind.columns)
    if output == "name":
        columns = {"NAME": lambda resource: kinds.name_of(resource).name}
    if kind.is_namespaced and namespace is None:
        columns = {"NAMESPACE": lambda resource: kinds.name_of(resource).namespace, **columns}
    rows = [kinds.row(resource, columns) for resource in shown]
    click.echo("\n".join(tables.lines(list(columns), rows, width_max=_CELL_CHARS_MAX)))
    return code


def _name_absent(kind: str, names: Iterable[str], found: set[str]) -> int:
    """Print those of the names that were not found; returns the exit code."""
    absent = [name for name in names if name not in found]
    if absent:
        click.echo(watch_output.printable(f"{kind} {', '.join(absent)}: not found"), err=True)
    return EXIT_FAILED if absent else 0


def _print_resources(kind: kinds.Kind, shown: list[kinds.Members], *, is_one: bool, as_yaml: bool) -> None:
    content: object = shown[0] if is_one and len(shown) == 1 else _as_list(kind, shown)
    if as_yaml:
        click.echo(yaml.safe_dump(content, default_flow_style=False), nl=False)  # escapes what is not printable
    else:
        click.echo(json.dumps(content, indent=2, sort_keys=True))  # in ASCII


def _as_list(kind: kinds.Kind, shown: list[kinds.Members]) -> kinds.Members:
    return {"apiVersion": kinds.API_VERSION, "kind": f"{kind.name}List", "items": shown, "metadata": {}}


def _print_raw(found: Iterable[answers.Entry]) -> None:
    for entry in found:
        update = messages.Update(
            entry.key, value_of(entry), entry.revision, messages.UpdateType.NEW, entry.v3_resource_version
        )
        click.echo(watch_output.update_line(update, ascii_only=sys.stdout.isatty()))


def value_of(entry: answers.Entry) -> bytes:
    """The value's bytes.

    Raises:
        client.Unanswered: they cannot be decoded.
    """
    if not entry.value_base64:
        return entry.value.encode()
    try:
        return msgspec.convert(entry.value_base64, bytes)
    except msgspec.ValidationError as error:
        raise client.Unanswered(f"{entry.key}: {error}") from error


def _show_raw_feed(
    service: client.Service,
    feed: str,
    resource: str | None,
    names: tuple[str, ...],
    namespace: str | None,
    output: str,
) -> int:
    found = entries(service, feed, "")
    if resource is not None:
        found = [entry for entry in found if _is_raw(entry, resource, names, namespace)]
    found.sort(key=lambda entry: entry.key)
    code = _name_absent(resource or "", names, {entry.key.rpartition("/")[2] for entry in found})
    if output == "raw":
        _print_raw(found)
    elif output in ("yaml", "json"):
        content = [_decoded(entry) for entry in found]
        text = yaml.safe_dump(content, default_flow_style=False) if output == "yaml" else json.dumps(content, indent=2)
        click.echo(text.rstrip("\n"))
    else:
        columns = 1 if output == "name" else 4
        rows = [(entry.key, entry.revision, str(entry.sequence), tables.size(len(value_of(entry)))) for entry in found]
        titles = ("KEY", "REVISION", "SEQUENCE", "SIZE")[:columns]
        shown = tables.lines(titles, [row[:columns] for row in rows], width_max=_CELL_CHARS_MAX)
        click.echo("\n".join(shown))
    return code


def _is_raw(entry: answers.Entry, resource: str, names: tuple[str, ...], namespace: str | None) -> bool:
    parts = entry.key.split("/")  # "", group, version, resource, namespace, name
    if len(parts) != 6 or parts[3] != resource:
        return False
    return (not names or parts[5] in names) and (namespace is None or parts[4] in ("", namespace))


def _decoded(entry: answers.Entry) -> object:
    try:
        return json.loads(value_of(entry))
    except (ValueError, RecursionError):
        return {"key": entry.key, "value": entry.value or entry.value_base64}
