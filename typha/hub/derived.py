"""What follows a feed, and exists while it has clients: projections for older agents, and selections of subscriptions.

Each is given what its feed has, in slices between the hub's other work, and follows the feed from then on.
"""

import asyncio
from collections.abc import Iterator

import structlog

from cache.feeds import feed, selection
from cache.feeds.calico import feed as calico_feed
from cache.feeds.calico import releases
from protocol import subscriptions

_log = structlog.get_logger("typha.hub")


class DerivedFeeds:
    """Begins and seeds projections, which the hub keeps among its feeds; begins, seeds and keeps selections."""

    def __init__(self) -> None:
        self.selections: dict[tuple[str, subscriptions.Subscription], selection.Selection] = {}
        """By feed and subscription; while they have clients, or channels for them."""
        self._seeds: dict[str | selection.Selection, Iterator[list[feed.Rejection] | None]] = {}
        """Projections, by name, and selections that do not have all objects yet."""
        self._has_seeds = asyncio.Event()

    def selections_of(self, base: feed.Feed) -> list[selection.Selection]:
        """The selections of a feed."""
        return [one for one in self.selections.values() if one.base is base]

    def project(self, name: str, base: calico_feed.CalicoFeed) -> calico_feed.Projection:
        """Begins a projection of a feed."""
        projection = calico_feed.Projection(base, releases.BY_FEED[name])
        self._seed(name, projection.seed())
        return projection

    def select(self, base: feed.Feed, subscription: subscriptions.Subscription) -> None:
        """Begins a selection of a feed, if there is none."""
        if (base.name, subscription) in self.selections:
            return
        opened = selection.Selection(base, subscription)
        _log.info("Beginning to serve a subscription", feed=base.name, subscription=subscription.label)
        self.selections[base.name, subscription] = opened
        self._seed(opened, opened.seed())

    def _seed(self, of: str | selection.Selection, seed: Iterator[list[feed.Rejection] | None]) -> None:
        self._seeds[of] = seed
        self._has_seeds.set()

    @property
    def is_taking_over(self) -> bool:
        """Whether a projection or selection does not have all objects yet."""
        return bool(self._seeds)

    async def something_begins(self) -> None:
        """Returns when a projection or selection does not have all objects yet."""
        await self._has_seeds.wait()

    def take_over(self) -> tuple[list[feed.Rejection], bool]:
        """Gives each of them the next slice. Returns what was refused, and whether one of them has all objects now."""
        refused: list[feed.Rejection] = []
        is_one_done = False
        for name, seed in list(self._seeds.items()):
            try:
                rejections = next(seed)
            except StopIteration:
                self._seeds.pop(name, None)
                is_one_done = True
            else:
                refused += rejections or []
        if not self._seeds:
            self._has_seeds.clear()
        return refused, is_one_done

    def rebase(self, old: feed.Feed, new: feed.Feed) -> None:
        """Another feed has taken the place of one. Selections follow it."""
        for one in self.selections_of(old):
            one.base = new

    def end_projection(self, projection: calico_feed.Projection) -> None:
        """A projection is followed no more."""
        projection.close()
        self._seeds.pop(projection.name, None)

    def close_unused_selections(
        self, used: set[tuple[str, subscriptions.Subscription | None]]
    ) -> list[selection.Selection]:
        """Lets go of the selections whose feed and subscription are not among these, and returns them."""
        closed = []
        for key in [key for key in self.selections if key not in used]:
            _log.info("No clients of a subscription are left", feed=key[0], subscription=key[1].label)
            closed.append(self.selections.pop(key))
            self._seeds.pop(closed[-1], None)
        return closed
