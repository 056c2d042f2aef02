"""What a service answers to `/v1/status` and `/v1/clients`. Times are seconds since 1970, durations seconds.

The service encodes these types, and the commands decode them. A command may ask a service of another release, so it
takes unknown fields, and fields that are missing have a value.
"""

from typing import Annotated, TypeAlias

import msgspec

Count: TypeAlias = Annotated[int, msgspec.Meta(ge=0, le=(1 << 63) - 1)]
Name: TypeAlias = Annotated[str, msgspec.Meta(max_length=1000)]
_BOUND = msgspec.Meta(max_length=10_000)
"""Of lists: `typha status` also asks pods that may not be what they seem, and prints a line for each item."""


class Worker(msgspec.Struct, frozen=True, kw_only=True):
    """A worker, as it last reported."""

    worker: Count
    ready: bool
    connections: Count


class Service(msgspec.Struct, frozen=True, kw_only=True):
    """One running service."""

    version: Name
    pod: Name = ""
    incarnation: Name = ""
    started_at: float = 0.0
    now: float = 0.0
    is_draining: bool = False
    workers: Annotated[list[Worker], _BOUND] = []
    workers_wanted: Count = 0
    port: Count = 0
    open_connections: Count = 0
    freshness: Name = ""
    """`fresh`, or what the replica does because the API server does not confirm its data: `waiting`, `alone`,
    `all-stale` or `handing-over`."""
    stale_seconds: float = 0.0
    source: Name = ""
    """With the setting Upstream, where the data comes from: `watching`, `searching`, or `following HOST:PORT`."""


class Feed(msgspec.Struct, frozen=True, kw_only=True):
    """A feed, and its clients of all wire formats. Sequences count within one start of a service."""

    feed: Name
    status: Name
    keys: Count = 0
    value_bytes: Count = 0
    digest: Name = ""
    """Of all keys and values, 16 hexadecimal digits. Equal contents have equal digests on all replicas."""
    sequence: Count = 0
    clients: Count = 0
    held: Count = 0
    lag_seconds: float = 0.0
    """Of the slowest client, as workers last reported."""
    reporting: Count = 0
    """Clients that report what they have applied."""
    applied: Count = 0
    """Those of them that have applied everything up to now."""
    applied_lag_seconds: float = 0.0
    """Age of the oldest change that one of them has not applied."""
    formats: list[Name] = []
    subscriptions: list[Name] = []
    """Parts of the feed that clients get, in short."""
    snapshot_bytes: Count = 0
    log_bytes: Count = 0
    changed_at: float | None = None


class Kind(msgspec.Struct, frozen=True, kw_only=True):
    """A resource type that the service watches."""

    type: Name
    state: Name
    objects: Count = 0
    confirmed_seconds: float | None = None
    """Since the API server last confirmed that nothing is missing."""
    feeds: list[Name] = []


class Status(msgspec.Struct, frozen=True, kw_only=True):
    """`/v1/status`."""

    service: Service
    feeds: Annotated[list[Feed], _BOUND] = []
    kinds: Annotated[list[Kind], _BOUND] = []


class Client(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """One connection."""

    node: Name
    address: Name
    version: Name = ""
    info: Name = ""
    release: Name = ""
    feed: Name = ""
    format: Name = ""
    state: Name = ""
    lag_seconds: float = 0.0
    lag_bytes: Count = 0
    sequence: Count = 0
    applied: Count | None = None
    """The sequence that the client says it has applied; None for a client that does not report that."""
    applied_lag_seconds: float = 0.0
    """Age of the oldest change that it has not applied."""
    bytes_sent: Count = 0
    age_seconds: float = 0.0
    worker: Count = 0
    tls_name: Name = ""
    number: Count = 0
    subscription: Name = ""
    """The part of the feed that it gets, in short; empty for the whole feed."""


class Clients(msgspec.Struct, frozen=True, kw_only=True):
    """`/v1/clients`."""

    clients: Annotated[list[Client], _BOUND]
    total: Count
    """Connections that fit the query, also those beyond the limit."""
    complete: bool
    """False if a worker did not name all of its clients in time."""
    missing_workers: Annotated[list[Count], _BOUND] = []
    versions: Annotated[dict[Name, Count], _BOUND] = {}
    """How many of all these connections name each version; the most frequent ones."""
    states: Annotated[dict[Name, Count], _BOUND] = {}
    """How many are in each state."""
    slowest_to_apply: Annotated[list[Client], _BOUND] = []
    """Of all these connections, the ten that have not applied a change for longest; none that has applied all."""


class Entry(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """A key of a feed."""

    key: str
    value: str = ""
    value_base64: str = ""
    """In place of `value`, if that is no UTF-8."""
    revision: str = ""
    v3_resource_version: str = ""
    sequence: Count = 0
    owner_kind: str = ""
    """The kind of the object that the value comes from; empty in a raw feed."""
    owner_name: str = ""
    """`namespace/name`, or the name of a cluster-wide object."""


class Objects(msgspec.Struct, frozen=True, kw_only=True):
    """`/v1/objects`."""

    entries: list[Entry]
    status: Name = ""
    next: Name = ""
    """Parameter `after` for the next page; empty on the last one."""


class HeldKey(msgspec.Struct, frozen=True, kw_only=True):
    """A key that an object has in a feed."""

    key: str
    note: str = ""
    sequence: Count = 0
    """0 if the key has no value."""
    at: float | None = None
    """When its present value was published, to 0.1 s, or to a minute if it is old."""
    revision: str = ""
    value_bytes: int | None = None


class Refusal(msgspec.Struct, frozen=True, kw_only=True):
    """Why an object is not carried, or doubted."""

    reason: str
    detail: str = ""
    is_carried: bool = False
    at: float = 0.0


class Fate(msgspec.Struct, frozen=True, kw_only=True):
    """What became of an object in a feed."""

    feed: Name
    keys: list[HeldKey] = []
    refusal: Refusal | None = None
    clients: Count = 0
    clients_behind: Count = 0
    """Clients that have not been sent the newest of the keys yet."""
    behind: list[Client] = []
    """Some of them."""
    reporting: Count = 0
    """Clients that report what they have applied."""
    applied: Count = 0
    """Those of them that have applied the newest of the keys."""


class Explained(msgspec.Struct, frozen=True, kw_only=True):
    """An object, and what became of it."""

    type: Name
    namespace: str = ""
    name: str
    refusal: Refusal | None = None
    """Why no feed gets to see it."""
    feeds: list[Fate] = []


class Explanation(msgspec.Struct, frozen=True, kw_only=True):
    """`/v1/explain`."""

    objects: list[Explained]
    complete: bool = True
    """False if a worker did not name its clients in time."""


class Process(msgspec.Struct, frozen=True, kw_only=True):
    """A worker's process."""

    worker: Count
    pid: Count
    text: str
    """Memory, tasks, threads and newest log lines."""


class Support(msgspec.Struct, frozen=True, kw_only=True):
    """`/v1/support`."""

    pid: Count
    settings: list[dict[str, str | bool]] = []
    metrics: str = ""
    health: list[str] = []
    stacks: str = ""
    log: list[str] = []
    workers: list[Process] = []
    missing_workers: Annotated[list[Count], _BOUND] = []
