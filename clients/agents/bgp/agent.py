"""Joins the feed, the rendering and BIRD."""

import asyncio
import contextlib
import logging
import ssl
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from clients import mirror
from clients.agents.bgp import bird, rendering, resources

FEED: Final = "bgp"
AGENT: Final = "typha-bgp-agent"
SETTLE_SECONDS: Final = 0.1
"""Changes that come within this time are rendered together: a rendering of 1,000 peers takes 50 ms."""

_log = logging.getLogger(__name__)


class Agent:
    """The agent of one node. What it says of itself is logged; a problem is logged when it appears or goes away."""

    def __init__(self, node: str, bird_process: bird.Bird) -> None:
        self.node = node
        self.bird = bird_process
        self.state = resources.State()
        self._problems: dict[str, str] = {}

    async def run(self, servers: Sequence[str], *, tls: ssl.SSLContext | None, server_name: str | None) -> None:
        """Follow the feed and keep BIRD as it says, until cancellation. During an outage BIRD stays as it is."""
        async with (
            mirror.Mirror(servers, feed=FEED, agent=AGENT, node=self.node, tls=tls, server_name=server_name) as objects,
            asyncio.TaskGroup() as tasks,
        ):
            tasks.create_task(self.bird.run(), name="BIRD")
            await objects.wait_in_sync()
            async with contextlib.aclosing(objects.changes()) as changes:
                async for batch in changes:
                    self.apply(batch)
                    await self.configure()
                    await asyncio.sleep(SETTLE_SECONDS)

    def apply(self, changes: Sequence[mirror.Change]) -> None:
        """Take changes of the feed over."""
        for change in changes:
            self.state.apply(change.key, None if change.new is None else change.new.value)

    async def configure(self) -> None:
        """Give BIRD the configuration of the present state. A refused one is logged, and BIRD keeps the former one."""
        try:
            rendered = rendering.render(self.state, self.node)
        except rendering.UnknownNode:
            self._report({self.node: "the node has no BGP address yet: BIRD is left as it is"})
            return
        problems = rendered.problems
        try:
            if await self.bird.apply(rendered.text):
                _log.info("configured: %d sessions", len(rendered.sessions))
        except bird.BadConfiguration as error:
            problems = {**problems, "BIRD": f"refuses the configuration: {error}"}
        self._report(problems)

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
