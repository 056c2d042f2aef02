"""Large objects are converted in a thread: the newest state of each, in a limited share of the time."""

import asyncio
import contextlib
import json
import threading
from collections.abc import AsyncIterator
from typing import Any

import pytest
import structlog
from hypothesis import given
from hypothesis import strategies as st
from msgspec import structs

from cache import objects, resources
from cache.feeds import feed
from cache.feeds.calico import feed as calico
from cache.feeds.calico import syncers
from protocol import messages
from tests.harness.hub_stand import LIMITS
from tests.harness.scripted_server import eventually
from typha import clock
from typha.hub import conversions, hub, shortages

POLICIES = resources.ResourceType("networking.k8s.io", "v1", "networkpolicies")
IN_SYNC, RESYNC = messages.SyncStatus.IN_SYNC, messages.SyncStatus.RESYNC
Origin = objects.Origin
_FELIX = syncers.specs(syncers.Group.V3)[0]
_QUICK_BYTES = 1000
_SPEC = _FELIX._replace(
    sources=tuple(source._replace(quick_bytes=_QUICK_BYTES) for source in _FELIX.sources if source.type == POLICIES)
)


def policy(name: str, version: int, *, rules: int = 100, namespace: str = "a", origin: Origin = Origin.EVENT) -> Any:
    """A policy; with 100 rules it is large."""
    ingress = [{"ports": [{"port": version}]}] * rules
    value = {"metadata": {"name": name, "namespace": namespace}, "spec": {"podSelector": {}, "ingress": ingress}}
    raw = json.dumps(value).encode()
    return objects.ObjectEvent(POLICIES, namespace, name, str(version), raw, "v1", "NetworkPolicy", origin)


def make_feed() -> calico.CalicoFeed:
    return calico.CalicoFeed(_SPEC, max_value_bytes=1 << 20)


class Scheduler(conversions.ConversionScheduler):
    """Converts at once, and takes the CPU time that the test says."""

    seconds = 1.0

    def __init__(self) -> None:
        super().__init__(LIMITS)
        self.converted: list[str] = []

    async def _in_thread(self, source: feed.Feed, event: objects.ObjectEvent) -> tuple[Any, float]:
        self.converted.append(f"{event.namespace}/{event.name}@{event.resource_version}")
        await asyncio.sleep(0)
        return source.convert(event), self.seconds


class Stand:
    """A hub with one feed, and a scheduler without a thread on the loop's virtual time."""

    def __init__(self) -> None:
        self.feed = make_feed()
        self.hub = hub.Hub([self.feed], LIMITS)
        self.hub.conversions = self.scheduler = Scheduler()

    def values(self) -> dict[str, str]:
        """The version of each policy that the feed has."""
        self.hub.commit()
        policies = (entry for entry in self.feed.store if entry.key.startswith("/calico/v1/policy/Kubernetes"))
        return {entry.key.rpartition("/")[2]: entry.revision for entry in policies}


@pytest.fixture
async def stand() -> AsyncIterator[Stand]:
    loop = asyncio.get_running_loop()
    with clock.replaced(monotonic=loop.time, time_ns=lambda: 0):
        opened = Stand()
        running = asyncio.create_task(opened.hub.run_conversions(), name="conversions")
        yield opened
        running.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await running
        opened.hub.close()


@pytest.mark.looptime
async def test_a_small_object_is_converted_at_once_and_a_large_one_later(stand: Stand) -> None:
    stand.hub.apply(policy("small", 1, rules=1))
    stand.hub.apply(policy("large", 2))
    assert list(stand.values()) == ["small"]
    await asyncio.sleep(0.01)
    assert sorted(stand.values()) == ["large", "small"]
    assert stand.scheduler.is_idle


@pytest.mark.looptime
async def test_the_newest_state_is_converted_in_a_tenth_of_the_time(stand: Stand) -> None:
    for version in range(1, 401):
        stand.hub.apply(policy("hot", version))
        await asyncio.sleep(0.25)
    assert stand.scheduler.converted[:3] == ["a/hot@1", "a/hot@37", "a/hot@73"]  # nine seconds of rest after each
    assert len(stand.scheduler.converted) == 12
    await asyncio.sleep(10)
    assert stand.scheduler.converted[-1] == "a/hot@400"
    assert list(stand.values().values()) == ["400"]


@pytest.mark.looptime
async def test_new_names_in_one_namespace_do_not_escape_and_other_namespaces_do_not_wait(stand: Stand) -> None:
    for number in range(5):
        stand.hub.apply(policy(f"evil{number}", 1, namespace="evil"))
    for number in range(5):
        stand.hub.apply(policy("good", 1, namespace=f"good{number}"))
    await asyncio.sleep(0.001)
    assert stand.scheduler.converted == ["evil/evil0@1", *(f"good{number}/good@1" for number in range(5))]
    await asyncio.sleep(35)
    assert len(stand.scheduler.converted) == 9
    stand.scheduler.seconds = 0.001
    for number in range(20):
        stand.hub.apply(policy(f"cheap{number}", 1, namespace="evil"))
    await asyncio.sleep(0.5)
    assert len(stand.scheduler.converted) == 9  # the last expensive one still makes its namespace rest
    await asyncio.sleep(1)
    assert len(stand.scheduler.converted) == 30


def is_synced(source: feed.Feed) -> bool:
    return source.synced_once


@pytest.mark.looptime
async def test_a_list_is_converted_without_rest_before_its_type_is_in_sync(stand: Stand) -> None:
    for number in range(5):
        stand.hub.apply(policy(f"p{number}", 1, origin=Origin.LIST))
    stand.hub.status(POLICIES, IN_SYNC)
    stand.hub.batch_end()
    assert not is_synced(stand.feed)
    await asyncio.sleep(0.001)
    assert is_synced(stand.feed)
    assert len(stand.values()) == 5


@pytest.mark.looptime
async def test_a_status_does_not_wait_for_changes_that_come_after_it(stand: Stand) -> None:
    stand.scheduler.seconds = 0.0
    stand.hub.apply(policy("hot", 1))
    await asyncio.sleep(0)
    stand.hub.apply(policy("hot", 2))
    stand.hub.status(POLICIES, IN_SYNC)
    for version in range(3, 10):
        stand.hub.apply(policy("hot", version))
        await asyncio.sleep(0)
        if is_synced(stand.feed):
            break
    assert is_synced(stand.feed)
    assert "a/hot@2" in stand.scheduler.converted or "a/hot@3" in stand.scheduler.converted


async def test_a_status_is_free_when_its_last_object_is_deleted() -> None:
    opened = Stand()
    opened.hub.apply(policy("large", 1, origin=Origin.LIST))
    opened.hub.status(POLICIES, IN_SYNC)
    opened.hub.batch_end()
    assert not is_synced(opened.feed)
    opened.hub.delete(policy("large", 2))
    opened.hub.batch_end()
    assert is_synced(opened.feed)
    assert (opened.values(), opened.scheduler.is_idle) == ({}, True)
    opened.hub.apply(policy("large", 3))
    opened.hub.status(POLICIES, IN_SYNC)
    opened.hub.status(POLICIES, RESYNC)
    opened.hub.delete(policy("large", 4))
    opened.hub.batch_end()
    assert opened.feed.store.status is RESYNC
    opened.hub.close()


@pytest.mark.looptime
async def test_what_changes_while_it_is_converted_does_not_come_back(stand: Stand) -> None:
    stand.scheduler.seconds = 0.0
    stand.hub.apply(policy("x", 1))
    await asyncio.sleep(0)
    stand.hub.delete(policy("x", 2))
    await asyncio.sleep(0.01)
    assert (stand.scheduler.converted, stand.values()) == (["a/x@1"], {})
    stand.hub.apply(policy("x", 3))
    await asyncio.sleep(0)
    stand.hub.apply(policy("x", 4, rules=1))
    await asyncio.sleep(0.01)
    assert (stand.scheduler.converted, stand.values()) == (["a/x@1", "a/x@3"], {"x": "4"})


_STEPS = st.lists(
    st.tuples(st.sampled_from(["large", "large", "small", "delete", "turn", "turn", "sync"]), st.sampled_from("xyz")),
    max_size=40,
)


@given(_STEPS)
def test_any_history_ends_with_what_conversion_at_once_gives(steps: list[tuple[str, str]]) -> None:
    async def run() -> None:
        opened, expected = Stand(), make_feed()
        opened.scheduler.seconds = 0.0
        running = asyncio.create_task(opened.hub.run_conversions(), name="conversions")
        for version, (kind, name) in enumerate(steps, 1):
            event = policy(name, version, rules=100 if kind == "large" else 1)
            if kind in ("large", "small"):
                opened.hub.apply(event)
                expected.apply(event)
            elif kind == "delete":
                opened.hub.delete(event)
                expected.delete(event)
            elif kind == "sync":
                opened.hub.status(POLICIES, IN_SYNC)
            else:
                await asyncio.sleep(0)
        await eventually(lambda: opened.scheduler.is_idle)
        await asyncio.sleep(0)
        opened.hub.batch_end()
        opened.hub.commit()
        expected.take()
        assert opened.feed.store.digest == expected.store.digest
        assert is_synced(opened.feed) is any(kind == "sync" for kind, _ in steps)
        running.cancel()
        opened.hub.close()

    asyncio.run(run())


class WaitingFeed(calico.CalicoFeed):
    """Its conversion goes on when the loop says so."""

    go_on = threading.Event()
    thread = ""

    def convert(self, event: objects.ObjectEvent) -> Any:
        self.thread = threading.current_thread().name
        assert self.go_on.wait(60.0)
        return super().convert(event)


async def test_the_loop_goes_on_while_an_object_is_converted() -> None:
    source = WaitingFeed(_SPEC, max_value_bytes=1 << 20)
    the_hub = hub.Hub([source], structs.replace(LIMITS, named_conversion_seconds=0.0))
    running = asyncio.create_task(the_hub.run_conversions(), name="conversions")
    with structlog.testing.capture_logs() as logs:
        the_hub.apply(policy("large", 1))
        await eventually(lambda: source.thread != "")
        source.go_on.set()
        await eventually(lambda: the_hub.conversions.is_idle)
        await asyncio.sleep(0)
    the_hub.commit()
    assert len(source.store) > 0
    assert source.thread.startswith("conversion")
    [line] = [entry for entry in logs if "milliseconds" in entry]
    assert line["key"] == "/networking.k8s.io/v1/networkpolicies/a/large"
    assert the_hub.expensive_conversions == {str(POLICIES): 1}
    running.cancel()
    the_hub.close()


async def test_without_a_thread_the_loop_converts(monkeypatch: pytest.MonkeyPatch) -> None:
    def cannot_start(*_: object) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(asyncio.get_running_loop(), "run_in_executor", cannot_start)
    source = make_feed()
    scheduler = conversions.ConversionScheduler(LIMITS)
    scheduler.submit(source, policy("large", 1))
    done = await scheduler.convert_next()
    assert source.adopt(done.event, done.outcome) is None
    scheduler.close()


class ForgetfulFeed(calico.CalicoFeed):
    """There is no memory for its first conversions."""

    failures = 2

    def convert(self, event: objects.ObjectEvent) -> Any:
        self.failures -= 1
        if self.failures >= 0:
            raise MemoryError
        return super().convert(event)


async def test_an_object_that_there_is_no_memory_to_convert_waits_and_so_does_its_status() -> None:
    source = ForgetfulFeed(_SPEC, max_value_bytes=1 << 20)
    the_hub = hub.Hub([source], structs.replace(LIMITS, retry_seconds=0.001))
    running = asyncio.create_task(the_hub.run_conversions(), name="conversions")
    the_hub.apply(policy("large", 1))
    the_hub.status(POLICIES, IN_SYNC)
    await eventually(lambda: running.done() or the_hub.conversions.is_idle)
    await asyncio.sleep(0)
    the_hub.commit()
    assert not running.done()
    assert (len(source.store), source.synced_once) == (3, True)  # with two built-in profiles
    assert the_hub.shortages.counts == {shortages.Lacking.CONVERSION: 2}
    running.cancel()
    the_hub.close()


def test_lack_of_memory_is_not_taken_for_a_defect_of_a_converter() -> None:
    def convert(event: objects.ObjectEvent) -> Any:
        raise MemoryError

    sources = tuple(source._replace(convert=convert) for source in _SPEC.sources)
    source = calico.CalicoFeed(_SPEC._replace(sources=sources), max_value_bytes=1 << 20)
    with pytest.raises(MemoryError):
        source.apply(policy("large", 1))
