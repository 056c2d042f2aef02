"""An example agent that keeps a hosts file of all pods. Run `python example_agent.py HOST:PORT FEED FILE`."""

import asyncio
import json
import os
import sys

from clients import Mirror


def write_hosts(pods: Mirror, path: str) -> None:
    """Replace the file as a whole, so that no reader sees a part of it."""
    lines = []
    for key, entry in sorted(pods.items()):
        _, group, _version, resource, namespace, name = key.split("/")
        address = json.loads(entry.value).get("status", {}).get("podIP")
        if (group, resource) == ("core", "pods") and address:
            lines.append(f"{address} {name}.{namespace}\n")
    with open(path + ".new", "w", encoding="utf-8") as file:
        file.writelines(lines)
    os.replace(path + ".new", path)


async def run(server: str, feed: str, path: str) -> None:
    """Follow the feed until cancelled."""
    async with Mirror(server, feed=feed, agent="example-agent", node=os.uname().nodename) as pods:
        await pods.wait_in_sync()  # so that the file never lists only some of the pods
        write_hosts(pods, path)
        async for _changes in pods.changes():
            write_hosts(pods, path)


if __name__ == "__main__":
    asyncio.run(run(*sys.argv[1:4]))
