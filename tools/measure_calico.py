"""Measures the CPU time of Calico's data model: conversions, heartbeats, a first sync.

Figures for docs/decisions/measured-costs.md. PYTHONPATH=. .venv/bin/python tools/measure_calico.py
"""

import cProfile
import gc
import json
import pstats
import sys
import time
import tracemalloc
from collections.abc import Callable, Sequence

from cache import objects, resources
from cache.feeds.calico import feed, model, pods, syncers
from loadtest.apiserver import population
from loadtest.apiserver.objects import JsonObject
from protocol.native import encoder

COUNT = 20_000
NODES = 500
ROUNDS = 3
BATCH = 500
"""Objects per page of a list request."""
LARGEST = 8
"""Number of lines of the profile."""
POD_TYPE = resources.ResourceType("", "v1", "pods")
NODE_TYPE = resources.ResourceType("", "v1", "nodes")
MAKER = population.Maker(population.Population(pods=COUNT, nodes=NODES), seed=1)


def say(what: str, figure: float, unit: str) -> None:
    """Print one figure."""
    sys.stdout.write(f"{what:<64}{figure:>10.2f} {unit}\n")


def event(type: resources.ResourceType, kind: str, content: JsonObject, *, version: int) -> objects.ObjectEvent:
    """An object as a list or a watch delivers it."""
    metadata = content["metadata"]
    stamped = {**metadata, "resourceVersion": str(version), "creationTimestamp": "2025-01-01T00:00:00Z"}
    whole = {"kind": kind, "apiVersion": "v1", **content, "metadata": stamped}
    written = json.dumps(whole, separators=(",", ":")).encode()
    namespace, name = metadata.get("namespace", ""), metadata["name"]
    return objects.ObjectEvent(type, namespace, name, str(version), written, "v1", kind, objects.Origin.EVENT)


def pod_events(*, version: int, heartbeat: str = "") -> list[objects.ObjectEvent]:
    """Events for all pods. A heartbeat changes only fields that Calico's agents do not use."""
    events = []
    for number in range(COUNT):
        content = MAKER.pod(number)
        if heartbeat:
            content["status"]["conditions"][0]["lastProbeTime"] = heartbeat
        events.append(event(POD_TYPE, "Pod", content, version=version))
    return events


def node_events(*, version: int, heartbeat: str = "") -> list[objects.ObjectEvent]:
    """Events for all nodes, with the annotations of calico-node. A heartbeat changes nothing that agents use."""
    events = []
    for number in range(NODES):
        content = MAKER.node(number)
        address = content["status"]["addresses"][0]["address"]
        content["metadata"]["annotations"]["projectcalico.org/IPv4Address"] = f"{address}/24"
        content["metadata"]["annotations"]["projectcalico.org/IPv4VXLANTunnelAddr"] = address
        if heartbeat:
            content["status"]["conditions"][0]["lastHeartbeatTime"] = heartbeat
        events.append(event(NODE_TYPE, "Node", content, version=version))
    return events


def felix() -> feed.CalicoFeed:
    """A new, empty felix feed."""
    return feed.CalicoFeed(syncers.specs(syncers.Group.V3)[0], max_value_bytes=1 << 20)


def seconds(action: Callable[[], object]) -> float:
    """CPU seconds of an action, including garbage collection. Earlier garbage is collected first."""
    gc.collect()
    begun = time.process_time()
    action()
    return time.process_time() - begun


def convert_all(converter: model.Converter, events: Sequence[objects.ObjectEvent]) -> None:
    """Run the converter alone."""
    for one in events:
        converter(one)


def deliver(target: feed.CalicoFeed, events: Sequence[objects.ObjectEvent], *, batch: int) -> int:
    """Convert objects to messages of the native protocol. Returns the number of updates."""
    native, count, sequence = encoder.NativeEncoder(), 0, 0
    for start in range(0, len(events), batch):
        for one in events[start : start + batch]:
            target.apply(one)
        taken = target.take()
        if taken is not None and taken.updates:
            native.updates(sequence, taken.updates)
            count += len(taken.updates)
    return count


def measure_churn(first: list[objects.ObjectEvent], again: list[objects.ObjectEvent], what: str) -> None:
    """Measure updates that change nothing that agents see."""
    target = felix()
    deliver(target, first, batch=BATCH)
    counts: list[int] = []
    rounds = [seconds(lambda: counts.append(deliver(target, again, batch=1))) for _ in range(ROUNDS)]
    if any(counts):
        raise SystemExit(f"{what}: expected no updates, not {counts}")
    say(f"{what}, {len(again):,} of them, nothing to send", min(rounds) / len(again) * 1e6, "us each")


def measure_memory(events: list[objects.ObjectEvent]) -> None:
    """Measure the memory of a feed after a first sync."""
    gc.collect()
    tracemalloc.start()
    target = felix()
    deliver(target, events, batch=BATCH)
    gc.collect()
    say("    memory, including values", tracemalloc.get_traced_memory()[0] / 1e6, "MB")
    say("    peak memory", tracemalloc.get_traced_memory()[1] / 1e6, "MB")
    tracemalloc.stop()


def show_profile(events: list[objects.ObjectEvent]) -> None:
    """Print the functions of a first sync with the most own time. Profiling exaggerates the cost of small functions."""
    profile = cProfile.Profile()
    target = felix()
    profile.runcall(deliver, target, events, batch=BATCH)
    pstats.Stats(profile, stream=sys.stdout).strip_dirs().sort_stats("tottime").print_stats(LARGEST)


def main() -> None:
    """Measure and print everything."""
    created = pod_events(version=1)
    say("a pod as JSON", sum(len(one.raw or b"") for one in created) / COUNT, "bytes")
    converted = min(seconds(lambda: convert_all(pods.convert, created)) for _ in range(ROUNDS))
    say("converter alone, for a pod", converted / COUNT * 1e6, "us each")
    one_by_one = min(seconds(lambda: deliver(felix(), created, batch=1)) for _ in range(ROUNDS))
    say("new pod to message, one by one", one_by_one / COUNT * 1e6, "us each")
    measure_churn(created, pod_events(version=2, heartbeat="2025-01-01T00:00:10Z"), "pod status update")
    beats = node_events(version=2, heartbeat="2025-01-01T00:00:10Z")
    measure_churn(node_events(version=1), beats, "kubelet heartbeat")
    everything = [*node_events(version=1), *created]
    first = min(seconds(lambda: deliver(felix(), everything, batch=BATCH)) for _ in range(ROUNDS))
    say(f"first sync, {NODES} nodes and {COUNT:,} pods, object to message", first, "CPU s")
    measure_memory(everything)
    show_profile(everything)


if __name__ == "__main__":
    main()
