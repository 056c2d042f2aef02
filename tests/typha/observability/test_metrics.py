"""Metrics: exact names in the exposition, presets, summaries, and agreement of the page with the table."""

import math

import pytest
from prometheus_client.parser import text_string_to_metric_families

from protocol.reasons import DisconnectReason
from tests.harness.repository import ROOT
from typha.observability import metrics, metrics_table
from typha.observability.quantiles import Histogram

ORIGINAL_NAMES = {
    "typha_connections_accepted": "counter",
    "typha_connections_active": "gauge",
    "typha_connections_dropped": "counter",
    "typha_connections_streaming": "gauge",
    "typha_connections_grace_used": "counter",
    "typha_client_snapshot_send_secs": "summary",
    "typha_client_latency_secs": "summary",
    "typha_client_write_latency_secs": "summary",
    "typha_next_breadcrumb_latency_secs": "summary",
    "typha_ping_latency": "summary",
    "typha_kvs_per_msg": "summary",
    "typha_breadcrumb_seq_number": "gauge",
    "typha_breadcrumb_block": "counter",
    "typha_breadcrumb_non_block": "counter",
    "typha_breadcrumb_size": "summary",
    "typha_cache_size": "gauge",
    "typha_updates_total": "counter",
    "typha_updates_skipped": "counter",
    "typha_snapshots_generated": "counter",
    "typha_snapshots_reused": "counter",
    "typha_snapshot_raw_bytes": "gauge",
    "typha_snapshot_compressed_bytes": "gauge",
    "typha_log_errors": "counter",
    "typha_logs_dropped": "counter",
}


def lines(samples: metrics.Samples, *syncers: str) -> list[str]:
    return metrics.exposition(metrics.SamplesCollector(lambda: samples, syncers=syncers)).decode().splitlines()


def test_metrics_of_the_original_keep_their_names_and_kinds() -> None:
    shown = lines({}, "workloads")
    for name, kind in ORIGINAL_NAMES.items():
        assert f"# TYPE {name} {kind}" in shown
        assert any(line.startswith((f"{name} ", f"{name}{{")) for line in shown), name
    assert not any("_total_total" in line or "accepted_total" in line for line in shown)


def test_the_page_has_the_tables_that_documentation_generates() -> None:
    assert metrics_table.documentation() in (ROOT / "docs" / "metrics.md").read_text()


def test_a_metric_has_a_source_exactly_if_its_help_does_not_deny_it() -> None:
    sources = [path for path in (ROOT / "typha").rglob("*.py") if path.name != "metrics_table.py"]
    text = "\n".join(path.read_text() for path in sources)
    for metric in metrics.METRICS:
        assert (f'"{metric.name}"' in text) != metric.help.startswith(metrics_table.NOT_COUNTED), metric.name


def test_names_are_unique() -> None:
    assert len({metric.name for metric in metrics.METRICS}) == len(metrics.METRICS)


def test_samples_replace_presets() -> None:
    shown = lines({"typha_updates_total": {("web",): 3}, "typha_connections_accepted": {(): 2.5}}, "web", "dns")
    assert 'typha_updates_total{syncer="web"} 3' in shown
    assert 'typha_updates_total{syncer="dns"} 0' in shown
    assert "typha_connections_accepted 2.5" in shown


def test_every_disconnect_reason_has_a_sample_from_the_start() -> None:
    shown = lines({"typha_disconnects_total": {("pong-timeout",): 4}})
    for reason in DisconnectReason:
        expected = 4 if reason is DisconnectReason.PONG_TIMEOUT else 0
        assert f'typha_disconnects_total{{reason="{reason}"}} {expected}' in shown


def test_summaries() -> None:
    histogram = Histogram()
    histogram.record(1.0, times=3)
    shown = lines({"typha_ping_latency": metrics.summary_samples({("web",): histogram})}, "web", "dns")
    assert 'typha_ping_latency{syncer="web",quantile="0.5"} 1.0625' in shown
    assert 'typha_ping_latency_sum{syncer="web"} 3' in shown
    assert 'typha_ping_latency_count{syncer="web"} 3' in shown
    assert 'typha_ping_latency{syncer="dns",quantile="0.99"} NaN' in shown
    assert 'typha_ping_latency_count{syncer="dns"} 0' in shown


@pytest.mark.parametrize(
    ("samples", "message"),
    [
        ({"typha_no_such": {(): 1.0}}, "typha_no_such"),
        ({"typha_cache_size": {(): 1.0}}, "0 label values, not 1"),
        ({"typha_connections_active": {("x",): 1.0}}, "1 label values, not 0"),
        ({"typha_ping_latency": {("web", "0.7"): 1.0}}, "not a part of a summary"),
        ({"typha_ping_latency": {("web",): 1.0}}, "not a part of a summary"),
    ],
)
def test_samples_that_do_not_fit_the_table_are_rejected(samples: metrics.Samples, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        lines(samples, "web")


def test_label_values_are_escaped() -> None:
    shown = lines({"typha_watch_errors_total": {('a"b\\c\nd', "x"): 1.0}})
    assert 'typha_watch_errors_total{type="a\\"b\\\\c\\nd",class="x"} 1' in shown


@pytest.mark.parametrize(
    ("value", "text"),
    [(math.nan, "NaN"), (math.inf, "+Inf"), (-math.inf, "-Inf"), (1e20, "1e+20"), (12345678, "12345678"), (0.1, "0.1")],
)
def test_numbers(value: float, text: str) -> None:
    assert f"typha_connections_active {text}" in lines({"typha_connections_active": {(): value}})


@pytest.mark.parametrize("runtime", [True, False])
@pytest.mark.parametrize("process", [True, False])
def test_runtime_and_process_metrics(runtime: bool, process: bool) -> None:
    collector = metrics.SamplesCollector(dict, syncers=("web",))
    text = metrics.exposition(metrics.make_registry(collector, runtime=runtime, process=process)).decode()
    assert ("\npython_gc_collections_total{" in text) is runtime
    assert ("\nprocess_cpu_seconds_total " in text) is process
    assert text.count("# TYPE typha_") == len(metrics.METRICS)


def test_the_parser_of_prometheus_reads_the_exposition() -> None:
    collector = metrics.SamplesCollector(dict, syncers=("web",))
    text = metrics.exposition(metrics.make_registry(collector, runtime=True, process=True)).decode()
    families = {family.name: family for family in text_string_to_metric_families(text)}
    assert families["typha_breadcrumb_size"].type == "summary"
    assert len(families) > len(metrics.METRICS)
