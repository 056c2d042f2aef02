"""The pages `/v1/objects` and `/v1/explain`: what the feeds hold, and what became of one object.

They are for the Unix socket only: values may be anything that is in the cluster's objects.
"""

import asyncio
import base64
from collections.abc import Iterable

import msgspec

from cache import resources
from cache.feeds import feed, raw
from cache.state import cursor, store
from typha.admin import answers, server, status
from typha.hub import hub

_KEYS_AT_ONCE = 2_000
"""Keys that one page looks at, a millisecond or two: the hub's other work must not wait for it."""
_PAGE_BYTES = 1024 * 1024
_BEHIND_MAX = 100
"""Clients that are named because they lack an object."""
_SAME_MOMENT_SECONDS = 1.0
"""What an object becomes is published a moment after the object came."""
_GONE = 410
_NAME_CHARS_MAX = 1000


class ContentPages:
    """Reads the hub's feeds."""

    def __init__(self, the_hub: hub.Hub) -> None:
        self._hub = the_hub

    @property
    def pages(self) -> dict[str, server.Page]:
        """Both, by path."""
        return {"/v1/objects": self.objects, "/v1/explain": self.explain}

    async def objects(self, query: server.Query) -> server.Answer:
        """A page of keys and values: of a `feed`, with one `key`, or beginning with a `prefix`, from `after` on.

        While the store splits its chunks, a page may come too late. Its status is 410 then: begin again.
        """
        source = self._hub.feeds.get(query.get("feed", ""))
        if source is None:
            raise server.BadQuery(f"feed is one of {', '.join(self._hub.feeds) or 'none: there are no feeds yet'}")
        if "key" in query:
            entry = source.store.get(query["key"])
            found = [] if entry is None else [_entry(source, entry)]
            return _answer(answers.Objects(entries=found, status=source.store.status.label))
        prefix, count = query.get("prefix", ""), source.store.chunk_count
        chunk = 0
        if query.get("after"):
            chunk, chunks = _place(query["after"])
            if chunks != count:
                return server.Answer(b"", status=_GONE)
        entries: list[answers.Entry] = []
        looked = size_bytes = 0
        while chunk < count and looked < _KEYS_AT_ONCE and size_bytes < _PAGE_BYTES:
            in_chunk = source.store.chunk_entries(chunk)
            looked += len(in_chunk)
            chosen = [_entry(source, entry) for entry in in_chunk if entry.key.startswith(prefix)]
            size_bytes += sum(len(entry.key) + len(entry.value) for entry in chosen)
            entries += chosen
            chunk += 1
        following = f"{chunk}/{count}" if chunk < count else ""
        return _answer(answers.Objects(entries=entries, status=source.store.status.label, next=following))

    async def explain(self, query: server.Query) -> server.Answer:
        """What became of the object `name`, in `namespace`, of the types with this `resource` (and `group`)."""
        resource, name = query.get("resource", ""), query.get("name", "")
        if not resource or not 0 < len(name) <= _NAME_CHARS_MAX:
            raise server.BadQuery("resource and name are needed")
        group, namespace = query.get("group"), query.get("namespace", "")
        types = [type for type in self._hub.types if type.resource == resource and group in (None, type.group)]
        if not types:
            known = ", ".join(sorted({type.resource for type in self._hub.types}))
            raise server.BadQuery(f"no feed has {resource}; there are {known}")
        listed = await self._hub.client_lists.newest()
        found = []
        for type in types:
            refusal = self._refusal("", type, namespace, name)
            fates = [self._fate(source, type, namespace, name) for source in self._hub.feeds_of(type)]
            by_feed = [_with_clients(fate, listed.clients) for fate in fates]
            found.append(
                answers.Explained(type=str(type), namespace=namespace, name=name, refusal=refusal, feeds=by_feed)
            )
            await asyncio.sleep(0)
        return _answer(answers.Explanation(objects=found, complete=not listed.missing))

    def _fate(self, source: feed.Feed, type: resources.ResourceType, namespace: str, name: str) -> answers.Fate:
        times = self._hub.publisher.commit_times[source.name]
        keys = []
        for item in source.held_items(type, namespace, name):
            entry = source.store.get(item.key)
            at = None if entry is None else times.time_of(entry.sequence)
            keys.append(
                answers.HeldKey(
                    key=item.key,
                    note=item.note,
                    sequence=0 if entry is None else entry.sequence,
                    at=None if at is None else status.unix_seconds(at),
                    revision="" if entry is None else entry.revision,
                    value_bytes=None if entry is None else len(entry.value),
                )
            )
        refusal = self._refusal(source.name, type, namespace, name)
        if refusal is not None and any((key.at or 0.0) > refusal.at + _SAME_MOMENT_SECONDS for key in keys):
            refusal = None  # of an earlier state of the object
        return answers.Fate(feed=source.name, keys=keys, refusal=refusal)

    def _refusal(
        self, feed_name: str, type: resources.ResourceType, namespace: str, name: str
    ) -> answers.Refusal | None:
        found = self._hub.rejection_log.recent.get((feed_name, raw.object_key(type, namespace, name)))
        if found is None:
            return None
        at = status.unix_seconds(found.at)
        return answers.Refusal(reason=found.reason, detail=found.detail, is_carried=found.is_carried, at=at)


def _with_clients(fate: answers.Fate, clients: Iterable[status.Connected]) -> answers.Fate:
    """The same, and which of the feed's clients have all of its keys: those that have been sent the newest of them."""
    needed = max((key.sequence for key in fate.keys), default=0)
    of_feed = [one for one in clients if one.client.feed == fate.feed]
    behind = [one for one in of_feed if needed and not _has(one, needed)]
    applied = [one.client.applied for one in of_feed if one.client.applied >= 0]
    return msgspec.structs.replace(
        fate,
        clients=len(of_feed),
        clients_behind=len(behind),
        behind=[status.client_answer(one) for one in behind[:_BEHIND_MAX]],
        reporting=len(applied),
        applied=sum(sequence >= needed for sequence in applied),
    )


def _has(one: status.Connected, sequence: int) -> bool:
    moving = (cursor.CursorState.FOLLOWING, cursor.CursorState.CATCHING_UP)
    return one.client.state in moving and one.client.sequence >= sequence


def _entry(source: feed.Feed, entry: store.Entry) -> answers.Entry:
    owner = source.owner_of(entry.key)
    text, encoded = "", ""
    try:
        text = entry.value.decode()
    except UnicodeDecodeError:
        encoded = base64.b64encode(entry.value).decode()
    return answers.Entry(
        key=entry.key,
        value=text,
        value_base64=encoded,
        revision=entry.revision,
        v3_resource_version=entry.v3_resource_version,
        sequence=entry.sequence,
        owner_kind=owner[0] if owner else "",
        owner_name=owner[1] if owner else "",
    )


def _place(text: str) -> tuple[int, int]:
    chunk, slash, count = text.partition("/")
    if not (slash and len(text) < 20 and chunk.isdecimal() and count.isdecimal() and text.isascii()):
        raise server.BadQuery("after is what the page before has as next")
    return int(chunk), int(count)


def _answer(found: answers.Objects | answers.Explanation) -> server.Answer:
    return server.Answer(msgspec.json.encode(found))
