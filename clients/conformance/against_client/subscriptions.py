"""Rules S: a client with a subscription, whether the server puts it in force or not."""

from typing import Final

from clients.conformance import rejected, selection, wire
from clients.conformance.against_client.run import RECONNECT_SECONDS, Hello, Run
from clients.conformance.checks import Checks
from clients.conformance.link import Link
from clients.conformance.report import Broken, NotApplicable

_OTHER_NODE = "another-node"
CHECKS: Final = Checks[Run]()


def _pod(node: str) -> bytes:
    return b'{"kind":"Pod","spec":{"nodeName":"%s"}}' % node.encode()


def _objects(node: str) -> dict[str, bytes]:
    return {
        "/core/v1/pods/default/here": _pod(node),
        "/core/v1/pods/default/elsewhere": _pod(_OTHER_NODE),
        "/core/v1/pods/default/unscheduled": b'{"kind":"Pod","spec":{}}',
        "/core/v1/services/default/web": b'{"kind":"Service"}',
        "/core/v1/services/kube-system/dns": b'{"kind":"Service"}',
        f"/core/v1/nodes//{node}": b'{"kind":"Node"}',
        f"/core/v1/nodes//{_OTHER_NODE}": b'{"kind":"Node"}',
        "/core/v1/configmaps/default/settings": b"{}",
        "/discovery.k8s.io/v1/endpointslices/default/web": b"{}",
    }


class _Feed:
    """The kit's feed, and the part of it that the client wants."""

    def __init__(self, hello: Hello) -> None:
        self.wanted = selection.asked_for(hello.content)
        self.all = _objects(self.wanted.node or "n1")
        self.part = self.wanted.of(self.all)
        if not self.part or len(self.part) == len(self.all):
            raise NotApplicable("the client's subscription selects all of the kit's objects, or none")

    @property
    def pod_here(self) -> str:
        """A pod that the client has because it is on its node."""
        key = "/core/v1/pods/default/here"
        if not self.wanted.own_node or key not in self.part:
            raise NotApplicable("the client's subscription is not for the pods of its node")
        return key


async def _asks(run: Run, seconds: float | None = None, *, in_force: bool) -> tuple[Link, Hello, _Feed]:
    """The client's next connection, with the server's hello."""
    link, hello = await run.greeted(seconds)
    if rejected.SUBSCRIPTIONS not in hello.features:
        raise Broken("S1", "the client does not offer `subscriptions`")
    feed = _Feed(hello)
    known = [one for one in hello.features if one in (rejected.ZSTD, rejected.RESUME, rejected.DIGESTS)]
    features = [*known, rejected.SUBSCRIPTIONS] if in_force else [rejected.ZSTD]
    declined = [one for one in hello.features if one not in features]
    link.send(wire.PREFACE, wire.server_hello(run.options.feed, features=features, not_supported=declined))
    return link, hello, feed


async def _has_its_part(run: Run) -> tuple[Link, _Feed]:
    """The client has its part of the kit's feed, and is in sync."""
    link, _, feed = await _asks(run, in_force=True)
    link.send(wire.snapshot(wire.SEQUENCE, feed.part), wire.status(wire.SEQUENCE))
    await run.reaches(link, wire.SEQUENCE)
    await run.state(wire.IN_SYNC, wire.SEQUENCE, feed.part, rule="S3")
    run.check_changes("O8", *(f"put {key}" for key in feed.part))
    return link, feed


async def _has_everything(run: Run) -> tuple[Link, _Feed]:
    """The client is sent the whole feed, and passes on its part."""
    link, _, feed = await _asks(run, in_force=False)
    link.send(wire.snapshot(wire.SEQUENCE, feed.all), wire.status(wire.SEQUENCE))
    await run.reaches(link, wire.SEQUENCE)
    await run.state(wire.IN_SYNC, wire.SEQUENCE, None, rule="S6")
    run.check_changes("S6", *(f"put {key}" for key in feed.part))
    return link, feed


@CHECKS.add("S4 S1", "sequences skip what is not for the client", rejected.SUBSCRIPTIONS)
async def _skips(run: Run) -> None:
    link, feed = await _has_its_part(run)
    content = dict(feed.part)
    key = min(content)
    link.send(wire.status(wire.SEQUENCE + 3))
    await run.reaches(link, wire.SEQUENCE + 3, rule="S4")
    await run.state(wire.IN_SYNC, wire.SEQUENCE + 3, content, rule="S4")
    link.send(wire.frame(wire.UPDATES, 50, 52, [wire.update(key, feed.part[key] + b" ")]))
    await run.reaches(link, 52, rule="S4")
    content[key] += b" "
    link.send(
        wire.status(60, wire.CATCHING_UP),
        wire.frame(wire.UPDATES, 63, 70, [wire.update(key, None, 3)]),
        wire.status(75),
    )
    await run.reaches(link, 75, rule="S4")
    del content[key]
    await run.state(wire.IN_SYNC, 75, content, rule="S4")
    run.check_changes("S4", f"put {key}", f"delete {key}")


@CHECKS.add("S4 O11", "rejects updates from a lower sequence, with a subscription", rejected.SUBSCRIPTIONS)
async def _lower_updates(run: Run) -> None:
    link, _ = await _has_its_part(run)
    link.send(wire.frame(wire.UPDATES, wire.SEQUENCE - 1, wire.SEQUENCE + 1, []))
    await run.rejects(link, "S4", "updates from a lower sequence")


@CHECKS.add("S4 O11", "rejects a status with a lower sequence, with a subscription", rejected.SUBSCRIPTIONS)
async def _lower_status(run: Run) -> None:
    link, _ = await _has_its_part(run)
    link.send(wire.status(wire.SEQUENCE - 1))
    await run.rejects(link, "S4", "a status with a lower sequence")


@CHECKS.add("S4 S8 R1 R4", "the client resumes its part, at a sequence that is not for it", rejected.SUBSCRIPTIONS)
async def _resumes(run: Run) -> None:
    link, feed = await _has_its_part(run)
    link.send(wire.status(45))
    await run.reaches(link, 45, rule="S4")
    await run.state(wire.IN_SYNC, 45, feed.part, rule="S4")
    link.close()
    link, hello, _ = await _asks(run, RECONNECT_SECONDS, in_force=True)
    if rejected.RESUME not in hello.features:
        raise NotApplicable(f"for clients that offer {rejected.RESUME}")
    if hello.content.get("resume") != [wire.INCARNATION, 45]:
        raise Broken("R1", f"`resume` is {hello.content.get('resume')!r:.100}")
    key = min(feed.part)
    link.send(wire.frame(wire.UPDATES, 48, 49, [wire.update(key, feed.part[key] + b" ")]), wire.status(49))
    await run.reaches(link, 49, rule="S4")
    await run.state(wire.IN_SYNC, 49, {**feed.part, key: feed.part[key] + b" "}, rule="S4")
    run.check_changes("S4", f"put {key}")


@CHECKS.add("S6", "a subscription that is not in force: the client selects itself", rejected.SUBSCRIPTIONS)
async def _selects(run: Run) -> None:
    link, feed = await _has_everything(run)
    others = [key for key in feed.all if key not in feed.part]
    updates = [wire.update(key, feed.all[key] + b" ") for key in others]
    link.send(wire.frame(wire.UPDATES, wire.SEQUENCE, 41, updates), wire.status(41))
    await run.reaches(link, 41, rule="S6")
    await run.state(wire.IN_SYNC, 41, None, rule="S6")
    run.check_changes("S6")
    link.send(wire.frame(wire.UPDATES, 41, 42, [wire.update(key, None, 3) for key in feed.all]), wire.status(42))
    await run.state(wire.IN_SYNC, 42, None, rule="S6")
    run.check_changes("S6", *(f"delete {key}" for key in feed.part))


@CHECKS.add("S6", "a pod that moves to another node and back", rejected.SUBSCRIPTIONS)
async def _moves(run: Run) -> None:
    link, feed = await _has_everything(run)
    key = feed.pod_here
    link.send(wire.frame(wire.UPDATES, wire.SEQUENCE, 41, [wire.update(key, _pod(_OTHER_NODE))]), wire.status(41))
    await run.state(wire.IN_SYNC, 41, None, rule="S6")
    run.check_changes("S6", f"delete {key}")
    link.send(wire.frame(wire.UPDATES, 41, 42, [wire.update(key, feed.all[key])]), wire.status(42))
    await run.state(wire.IN_SYNC, 42, None, rule="S6")
    run.check_changes("S6", f"put {key}")


@CHECKS.add("S4 O11", "rejects sequences that skip, without the subscription in force", rejected.SUBSCRIPTIONS)
async def _skips_nothing(run: Run) -> None:
    link, _ = await _has_everything(run)
    link.send(wire.frame(wire.UPDATES, wire.SEQUENCE + 1, wire.SEQUENCE + 2, []))
    await run.rejects(link, "O11", "updates that leave out a sequence")


@CHECKS.add("S8", "no position of a whole feed that the client did not ask for", rejected.SUBSCRIPTIONS)
async def _has_no_position(run: Run) -> None:
    link, feed = await _has_everything(run)
    link.close()
    link, hello, _ = await _asks(run, RECONNECT_SECONDS, in_force=False)
    if hello.content.get("resume") is not None:
        raise Broken("S8", "the client tells the position of the whole feed")
    digests = hello.content.get("chunk_digests")
    if digests is not None and digests not in (
        wire.chunk_digests(feed.all, len(digests)),
        wire.chunk_digests(feed.part, len(digests)),
    ):
        raise Broken("R2", "`chunk_digests` are those of neither the feed nor its part")
