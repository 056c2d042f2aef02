"""Keeps the addresses of the other replicas, asks them while this one is stale, and says what follows."""

import asyncio
from collections.abc import Callable
from typing import NamedTuple

import structlog

from cache.kube import tls_contexts
from typha import clock, settings
from typha.peers import discovered, freshness, inquiry

_log = structlog.get_logger("typha.peers")
_monotonic = clock.monotonic

KUBERNETES = "kubernetes"
_SHOWN = 10
_SERVERS_NAMED = 16
"""Fresh replicas that a goodbye names; it may have no more."""
_LOOK_SECONDS = 1.0
_ASK_SECONDS = 5.0
"""Between two rounds of questions. A stale replica sees that another one is fresh, or is not any more, within that."""
_AGAIN_SECONDS = 300.0
"""Between the beginnings of two rounds of moves, after the second. A client that comes back then knows no other one,
and each move costs it a snapshot."""


class Actions(NamedTuple):
    """What the service does for it."""

    stale_feeds: Callable[[], list[str]]
    """The feeds that the API server cannot confirm."""
    hand_over: Callable[[float, list[str]], None]
    """Moves the clients that are connected now, over so many seconds, to these addresses."""
    keep: Callable[[], None]
    """Calls off what is left of that."""


class Peers:
    """What this replica knows of the others, and its stance. Run `run` as a task."""

    def __init__(
        self,
        configured: settings.Settings,
        actions: Actions,
        *,
        incarnation: bytes,
    ) -> None:
        self._settings = configured
        self._actions = actions
        self._incarnation = incarnation
        self._listed = discovered.listed(configured.peer_addresses)
        self._discovered: list[str] = []
        self._freshness = freshness.Freshness(
            freshness.HandOverPolicy(
                after_seconds=configured.stale_hand_over_after_seconds,
                spread_seconds=configured.stale_hand_over_spread_seconds,
                again_seconds=_AGAIN_SECONDS,
            )
        )
        self.answers: dict[str, freshness.Answer] = {}
        """What the peers have last said, by address; empty while this replica is fresh."""

    @property
    def is_enabled(self) -> bool:
        """Whether the settings name other replicas."""
        return bool(self._listed) or self._settings.connection_rebalancing_mode == KUBERNETES

    def discovered(self, addresses: list[str]) -> None:
        """The addresses of the Service's port. They stay known while the API server cannot be asked."""
        if addresses != self._discovered:
            _log.info("Replicas of the Service", replicas=len(addresses), first=", ".join(addresses[:_SHOWN]))
        self._discovered = addresses

    @property
    def known(self) -> list[str]:
        """The addresses that are asked."""
        return list(dict.fromkeys([*self._listed, *self._discovered]))

    @property
    def stance(self) -> freshness.Stance:
        """What this replica does, and why."""
        return self._freshness.stance

    @property
    def stale_seconds(self) -> float:
        """For how long the API server has not confirmed the data; 0.0 while it does."""
        since = self._freshness.stale_since
        return 0.0 if since is None else max(0.0, _monotonic() - since)

    async def run(self) -> None:
        """Looks every second, forever."""
        ask_at = 0.0
        while True:
            await asyncio.sleep(_LOOK_SECONDS)
            stale = self._actions.stale_feeds()
            now = _monotonic()
            if stale and self.known and self._freshness.wants_answers(now) and now >= ask_at:
                self.answers = await self._ask(stale[0])
                now = _monotonic()
                self._freshness.note_answers(now, self.answers)
                ask_at = now + freshness.jittered(_ASK_SECONDS)
            self._act(self._freshness.stance, self._freshness.look(now, is_stale=bool(stale)))

    def _act(self, before: freshness.Stance, decision: freshness.Decision) -> None:
        stance = decision.stance
        if stance is not before:
            known = {
                "peers": len(self.known),
                "answers": len(self.answers),
                "fresh": ", ".join(decision.fresh[:_SHOWN]),
            }
            _log.info("Freshness of this replica", stance=stance.value, before=before.value, **known)
            if before is freshness.Stance.HANDING_OVER:
                self._actions.keep()
            if stance is freshness.Stance.FRESH:
                self.answers = {}
        if decision.begins_round:
            seconds = self._settings.stale_hand_over_spread_seconds
            _log.warning("Handing clients over to replicas that are fresh", seconds=seconds)
            self._actions.hand_over(seconds, list(decision.fresh[:_SERVERS_NAMED]))

    async def _ask(self, feed: str) -> dict[str, freshness.Answer]:
        try:
            context = inquiry.make_context(self._settings)
        except tls_contexts.TlsUnusable as error:
            _log.warning("Cannot ask other replicas", error=str(error))
            return {}
        return await inquiry.ask_all(self.known, feed, context=context, incarnation=self._incarnation)
