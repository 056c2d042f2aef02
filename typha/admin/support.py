"""The page `/v1/support`: what an archive for support needs beside status and clients.

It holds no secret: settings are redacted, stacks have no values, and log lines have nothing that quotes an object.
"""

import os
from collections.abc import Callable, Sequence
from typing import Any

import msgspec

from typha import clock
from typha.admin import answers, server
from typha.hub import hub
from typha.observability import health, logs, memory, stacks
from typha.settings import description


class SupportPage:
    """Reads the parts; keeps nothing.

    Args:
        exposition: makes the metrics page.
        described: the settings, redacted.
    """

    def __init__(
        self,
        the_hub: hub.Hub,
        aggregator: health.HealthAggregator,
        exposition: Callable[[], bytes],
        described: Sequence[description.Shown],
    ) -> None:
        self._hub = the_hub
        self._health = aggregator
        self._exposition = exposition
        self._described = described

    @property
    def pages(self) -> dict[str, server.Page]:
        """The page, by its path."""
        return {"/v1/support": self.support}

    async def support(self, _query: server.Query) -> server.Answer:
        """All of it."""
        now = clock.monotonic()
        found = await self._hub.descriptions.ask()
        workers = [
            answers.Process(
                worker=number,
                pid=parts[0].pid if parts else 0,
                text="".join(part.text for part in parts),
            )
            for number, parts in sorted(found.parts.items())
        ]
        facts = "\n".join(f"{name}: {value}" for name, value in memory.of_process().items())
        answer = answers.Support(
            pid=os.getpid(),
            settings=[self._setting(shown) for shown in self._described],
            metrics=self._exposition().decode(),
            health=[f"{status} {text}" for status, text in (self._health.liveness(now), self._health.readiness(now))],
            stacks=f"{facts}\n\n{stacks.text()}",
            log=logs.recent_lines(),
            workers=workers,
            missing_workers=found.missing,
        )
        return server.Answer(msgspec.json.encode(answer))

    @staticmethod
    def _setting(shown: description.Shown) -> dict[str, Any]:
        return {"name": shown.name, "value": shown.value, "source": shown.source, "is_default": shown.is_default}
