"""Tests of loadtest.apiserver.store: it keeps every version that its history reaches back to."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from loadtest.apiserver import objects, resources
from loadtest.apiserver.errors import AlreadyExists, Conflict, Expired, Invalid, NotFound, TypeUnknown
from loadtest.apiserver.objects import EventKind
from loadtest.apiserver.store import Store

PODS = resources.PODS
NAMES = st.sampled_from(["a/x", "a/y", "a-b/x", "b/x", "b/z"])
STEPS = st.lists(st.tuples(st.sampled_from(["set", "delete", "other"]), NAMES, st.integers(0, 3)), max_size=40)


def new_store(**settings: int) -> Store:
    store = Store(**settings)
    store.install(PODS)
    store.install(resources.NODES)
    return store


def pod(key: str, value: int = 0) -> dict[str, Any]:
    namespace, name = key.split("/")
    return {"metadata": {"namespace": namespace, "name": name}, "spec": {"value": value}}


def step(store: Store, operation: str, key: str, value: int) -> None:
    namespace, name = key.split("/")
    there = key in store.objects(PODS)
    if operation == "other":
        store.create(resources.NODES, {"metadata": {"name": f"n{store.version}"}})
    elif operation == "set" and there:
        store.replace(PODS, pod(key, value))
    elif operation == "set":
        store.create(PODS, pod(key, value))
    elif there:
        store.delete(PODS, namespace, name)


def replay(state: dict[str, bytes], store: Store, version: int) -> dict[str, bytes]:
    state = dict(state)
    for event in store.events_since(PODS, version):
        assert (event.kind is EventKind.ADDED) is (event.key not in state)
        if event.kind is EventKind.DELETED:
            del state[event.key]
        else:
            state[event.key] = event.item
    return state


@given(STEPS, STEPS, st.integers(1, 3))
def test_pages_of_a_snapshot_and_the_events_after_it_give_the_present(
    before: list[tuple[str, str, int]], after: list[tuple[str, str, int]], limit: int
) -> None:
    store = new_store()
    for entry in before:
        step(store, *entry)
    expected = store.objects(PODS)
    first = store.page(PODS, limit=limit)
    pages = [first]
    changes = iter(after)
    while pages[-1].remaining:
        for entry in [entry for _, entry in zip(range(3), changes, strict=False)]:
            step(store, *entry)
        pages.append(store.page(PODS, version=first.version, after=pages[-1].last_key, limit=limit))
    for entry in changes:
        step(store, *entry)
    items = [item for page in pages for item in page.items]
    assert items == list(expected.values())
    assert replay(expected, store, first.version) == store.objects(PODS)
    assert store.count(PODS) == len(store.objects(PODS))


@given(STEPS, st.integers(1, 5))
def test_every_version_within_the_history_can_be_read_and_no_older_one(
    steps: list[tuple[str, str, int]], history_events: int
) -> None:
    store = new_store(history_events=history_events)
    states = {store.version: store.objects(PODS)}
    for entry in steps:
        step(store, *entry)
        states[store.version] = store.objects(PODS)
    for version, state in states.items():
        if version < store.oldest(PODS):
            with pytest.raises(Expired):
                store.snapshot(PODS, version=version)
            with pytest.raises(Expired):
                store.events_since(PODS, version)
        else:
            snapshot = store.snapshot(PODS, version=version)
            assert dict(zip(snapshot.keys, snapshot.items, strict=True)) == state
            assert replay(state, store, version) == store.objects(PODS)


@given(STEPS, st.data())
def test_rolling_back_restores_the_state_and_gives_versions_out_again(
    steps: list[tuple[str, str, int]], data: st.DataObject
) -> None:
    store = new_store()
    states = {store.version: store.objects(PODS)}
    for entry in steps:
        step(store, *entry)
        states[store.version] = store.objects(PODS)
    version = data.draw(st.sampled_from(sorted(states)))
    store.roll_back(version)
    assert store.objects(PODS) == states[version]
    assert store.count(PODS) == len(states[version])
    store.create(PODS, pod("new/new"))
    assert store.version == version + 1
    assert [event.key for event in store.events_since(PODS, version)] == ["new/new"]


def test_compaction_forgets_deleted_keys_and_old_versions() -> None:
    store = new_store()
    store.create(PODS, pod("a/x"))
    store.delete(PODS, "a", "x")
    store.create(PODS, pod("a/y"))
    before = store.version
    store.advance()
    store.compact(PODS)
    with pytest.raises(Expired):
        store.events_since(PODS, before)
    with pytest.raises(Expired):
        store.roll_back(before)
    assert store.events_since(PODS, store.version) == []
    assert list(store.objects(PODS)) == ["a/y"]
    store.create(PODS, pod("a/x"))
    assert list(store.objects(PODS)) == ["a/x", "a/y"]


def test_a_page_of_a_forgotten_snapshot_is_refused_even_if_it_was_read_before() -> None:
    store = new_store()
    store.create(PODS, pod("a/x"))
    store.create(PODS, pod("a/y"))
    page = store.page(PODS, limit=1)
    store.advance()
    store.compact()
    with pytest.raises(Expired):
        store.page(PODS, version=page.version, after=page.last_key, limit=1)


def test_namespaces_with_a_common_prefix_are_separate() -> None:
    store = new_store()
    for key in ("a/x", "a-b/x", "ab/x", "a/y"):
        store.create(PODS, pod(key))
    assert store.snapshot(PODS, namespace="a").keys == ["a/x", "a/y"]
    assert store.snapshot(PODS).keys == ["a-b/x", "a/x", "a/y", "ab/x"]


def test_a_write_that_changes_nothing_has_no_version() -> None:
    store = new_store()
    item = store.create(PODS, pod("a/x", 1))
    assert store.replace(PODS, pod("a/x", 1)) == item
    assert store.patch(PODS, "a", "x", {"spec": {"value": 1}}) == item
    assert store.version == objects.version_of(item)


def test_the_server_sets_its_members_and_keeps_them() -> None:
    store = new_store()
    created = json.loads(store.create(PODS, pod("a/x")))
    patched = json.loads(store.patch(PODS, "a", "x", {"metadata": {"labels": {"l": "1"}, "creationTimestamp": "1999"}}))
    deleted = json.loads(store.delete(PODS, "a", "x"))
    versions = [int(value["metadata"].pop("resourceVersion")) for value in (created, patched, deleted)]
    assert versions == [2, 3, 4]
    assert patched == {**created, "metadata": {**created["metadata"], "labels": {"l": "1"}}}
    assert deleted == patched
    assert "kind" not in created


def test_the_same_seed_gives_the_same_bytes() -> None:
    first, second, other = new_store(seed=1), new_store(seed=1), new_store(seed=2)
    items = [store.create(PODS, pod("a/x")) for store in (first, second, other)]
    assert items[0] == items[1] != items[2]


def test_refusals() -> None:
    store = new_store()
    store.create(PODS, pod("a/x"))
    with pytest.raises(AlreadyExists):
        store.create(PODS, pod("a/x"))
    with pytest.raises(NotFound):
        store.delete(PODS, "a", "y")
    with pytest.raises(Conflict):
        store.patch(PODS, "a", "x", {"metadata": {"resourceVersion": "1"}})
    with pytest.raises(TypeUnknown):
        store.objects(resources.WIDGETS)
    for metadata in ({}, {"name": "x"}, {"name": "a/b", "namespace": "a"}, {"name": 3, "namespace": "a"}):
        with pytest.raises(Invalid):
            store.create(PODS, {"metadata": metadata})
    with pytest.raises(Invalid):
        store.create(resources.NODES, {"metadata": {"name": "n", "namespace": "a"}})
    with pytest.raises(Invalid):
        store.create(PODS, {})


def test_custom_types_are_written_sorted_and_with_their_type() -> None:
    store = Store()
    store.install(resources.WIDGETS)
    item = store.create(
        resources.WIDGETS, {"spec": {"b": 1, "a": 2}, "kind": "Other", "metadata": {"namespace": "a", "name": "w"}}
    )
    value = json.loads(item)
    assert list(value) == ["apiVersion", "kind", "metadata", "spec"]
    assert list(value["spec"]) == ["a", "b"]
    assert list(value["metadata"]) == sorted(value["metadata"])
    assert value["kind"] == "Widget"


def test_a_removed_type_is_gone_with_its_objects() -> None:
    store = new_store()
    store.create(PODS, pod("a/x"))
    store.uninstall(PODS)
    with pytest.raises(TypeUnknown):
        store.page(PODS)
    store.install(PODS)
    assert store.objects(PODS) == {}
