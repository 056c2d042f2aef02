"""The states of a watch machine, each with only the data valid in it; `cache.watch.machine` has the rules. Pure."""

from dataclasses import dataclass
from typing import TypeAlias


@dataclass(frozen=True, slots=True)
class Empty:
    """Nothing is under way."""


@dataclass(frozen=True, slots=True)
class Watching:
    """In sync up to the view's position."""


@dataclass(frozen=True, slots=True)
class Polling:
    """In sync as of the last list; the type cannot be watched."""


@dataclass(frozen=True, slots=True)
class Absent:
    """In sync: the type is not installed."""


@dataclass(slots=True)
class ListPages:
    """Between the first page of a list and its last."""

    unseen: set[str]
    version: str
    continue_token: str


@dataclass(slots=True)
class InitialEvents:
    """Between a WatchList's beginning and its end bookmark."""

    unseen: set[str]
    began_at: float
    last_event_at: float


@dataclass(slots=True)
class Sweeping:
    """The list is complete; `doomed` was not in it."""

    doomed: list[str]
    version: str
    then: Watching | Polling | Absent


State: TypeAlias = Empty | ListPages | InitialEvents | Sweeping | Watching | Polling | Absent
