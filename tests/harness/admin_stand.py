"""The pages of a hub on an admin socket, and the commands that ask them, in one process."""

import asyncio
import contextlib
import json
import pathlib
from collections.abc import AsyncIterator, Iterable

import pytest

from cache import objects
from cache.feeds import feed
from cache.feeds.calico import feed as calico_feed
from cache.feeds.calico import syncers
from protocol import messages
from tests.harness import one_of_each
from typha.admin import contents, local_socket, server
from typha.cli import main
from typha.hub import hub, policy

LIMITS = policy.HubPolicy(log_budget_bytes=1 << 20, segment_bytes=1 << 16)


def event(example: one_of_each.Example, revision: str = "7") -> objects.ObjectEvent:
    """An example as a watcher passes it on."""
    uid = "30316465-6365-4463-ad63-3564622d3638"
    body = {**example.body, "metadata": {**example.metadata, "resourceVersion": revision, "uid": uid}}
    return objects.ObjectEvent(
        example.type,
        example.metadata.get("namespace", ""),
        example.metadata["name"],
        revision,
        json.dumps(body).encode(),
        example.api_version,
        example.api_kind,
        objects.Origin.LIST,
    )


def calico_hub(examples: Iterable[one_of_each.Example] = one_of_each.EXAMPLES) -> hub.Hub:
    """A hub with Calico's feeds in sync, and these objects."""
    feeds: list[feed.Feed] = [
        calico_feed.CalicoFeed(spec, max_value_bytes=1 << 20) for spec in syncers.specs(one_of_each.GROUP)
    ]
    made = hub.Hub(feeds, LIMITS)
    for example in examples:
        made.apply(event(example))
    for type in made.types:
        made.status(type, messages.SyncStatus.IN_SYNC)
    made.commit()
    return made


@contextlib.asynccontextmanager
async def serving(of: hub.Hub, folder: pathlib.Path) -> AsyncIterator[str]:
    """The hub's pages on a socket, whose path this returns."""
    pages = server.AdminServer("admin", contents.ContentPages(of).pages)
    listener = local_socket.Listener(str(folder / "admin.sock"))
    running = asyncio.create_task(pages.run([listener.socket], peer_of=local_socket.peer_of), name="admin")
    try:
        yield listener.path
    finally:
        running.cancel()
        await asyncio.wait([running])
        listener.close()


async def run(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    """Runs a command in a thread; returns exit code, output and errors."""
    capsys.readouterr()
    code = await asyncio.to_thread(main.run, arguments)
    captured = capsys.readouterr()
    return code, captured.out, captured.err
