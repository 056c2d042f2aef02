"""The pages of a hub's contents: every key once, and what became of an object."""

import asyncio
import base64
from collections.abc import Iterator

import msgspec
import pytest

from cache.state import cursor
from protocol import messages as protocol_messages
from tests.harness import hub_stand, one_of_each
from tests.harness.worker_stand import FEED, pod, raw_feed
from typha.admin import answers, contents, server
from typha.hub import hub
from typha.ipc import messages


@pytest.fixture
def stand() -> Iterator[hub_stand.HubStand]:
    made = hub_stand.HubStand(raw_feed())
    yield made
    for worker in made.workers:
        worker.close()
    made.hub.close()


async def objects(of: hub.Hub, **query: str) -> answers.Objects:
    answer = await contents.ContentPages(of).objects({"feed": FEED, **query})
    return msgspec.json.decode(answer.body, type=answers.Objects)


async def explained(of: hub.Hub, name: str, **query: str) -> answers.Explanation:
    page = contents.ContentPages(of).explain({"resource": "pods", "namespace": "default", "name": name, **query})
    answer = await page
    return msgspec.json.decode(answer.body, type=answers.Explanation)


async def test_pages_have_every_key_once(stand: hub_stand.HubStand) -> None:
    for number in range(5000):
        stand.hub.apply(pod(f"p{number}"))
    while stand.hub.feeds[FEED].backlog or stand.hub.feeds[FEED].is_unfinished:
        stand.hub.commit()
    found: list[str] = []
    after, pages = "", 0
    while True:
        page = await objects(stand.hub, **({"after": after} if after else {}))
        found += [entry.key for entry in page.entries]
        after, pages = page.next, pages + 1
        if not after:
            break
    assert pages > 2
    assert len(found) == 5000
    assert sorted(found) == sorted(entry.key for entry in stand.hub.feeds[FEED].store)
    [one] = (await objects(stand.hub, key=found[0])).entries
    assert one.key == found[0]
    assert (await objects(stand.hub, key="/none")).entries == []
    page = await objects(stand.hub, prefix="/core/v1/pods/default/p499")
    assert all(entry.key.startswith("/core/v1/pods/default/p499") for entry in page.entries)


async def test_a_page_of_another_time_is_gone(stand: hub_stand.HubStand) -> None:
    stand.hub.apply(pod("a"))
    stand.hub.commit()
    pages = contents.ContentPages(stand.hub)
    assert (await pages.objects({"feed": FEED, "after": "1/2"})).status == 410
    for after in ("x", "1", "1/x", "-1/1", "1/" + "1" * 30, "٣/1"):
        with pytest.raises(server.BadQuery):
            await pages.objects({"feed": FEED, "after": after})
    with pytest.raises(server.BadQuery, match=f"feed is one of {FEED}"):
        await pages.objects({"feed": "none"})


async def test_values_that_are_no_text_are_encoded(stand: hub_stand.HubStand) -> None:
    stand.hub.feeds[FEED].store.put("/k", b"\xff\x00", "1")
    [entry] = (await objects(stand.hub)).entries
    assert (entry.value, base64.b64decode(entry.value_base64)) == ("", b"\xff\x00")


def one_client(number: int, sequence: int, state: cursor.CursorState) -> messages.ConnectedClient:
    return messages.ConnectedClient(
        *(number, "10.0.0.1:5", f"n{number}", "", "", "", "", FEED, "native", state, 0, 0.0, sequence, 2, 3.0)
    )


async def test_explain_names_the_clients_that_lack_an_object(stand: hub_stand.HubStand) -> None:
    worker = stand.add_worker()
    worker.say(messages.Ready())
    stand.put("first")
    stand.put("second")
    following, snapshot = cursor.CursorState.FOLLOWING, cursor.CursorState.SNAPSHOT
    clients = [one_client(1, 2, following), one_client(2, 1, following), one_client(3, 0, snapshot)]
    task = asyncio.create_task(explained(stand.hub, "second"))
    await asyncio.sleep(0)
    [request] = [message.request for message in worker.hear() if isinstance(message, messages.ListClients)]
    worker.say(messages.ClientSlice(request, clients, True))
    [one] = (await task).objects
    [fate] = one.feeds
    [key] = fate.keys
    assert (one.type, key.key, key.sequence) == ("core/v1/pods", "/core/v1/pods/default/second", 2)
    assert key.at is not None
    assert (fate.clients, fate.clients_behind, [one.node for one in fate.behind]) == (3, 2, ["n2", "n3"])
    [fate] = (await explained(stand.hub, "first")).objects[0].feeds
    assert [one.node for one in fate.behind] == ["n3"]
    [fate] = (await explained(stand.hub, "none")).objects[0].feeds
    assert (fate.keys, fate.clients_behind, fate.refusal) == ([], 0, None)


async def test_explain_says_why_an_object_was_refused(stand: hub_stand.HubStand) -> None:
    stand.hub.apply(pod("large", "x" * (2 << 20)))
    stand.hub.apply(pod("good"))
    stand.hub.commit()
    [fate] = (await explained(stand.hub, "large")).objects[0].feeds
    assert fate.keys == []
    assert fate.refusal is not None
    assert (fate.refusal.reason, fate.refusal.is_carried) == ("value-too-large", False)
    [fate] = (await explained(stand.hub, "good")).objects[0].feeds
    assert fate.refusal is None


@pytest.mark.parametrize("query", [{"resource": "secrets"}, {"name": ""}, {"name": "x" * 1001}, {"resource": ""}])
async def test_explain_needs_a_kind_and_a_name(stand: hub_stand.HubStand, query: dict[str, str]) -> None:
    with pytest.raises(server.BadQuery):
        await explained(stand.hub, query.pop("name", "a"), **query)


async def test_a_calico_object_has_its_keys_and_an_older_claim_is_named() -> None:
    from cache import objects as cache_objects
    from cache.feeds.calico import feed, syncers

    spec = next(one for one in syncers.specs(one_of_each.GROUP) if one.name == syncers.FELIX)
    made = hub_stand.HubStand(feed.CalicoFeed(spec, max_value_bytes=1 << 20))
    [example] = [one for one in one_of_each.EXAMPLES if one.kind == "IPPool"]
    for name in ("pool-1", "pool-2"):  # with one CIDR: the first keeps it
        raw = msgspec.json.encode({**example.body, "metadata": {"name": name, "resourceVersion": "1"}})
        event = cache_objects.ObjectEvent(
            example.type, "", name, "1", raw, example.api_version, "IPPool", cache_objects.Origin.LIST
        )
        made.hub.apply(event)
    made.hub.commit()
    found = {}
    for name in ("pool-1", "pool-2"):
        answer = await contents.ContentPages(made.hub).explain({"resource": "ippools", "name": name})
        [one] = msgspec.json.decode(answer.body, type=answers.Explanation).objects
        [fate] = one.feeds
        [found[name]] = fate.keys
    assert found["pool-1"].key == found["pool-2"].key == "/calico/v1/ipam/v4/pool/10.0.0.0-16"
    assert found["pool-1"].note == ""
    assert found["pool-2"].note == "IPPool pool-1 has the same key, and goes first"
    assert made.hub.feeds[syncers.FELIX].store.status is protocol_messages.SyncStatus.WAITING
    made.hub.close()
