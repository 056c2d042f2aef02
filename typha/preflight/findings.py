"""What a check found, and what to do about it. Pure."""

import enum
from collections.abc import Iterable
from typing import NamedTuple


class Status(enum.Enum):
    """How a check ended. The value is what people and programs read."""

    OK = "ok"
    WARNING = "warning"
    """The service starts, but not everything works as expected."""
    FAILED = "failed"
    """The service does not start, is not ready, or refuses agents."""
    UNKNOWN = "cannot tell"
    """There is no answer, or the credentials do not allow to look."""


class Finding(NamedTuple):
    """The result of one check."""

    status: Status
    check: str
    """What was looked at, such as permissions."""
    found: str
    advice: str = ""
    """What to do."""


def worst(findings: Iterable[Finding]) -> Status:
    """The status of all together. `cannot tell` is no failure."""
    order = (Status.FAILED, Status.WARNING, Status.UNKNOWN, Status.OK)
    return min((finding.status for finding in findings), key=order.index, default=Status.OK)
