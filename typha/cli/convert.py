"""`typha convert`: what a feed's agents see of objects, without a cluster."""

import json
import os
import pathlib
import sys
from collections.abc import Iterable, Iterator
from typing import BinaryIO

import click
import msgspec

from cache import objects, resources
from cache.feeds.calico import customresource, feed, specfields, syncers
from protocol import messages
from typha.cli import convert_input

EXIT_REFUSED = 1
EXIT_UNREADABLE = 2

_MAX_VALUE_BYTES = 1 << 30
_STANDARD_INPUT = "-"
_GROUP_VARIABLE = "CALICO_API_GROUP"
_WHOLE_KINDS = frozenset({"BGPConfiguration", "BGPFilter", "BGPPeer", "CalicoNodeStatus", "EndpointSlice", "Service"})
_SOMETIMES_WHOLE_KINDS = frozenset({"FelixConfiguration", "ClusterInformation"})
_NAMESPACED_KINDS = frozenset(
    {
        *("EndpointSlice", "NetworkPolicy", "NetworkSet", "Pod", "Service", "ServiceAccount"),
        *("StagedKubernetesNetworkPolicy", "StagedNetworkPolicy", "VirtualMachineInstanceMigration"),
    }
)
_NAMESPACE_DEFAULT = "default"
_TITLES_NAMED = 3


@click.command(name="convert", short_help="Show what a feed's agents see of objects.")
@click.argument("files", metavar="[FILE]...", nargs=-1)
@click.option("--feed", "feed_name", type=click.Choice(syncers.NAMES), required=True, help="The feed.")
@click.option("--api-group", help="Calico's API group and version. Default: CALICO_API_GROUP, else by the objects.")
@click.option("--deltas", is_flag=True, help="Print what is sent step by step: the first list, then each watch event.")
@click.pass_context
def convert(
    context: click.Context, *, files: tuple[str, ...], feed_name: str, api_group: str | None, deltas: bool
) -> None:
    """Print what the agents of a feed see of the objects in FILEs (- or none: standard input), one JSON object a line.

    FILEs hold objects, lists or watch events, as JSON or YAML. Exit codes: 1 an object was refused, 2 usage or
    unreadable input.
    """
    try:
        entries = _read(files)
    except (OSError, convert_input.UnreadableInput) as error:
        click.echo(f"typha: error: {error}", err=True)
        context.exit(EXIT_UNREADABLE)
    group = _choose_group(api_group, entries)
    conversion = _Conversion(feed_name, group)
    try:
        if deltas:
            _print_deltas(conversion, entries)
        else:
            _print_map(conversion, entries)
        sys.stdout.flush()
    except BrokenPipeError:  # the reader has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    conversion.report()
    context.exit(EXIT_REFUSED if conversion.has_refused else 0)


def _read(files: tuple[str, ...]) -> list[convert_input.Entry]:
    entries: list[convert_input.Entry] = []
    left = convert_input.MAX_INPUT_BYTES
    for name in files or (_STANDARD_INPUT,):
        if name == _STANDARD_INPUT:
            text = _limited(sys.stdin.buffer, left, "standard input")
        else:
            with pathlib.Path(name).open("rb") as stream:
                text = _limited(stream, left, name)
        left -= len(text)
        entries += convert_input.read(text, source="standard input" if name == _STANDARD_INPUT else name)
    return entries


def _limited(stream: BinaryIO, limit: int, name: str) -> bytes:
    text = stream.read(limit + 1)
    if len(text) > limit:
        raise convert_input.UnreadableInput(f"{name}: more than {convert_input.MAX_INPUT_BYTES} bytes of input")
    return text


def _choose_group(option: str | None, entries: Iterable[convert_input.Entry]) -> syncers.Group:
    chosen = option if option is not None else os.environ.get(_GROUP_VARIABLE, "")
    if chosen:
        return syncers.Group.V3 if chosen.lower() == syncers.Group.V3.value else syncers.Group.V1
    versions = {entry.api_version for entry in entries}
    only_v3 = syncers.Group.V3.value in versions and syncers.Group.V1.value not in versions
    return syncers.Group.V3 if only_v3 else syncers.Group.V1


class _Conversion:
    """One feed, and what is to be said of objects on standard error."""

    def __init__(self, feed_name: str, group: syncers.Group) -> None:
        [spec] = [spec for spec in syncers.specs(group) if spec.name == feed_name]
        self.feed = feed.CalicoFeed(spec, max_value_bytes=_MAX_VALUE_BYTES)
        self.has_refused = False
        self._group = group
        [self._other_group] = [other for other in syncers.Group if other is not group]
        self._ignored = 0
        self._types = {(_api_version(source.type), source.kind): source.type for source in spec.sources}
        self._lines: dict[str, None] = {}
        self._without_managed_fields: dict[str, None] = {}

    def select(self, entries: Iterable[convert_input.Entry]) -> list[convert_input.Entry]:
        """The entries that the feed has something of; those of the other group are counted."""
        mine = []
        for entry in entries:
            self._ignored += entry.api_version == self._other_group.value
            if (entry.api_version, entry.kind) in self._types:
                mine.append(self._in_namespace(entry))
        return mine

    def _in_namespace(self, entry: convert_input.Entry) -> convert_input.Entry:
        if entry.namespace or entry.kind not in _NAMESPACED_KINDS:
            return entry
        self._say(f"warning: {entry.title}: no namespace is given, {_NAMESPACE_DEFAULT!r} is taken")
        return entry.in_namespace(_NAMESPACE_DEFAULT)

    def put(self, entry: convert_input.Entry, origin: objects.Origin) -> None:
        """The object is there."""
        refusal = self.feed.apply(self._event(entry, origin))
        if refusal is not None:
            self._say(
                f"{'warning' if refusal.is_carried else 'refused'}: {entry.title}: {refusal.reason}: {refusal.detail}"
            )
            self.has_refused = self.has_refused or not refusal.is_carried
        self._look_at(entry)

    def remove(self, entry: convert_input.Entry) -> None:
        """The object is gone."""
        self.feed.delete(self._event(entry, objects.Origin.EVENT))

    def report(self) -> None:
        """Prints what there is to say, each line once."""
        if self._ignored:
            objects_text = "1 object" if self._ignored == 1 else f"{self._ignored} objects"
            self._say(f"ignored {objects_text} of {self._other_group.value}: the group is {self._group.value}")
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

    def _say(self, line: str) -> None:
        self._lines[" ".join(line.split())] = None

    def _look_at(self, entry: convert_input.Entry) -> None:
        is_own = entry.api_version == self._group.value
        is_whole = entry.kind in _WHOLE_KINDS or (
            entry.kind in _SOMETIMES_WHOLE_KINDS and entry.name != "default" and not entry.name.startswith("node.")
        )
        if not is_own and not is_whole:
            return
        members = msgspec.json.decode(entry.raw)
        unknown = specfields.unknown_fields(entry.kind, members.get("spec")) if is_own else []
        if unknown:
            self._say(f"warning: {entry.title}: unknown fields are dropped: {', '.join(unknown)}")
        metadata = members["metadata"]
        annotations = metadata.get("annotations") or {}
        is_replaced = self._group is syncers.Group.V1 and customresource.METADATA_ANNOTATION in annotations
        if is_whole and "managedFields" not in metadata and not (is_own and is_replaced):
            self._without_managed_fields[entry.title] = None


def _api_version(type: resources.ResourceType) -> str:
    return f"{type.group}/{type.version}" if type.group else type.version


def _print_map(conversion: _Conversion, entries: Iterable[convert_input.Entry]) -> None:
    """The map of the objects that are there in the end, as a fresh server would send it."""
    present: dict[tuple[str, str, str, str], convert_input.Entry] = {}
    for entry in conversion.select(entries):
        present.pop(entry.place, None)
        if entry.watch_type != "DELETED":
            present[entry.place] = entry
    for entry in present.values():
        conversion.put(entry, objects.Origin.LIST)
    conversion.feed.take()
    updates = [stored.as_update() for stored in conversion.feed.store]
    _print_lines(_line(update) for update in sorted(updates, key=lambda update: update.key.encode()))


def _print_deltas(conversion: _Conversion, entries: Iterable[convert_input.Entry]) -> None:
    """What clients are sent: of the objects that are simply there first, then of each event."""
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
    batch = conversion.feed.take()
    if batch is not None:
        _print_lines(_line(update, step=step) for update in batch.updates)


def _print_lines(lines: Iterator[bytes]) -> None:
    for line in lines:
        sys.stdout.buffer.write(line + b"\n")


def _line(update: messages.Update, *, step: int | None = None) -> bytes:
    """One update; an empty value is none, which is what the original's agents see."""
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
