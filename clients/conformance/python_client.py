"""Our client in Python, for the kit: `python -m clients.conformance.python_client ADDRESS FEED [NODE]`.

With a node, it takes Services, and the pods of this node.
"""

import asyncio
import sys

from clients import follower
from clients.differ import Batch
from protocol.messages import SyncStatus
from protocol.subscriptions import Subscription


async def follow(address: str, feed: str, node: str = "") -> None:
    """Prints states and changes until it is killed."""
    wanted = Subscription(kinds=("core/v1/pods", "core/v1/services"), own_node=True) if node else None
    one = follower.Follower(
        address, feed=feed, agent="conformance", node=node, subscription=wanted, reports_applied=True
    )
    async for event in one.events():
        match event:
            case Batch():
                for update in event.updates:
                    sys.stdout.write(f"{'delete' if update.value is None else 'put'} {update.key}\n")
            case follower.StatusChanged(status) if status is not SyncStatus.CATCHING_UP:
                sys.stdout.write(f"state {status.label} - {one.keys} {one.digest:016x}\n")
                sys.stdout.flush()
        one.applied()


if __name__ == "__main__":
    asyncio.run(follow(*sys.argv[1:]))
