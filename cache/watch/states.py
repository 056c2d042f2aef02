"""The states of a watch machine, each with the data that is valid in it. `cache.watch.machine` has the rules. Pure."""

from dataclasses import dataclass, field
from typing import TypeAlias


@dataclass(frozen=True, slots=True)
class Empty:
    """No request is in progress; the next one is a list."""


@dataclass(frozen=True, slots=True)
class Watching:
    """In sync up to the reflector's position."""


@dataclass(frozen=True, slots=True)
class Polling:
    """In sync as of the last list. The type cannot be watched."""


@dataclass(frozen=True, slots=True)
class Absent:
    """In sync: the type is not installed."""


@dataclass(slots=True)
class ListPages:
    """Between the first and the last page of a list. `unseen` holds known objects that no page has contained yet."""

    unseen: dict[str, None]
    version: str
    began_at: float
    last_success: float
    """Time of the last success before the list."""
    continue_token: str = ""
    tokens: set[int] = field(default_factory=set)
    """The hashes of all continue tokens so far."""
    size_bytes: int = 0
    seen: int = 0
    """Number of objects in the pages so far, each counted once."""
    idle_pages: int = 0
    """Number of last pages in a row that did not change `seen`."""


@dataclass(slots=True)
class InitialEvents:
    """Between the start of a WatchList and the bookmark that ends its initial events."""

    unseen: dict[str, None]
    began_at: float
    last_event_at: float


@dataclass(slots=True)
class Sweeping:
    """The list is complete. `stale` holds the known objects that it did not contain."""

    stale: list[str]
    version: str
    then: Watching | Polling | Absent


State: TypeAlias = Empty | ListPages | InitialEvents | Sweeping | Watching | Polling | Absent
