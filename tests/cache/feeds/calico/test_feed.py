"""The feeds of Calico's model: update types, conflicts, rejections, statuses."""

import collections
import contextlib
import json
from typing import Any

import pytest

from cache import objects, resources
from cache.feeds.calico import feed, syncers
from protocol import messages

LIMIT = 2000
POOLS = syncers.custom_type(syncers.Group.V1, "ippools")
SETS = syncers.custom_type(syncers.Group.V1, "globalnetworksets")
POLICIES = syncers.custom_type(syncers.Group.V1, "globalnetworkpolicies")
KEY = "/calico/v1/ipam/v4/pool/10.0.0.0-16"


@pytest.fixture(name="felix")
def make_felix() -> feed.CalicoFeed:
    return make_fresh()


def make_fresh() -> feed.CalicoFeed:
    [spec] = [spec for spec in syncers.specs(syncers.Group.V1) if spec.name == syncers.FELIX]
    made = feed.CalicoFeed(spec, max_value_bytes=LIMIT)
    made.take()
    return made


def event(
    type: resources.ResourceType, name: str, revision: str, spec: dict[str, Any] | None = None
) -> objects.ObjectEvent:
    raw = json.dumps({"metadata": {"name": name}, "spec": spec or {}}).encode()
    return objects.ObjectEvent(type, "", name, revision, raw, "a/v1", "K", objects.Origin.EVENT)


def pool(name: str, revision: str, cidr: str = "10.0.0.0/16", *, nat: bool = False) -> objects.ObjectEvent:
    return event(POOLS, name, revision, {"cidr": cidr, "natOutgoing": nat})


def policy(revision: str, selector: str) -> objects.ObjectEvent:
    return event(POLICIES, "p", revision, {"selector": selector})


def taken(source: feed.CalicoFeed) -> list[tuple[str, str, int, bool]]:
    """Return for each update: the end of its key, revision, type, and whether it has a value."""
    batch = source.take()
    updates = [] if batch is None else batch.updates
    return [
        (update.key[-14:], update.revision, int(update.update_type), update.value is not None) for update in updates
    ]


SHORT = KEY[-14:]


def test_the_built_in_profile_is_there_at_once() -> None:
    spec = syncers.specs(syncers.Group.V1)[0]
    source = feed.CalicoFeed(spec, max_value_bytes=LIMIT)
    batch = source.take()
    assert batch is not None
    assert len(batch.updates) == 2
    assert batch.previous_sequence == 0
    assert source.store.sequence == 2


def test_types_of_updates(felix: feed.CalicoFeed) -> None:
    felix.apply(pool("a", "1"))
    assert taken(felix) == [(SHORT, "1", 1, True)]
    felix.apply(pool("a", "2", nat=True))
    assert taken(felix) == [(SHORT, "2", 2, True)]
    felix.delete(pool("a", "3"))
    assert taken(felix) == [(SHORT, "", 3, False)]
    felix.delete(pool("a", "4"))
    assert taken(felix) == []


def test_an_unchanged_value_keeps_its_revision(felix: feed.CalicoFeed) -> None:
    felix.apply(pool("a", "1"))
    felix.take()
    felix.apply(pool("a", "2"))
    assert felix.take() is None
    entry = felix.store.get(KEY)
    assert entry is not None
    assert entry.revision == "1"
    assert felix.skipped == 1


def test_the_pool_with_the_lowest_name_wins(felix: feed.CalicoFeed) -> None:
    felix.apply(pool("m", "1"))
    felix.apply(pool("z", "2", nat=True))
    assert taken(felix) == [(SHORT, "1", 1, True)]
    felix.apply(pool("a", "3", nat=True))
    assert taken(felix) == [(SHORT, "3", 2, True)]
    felix.apply(pool("z", "4"))
    assert taken(felix) == []
    felix.delete(pool("a", "5"))
    assert taken(felix) == [(SHORT, "1", 2, True)]
    felix.delete(pool("m", "6"))
    assert taken(felix) == []  # the next claim has the same value
    felix.delete(pool("z", "7"))
    assert taken(felix) == [(SHORT, "", 3, False)]


def test_the_old_key_is_deleted_first(felix: feed.CalicoFeed) -> None:
    felix.apply(pool("a", "1"))
    felix.take()
    felix.apply(pool("a", "2", "10.9.0.0/16"))
    assert taken(felix) == [(SHORT, "", 3, False), (SHORT.replace("10.0", "10.9"), "2", 1, True)]


def test_an_invalid_value_counts_as_known(felix: feed.CalicoFeed) -> None:
    rejection = felix.apply(policy("1", "a =="))
    assert rejection is not None
    assert (rejection.reason, rejection.is_carried) == ("invalid", False)
    felix.apply(policy("2", "a == 'b'"))
    felix.apply(policy("3", "a =="))
    felix.apply(policy("4", "a =="))
    batch = felix.take()
    assert batch is not None
    assert [(update.revision, int(update.update_type), update.value is None) for update in batch.updates] == [
        ("1", 1, True),
        ("2", 2, False),
        ("3", 2, True),
        ("4", 2, True),
    ]
    assert felix.store.sequence == batch.previous_sequence + 4
    felix.delete(policy("5", ""))
    assert [update[1:] for update in taken(felix)] == [("", 3, False)]


def test_a_rejected_object_is_deleted_until_it_is_valid(felix: feed.CalicoFeed) -> None:
    felix.apply(pool("a", "1"))
    rejection = felix.apply(pool("a", "2", "junk"))
    assert rejection is not None
    assert (rejection.feed, rejection.reason) == ("felix", "bad-cidr")
    assert rejection.key == "/crd.projectcalico.org/v1/ippools//a"
    felix.apply(pool("a", "3"))
    assert [update[1:3] for update in taken(felix)] == [("1", 1), ("", 3), ("3", 1)]
    assert felix.rejected == 1


@pytest.mark.parametrize(("name", "count", "reason"), [("s", 1000, "value-too-large"), ("n" * 5000, 1, "key-too-long")])
def test_limits(name: str, count: int, reason: str, felix: feed.CalicoFeed) -> None:
    rejection = felix.apply(event(SETS, name, "1", {"nets": ["10.0.0.0/8"] * count}))
    assert rejection is not None
    assert rejection.reason == reason
    assert felix.take() is None
    assert felix.apply(event(SETS, "s", "2", {"nets": ["10.0.0.0/8"]})) is None
    assert len(taken(felix)) == 1


def test_an_invalid_object_with_a_long_key_is_not_sent_at_all(felix: feed.CalicoFeed) -> None:
    # Clients refuse an update with such a key, even one without a value: each would close its connection.
    rejection = felix.apply(event(POLICIES, "n" * 5000, "1", {"selector": "x ("}))
    assert rejection is not None
    assert rejection.reason == "key-too-long"
    assert felix.take() is None


def test_a_doubtful_object_is_sent_and_named(felix: feed.CalicoFeed) -> None:
    rejection = felix.apply(event(POLICIES, "p", "1", {"namespaceSelector": "x ("}))
    assert rejection is not None
    assert (rejection.reason, rejection.is_carried) == ("doubtful", True)
    assert len(taken(felix)) == 1


def test_a_bug_in_a_converter_affects_only_the_object() -> None:
    def convert(event: objects.ObjectEvent) -> list[Any]:
        return [1 // int(event.resource_version)]

    source = feed.CalicoFeed(syncers.FeedSpec("f", (syncers.Source("K", POOLS, convert),)), max_value_bytes=LIMIT)
    rejection = source.apply(pool("a", "0"))
    assert rejection is not None
    assert (rejection.reason, rejection.detail.partition(":")[0]) == (feed.DEFECT, "ZeroDivisionError")


def test_details_are_short(felix: feed.CalicoFeed) -> None:
    rejection = felix.apply(policy("1", "(" * 100_000))
    assert rejection is not None
    assert len(rejection.detail) <= 1000


def test_the_status_is_that_of_all_types(felix: feed.CalicoFeed) -> None:
    for type in felix.types[:-1]:
        felix.set_status(type, messages.SyncStatus.IN_SYNC)
    batch = felix.take()
    assert batch is not None
    assert batch.status is messages.SyncStatus.RESYNC
    assert not felix.synced_once
    felix.set_status(felix.types[-1], messages.SyncStatus.IN_SYNC)
    batch = felix.take()
    assert batch is not None
    assert batch.status is messages.SyncStatus.IN_SYNC
    assert felix.synced_once


class ScarceMemory(collections.deque[Any]):
    """A feed's changes. There is no memory for some of them."""

    def __init__(self, changes: collections.deque[Any], *, lacking: int) -> None:
        super().__init__(changes)
        self.lacking = lacking
        """The number of the append that fails."""

    def append(self, change: Any) -> None:
        """Append, or raise MemoryError."""
        self.lacking -= 1
        if self.lacking == 0:
            raise MemoryError
        super().append(change)


CONFIGURATIONS = syncers.custom_type(syncers.Group.V1, "felixconfigurations")


def configuration(revision: str, spec: dict[str, Any]) -> objects.ObjectEvent:
    return event(CONFIGURATIONS, "default", revision, spec)


@pytest.mark.parametrize("lacking", range(1, 7))
@pytest.mark.parametrize("next_state", [{"bpfEnabled": True, "vxlanPort": 9}, {"mtuIfacePattern": "x"}, None])
def test_an_object_for_whose_changes_there_was_no_memory_comes_again(
    felix: feed.CalicoFeed, lacking: int, next_state: dict[str, Any] | None
) -> None:
    felix.apply(configuration("1", {"bpfEnabled": True, "logSeverityScreen": "Info", "vxlanVNI": 7}))
    felix.take()
    changed = configuration("2", {"vxlanVNI": 8, "vxlanPort": 9, "ipipMTU": 1400})
    felix._changes = ScarceMemory(felix._changes, lacking=lacking)
    with contextlib.suppress(MemoryError):
        felix.apply(changed)
        felix.delete(changed)
    fresh = make_fresh()
    for one in (felix, fresh):
        one._changes = collections.deque(one._changes)
        if next_state is None:
            one.delete(configuration("3", {}))
        else:
            one.apply(configuration("3", next_state))
        one.take()
    maps = [{entry.key: entry.value for entry in one.store} for one in (felix, fresh)]
    assert maps[0] == maps[1]
