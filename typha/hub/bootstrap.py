"""Calico's start: which feeds come, from which API group, and when their watches begin.

The group is chosen once, before the first list. The watches of the group's custom resources begin only once the API
server serves the resources. Without that, their types would count as empty, and the feeds as in sync with an empty
world.
"""

import asyncio
import collections
import os
from collections.abc import Awaitable, Callable
from typing import NamedTuple, TypeVar

import structlog

from cache import resources
from cache.feeds.calico import feed, syncers
from cache.kube import access, api, discovery
from typha import settings
from typha.hub import calico_objects, hub
from typha.observability import logs

_log = structlog.get_logger("typha.calico")

AUTO = "auto"
NEVER = ("false", "")
"""The second is the value that `none` sets."""
GROUP_VARIABLE = "CALICO_API_GROUP"
_SETTLED_LOOKS = 3
"""Definitions are installed one by one. After this many checks without a change no more are expected: an older Calico
does not have all of them."""
_OLDER_TIERS = {
    syncers.ADMIN_POLICIES: calico_objects.ADMIN_TIER,
    syncers.BASELINE_POLICIES: calico_objects.BASELINE_ADMIN_TIER,
}
_SHOWN_CHARS = 80
_LINE_SECONDS = 600.0
"""Between two log lines about the same problem of the API server."""
_UNAUTHORIZED = 401
_TEMPORARY_STATUSES = frozenset({_UNAUTHORIZED, 408, 429})

Answer = TypeVar("Answer")


class Choice(NamedTuple):
    """The group of Calico's custom resources, the reason for it, and whether the API server lists one of the groups."""

    group: syncers.Group
    reason: str
    is_listed: bool


def awaited_names(configured: settings.Settings) -> tuple[str, ...]:
    """The feeds that may come."""
    return () if configured.calico_feeds in NEVER else syncers.NAMES


def is_optional(configured: settings.Settings) -> bool:
    """Whether the feeds come only if the API server has one of Calico's groups."""
    return configured.calico_feeds == AUTO and bool(configured.feeds_file)


def choose(variable: str, listed: frozenset[str] | None) -> Choice:
    """Chooses by docs/data-model.md, section 2.2; `listed` is None if the API server does not list its groups."""
    v1, v3 = syncers.Group.V1, syncers.Group.V3
    has_v1, has_v3 = (listed is not None and group.group in listed for group in (v1, v3))
    if variable:
        group = v3 if variable.lower() == v3.value else v1
        reason = f"{GROUP_VARIABLE} is {variable[:_SHOWN_CHARS]!r}"
    elif listed is None:
        group, reason = v1, "the API server does not list its groups"
    elif has_v3 and not has_v1:
        group, reason = v3, f"the API server lists {v3.group} alone"
    else:
        others = {(True, True): "both groups", (True, False): f"{v1.group} alone", (False, False): "neither group"}
        group, reason = v1, f"the API server lists {others[has_v1, has_v3]}"
    return Choice(group, reason, has_v1 or has_v3)


class CalicoStart:
    """Adds Calico's feeds to the hub, and tells the service which types to watch, and when.

    Args:
        use_pod_cidr: see `settings.uses_pod_cidrs`.
        retry_seconds: between two attempts while the API server does not answer.
        look_seconds: between two checks for definitions of custom resources.
    """

    def __init__(
        self,
        configured: settings.Settings,
        the_hub: hub.Hub,
        *,
        max_value_bytes: int,
        use_pod_cidr: bool = False,
        retry_seconds: float = 1.0,
        look_seconds: float = 2.0,
    ) -> None:
        self._settings = configured
        self._hub = the_hub
        self._max_value_bytes = max_value_bytes
        self._use_pod_cidr = use_pod_cidr
        self._retry_seconds = retry_seconds
        self._look_seconds = look_seconds
        self.types: list[resources.ResourceType] = []
        """The custom resources; empty without Calico's feeds."""
        self._group = syncers.Group.V1
        self._lines = collections.defaultdict[str, logs.LineLimit](lambda: logs.LineLimit(1, seconds=_LINE_SECONDS))

    async def decide(self, session: api.KubeApi) -> None:
        """Adds the feeds to the hub, or withdraws them. Waits until the API server answers."""
        if not self._hub.awaited:
            return
        feeds = await self.make_feeds(session)
        if feeds:
            self._hub.add_feeds(feeds)
        else:
            self._hub.withdraw_awaited()

    async def make_feeds(self, session: api.KubeApi) -> list[feed.CalicoFeed]:
        """The feeds of the group that is chosen now; none if the API server has neither group, and they are optional.
        Waits until the API server answers."""
        variable = os.environ.get(GROUP_VARIABLE, "")
        is_conditional = is_optional(self._settings)
        listed = await self._listed_groups(session) if is_conditional or not variable else None
        choice = choose(variable, listed)
        if is_conditional and not choice.is_listed:
            _log.info("Calico's feeds are off: CalicoFeeds is auto, and the API server has none of Calico's API groups")
            return []
        _log.info("Chose Calico's API group", group=choice.group.value, reason=choice.reason)
        if self._use_pod_cidr:
            _log.info("Blocks and tunnel addresses come from the nodes' pod CIDRs", setting="USE_POD_CIDR")
        specs = syncers.specs(choice.group, use_pod_cidr=self._use_pod_cidr)
        types = (source.type for spec in specs for source in spec.sources if source.type.group == choice.group.group)
        self.types = list(dict.fromkeys(types))
        self._group = choice.group
        return [feed.CalicoFeed(spec, max_value_bytes=self._max_value_bytes) for spec in specs]

    async def installed(self, session: api.KubeApi) -> None:
        """Returns when the watches of the custom resources may begin. Creates the objects that must exist first."""
        await self._wait_for_definitions(session)
        if self._settings.read_only:
            _log.info("Creating no objects at start", setting="ReadOnly")
        else:
            await calico_objects.ensure(session, self._group)

    async def older_wanted(self, session: api.KubeApi, type: resources.ResourceType) -> None:
        """Creates the tier of the policies that only agents of older releases get, as their own Typha would."""
        if not self._settings.read_only:
            await calico_objects.ensure_tiers(session, self._group, [_OLDER_TIERS[type]])

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
            await asyncio.sleep(self._look_seconds)
        missing = ", ".join(type.resource for type in self.types if type not in found)
        if missing:
            _log.warning("Some of Calico's custom resources are not installed", missing=missing)

    async def _look(self, session: api.KubeApi) -> frozenset[resources.ResourceType]:
        """The custom resources that the API server serves now."""
        try:
            return await self._ask(session, lambda: discovery.installed_types(session, self.types))
        except discovery.Refused as error:
            self._warn("The API server does not list its resources", str(error))
            return frozenset()

    async def _listed_groups(self, session: api.KubeApi) -> frozenset[str] | None:
        try:
            return await self._ask(session, lambda: discovery.group_names(session))
        except discovery.Refused as error:
            self._warn("The API server does not list its groups", str(error))
            return None

    async def _ask(self, session: api.KubeApi, question: Callable[[], Awaitable[Answer]]) -> Answer:
        """Asks until the API server answers.

        Raises:
            discovery.Refused: the answer is an error that is not temporary.
        """
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
                    await self._reload(session)
            self._warn("The API server does not answer, trying again every second", problem)
            await asyncio.sleep(self._retry_seconds)

    async def _reload(self, session: api.KubeApi) -> None:
        try:
            await session.reload()
        except access.AccessError as error:
            self._warn("Cannot reload the credentials", str(error))

    def _warn(self, event: str, error: str) -> None:
        """Log a problem of the API server, which may come with every request, once in a while."""
        if self._lines[event].allows():
            _log.warning(event, error=error)
