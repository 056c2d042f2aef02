"""Calico's own feeds at start: whether, from which API group, and when their watches may begin.

The group is chosen once, before the first list. The custom resources of the group are watched only once the API server
serves them: without, their types would count as empty and the feeds as in sync with an empty world.
"""

import asyncio
import os
from collections.abc import Awaitable, Callable
from typing import NamedTuple, TypeVar

import structlog

from cache import resources
from cache.feeds.calico import feed, syncers
from cache.kube import access, api, discovery
from typha import settings
from typha.hub import calico_objects, hub

_log = structlog.get_logger("typha.calico")

AUTO = "auto"
NEVER = ("false", "")
"""The second is what `none` sets."""
GROUP_VARIABLE = "CALICO_API_GROUP"
_RETRY_SECONDS = 1.0
_LOOK_SECONDS = 2.0
_SETTLED_LOOKS = 3
"""Definitions come one by one; what has not changed for so many looks is all there will be (an older Calico's)."""
_SHOWN_CHARS = 80
_UNAUTHORIZED = 401
_TEMPORARY_STATUSES = frozenset({_UNAUTHORIZED, 408, 429})

Answer = TypeVar("Answer")


class Choice(NamedTuple):
    """The group of Calico's custom resources, why it is that one, and whether the API server lists one of them."""

    group: syncers.Group
    reason: str
    is_listed: bool


def awaited_names(configured: settings.Settings) -> tuple[str, ...]:
    """The feeds that may come."""
    return () if configured.calico_feeds in NEVER else syncers.NAMES


def choose(variable: str, listed: frozenset[str] | None) -> Choice:
    """The choice of docs/data-model.md, section 2.2; `listed` is None where the API server's groups cannot be known."""
    v1, v3 = syncers.Group.V1, syncers.Group.V3
    has_v1, has_v3 = (listed is not None and group.group in listed for group in (v1, v3))
    if variable:
        group = v3 if variable.lower() == v3.value else v1
        reason = f"{GROUP_VARIABLE} is {variable[:_SHOWN_CHARS]!r}"
    elif listed is None:
        group, reason = v1, "the API server does not tell its groups"
    elif has_v3 and not has_v1:
        group, reason = v3, f"the API server lists {v3.group} alone"
    else:
        others = {(True, True): "both groups", (True, False): f"{v1.group} alone", (False, False): "neither group"}
        group, reason = v1, f"the API server lists {others[has_v1, has_v3]}"
    return Choice(group, reason, has_v1 or has_v3)


class CalicoStart:
    """What `Service` needs to know of Calico: feeds for the hub, and the types whose watches wait."""

    def __init__(self, configured: settings.Settings, the_hub: hub.Hub, *, max_value_bytes: int) -> None:
        self._settings = configured
        self._hub = the_hub
        self._max_value_bytes = max_value_bytes
        self.types: list[resources.ResourceType] = []
        """The custom resources; empty without Calico's feeds."""
        self._group = syncers.Group.V1

    async def decide(self, session: api.KubeApi) -> None:
        """Adds the feeds to the hub, or withdraws them; takes as long as the API server cannot be asked."""
        if not self._hub.awaited:
            return
        variable = os.environ.get(GROUP_VARIABLE, "")
        is_conditional = self._settings.calico_feeds == AUTO and bool(self._settings.feeds_file)
        listed = await _listed_groups(session) if is_conditional or not variable else None
        choice = choose(variable, listed)
        if is_conditional and not choice.is_listed:
            _log.info("Calico's feeds are off: CalicoFeeds is auto, and its API groups are not there")
            self._hub.withdraw_awaited()
            return
        _log.info("Chose Calico's API group", group=choice.group.value, reason=choice.reason)
        specs = syncers.specs(choice.group)
        self._hub.add_feeds(feed.CalicoFeed(spec, max_value_bytes=self._max_value_bytes) for spec in specs)
        types = (source.type for spec in specs for source in spec.sources if source.type.group == choice.group.group)
        self.types = list(dict.fromkeys(types))
        self._group = choice.group

    async def installed(self, session: api.KubeApi) -> None:
        """Returns when the custom resources may be watched; objects that must be there are created before."""
        await self._wait_for_definitions(session)
        if self._settings.read_only:
            _log.info("Nothing is created at start", setting="ReadOnly")
        else:
            await calico_objects.ensure(session, self._group)

    async def _wait_for_definitions(self, session: api.KubeApi) -> None:
        seen: frozenset[resources.ResourceType] = frozenset()
        looks = 0
        while True:
            found = await self._look(session)
            looks = looks + 1 if found == seen else 1
            if not found and not seen and looks == 1:
                _log.warning(
                    "Calico's feeds wait: the API server serves no custom resource of the group",
                    group=self._group.value,
                )
            if len(found) == len(self.types) or (found and looks >= _SETTLED_LOOKS):
                break
            seen = found
            await asyncio.sleep(_LOOK_SECONDS)
        missing = ", ".join(type.resource for type in self.types if type not in found)
        if missing:
            _log.warning("Some of Calico's custom resources are not installed", missing=missing)

    async def _look(self, session: api.KubeApi) -> frozenset[resources.ResourceType]:
        try:
            return await _asked(session, lambda: discovery.installed_types(session, self.types))
        except discovery.Refused as error:
            _log.warning("The API server does not tell its resources", error=str(error))
            return frozenset()


async def _listed_groups(session: api.KubeApi) -> frozenset[str] | None:
    try:
        return await _asked(session, lambda: discovery.group_names(session))
    except discovery.Refused as error:
        _log.warning("The API server does not tell its groups", error=str(error))
        return None


async def _asked(session: api.KubeApi, question: Callable[[], Awaitable[Answer]]) -> Answer:
    """The answer, however long the API server is away; raises discovery.Refused for what is no temporary trouble."""
    complained = False
    while True:
        try:
            return await question()
        except api.Interrupted as error:
            problem = error.detail
        except discovery.Refused as error:
            if error.status not in _TEMPORARY_STATUSES and error.status < 500:
                raise
            problem = str(error)
            if error.status == _UNAUTHORIZED:
                await _reload(session)
        if not complained:
            _log.warning("No answer from the API server, asking again each second", error=problem)
        complained = True
        await asyncio.sleep(_RETRY_SECONDS)


async def _reload(session: api.KubeApi) -> None:
    try:
        await session.reload()
    except access.AccessError as error:
        _log.warning("Cannot load the credentials again", error=str(error))
