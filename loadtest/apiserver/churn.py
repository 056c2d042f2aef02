"""Churn: creates, updates and deletes objects at a rate, by an absolute schedule."""

import asyncio
import dataclasses
import random
import time
from typing import Any

from loadtest import WRITTEN_AT
from loadtest.apiserver import objects, resources
from loadtest.apiserver.errors import AlreadyExists, NotFound
from loadtest.apiserver.objects import JsonObject
from loadtest.apiserver.population import Maker, Population
from loadtest.apiserver.resources import Resource
from loadtest.apiserver.store import Store

#: Label that every update changes.
MARKER = "loadtest.typha/marker"
#: Writes in a row before other tasks run.
WRITES_PER_TURN = 50
#: Types whose objects are created and deleted, and how they are made. Objects of other types are only updated.
_MAKERS = {resources.PODS: Maker.pod, resources.WIDGETS: Maker.widget}
_BY_NAME = {resource.name: resource for resource in (*resources.BUILT_IN, resources.WIDGETS)}


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class ChurnSettings:
    """Rate in writes a second, weights of the operations, and weights of the types by plural name."""

    rate_per_second: float = 20.0
    duration_seconds: float = 0.0  # 0: until it is stopped
    create: float = 1.0
    update: float = 8.0
    delete: float = 1.0
    label_times: bool = False
    """Set the time of the write also as a label: Calico's feeds carry labels, but no annotations."""
    pod_bytes: int = 0
    """Size of new pods, see `Population`."""
    types: dict[str, float] = dataclasses.field(
        default_factory=lambda: {"pods": 8.0, "endpointslices": 1.0, "widgets": 0.5, "services": 0.25, "nodes": 0.25}
    )

    def __post_init__(self) -> None:
        if not 0 < self.rate_per_second <= 100_000:
            raise ValueError(f"churn: rate_per_second must be between 0 and 100000, not {self.rate_per_second}")
        if self.duration_seconds < 0 or min(self.create, self.update, self.delete) < 0:
            raise ValueError("churn: a negative number")
        if self.create + self.update + self.delete <= 0:
            raise ValueError("churn: all operations have weight 0")
        unknown = set(self.types) - set(_BY_NAME)
        if unknown or sum(self.types.values()) <= 0 or min(self.types.values()) < 0:
            raise ValueError(f"churn: unknown types or no weight: {', '.join(sorted(unknown)) or self.types}")


class ChurnWriter:
    """Makes one write at a time; the same writes for the same seed, store and settings."""

    def __init__(self, store: Store, settings: ChurnSettings, *, seed: int) -> None:
        self._store = store
        self._random = random.Random(f"{seed}/churn")
        self._names: dict[Resource, list[tuple[str, str]]] = {}
        served = set(store.resources())
        for name in sorted(settings.types):
            resource = _BY_NAME[name]
            if resource in served and settings.types[name] > 0:
                self._names[resource] = [_names_of(resource, key) for key in store.objects(resource)]
        if not self._names:
            raise ValueError("churn: none of its types is served")
        self._weights = [settings.types[resource.name] for resource in self._names]
        self._operations = (settings.create, settings.update, settings.delete)
        spaces = store.count(resources.NAMESPACES), store.count(resources.NODES)
        like = Population(namespaces=max(1, spaces[0]), nodes=max(1, spaces[1]), pod_bytes=settings.pod_bytes)
        self._maker = Maker(like, seed=seed)
        self._label_times = settings.label_times
        self._serial = store.version
        self.counts = {"create": 0, "update": 0, "delete": 0}

    def write(self, written_at_ns: int) -> None:
        """Make one write, marked with its time."""
        resource = self._random.choices(list(self._names), self._weights)[0]
        operation = self._random.choices(("create", "update", "delete"), self._operations)[0]
        names = self._names[resource]
        if resource not in _MAKERS:
            operation = "update"
        elif not names:
            operation = "create"
        self._serial += 1
        if operation != "create" and not names:
            return
        try:
            if operation == "create":
                self._create(resource, written_at_ns)
            elif operation == "update":
                namespace, name = self._random.choice(names)
                self._store.patch(resource, namespace, name, self._mark(written_at_ns))
            else:
                self._delete(resource)
        except (NotFound, AlreadyExists):
            # Another writer deleted the object, or a roll-back undid a write: read the objects again.
            names[:] = [_names_of(resource, key) for key in self._store.objects(resource)]
            return
        self.counts[operation] += 1

    def _delete(self, resource: Resource) -> None:
        names = self._names[resource]
        index = self._random.randrange(len(names))
        namespace, name = names[index]
        names[index] = names[-1]
        names.pop()
        self._store.delete(resource, namespace, name)

    def _create(self, resource: Resource, written_at_ns: int) -> None:
        value = _MAKERS[resource](self._maker, self._serial, prefix="churn-")
        value = objects.merged(value, self._mark(written_at_ns))
        self._store.create(resource, value)
        self._names[resource].append(objects.identity(resource, value))

    def _mark(self, written_at_ns: int) -> JsonObject:
        labels = {MARKER: str(self._serial)}
        if self._label_times:
            labels[WRITTEN_AT] = str(written_at_ns)
        return {"metadata": {"labels": labels, "annotations": {WRITTEN_AT: str(written_at_ns)}}}


class Churn:
    """Runs a ChurnWriter in the event loop."""

    def __init__(self, store: Store, *, seed: int) -> None:
        self._store = store
        self._seed = seed
        self._task: asyncio.Task[None] | None = None
        self._totals = {"create": 0, "update": 0, "delete": 0}
        self._late_seconds = 0.0
        self._rate = 0.0

    @property
    def running(self) -> bool:
        """Whether it makes changes."""
        return self._task is not None and not self._task.done()

    def start(self, settings: ChurnSettings) -> None:
        """Start, in place of a running churn. Raises ValueError if none of its types is served."""
        writer = ChurnWriter(self._store, settings, seed=self._seed)
        self.stop()
        self._rate = settings.rate_per_second
        self._task = asyncio.get_running_loop().create_task(self._run(writer, settings), name="churn")

    def stop(self) -> None:
        """Stop; the last write is complete."""
        if self._task is not None:
            self._task.cancel()

    async def wait(self) -> None:
        """Return when no write will follow."""
        if self._task is not None:
            await asyncio.wait([self._task])

    async def burst(self, count: int, settings: ChurnSettings | None = None) -> None:
        """Make `count` writes as fast as possible. Raises ValueError if none of the types is served."""
        writer = ChurnWriter(self._store, settings or ChurnSettings(), seed=self._seed)
        for number in range(count):
            writer.write(time.time_ns())
            if number % WRITES_PER_TURN == WRITES_PER_TURN - 1:
                await asyncio.sleep(0)
        self._add(writer)

    def statistics(self) -> dict[str, Any]:
        """Counts of writes, and the delay of the last write behind its schedule."""
        rate = self._rate if self.running else 0.0
        return {"running": self.running, "rate": rate, **self._totals, "late_seconds": round(self._late_seconds, 4)}

    async def _run(self, writer: ChurnWriter, settings: ChurnSettings) -> None:
        interval = 1 / settings.rate_per_second
        begin = time.monotonic()
        total = round(settings.duration_seconds * settings.rate_per_second) or None
        done = 0
        while total is None or done < total:
            now = time.monotonic()
            due = int((now - begin) * settings.rate_per_second) - done
            if due <= 0:
                await asyncio.sleep(max(0.0, begin + (done + 1) * interval - now))
                continue
            self._late_seconds = now - begin - (done + 1) * interval
            for _ in range(min(due, WRITES_PER_TURN) if total is None else min(due, WRITES_PER_TURN, total - done)):
                writer.write(time.time_ns())
                done += 1
            self._add(writer)
            await asyncio.sleep(0)

    def _add(self, writer: ChurnWriter) -> None:
        for operation, count in writer.counts.items():
            self._totals[operation] += count
            writer.counts[operation] = 0


def _names_of(resource: Resource, key: str) -> tuple[str, str]:
    namespace, _, name = key.rpartition("/")
    return (namespace, name) if resource.namespaced else ("", key)
