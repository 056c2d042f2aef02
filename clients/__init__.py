"""Follow a feed from Python, for example in an agent that runs on every node.

`Mirror` holds a copy of the feed and keeps it current. Most agents need nothing else::

    import asyncio

    from clients import Mirror

    async def main() -> None:
        async with Mirror("localhost:5473", feed="workloads", agent="my-agent") as pods:
            await pods.wait_in_sync(timeout_seconds=60)
            print(len(pods), "keys")
            async for changes in pods.changes():
                for key, old, new in changes:
                    print(key, "is gone" if new is None else new.value)

    asyncio.run(main())

An agent that keeps its own state uses `follow` instead, an async iterator of events::

    import asyncio

    from clients import Batch, Disconnected, StatusChanged, follow

    async def main() -> None:
        async for event in follow("localhost:5473", feed="workloads", agent="my-agent"):
            match event:
                case Batch():
                    for update in event.updates:
                        print(update.key, update.value)
                case StatusChanged(status):
                    print("status:", status.label)
                case Disconnected(error, retry_in_seconds):
                    print(f"{error}; next attempt in {retry_in_seconds:.1f} s")

    asyncio.run(main())

Both reconnect and resume on their own, verify every snapshot by its digest, and report only real changes.
docs/writing-an-agent.md explains their guarantees and how to test an agent.

Following a feed:

- `Mirror`: a read-only mapping from key to `Entry`; `Mirror.changes` yields lists of `Change`.
- `OnChange`, `OnEvent`: the types of the callbacks that a `Mirror` accepts.
- `follow`: yields `Event`, which is one of `Connected`, `Batch`, `StatusChanged` and `Disconnected`.
- `Follower`: the object behind `follow`, with its digest and counters.
- `stream`: the protocol messages of one connection, without reconnects.

Arguments:

- `Timeouts`: how long to wait for a connection, a hello and a sign of life.
- `Subscription`: the part of a feed that is wanted, for example `Subscription(own_node=True)`.
- `Protocol`: the native protocol (default) or that of Calico's Typha.
- `DEFAULT_PORT`: the port of an address without one.

Values:

- `Update`: one change of one key. `UpdateType` says whether the key is new, updated or deleted.
- `SyncStatus`: how complete the data is.

Errors, each with the `address` of the server it concerns. `Mirror` and `follow` report them in `Disconnected`; `stream`
raises them:

- `ClientError`: base class of all errors below.
- `ConnectFailed`: no connection could be established.
- `ConnectionLost`: the connection ended without a goodbye. `ServerSilent`: because the server went silent.
- `BadServer`: the server violated the protocol, or sent data that does not match its digest.
- `ServerGoodbye`: the server ended the connection and gave a reason. `Refused`: instead of accepting the hello.

`clients.testing` has a server for the tests of an agent. All other modules of this package are internal.

The package imports `protocol` and nothing else of this project.
"""

from clients.addresses import DEFAULT_PORT
from clients.connection import Protocol, Timeouts, stream
from clients.differ import Batch
from clients.errors import (
    BadServer,
    ClientError,
    ConnectFailed,
    ConnectionLost,
    Refused,
    ServerGoodbye,
    ServerSilent,
)
from clients.follower import Connected, Disconnected, Event, Follower, StatusChanged, follow
from clients.mirror import Change, Entry, Mirror, OnChange, OnEvent
from protocol.messages import SyncStatus, Update, UpdateType
from protocol.subscriptions import Subscription

__all__ = [
    "DEFAULT_PORT",
    "BadServer",
    "Batch",
    "Change",
    "ClientError",
    "ConnectFailed",
    "Connected",
    "ConnectionLost",
    "Disconnected",
    "Entry",
    "Event",
    "Follower",
    "Mirror",
    "OnChange",
    "OnEvent",
    "Protocol",
    "Refused",
    "ServerGoodbye",
    "ServerSilent",
    "StatusChanged",
    "Subscription",
    "SyncStatus",
    "Timeouts",
    "Update",
    "UpdateType",
    "follow",
    "stream",
]
