"""Scripted faults, and which of them apply to a request. Pure."""

import dataclasses
import enum
import math
from typing import Any

import msgspec

from loadtest.apiserver.errors import REASONS, ApiError
from loadtest.apiserver.resources import Resource

#: Faults that may wait or be active at once; more is a mistake in the script.
MAX_FAULTS = 1_000


class FaultKind(enum.Enum):
    """Kinds of faults: first those of open watches, then those of later requests, then those of the server."""

    CLOSE = "close"  # streams end as they do at their timeout
    DROP = "drop"  # streams are reset
    DROP_MID_LINE = "drop-mid-line"  # half a line is sent, then the connection closes
    BROKEN_JSON = "broken-json"  # a line that is not JSON is sent, the stream continues
    BAD_EVENT = "bad-event"  # a whole line with an object that cannot be decoded is sent, the stream continues
    LOSE_EVENTS = "lose-events"  # a server's bug: see Fault
    HALF_OPEN = "half-open"  # streams become silent and stay open

    DELAY = "delay"  # answers start `delay_seconds` later
    ERROR = "error"  # answers are a Status with `code`
    BROKEN_LIST = "broken-list"  # lists end in the middle, with a correct Content-Length
    BAD_OBJECT = "bad-object"  # lists contain one more object, which cannot be decoded, see `text`
    ENDLESS_LIST = "endless-list"  # each page of a list is the first one, with a new continue token
    ALTERNATING_LIST = "alternating-list"  # the same, with one of two continue tokens in turn
    COMPRESSED = "compressed"  # answers are compressed although nobody asked for it, see `text` and `megabytes`
    DRIP = "drip"  # answers begin, and then one byte comes each `delay_seconds` while the fault is active

    COMPACT = "compact"  # history is forgotten and streams are reset: every resumed watch gets 410
    RESTART = "restart"  # everything is closed, connections are refused for `duration_seconds`, history is forgotten
    ROLL_BACK = "roll-back"  # the state of `count` versions ago returns, as from a backup, and streams are reset


STREAM_KINDS = frozenset(
    (
        FaultKind.CLOSE,
        FaultKind.DROP,
        FaultKind.DROP_MID_LINE,
        FaultKind.BROKEN_JSON,
        FaultKind.BAD_EVENT,
        FaultKind.LOSE_EVENTS,
        FaultKind.HALF_OPEN,
    )
)
REQUEST_KINDS = frozenset(
    (
        FaultKind.DELAY,
        FaultKind.ERROR,
        FaultKind.BROKEN_LIST,
        FaultKind.BAD_OBJECT,
        FaultKind.ENDLESS_LIST,
        FaultKind.ALTERNATING_LIST,
        FaultKind.COMPRESSED,
        FaultKind.DRIP,
    )
)


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Fault:
    """One fault, `at_seconds` after it is scheduled.

    `resource` (plural name, or as `core/v1/pods`) and `verb` (LIST, WATCH, WATCHLIST, GET) limit it; empty means all.
    Faults of requests stay active for `duration_seconds` (0: no limit) and for `count` requests (0: no limit).

    LOSE_EVENTS is a bug of the server: each stream drops its next `count` events, sends the event after them, and
    breaks. A client that resumes from the last version it saw cannot notice this; only a new list repairs it.
    """

    kind: FaultKind
    at_seconds: float = 0.0
    resource: str = ""
    verb: str = ""
    duration_seconds: float = 0.0
    count: int = 0
    code: int = 0
    retry_after_seconds: int = 0
    delay_seconds: float = 0.0
    text: str = ""
    """Of a BAD_OBJECT: surrogate (also without a text), nan, deep. Of COMPRESSED: gzip (the same), deflate."""
    megabytes: int = 0
    """Blanks that follow a COMPRESSED body."""

    def __post_init__(self) -> None:
        """Raises ValueError for a fault without effect or with a wrong one."""
        if min(self.at_seconds, self.duration_seconds, self.count, self.delay_seconds, self.retry_after_seconds) < 0:
            raise ValueError(f"fault {self.kind.value}: a negative number")
        if self.kind is FaultKind.ERROR and self.code not in REASONS:
            raise ValueError(f"fault error: code {self.code} is none of {', '.join(map(str, REASONS))}")
        if self.kind in (FaultKind.DELAY, FaultKind.DRIP) and not self.delay_seconds:
            raise ValueError(f"fault {self.kind.value}: delay_seconds is missing")
        if self.kind in (FaultKind.LOSE_EVENTS, FaultKind.ROLL_BACK) and not self.count:
            raise ValueError(f"fault {self.kind.value}: count is missing")

    def matches(self, verb: str, resource: Resource) -> bool:
        """Whether the fault applies to a request."""
        return self.verb in ("", verb) and self.resource in ("", resource.name, str(resource))

    def error(self, verb: str, resource: Resource) -> ApiError:
        """The answer that an ERROR fault gives."""
        message = f"simulated fault: {REASONS[self.code]}"
        if self.code == 403:
            message = (
                f'{resource.name} is forbidden: User "simulated" cannot {verb.lower()} resource "{resource.name}" '
                f'in API group "{resource.group}" at the cluster scope'
            )
        retry_after = self.retry_after_seconds or None
        return ApiError(self.code, REASONS[self.code], message, retry_after_seconds=retry_after)


def parse(data: bytes) -> list[Fault]:
    """Faults from JSON, one object or a list, with the members of Fault. Raises ValueError."""
    try:
        faults = msgspec.json.decode(data, type=list[Fault] | Fault)
    except msgspec.DecodeError as error:
        raise ValueError(f"faults: {error}") from error
    return faults if isinstance(faults, list) else [faults]


def document(fault: Fault) -> dict[str, Any]:
    """The fault as a JSON object, without members that have their default."""
    defaults = Fault.__dataclass_fields__
    members: dict[str, Any] = {"kind": fault.kind.value}
    for name, field in defaults.items():
        if name != "kind" and getattr(fault, name) != field.default:
            members[name] = getattr(fault, name)
    return members


class Rules:
    """The active faults of requests. Times are seconds of one monotonic clock."""

    def __init__(self) -> None:
        self._active: list[tuple[Fault, float, list[int]]] = []

    def add(self, fault: Fault, now: float) -> None:
        """Activate a fault."""
        until = now + fault.duration_seconds if fault.duration_seconds else math.inf
        self._active.append((fault, until, [fault.count]))

    def clear(self) -> None:
        """Remove all faults."""
        self._active.clear()

    def active(self, now: float) -> list[Fault]:
        """The active faults."""
        self._active = [entry for entry in self._active if entry[1] > now]
        return [fault for fault, _, _ in self._active]

    def take(self, kind: FaultKind, verb: str, resource: Resource, *, now: float) -> Fault | None:
        """The first active fault of a kind that applies to a request; counts the request."""
        self.active(now)
        for entry in self._active:
            fault, _, remaining = entry
            if fault.kind is kind and fault.matches(verb, resource):
                if fault.count:
                    remaining[0] -= 1
                    if not remaining[0]:
                        self._active.remove(entry)
                return fault
        return None
