"""Exports metrics to Prometheus. Samples are plain numbers that are read at scrape time.

Other modules count in plain attributes. Metric objects exist only here, so counting costs nothing more.
"""

import functools
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TypeAlias

import prometheus_client
from prometheus_client import gc_collector, platform_collector, registry
from prometheus_client.core import Metric as Family

from protocol import reasons
from typha.observability import buckets, processes, quantiles
from typha.observability.metrics_table import METRICS, Kind, Metric

__all__ = ["BY_NAME", "CONTENT_TYPE", "METRICS", "SamplesCollector", "exposition", "make_registry", "summary_samples"]

Samples: TypeAlias = dict[str, dict[tuple[str, ...], float]]
"""Metric name -> label values in the table's order -> value. See `summary_samples` and `histogram_samples`."""

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"

BY_NAME = {metric.name: metric for metric in METRICS}
"""The rows of the table."""
_REASONS = tuple(reason.value for reason in reasons.DisconnectReason)
_OF_SOME_FEEDS = {
    *("typha_clients_reporting", "typha_clients_applied", "typha_applied_lag_seconds_max"),
    "typha_applied_everywhere_seconds",
}
"""Metrics that exist for the feeds that have had clients of their kind, and for no others."""
_LABELS_KEPT = 4096
"""Cached texts of label sets. There are few sets, and every scrape needs all of them."""
_SUMMARY_PARTS = (*(str(quantile) for quantile in quantiles.QUANTILES), "sum", "count")


def summary_samples(
    histograms: Mapping[tuple[str, ...], quantiles.Histogram],
) -> dict[tuple[str, ...], float]:
    """The samples of a summary, from histograms by label values. A last label value is added for the part."""
    return {
        (*labels, part): value
        for labels, histogram in histograms.items()
        for part, value in histogram.samples().items()
    }


def histogram_samples(
    counts: Mapping[tuple[str, ...], buckets.BucketCounts], bounds: tuple[float, ...]
) -> dict[tuple[str, ...], float]:
    """The samples of a histogram, from counts by label values. A last label value is added, as for summaries."""
    return {(*labels, part): value for labels, found in counts.items() for part, value in found.samples(bounds)}


class SamplesCollector(registry.Collector):
    """Yields every metric of the table, with its samples, and with zeros for label values that are known in advance."""

    def __init__(self, read: Callable[[], Samples], *, syncers: Sequence[str] = ()) -> None:
        self._read = read
        self._known_values = {"syncer": tuple(syncers), "reason": _REASONS}

    def collect(self) -> Iterable[Family]:
        """Read the samples. Raises ValueError if a name is not in the table, or the number of labels is wrong."""
        samples = self._read()
        unknown = samples.keys() - BY_NAME.keys()
        if unknown:
            raise ValueError(f"metrics are not in the table: {', '.join(sorted(unknown))}")
        for metric in METRICS:
            yield _family(metric, {**self._presets(metric), **samples.get(metric.name, {})})

    def _presets(self, metric: Metric) -> dict[tuple[str, ...], float]:
        if not metric.labels:
            return {(): 0.0}
        if metric.name not in ("typha_disconnects_total",) and metric.labels != ("syncer",):
            return {}
        if metric.name in _OF_SOME_FEEDS:
            return {}
        values = self._known_values[metric.labels[0]]
        if metric.kind is Kind.HISTOGRAM:
            return histogram_samples({(value,): buckets.BucketCounts() for value in values}, metric.bounds)
        if metric.kind is not Kind.SUMMARY:
            return {(value,): 0.0 for value in values}
        return {
            (value, part): 0.0 if part in ("sum", "count") else math.nan for value in values for part in _SUMMARY_PARTS
        }


def make_registry(
    collector: SamplesCollector, *, runtime: bool, process: bool, workers: Callable[[], Iterable[int]] = tuple
) -> prometheus_client.CollectorRegistry:
    """A registry with the collector and, if requested, `python_*` of this process, and `process_*` of it and workers.

    `workers` names their processes.
    """
    made = prometheus_client.CollectorRegistry(auto_describe=False)
    made.register(collector)
    if runtime:
        gc_collector.GCCollector(registry=made)
        platform_collector.PlatformCollector(registry=made)
    if process:
        made.register(processes.ProcessCollector(workers))
    return made


def exposition(source: registry.Collector) -> bytes:
    """Render the text format, version 0.0.4.

    The writer of prometheus_client does not fit: it appends `_total` to the name of every counter, and the counters of
    the original have no such suffix.
    """
    lines: list[str] = []
    for family in source.collect():
        samples = [sample for sample in family.samples if not sample.name.endswith("_created")]
        name = samples[0].name if family.type == "counter" and samples else family.name
        lines.append(f"# HELP {name} {family.documentation.translate(_HELP_ESCAPES)}")
        lines.append(f"# TYPE {name} {_TYPES.get(family.type, family.type)}")
        for sample in samples:
            labels = _labels_text(tuple(sample.labels.items())) if sample.labels else ""
            lines.append(f"{sample.name}{labels} {_number(sample.value)}")
    return ("\n".join(lines) + "\n").encode()


@functools.lru_cache(maxsize=_LABELS_KEPT)
def _labels_text(labels: tuple[tuple[str, str], ...]) -> str:
    return "{" + ",".join(f'{key}="{value.translate(_LABEL_ESCAPES)}"' for key, value in labels) + "}"


_TYPES = {"unknown": "untyped", "info": "gauge", "stateset": "gauge"}
_HELP_ESCAPES = str.maketrans({"\\": r"\\", "\n": r"\n"})
_LABEL_ESCAPES = str.maketrans({"\\": r"\\", "\n": r"\n", '"': r"\""})


def _family(metric: Metric, values: Mapping[tuple[str, ...], float]) -> Family:
    family = Family(metric.name, metric.help, metric.kind.value)
    for labels, value in values.items():
        if metric.kind is Kind.SUMMARY:
            _add_part(family, metric, labels, value, parts=_SUMMARY_PARTS, label="quantile")
        elif metric.kind is Kind.HISTOGRAM:
            parts = (*map(str, metric.bounds), "+Inf", "sum", "count")
            _add_part(family, metric, labels, value, parts=parts, label="le")
        else:
            family.add_sample(metric.name, _named(metric, labels), value)
    return family


def _add_part(
    family: Family, metric: Metric, labels: tuple[str, ...], value: float, *, parts: tuple[str, ...], label: str
) -> None:
    part = labels[-1] if labels else ""
    if part not in parts:
        raise ValueError(f"{metric.name}: {part!r} is not a part of a {metric.kind}")
    named = _named(metric, labels[:-1])
    if part in ("sum", "count"):
        family.add_sample(f"{metric.name}_{part}", named, value)
    else:
        suffix = "_bucket" if metric.kind is Kind.HISTOGRAM else ""
        family.add_sample(f"{metric.name}{suffix}", {**named, label: part}, value)


def _number(value: float) -> str:
    if type(value) is int:
        return str(value)
    if math.isfinite(value):
        return str(int(value)) if value == int(value) and abs(value) < 1e15 else repr(float(value))
    return "NaN" if math.isnan(value) else "+Inf" if value > 0 else "-Inf"


def _named(metric: Metric, labels: tuple[str, ...]) -> dict[str, str]:
    if len(labels) != len(metric.labels):
        raise ValueError(f"{metric.name}: {len(labels)} label values, not {len(metric.labels)}")
    return dict(zip(metric.labels, labels, strict=True))
