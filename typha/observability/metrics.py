"""Metrics as Prometheus reads them: samples are plain numbers, gathered when somebody asks.

No other path has metric objects (docs/decisions/shared-frames.md): counters live where they are counted.
"""

import functools
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TypeAlias

import prometheus_client
from prometheus_client import gc_collector, platform_collector, process_collector, registry
from prometheus_client.core import Metric as Family

from protocol import reasons
from typha.observability import quantiles
from typha.observability.metrics_table import METRICS, Kind, Metric

__all__ = ["CONTENT_TYPE", "METRICS", "SamplesCollector", "exposition", "make_registry", "summary_samples"]

Samples: TypeAlias = dict[str, dict[tuple[str, ...], float]]
"""Metric name -> label values in the table's order -> value. See `summary_samples` for summaries."""

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"

_BY_NAME = {metric.name: metric for metric in METRICS}
_REASONS = tuple(reason.value for reason in reasons.DisconnectReason)
_LABELS_KEPT = 4096
"""Label sets are few and asked for again and again: their text is remembered."""
_SUMMARY_PARTS = (*(str(quantile) for quantile in quantiles.QUANTILES), "sum", "count")


def summary_samples(
    histograms: Mapping[tuple[str, ...], quantiles.Histogram],
) -> dict[tuple[str, ...], float]:
    """Histograms by label values, as the samples of a summary: with each part's name as a last label value."""
    return {
        (*labels, part): value
        for labels, histogram in histograms.items()
        for part, value in histogram.samples().items()
    }


class SamplesCollector(registry.Collector):
    """Shows every metric of the table: with its samples, or with zeros for all label values known beforehand."""

    def __init__(self, read: Callable[[], Samples], *, syncers: Sequence[str] = ()) -> None:
        self._read = read
        self._known_values = {"syncer": tuple(syncers), "reason": _REASONS}

    def collect(self) -> Iterable[Family]:
        """Raises ValueError for a name that is not in the table, or for other than its number of labels."""
        samples = self._read()
        unknown = samples.keys() - _BY_NAME.keys()
        if unknown:
            raise ValueError(f"metrics that are not in the table: {', '.join(sorted(unknown))}")
        for metric in METRICS:
            yield _family(metric, {**self._presets(metric), **samples.get(metric.name, {})})

    def _presets(self, metric: Metric) -> dict[tuple[str, ...], float]:
        if not metric.labels:
            return {(): 0.0}
        if metric.name not in ("typha_disconnects_total",) and metric.labels != ("syncer",):
            return {}
        values = self._known_values[metric.labels[0]]
        if metric.kind is not Kind.SUMMARY:
            return {(value,): 0.0 for value in values}
        return {
            (value, part): 0.0 if part in ("sum", "count") else math.nan for value in values for part in _SUMMARY_PARTS
        }


def make_registry(collector: SamplesCollector, *, runtime: bool, process: bool) -> prometheus_client.CollectorRegistry:
    """A registry of our samples and, if wanted, `python_*` and the `process_*` of this process."""
    made = prometheus_client.CollectorRegistry(auto_describe=False)
    made.register(collector)
    if runtime:
        gc_collector.GCCollector(registry=made)
        platform_collector.PlatformCollector(registry=made)
    if process:
        process_collector.ProcessCollector(registry=made)
    return made


def exposition(source: registry.Collector) -> bytes:
    """The text format, version 0.0.4.

    Not prometheus_client's own writer: it appends `_total` to the name of every counter, and the original's have none.
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
            _add_summary_sample(family, metric, labels, value)
        else:
            family.add_sample(metric.name, _named(metric, labels), value)
    return family


def _add_summary_sample(family: Family, metric: Metric, labels: tuple[str, ...], value: float) -> None:
    part = labels[-1] if labels else ""
    if part not in _SUMMARY_PARTS:
        raise ValueError(f"{metric.name}: {part!r} is no part of a summary")
    named = _named(metric, labels[:-1])
    if part in ("sum", "count"):
        family.add_sample(f"{metric.name}_{part}", named, value)
    else:
        family.add_sample(metric.name, {**named, "quantile": part}, value)


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
