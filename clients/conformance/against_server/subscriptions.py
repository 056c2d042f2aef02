"""Rules S: clients that take a part of a feed."""

from collections.abc import Callable
from typing import Any, Final

from clients.conformance.against_server.reader import Reader, read_snapshot
from clients.conformance.against_server.session import Session
from clients.conformance.checks import Checks
from clients.conformance.link import Ended
from clients.conformance.report import Broken, NotApplicable
from clients.conformance.selection import Selection, owner

NO_NODE = "no-such-node-in-the-feed"
RESOURCE_KEY_PARTS = 6
"""Of the key of a Kubernetes resource; the first is empty."""
CHECKS: Final = Checks[Session]()


async def _selected(session: Session, **members: Any) -> Reader:
    """The map of a client with a subscription, which must be in force."""
    link, hello = await session.greeted(features=["subscriptions"], **members)
    if "subscriptions" not in (hello.get("features") or []):
        raise NotApplicable("the server does not put it in force")
    reader = Reader(session, hello)
    try:
        await reader.read(link)
    except (TimeoutError, Ended):
        raise NotApplicable("the feed has no data yet") from None
    return reader


@CHECKS.add("S2 S3 S4", "a subscription by prefix, kind and namespace")
async def _by_subscription(session: Session) -> None:
    link = await read_snapshot(session, [])
    link.close()
    whole = await _selected(session, subscription={})
    if not whole.content:
        raise NotApplicable("the feed is empty")
    key = max(whole.content)
    parts = key.split("/")
    wanted: list[tuple[dict[str, Any], Callable[[str], bool]]] = [
        ({"prefixes": [key[: len(key) // 2 + 1], "/none/"]}, lambda other: other.startswith(key[: len(key) // 2 + 1])),
        ({"prefixes": ["no key begins so"]}, lambda other: False),
    ]
    if len(parts) == RESOURCE_KEY_PARTS:
        kind, namespace = "/".join(parts[1:4]), parts[4]
        wanted += [
            ({"kinds": [kind]}, lambda other: other.startswith(f"/{kind}/")),
            ({"namespaces": [namespace, ""]}, lambda other: other.split("/")[4] in (namespace, "")),
        ]
    for subscription, selects in wanted:
        part = await _selected(session, subscription=subscription)
        again = await _selected(session, subscription={})
        if whole.sequence == again.sequence and part.content != dict(
            item for item in whole.content.items() if selects(item[0])
        ):
            raise Broken("S3", f"{subscription} gives {len(part.content)} keys, and not those that it selects")
        if any(not selects(other) for other in part.content):
            raise Broken("S3", f"{subscription} gives keys that it does not select")


@CHECKS.add("S2 S3 S4", "the objects of a node, of another one, and of one that does not exist")
async def _own_node(session: Session) -> None:
    whole = await _selected(session, subscription={})
    owners = {owner(key, value) for key, value in whole.content.items()} - {None, ""}
    if not owners:
        raise NotApplicable("the feed has no objects of nodes")
    for node in (max(map(str, owners)), min(map(str, owners)), NO_NODE):
        part = await _selected(session, node=node, subscription={"own_node": True})
        wanted = Selection(node, own_node=True)
        again = await _selected(session, subscription={})
        if whole.sequence == again.sequence and part.content != wanted.of(whole.content):
            raise Broken("S3", f"node {node} has {len(part.content)} keys, not {len(wanted.of(whole.content))}")
        if any(not wanted.selects(key, value) for key, value in part.content.items()):
            raise Broken("S3", f"node {node} has keys of other nodes")
        whole = again


@CHECKS.add("S7 S2", "no resume from a position that may be that of a part")
async def _substitute(session: Session) -> None:
    features = ["subscriptions", "resume"]
    _, hello = await session.greeted(features=["resume"])
    if "resume" not in (hello.get("features") or []):
        raise NotApplicable("the server does not support resume")
    position = [hello["incarnation"], 1]
    _, hello = await session.greeted(features=features, subscription={"own_node": True}, resume=position)
    if "resume" in (hello.get("features") or []):
        raise Broken("S7", "`resume` is in force, and the subscription of the hello is not")


@CHECKS.add("S2", "own_node without a node is not in force")
async def _nameless(session: Session) -> None:
    _, hello = await session.greeted(features=["subscriptions"], subscription={"own_node": True})
    if "subscriptions" in (hello.get("features") or []):
        raise Broken("S2", "a client that names no node has those of its node")
    if "subscriptions" not in (hello.get("not_supported") or []):
        raise Broken("E3", "`subscriptions` is in neither list")
