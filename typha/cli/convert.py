"""`typha convert`: show what the agents of a feed see of some objects, without a cluster.

The input is objects, lists and watch events, as JSON or YAML, in any mixture. JSON keeps its bytes, because the order
of members can be part of a value. YAML is read as kubectl reads it (see cache.yamljson).
"""

import contextlib
import json
import os
import sys
from collections.abc import Iterable, Iterator

import click
import msgspec

from cache import objects, resources
from cache.feeds.calico import customresource, feed, releases, specfields, syncers
from protocol import messages
from typha import settings
from typha.cli import convert_input

EXIT_REFUSED = 1
EXIT_UNREADABLE = 2

_MAX_VALUE_BYTES = 1 << 30
_GROUP_VARIABLE = "CALICO_API_GROUP"
_WHOLE_KINDS = frozenset({"BGPConfiguration", "BGPFilter", "BGPPeer", "CalicoNodeStatus", "EndpointSlice", "Service"})
"""The values of these kinds contain the whole object."""
_SOMETIMES_WHOLE_KINDS = frozenset({"FelixConfiguration", "ClusterInformation"})
_NAMESPACED_KINDS = frozenset(
    {
        *("EndpointSlice", "NetworkPolicy", "NetworkSet", "Pod", "Service", "ServiceAccount"),
        *("StagedKubernetesNetworkPolicy", "StagedNetworkPolicy", "VirtualMachineInstanceMigration"),
    }
)
_NAMESPACE_DEFAULT = "default"
_TITLES_NAMED = 3
_VALUE_SHOWN = 40
_INVALID_OBJECT = "invalid-object"


@click.command(name="convert", short_help="Show what the agents of a feed see of some objects.")
@click.argument("files", metavar="[FILE]...", nargs=-1)
@click.option("--feed", "feed_name", type=click.Choice(syncers.NAMES), required=True, help="Name of the feed.")
@click.option(
    "--api-group",
    help="API group and version of Calico. Default: CALICO_API_GROUP; if it is not set, chosen from the objects.",
)
@click.option(
    "--agent-release",
    metavar="VERSION",
    help="Release of the agents, such as v3.31.7. Default: the newest.",
)
@click.option(
    "--use-pod-cidr/--no-pod-cidr",
    default=None,
    help="Whether blocks and tunnel addresses come from the nodes' pod CIDRs. Default: USE_POD_CIDR.",
)
@click.option("--deltas", is_flag=True, help="Print updates step by step: the first list, then each watch event.")
@click.pass_context
def convert(
    context: click.Context,
    *,
    files: tuple[str, ...],
    feed_name: str,
    api_group: str | None,
    agent_release: str | None,
    use_pod_cidr: bool | None,
    deltas: bool,
) -> None:
    """Print what the agents of a feed see of the objects in FILEs, as one JSON object per line.

    FILEs contain objects, lists or watch events, as JSON or YAML. Without FILEs, or for "-", the command reads standard
    input. Exit codes: 1 an object was refused, 2 bad usage or unreadable input.
    """
    try:
        release = releases.Release.NEWEST if agent_release is None else releases.parse_release(agent_release)
    except ValueError as error:
        raise click.BadParameter(str(error), param_hint="--agent-release") from error
    try:
        if use_pod_cidr is None:
            use_pod_cidr = settings.uses_pod_cidrs(os.environ)
    except settings.ConfigurationError as error:
        raise click.UsageError(str(error)) from error
    files = files or (convert_input.STANDARD_INPUT,)
    progress = convert_input.Progress(convert_input.total_bytes(files))
    inputs = convert_input.Inputs(files, progress)
    try:
        entries = list(inputs.entries())
    except (OSError, convert_input.UnreadableInput) as error:
        progress.end()
        click.echo(f"typha: error: {error}", err=True)
        context.exit(EXIT_UNREADABLE)
    finally:
        progress.end()
    for warning in inputs.warnings:
        click.echo(warning, err=True)
    group = _choose_group(api_group, entries)
    conversion = _Conversion(feed_name, group, release, use_pod_cidr=use_pod_cidr)
    try:
        if deltas:
            _print_deltas(conversion, entries)
        else:
            _print_snapshot(conversion, entries)
        sys.stdout.flush()
    except BrokenPipeError:  # the reader has closed the pipe; keep the interpreter from reporting it at exit
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    conversion.report()
    context.exit(EXIT_REFUSED if conversion.has_refused else 0)


def _choose_group(option: str | None, entries: Iterable[convert_input.Entry]) -> syncers.Group:
    chosen = option if option is not None else os.environ.get(_GROUP_VARIABLE, "")
    if chosen:
        return syncers.Group.V3 if chosen.lower() == syncers.Group.V3.value else syncers.Group.V1
    versions = {entry.api_version for entry in entries}
    only_v3 = syncers.Group.V3.value in versions and syncers.Group.V1.value not in versions
    return syncers.Group.V3 if only_v3 else syncers.Group.V1


class _Conversion:
    """One feed, and the messages about objects for standard error."""

    def __init__(self, feed_name: str, group: syncers.Group, release: releases.Release, *, use_pod_cidr: bool) -> None:
        specs = syncers.specs(group, use_pod_cidr=use_pod_cidr)
        [spec] = [spec for spec in specs if spec.name == feed_name]
        self.feed: feed.CalicoFeed = feed.CalicoFeed(spec, max_value_bytes=_MAX_VALUE_BYTES)
        """Takes the objects."""
        self.shown = self.feed
        """What the agents get of it."""
        if feed_name == syncers.FELIX and release is not releases.Release.NEWEST:
            self.shown = projection = feed.Projection(self.feed, release)
            for _ in projection.seed():
                pass
        self.has_refused = False
        self._group = group
        [self._other_group] = [other for other in syncers.Group if other is not group]
        self._ignored = 0
        self._types = {(_api_version(source.type), source.kind): source.type for source in spec.sources}
        self._lines: dict[str, None] = {}
        self._without_managed_fields: dict[str, None] = {}

    def select(self, entries: Iterable[convert_input.Entry]) -> list[convert_input.Entry]:
        """The entries of kinds that the feed converts. Counts the entries of the other API group."""
        selected = []
        for entry in entries:
            self._ignored += entry.api_version == self._other_group.value
            if (entry.api_version, entry.kind) in self._types:
                selected.append(self._in_namespace(entry))
        return selected

    def _in_namespace(self, entry: convert_input.Entry) -> convert_input.Entry:
        if entry.namespace or entry.kind not in _NAMESPACED_KINDS:
            return entry
        self._message(f"warning: {entry.title}: no namespace, using {_NAMESPACE_DEFAULT!r}")
        return entry.in_namespace(_NAMESPACE_DEFAULT)

    def put(self, entry: convert_input.Entry, origin: objects.Origin) -> None:
        """Add or change an object."""
        refusal = self.feed.apply(self._event(entry, origin))
        if refusal is not None:
            self._message(
                f"{'warning' if refusal.is_carried else 'refused'}: {entry.title}: {refusal.reason}: {refusal.detail}"
                + (_no_texts(entry.raw) if refusal.reason == _INVALID_OBJECT else "")
            )
            self.has_refused = self.has_refused or not refusal.is_carried
        self._inspect(entry)

    def remove(self, entry: convert_input.Entry) -> None:
        """Delete an object."""
        self.feed.delete(self._event(entry, objects.Origin.EVENT))

    def report(self) -> None:
        """Print the messages to standard error, each one once."""
        if self._ignored:
            objects_text = "1 object" if self._ignored == 1 else f"{self._ignored} objects"
            self._message(f"ignored {objects_text} of {self._other_group.value}: the group is {self._group.value}")
        for line in self._lines:
            click.echo(line, err=True)
        titles = list(self._without_managed_fields)
        if titles:
            more = f" and {len(titles) - _TITLES_NAMED} more" if len(titles) > _TITLES_NAMED else ""
            named = ", ".join(titles[:_TITLES_NAMED]) + more
            click.echo(
                f"warning: no managedFields, which are part of the value (kubectl --show-managed-fields): {named}",
                err=True,
            )

    def _event(self, entry: convert_input.Entry, origin: objects.Origin) -> objects.ObjectEvent:
        return objects.ObjectEvent(
            self._types[entry.api_version, entry.kind],
            entry.namespace,
            entry.name,
            entry.resource_version,
            entry.raw,
            entry.api_version,
            entry.kind,
            origin,
        )

    def _message(self, line: str) -> None:
        self._lines[" ".join(line.split())] = None

    def _inspect(self, entry: convert_input.Entry) -> None:
        """Warn about unknown fields, and about missing managedFields if they are part of the value."""
        is_own = entry.api_version == self._group.value
        is_whole = entry.kind in _WHOLE_KINDS or (
            entry.kind in _SOMETIMES_WHOLE_KINDS and entry.name != "default" and not entry.name.startswith("node.")
        )
        if not is_own and not is_whole:
            return
        members = json.loads(entry.raw, parse_int=float)  # which may have any number of digits
        unknown = specfields.unknown_fields(entry.kind, members.get("spec")) if is_own else []
        if unknown:
            self._message(f"warning: {entry.title}: unknown fields are dropped: {', '.join(unknown)}")
        metadata = members["metadata"]
        annotations = metadata.get("annotations") or {}
        is_replaced = self._group is syncers.Group.V1 and customresource.METADATA_ANNOTATION in annotations
        if is_whole and "managedFields" not in metadata and not (is_own and is_replaced):
            self._without_managed_fields[entry.title] = None


def _no_texts(raw: bytes) -> str:
    """Name the labels and annotations that are no texts: YAML makes numbers and booleans of 1.10, 012, on and 1e5."""
    metadata = convert_input.decode_members(convert_input.decode_members(raw)["metadata"])
    names = []
    for part in ("labels", "annotations"):
        with contextlib.suppress(KeyError, msgspec.ValidationError):
            for name, value in convert_input.decode_members(metadata[part]).items():
                if not bytes(value).startswith((b'"', b"null")):
                    names.append(f"{part}.{name}: {bytes(value)[:_VALUE_SHOWN].decode(errors='replace')}")
    return f" (no text, quote it: {', '.join(names[:_TITLES_NAMED])})" if names else ""


def _api_version(type: resources.ResourceType) -> str:
    return f"{type.group}/{type.version}" if type.group else type.version


# Output


def _print_snapshot(conversion: _Conversion, entries: Iterable[convert_input.Entry]) -> None:
    """Print the snapshot that a new client gets after all entries."""
    present: dict[tuple[str, str, str, str], convert_input.Entry] = {}
    for entry in conversion.select(entries):
        present.pop(entry.place, None)
        if entry.watch_type != "DELETED":
            present[entry.place] = entry
    for entry in present.values():
        conversion.put(entry, objects.Origin.LIST)
    conversion.shown.take()
    updates = [stored.as_update() for stored in conversion.shown.store]
    _print_lines(_line(update) for update in sorted(updates, key=lambda update: update.key.encode()))


def _print_deltas(conversion: _Conversion, entries: Iterable[convert_input.Entry]) -> None:
    """Print the updates that a client gets: step 0 for the objects outside watch events, then a step for each event."""
    entries = list(entries)
    for entry in conversion.select(entry for entry in entries if not entry.watch_type):
        conversion.put(entry, objects.Origin.LIST)
    _print_step(conversion, 0)
    for step, event in enumerate((entry for entry in entries if entry.watch_type), 1):
        for entry in conversion.select([event]):
            if entry.watch_type == "DELETED":
                conversion.remove(entry)
            else:
                conversion.put(entry, objects.Origin.EVENT)
        _print_step(conversion, step)


def _print_step(conversion: _Conversion, step: int) -> None:
    batch = conversion.shown.take()
    if batch is not None:
        _print_lines(_line(update, step=step) for update in batch.updates)


def _print_lines(lines: Iterator[bytes]) -> None:
    for line in lines:
        sys.stdout.buffer.write(line + b"\n")


def _line(update: messages.Update, *, step: int | None = None) -> bytes:
    """One update as JSON. An empty value becomes null, because the original's agents see no value."""
    content: dict[str, object] = {
        "key": update.key,
        "value": update.value.decode() if update.value else None,
        "revision": update.revision,
        "v3_resource_version": update.v3_resource_version,
        "update_type": int(update.update_type),
        "ttl": update.ttl,
    }
    if step is not None:
        content["step"] = step
    return json.dumps(content, ensure_ascii=False).encode()
