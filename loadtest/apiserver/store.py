"""Objects of a simulated API server with their history, as etcd and the watch cache of kube-apiserver keep them.

Pure: no I/O and no clock. All types share one resourceVersion. Each type keeps its last events, and the versions of its
objects over that time. So a paged list is one snapshot, even if objects change between its pages.
"""

import bisect
import collections
import dataclasses
import random
import uuid
from collections.abc import Callable, Iterator, Mapping

from loadtest.apiserver import objects
from loadtest.apiserver.errors import AlreadyExists, Conflict, Expired, Invalid, NotFound, PageNotFound, TypeUnknown
from loadtest.apiserver.objects import Event, EventKind, JsonObject
from loadtest.apiserver.resources import Resource

#: Snapshots kept for further pages of lists; each is two lists of references.
SNAPSHOTS_KEPT = 4

Listener = Callable[[Resource, Event], None]


@dataclasses.dataclass(frozen=True, slots=True)
class Snapshot:
    """All live objects of one type (or one namespace of it) at one version, in key order; `items` as in a list."""

    version: int
    keys: list[str]
    items: list[bytes]


@dataclasses.dataclass(frozen=True, slots=True)
class Page:
    """Part of a snapshot; `remaining` objects follow `last_key`."""

    version: int
    items: list[bytes]
    last_key: str
    remaining: int


class _Table:
    """One type: sorted keys (deleted ones while they have history), versions by key, events."""

    __slots__ = ("events", "floor", "keys", "live", "versions")

    def __init__(self, floor: int) -> None:
        self.keys: list[str] = []
        self.versions: dict[str, list[tuple[int, bytes | None]]] = {}
        self.events: collections.deque[Event] = collections.deque()
        self.floor = floor
        self.live = 0

    def current(self, key: str) -> bytes | None:
        history = self.versions.get(key)
        return history[-1][1] if history else None

    def at(self, key: str, version: int) -> bytes | None:
        for changed, item in reversed(self.versions[key]):
            if changed <= version:
                return item
        return None

    def record(self, event: Event, history_events: int) -> None:
        history = self.versions.get(event.key)
        if history is None:
            bisect.insort(self.keys, event.key)
            history = self.versions[event.key] = []
        self.live += (event.kind is EventKind.ADDED) - (event.kind is EventKind.DELETED)
        history.append((event.version, None if event.kind is EventKind.DELETED else event.item))
        self.events.append(event)
        while len(self.events) > history_events:
            self.forget_oldest()

    def forget_oldest(self) -> None:
        """Drop the oldest event, and the versions that only it could reach."""
        event = self.events.popleft()
        self.floor = max(self.floor, event.version)
        history = self.versions[event.key]
        while len(history) > 1 and history[1][0] <= self.floor:
            del history[0]
        if len(history) == 1 and history[0][1] is None and history[0][0] <= self.floor:
            del self.versions[event.key]
            del self.keys[bisect.bisect_left(self.keys, event.key)]


class Store:
    """The objects; not thread-safe.

    `history_events` are kept for each type; older versions are `Expired`. Listeners get every change, in order.
    """

    def __init__(self, *, seed: int = 0, history_events: int = 10_000) -> None:
        if history_events < 1:
            raise ValueError(f"history_events must be at least 1, not {history_events}")
        self.version = 1
        self.history_events = history_events
        self._random = random.Random(seed)
        self._tables: dict[Resource, _Table] = {}
        self._listeners: list[Listener] = []
        self._snapshots: collections.OrderedDict[tuple[Resource, int, str], Snapshot] = collections.OrderedDict()

    def install(self, resource: Resource) -> None:
        """Serve a type from now on; no effect if it is served already."""
        if resource not in self._tables:
            self._tables[resource] = _Table(floor=0)

    def uninstall(self, resource: Resource) -> None:
        """Forget a type and all its objects, without events. Raises TypeUnknown."""
        self._table(resource)
        del self._tables[resource]
        self._snapshots.clear()

    def resources(self) -> list[Resource]:
        """Types served, sorted."""
        return sorted(self._tables)

    def find(self, group: str, version: str, name: str) -> Resource:
        """The type of this group ("" for core), version and plural name.

        Raises TypeUnknown, or PageNotFound if no type of the group and version is served.
        """
        for resource in self._tables:
            if (resource.group, resource.version, resource.name) == (group, version, name):
                return resource
        if group and not any((known.group, known.version) == (group, version) for known in self._tables):
            raise PageNotFound(f"{group}/{version}")
        raise TypeUnknown

    def subscribe(self, listener: Listener) -> None:
        """Call `listener` with each later change, before the write returns."""
        self._listeners.append(listener)

    def create(self, resource: Resource, value: JsonObject) -> bytes:
        """Add an object; returns it as in a list. Raises AlreadyExists, Invalid, TypeUnknown."""
        namespace, name = objects.identity(resource, value)
        key = resource.key(namespace, name)
        if self._table(resource).current(key) is not None:
            raise AlreadyExists(resource, name)
        version = self.version + 1
        uid = str(uuid.UUID(int=self._random.getrandbits(128), version=4))
        created = objects.prepared(resource, value, version=version, uid=uid, created=objects.timestamp(version))
        return self._commit(resource, EventKind.ADDED, key, namespace, objects.encode(resource, created))

    def replace(self, resource: Resource, value: JsonObject) -> bytes:
        """Replace an object; writes nothing if nothing changes.

        A metadata.resourceVersion in `value` must be the current one. Raises Conflict, NotFound, Invalid, TypeUnknown.
        """
        namespace, name = objects.identity(resource, value)
        key = resource.key(namespace, name)
        before = self._existing(resource, key, name)
        known = objects.decode(before)["metadata"]
        expected = value["metadata"].get("resourceVersion")
        if expected not in (None, "", known["resourceVersion"]):
            raise Conflict(resource, name)
        same = objects.prepared(
            resource,
            value,
            version=int(known["resourceVersion"]),
            uid=known["uid"],
            created=known["creationTimestamp"],
        )
        if objects.encode(resource, same) == before:
            return before
        same["metadata"]["resourceVersion"] = str(self.version + 1)
        return self._commit(resource, EventKind.MODIFIED, key, namespace, objects.encode(resource, same))

    def patch(self, resource: Resource, namespace: str, name: str, change: JsonObject) -> bytes:
        """Apply a JSON merge patch (RFC 7386). Raises as `replace`."""
        before = self.get(resource, namespace, name)
        uid = (change.get("metadata") or {}).get("uid")
        if uid not in (None, objects.decode(before)["metadata"]["uid"]):
            raise Invalid(resource, name, f'metadata.uid: Invalid value: "{uid}": field is immutable')
        return self.replace(resource, objects.merged(objects.decode(before), change))

    def delete(
        self, resource: Resource, namespace: str, name: str, *, conditions: Mapping[str, str] | None = None
    ) -> bytes:
        """Delete an object; returns its last state with the version of the deletion.

        `conditions` are members of its metadata. Raises Conflict, NotFound, TypeUnknown.
        """
        key = resource.key(namespace, name)
        value = objects.decode(self._existing(resource, key, name))
        if conditions and any(value["metadata"].get(member) != wanted for member, wanted in conditions.items()):
            raise Conflict(resource, name)
        value["metadata"]["resourceVersion"] = str(self.version + 1)
        return self._commit(resource, EventKind.DELETED, key, namespace, objects.encode(resource, value))

    def get(self, resource: Resource, namespace: str, name: str) -> bytes:
        """The object as in a list. Raises NotFound, TypeUnknown."""
        return self._existing(resource, resource.key(namespace, name), name)

    def objects(self, resource: Resource) -> dict[str, bytes]:
        """Live objects by key (`namespace/name` or `name`), in key order."""
        snapshot = self.snapshot(resource)
        return dict(zip(snapshot.keys, snapshot.items, strict=True))

    def count(self, resource: Resource) -> int:
        """Number of live objects."""
        return self._table(resource).live

    def snapshot(self, resource: Resource, *, namespace: str = "", version: int | None = None) -> Snapshot:
        """State at a version (default: now). Raises Expired if the history does not reach back to it."""
        table = self._table(resource)
        wanted = self.version if version is None else version
        if wanted < table.floor:
            raise Expired(wanted, table.floor)
        cached = self._snapshots.get((resource, wanted, namespace))
        if cached is not None:
            self._snapshots.move_to_end((resource, wanted, namespace))
            return cached
        keys: list[str] = []
        items: list[bytes] = []
        for key in self._keys(table, namespace):
            item = table.at(key, wanted)
            if item is not None:
                keys.append(key)
                items.append(item)
        snapshot = Snapshot(wanted, keys, items)
        self._snapshots[resource, wanted, namespace] = snapshot
        if len(self._snapshots) > SNAPSHOTS_KEPT:
            self._snapshots.popitem(last=False)
        return snapshot

    def page(
        self, resource: Resource, *, namespace: str = "", version: int | None = None, after: str = "", limit: int = 0
    ) -> Page:
        """Up to `limit` objects (0: all) whose key is greater than `after`. Raises as `snapshot`."""
        snapshot = self.snapshot(resource, namespace=namespace, version=version)
        start = bisect.bisect_right(snapshot.keys, after) if after else 0
        end = min(start + limit, len(snapshot.keys)) if limit else len(snapshot.keys)
        last_key = snapshot.keys[end - 1] if end > start else after
        return Page(snapshot.version, snapshot.items[start:end], last_key, len(snapshot.keys) - end)

    def events_since(self, resource: Resource, version: int) -> list[Event]:
        """Events of a type after a version, the oldest first. Raises Expired if some are forgotten."""
        table = self._table(resource)
        if version < table.floor:
            raise Expired(version, table.floor)
        events: list[Event] = []
        for event in reversed(table.events):
            if event.version <= version:
                break
            events.append(event)
        events.reverse()
        return events

    def oldest(self, resource: Resource) -> int:
        """The oldest version from which a watch of the type can begin."""
        return self._table(resource).floor

    def advance(self) -> int:
        """Advance one version, as a write to a type that is not served does."""
        self.version += 1
        return self.version

    def compact(self, resource: Resource | None = None) -> None:
        """Forget the history of one type or of all: every earlier version is Expired."""
        for candidate, table in self._tables.items():
            if resource is None or candidate == resource:
                while table.events:
                    table.forget_oldest()
                table.floor = self.version

    def roll_back(self, version: int) -> None:
        """Return to an earlier state, like etcd restored from a backup: later writes use the same versions again.

        Listeners are not called. Raises Expired, and changes nothing, if a type's history does not reach back to it.
        """
        snapshots = {resource: self.snapshot(resource, version=version) for resource in self._tables}
        for resource, snapshot in snapshots.items():
            table = self._tables[resource] = _Table(floor=version)
            table.keys = list(snapshot.keys)
            table.live = len(snapshot.keys)
            for key, item in zip(snapshot.keys, snapshot.items, strict=True):
                table.versions[key] = [(objects.version_of(item), item)]
        self.version = version
        self._snapshots.clear()

    def _commit(self, resource: Resource, kind: EventKind, key: str, namespace: str, item: bytes) -> bytes:
        self.version += 1
        event = Event(kind, self.version, key, namespace, item)
        self._tables[resource].record(event, self.history_events)
        for listener in self._listeners:
            listener(resource, event)
        return item

    def _table(self, resource: Resource) -> _Table:
        table = self._tables.get(resource)
        if table is None:
            raise TypeUnknown(resource)
        return table

    def _existing(self, resource: Resource, key: str, name: str) -> bytes:
        item = self._table(resource).current(key)
        if item is None:
            raise NotFound(resource, name)
        return item

    @staticmethod
    def _keys(table: _Table, namespace: str) -> Iterator[str]:
        if not namespace:
            return iter(table.keys)
        start = bisect.bisect_left(table.keys, f"{namespace}/")
        end = bisect.bisect_left(table.keys, f"{namespace}0")  # "0" is the character after "/"
        return iter(table.keys[start:end])
