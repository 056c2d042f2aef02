"""Joins the feed, the rendering and BIRD."""

import asyncio
import contextlib
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from clients import mirror
from clients.agents import servers as service
from clients.agents.bgp import bird, rendering, resources

FEED: Final = "bgp"
AGENT: Final = "typha-bgp-agent"
SETTLE_SECONDS: Final = 0.1
"""Changes that come within this time are rendered together: a rendering of 1,000 peers takes 50 ms."""

RESTORED_AFTER_SECONDS: Final = 5.0
"""A server's map is newer than the state file's. If none is in sync within this time, BIRD starts with the file's."""
CONFIRM_SECONDS: Final = 0.5
"""BIRD is asked this often whether it uses a configuration that is not yet reported as applied."""

_log = logging.getLogger(__name__)


class Agent:
    """The agent of one node. What it says of itself is logged; a problem is logged when it appears or goes away."""

    def __init__(self, node: str, bird_process: bird.Bird) -> None:
        self.node = node
        self.bird = bird_process
        self.state = resources.State()
        self._problems: dict[str, str] = {}
        self._version_given: int | None = None
        """The version of the feed's map that BIRD has been given, and is not known to use."""

    async def run(self, servers: service.Servers, *, state_file: Path | None = None) -> None:
        """Follow the feed and keep BIRD as it says, until cancellation. During an outage BIRD stays as it is.

        BIRD needs the nodes of the cluster, and little else is in the feed. So the agent takes all of it.
        """
        async with (
            mirror.Mirror(
                servers.addresses,
                feed=FEED,
                agent=AGENT,
                node=self.node,
                tls=servers.tls,
                server_name=servers.server_name,
                reports_applied=True,
                state_file=state_file,
            ) as objects,
            asyncio.TaskGroup() as tasks,
        ):
            tasks.create_task(self.bird.run(), name="BIRD")
            tasks.create_task(self._confirm(objects), name="applied")
            await self._wait_for_content(objects)
            async with contextlib.aclosing(objects.changes()) as changes:
                async for batch in changes:
                    version = objects.version
                    self.apply(batch)
                    if await self.configure():
                        self._version_given = version
                    await asyncio.sleep(SETTLE_SECONDS)

    async def _wait_for_content(self, objects: mirror.Mirror) -> None:
        """Wait for a server. Without one, the content of the state file is better than no BIRD."""
        if objects.state_file_error is not None:
            _log.warning("the state file cannot be used: %s", objects.state_file_error)
        try:
            await objects.wait_in_sync(timeout_seconds=RESTORED_AFTER_SECONDS if objects.restored else None)
        except TimeoutError:
            _log.warning("no server is in reach: BIRD gets what the state file has")

    async def _confirm(self, objects: mirror.Mirror) -> None:
        """Tell the service what BIRD uses, once it does."""
        while True:
            await asyncio.sleep(CONFIRM_SECONDS)
            version = self._version_given
            if version is not None and await self.bird.use() and version == self._version_given:
                self._version_given = None
                objects.applied(version)

    def apply(self, changes: Sequence[mirror.Change]) -> None:
        """Take changes of the feed over."""
        for change in changes:
            self.state.apply(change.key, None if change.new is None else change.new.value)

    async def configure(self) -> bool:
        """Give BIRD the configuration of the present state; returns whether it takes it.

        A refused one is logged, and BIRD keeps the former one.
        """
        try:
            rendered = rendering.render(self.state, self.node)
        except rendering.UnknownNode:
            self._report({self.node: "the node has no BGP address yet: BIRD is left as it is"})
            return False
        problems, is_taken = rendered.problems, True
        try:
            if await self.bird.apply(rendered.text):
                _log.info("configured: %d sessions", len(rendered.sessions))
        except bird.BadConfiguration as error:
            problems, is_taken = {**problems, "BIRD": f"refuses the configuration: {error}"}, False
        self._report(problems)
        return is_taken

    def _report(self, problems: dict[str, str]) -> None:
        for subject, text in problems.items():
            if self._problems.get(subject) != text:
                _log.warning("%s: %s", subject, text)
        for subject in self._problems.keys() - problems.keys():
            _log.info("%s: no longer a problem", subject)
        self._problems = problems


def folder_for(path: Path) -> Path:
    """The folder of BIRD's files, made if it is absent. Nobody else may write to BIRD's socket."""
    path.mkdir(mode=0o700, parents=True, exist_ok=True)
    return path
