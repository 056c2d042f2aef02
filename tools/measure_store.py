"""Measures the CPU time of the hub's part: conversion, store, cuts, snapshots.

Figures for docs/decisions/measured-costs.md. PYTHONPATH=. .venv/bin/python tools/measure_store.py
"""

import json
import sys
import time
import tracemalloc
from collections.abc import Callable, Sequence
from typing import TypeVar

from cache import objects, resources
from cache.feeds import feed, raw
from cache.state import log, snapshot, store
from loadtest.apiserver import population
from protocol.native import encoder

PODS = resources.ResourceType("", "v1", "pods")
COUNT = 20_000
ROUNDS = 3
CHANGED_KEYS = 100
FIELDS = (("metadata", "labels"), ("spec", "nodeName"), ("status", "podIP"))

T = TypeVar("T")


def say(what: str, figure: float, unit: str) -> None:
    """Print one figure."""
    sys.stdout.write(f"{what:<64}{figure:>10.2f} {unit}\n")


def microseconds_each(action: Callable[[T], object], items: Sequence[T]) -> float:
    """Mean CPU time over the items."""
    begun = time.process_time()
    for item in items:
        action(item)
    return (time.process_time() - begun) / len(items) * 1e6


def milliseconds(action: Callable[[], object]) -> float:
    """CPU time of the best round."""
    best = float("inf")
    for _ in range(ROUNDS * 3):
        begun = time.process_time()
        action()
        best = min(best, time.process_time() - begun)
    return best * 1e3


def pods() -> list[objects.ObjectEvent]:
    """The pods of the simulated API server, as a watch delivers them."""
    maker = population.Maker(population.Population(pods=COUNT), seed=1)
    events = []
    for number in range(COUNT):
        pod = maker.pod(number)
        written = json.dumps({"apiVersion": "v1", "kind": "Pod", **pod}, separators=(",", ":")).encode()
        metadata = pod["metadata"]
        names = metadata["namespace"], metadata["name"]
        events.append(objects.ObjectEvent(PODS, *names, "1", written, "v1", "Pod", objects.Origin.EVENT))
    return events


def measure_store(values: list[tuple[str, bytes]]) -> None:
    """Measure single operations of the store."""
    rounds = [one_round(values) for _ in range(ROUNDS)]
    names = ("put, new key", "put, changed value", "put, unchanged value", "delete")
    for name, figures in zip(names, zip(*rounds, strict=True), strict=True):
        say(name, min(figures), "us")


def one_round(values: list[tuple[str, bytes]]) -> tuple[float, ...]:
    """Microseconds of each operation, on a new store."""
    one = store.Store()
    changed = [(key, value + b" ") for key, value in values]
    return (
        microseconds_each(lambda pair: one.put(*pair, "1"), values),
        microseconds_each(lambda pair: one.put(*pair, "2"), changed),
        microseconds_each(lambda pair: one.put(*pair, "3"), changed),
        microseconds_each(lambda pair: one.delete(pair[0], "4"), values),
    )


def fill(events: list[objects.ObjectEvent], values: list[tuple[str, bytes]]) -> store.Store:
    """Build a store of all pods, and print its memory without the values."""
    tracemalloc.start()
    filled = store.Store()
    for event, (_, value) in zip(events, values, strict=True):
        filled.put(raw.object_key(PODS, event.namespace, event.name), value, f"{1_000_000 + len(filled)}")
    say("memory per key, without the bytes object of the value", tracemalloc.get_traced_memory()[0] / COUNT, "bytes")
    tracemalloc.stop()
    return filled


def touch(filled: store.Store) -> int:
    """Change some keys. Returns the sequence number before the changes."""
    before = filled.sequence
    for entry in list(filled)[:CHANGED_KEYS]:
        filled.put(entry.key, entry.value + b" ", "9")
    return before


def build(
    one: encoder.NativeEncoder, cut: store.Cut, previous: snapshot.Snapshot | None = None
) -> tuple[snapshot.Snapshot, float]:
    """Build a snapshot. Returns it with the milliseconds of the longest step."""
    builder = snapshot.SnapshotBuilder(one, cut, log_offset=0, previous=previous)
    longest, last = 0.0, time.process_time()
    for _ in builder.steps():
        now = time.process_time()
        longest, last = max(longest, now - last), now
    return builder.snapshot, longest * 1e3


def measure_snapshots(filled: store.Store) -> None:
    """Measure cuts and snapshots."""
    say(f"cut, all {filled.chunk_count} chunks", milliseconds(filled.cut), "ms")
    since = touch(filled)
    say(f"cut, {CHANGED_KEYS} keys changed", milliseconds(lambda: filled.cut(since_sequence=since)), "ms")
    for one in (encoder.NativeEncoder(), encoder.NativeEncoder(zstd=True)):
        begun = time.process_time()
        first, longest = build(one, filled.cut())
        say(f"snapshot, {one.name}, all keys", (time.process_time() - begun) * 1e3, "ms")
        say("    longest step", longest, "ms")
        say("    size", first.length / 1e6, "MB")
        since = touch(filled)
        begun = time.process_time()
        second, _ = build(one, filled.cut(since_sequence=since), first)
        say(f"    next snapshot, {CHANGED_KEYS} keys changed", (time.process_time() - begun) * 1e3, "ms")
        first.close()
        second.close()


def measure_path(events: list[objects.ObjectEvent], *, batch: int) -> None:
    """Measure the path from an object to the log of the uncompressed format."""
    source = feed.RawFeed(raw.FeedSpec("pods", (raw.ResourceSpec(PODS),)), max_value_bytes=1 << 20)
    one, writer = encoder.NativeEncoder(), log.LogWriter(segment_bytes=4 << 20)
    begun = time.process_time()
    for start in range(0, len(events), batch):
        for event in events[start : start + batch]:
            source.apply(event)
        taken = source.take()
        if taken is not None:
            writer.append(one.updates(taken.previous_sequence, taken.updates))
    say(f"object to log, batches of {batch}", (time.process_time() - begun) / len(events) * 1e6, "us")
    writer.close()


def main() -> None:
    """Measure and print everything."""
    events = pods()
    written = [event.raw or b"" for event in events]
    say("an object as JSON", sum(map(len, written)) / COUNT, "bytes")
    say(
        "object to value",
        microseconds_each(lambda data: raw.object_value(data, api_version="", kind=""), written),
        "us",
    )
    picked = microseconds_each(lambda data: raw.object_value(data, api_version="", kind="", fields=FIELDS), written)
    say("object to value, three fields", picked, "us")
    values = [
        (raw.object_key(PODS, event.namespace, event.name), raw.object_value(data, api_version="", kind=""))
        for event, data in zip(events, written, strict=True)
    ]
    say("a value", sum(len(value) for _, value in values) / COUNT, "bytes")
    measure_store(values)
    measure_snapshots(fill(events, values))
    for batch in (200, 1):
        measure_path(events, batch=batch)


if __name__ == "__main__":
    main()
