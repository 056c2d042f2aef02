"""How many subscriptions are served at a time, and for whom (docs/decisions/subscriptions.md, *Limits*)."""

from collections.abc import Iterable

SELECTIONS_MAX = 16
"""Subscriptions that are served at a time, over all feeds. Each costs the hub some 200 bytes for each key, a look at
every change, a log and a snapshot; a fleet has one for each kind of agent."""


def has_room(askers: Iterable[str], asker: str, *, places: int = SELECTIONS_MAX) -> bool:
    """Whether an address may bring one more subscription to those that these addresses have brought.

    It may have as many as are left for others. So one address gets half of the places, two get three quarters, and no
    four of them take all.
    """
    taken = list(askers)
    return taken.count(asker) < places - len(taken)
