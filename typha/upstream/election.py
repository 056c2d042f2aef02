"""Which replica of an elected fleet watches the API server: the holder of a Lease. Pure; times are monotonic seconds.

As in client-go, no replica compares its clock with another one's. A replica takes the Lease when it has not seen the
record change for the time that the record names. The API server refuses all but one of several that try. Two holders
for a moment are two replicas that watch, which harms nothing.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import msgspec

DURATION_SECONDS = 10
"""How long a Lease lasts that is not renewed. Followers serve what they have meanwhile, so there is no hurry, and an
API server that is away for some seconds must not cost another replica's lists."""
RENEW_SECONDS = 2.0
"""Between two renewals, and between two looks of the others: client-go's retry period."""
RENEW_SECONDS_MAX = 7.0
"""A holder that has not renewed the Lease for so long does not count on it any more: client-go's share of the time."""
_DURATIONS = range(1, 61)
_TEXT_CHARS_MAX = 253


class Spec(msgspec.Struct, rename="camel", omit_defaults=True):
    """The spec of a Lease of coordination.k8s.io/v1. Microseconds of its times are for people."""

    holder_identity: str | None = None
    lease_duration_seconds: int | None = None
    acquire_time: str | None = None
    renew_time: str | None = None
    lease_transitions: int | None = None


class Metadata(msgspec.Struct, rename="camel", omit_defaults=True):
    """What is needed of it."""

    name: str = ""
    namespace: str = ""
    resource_version: str = ""


class Lease(msgspec.Struct, rename="camel"):
    """A Lease. Members that are not named here are lost when it is written; nobody else has any business with it."""

    metadata: Metadata
    spec: Spec = msgspec.field(default_factory=Spec)
    api_version: str = "coordination.k8s.io/v1"
    kind: str = "Lease"


class Place(NamedTuple):
    """Where the Lease is."""

    namespace: str
    name: str


class Election:
    """One replica's view. Look at the Lease, `observe` it, and write what `wanted` returns."""

    def __init__(self, identity: str, place: Place, *, timestamp: Callable[[], str]) -> None:
        self.identity = identity[:_TEXT_CHARS_MAX]
        self._place = place
        self._timestamp = timestamp
        self._record: tuple[Any, ...] | None = None
        self._observed_at = 0.0
        self._renewed_at: float | None = None

    def holds(self, now: float) -> bool:
        """Whether this replica has the Lease, as far as it can know."""
        return self._renewed_at is not None and now - self._renewed_at < RENEW_SECONDS_MAX

    def observe(self, now: float, lease: Lease | None) -> None:
        """This is the Lease; None if there is none."""
        spec = Spec() if lease is None else lease.spec
        record = spec.holder_identity, spec.renew_time, spec.acquire_time, spec.lease_transitions
        if record != self._record:
            self._record, self._observed_at = record, now
        if spec.holder_identity != self.identity:
            self._renewed_at = None

    def wanted(self, now: float, lease: Lease | None) -> Lease | None:
        """What to write in its place; None if another replica holds it."""
        spec = Spec() if lease is None else lease.spec
        is_ours = spec.holder_identity == self.identity
        duration = spec.lease_duration_seconds if spec.lease_duration_seconds in _DURATIONS else DURATION_SECONDS
        if spec.holder_identity and not is_ours and now - self._observed_at < (duration or DURATION_SECONDS):
            return None
        timestamp = self._timestamp()
        transitions = spec.lease_transitions or 0
        return Lease(
            Metadata(self._place.name, self._place.namespace, "" if lease is None else lease.metadata.resource_version),
            Spec(
                self.identity,
                DURATION_SECONDS,
                spec.acquire_time if is_ours else timestamp,
                timestamp,
                transitions if is_ours or lease is None else transitions + 1,
            ),
        )

    def written(self, now: float, lease: Lease) -> None:
        """The API server has accepted a Lease that `wanted` or `released` returned, and that was sent at this time."""
        self._renewed_at = now if lease.spec.holder_identity == self.identity else None
        self.observe(now, lease)

    def released(self, lease: Lease) -> Lease:
        """What to write so that another replica may take it at once."""
        spec = Spec("", 1, lease.spec.acquire_time, self._timestamp(), lease.spec.lease_transitions)
        return Lease(lease.metadata, spec)
