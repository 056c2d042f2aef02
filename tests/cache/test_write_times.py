"""When an object was written, as far as it says so."""

import datetime
import json
from typing import Any

import pytest

from cache import objects, resources, write_times

PODS = resources.ResourceType("", "v1", "pods")
NOON = datetime.datetime(2026, 1, 2, 12, tzinfo=datetime.UTC).timestamp()
CREATED = {"creationTimestamp": "2026-01-02T11:00:00Z"}


def event(metadata: Any, origin: objects.Origin = objects.Origin.EVENT, rest: Any = None) -> objects.ObjectEvent:
    raw = json.dumps({"metadata": metadata, "spec": rest}).encode()
    return objects.ObjectEvent(PODS, "default", "a", "1", raw, "v1", "Pod", origin)


def managed(*times: object) -> dict[str, Any]:
    return CREATED | {"managedFields": [{"manager": "x", "time": time} for time in times]}


def test_the_newest_writer_counts() -> None:
    times = ("2026-01-02T11:59:59Z", "2026-01-02T12:00:00Z", "2026-01-02T11:30:00Z")
    assert write_times.written_at(event(managed(*times))) == NOON
    assert write_times.written_at(event(CREATED)) == NOON - 3600
    assert write_times.written_at(event(managed("2026-01-02T12:00:00.25Z"))) == NOON + 0.25


@pytest.mark.parametrize(
    "metadata",
    [
        {},
        managed("2026-01-02T12:00:00Z") | {"deletionTimestamp": "2026-01-02T12:00:30Z"},
        managed("soon"),
        managed(7),
        managed(*["2026-01-02T12:00:00Z"] * 65),
        {"managedFields": "none"},
        None,
    ],
)
def test_an_object_that_does_not_tell(metadata: Any) -> None:
    assert write_times.written_at(event(metadata)) == 0.0


def test_what_is_no_report_of_one_write() -> None:
    good = event(managed("2026-01-02T12:00:00Z"))
    assert write_times.written_at(good) == NOON
    for origin in (objects.Origin.LIST, objects.Origin.INITIAL):
        assert write_times.written_at(good._replace(origin=origin)) == 0.0
    for raw in (None, b"", b"[", b"{}", b"[" * 50_000):
        assert write_times.written_at(good._replace(raw=raw)) == 0.0
    assert write_times.written_at(event(managed("2026-01-02T12:00:00Z"), rest="x" * 70_000)) == 0.0
