"""Traces of a whole service, at a collector of the test's own."""

import asyncio
import contextlib
import functools
import itertools
import pathlib
import zlib
from collections.abc import AsyncIterator

import pytest
import structlog

from tests.harness import served, trace_collector, worker_stand
from typha.observability import spans

pytestmark = pytest.mark.slow

ENDLESS_BYTES = 64_000_000
"""Far more than what sockets hold."""
SECRET = "not-for-the-collector"


@pytest.fixture
async def cluster(tmp_path: pathlib.Path) -> AsyncIterator[served.Cluster]:
    async with served.Cluster(tmp_path) as opened:
        yield opened


def variables(url: str, *, ratio: str = "1") -> dict[str, str]:
    return {
        "TYPHA_TRACINGSAMPLERATIO": ratio,
        "OTEL_EXPORTER_OTLP_ENDPOINT": url,
        "OTEL_BSP_SCHEDULE_DELAY": "50",
        "OTEL_RESOURCE_ATTRIBUTES": "k8s.pod.name=typha-1",
    }


def exporter_to(url: str, monkeypatch: pytest.MonkeyPatch) -> spans.SpanExporter:
    for name, value in variables(url).items():
        monkeypatch.setenv(name, value)
    return spans.open_exporter("v0")


@pytest.mark.parametrize("workers", [0, 2])
async def test_a_trace_leads_from_the_event_to_the_last_client(cluster: served.Cluster, workers: int) -> None:
    async with (
        trace_collector.collecting() as collector,
        served.serving(cluster, "--workers", str(workers), **variables(collector.url)) as service,
        served.mirrors(await service.address(), 10) as clients,
    ):
        await served.converged(cluster, clients)
        collector.spans.clear()
        cluster.put("p1", padding=SECRET)
        await served.converged(cluster, clients)
        await worker_stand.eventually(lambda: any("deliver" in trace for trace in collector.traces()))
        [trace] = [trace for trace in collector.traces() if "deliver" in trace]
        [whole] = trace.pop("update")
        assert {name: len(spans) for name, spans in trace.items()} == {
            "convert": 1,
            "coalesce": 1,
            "commit": 1,
            "deliver": max(1, workers),
        }
        parts = [span for spans in trace.values() for span in spans]
        assert {span.parent_span_id for span in parts} == {whole.span_id}
        order = [trace[name][0] for name in ("convert", "coalesce", "commit", "deliver")]
        assert order[0].start_time_unix_nano == whole.start_time_unix_nano
        for before, after in itertools.pairwise(order):
            assert before.start_time_unix_nano <= before.end_time_unix_nano == after.start_time_unix_nano
        assert whole.end_time_unix_nano == max(span.end_time_unix_nano for span in trace["deliver"])
        attributes = {one.key: one.value for one in whole.attributes}
        assert attributes["typha.resource.type"].string_value == "core/v1/pods"
        assert attributes["typha.operation"].string_value == "apply"
        assert attributes["typha.published"].bool_value
        assert {span.status.code for span in parts} == {0}
        assert collector.resource["service.name"] == "typha"
        assert collector.resource["k8s.pod.name"] == "typha-1"
        sent = b"".join(span.SerializeToString() for span in collector.spans)
        assert SECRET.encode() not in sent
        assert b"p1" not in sent
        spans_sent = len(collector.spans)
        await service.metric_becomes(
            "typha_trace_spans_exported_total", lambda seen: seen >= spans_sent, f"is {spans_sent}"
        )
        assert await service.metric("typha_trace_spans_dropped_total") == 0


async def test_without_a_collector_clients_are_served_and_it_is_said_once(cluster: served.Cluster) -> None:
    collector_is_gone = "http://127.0.0.1:1"
    short = {"OTEL_EXPORTER_OTLP_TIMEOUT": "1"}
    async with (
        served.serving(cluster, "--workers", "1", **(variables(collector_is_gone) | short)) as service,
        served.mirrors(await service.address(), 2) as clients,
    ):
        for number in range(20):
            cluster.put(f"p{number}", padding=SECRET)
            await served.converged(cluster, clients)
        await service.logged("Traces cannot be exported")
        # The worker that drops them reports once a second.
        await service.metric_becomes("typha_trace_spans_dropped_total", lambda seen: seen > 0, "rises")
        cluster.put("p1")
        await served.converged(cluster, clients)
        service.process.terminate()
        assert await service.ends() == 0
    assert service.text.count("Traces cannot be exported") == 1
    assert "Traceback" not in service.text


async def test_a_failure_and_its_end_are_said_once(monkeypatch: pytest.MonkeyPatch) -> None:
    async with trace_collector.collecting() as collector:
        exporter = exporter_to(collector.url, monkeypatch)
        collector.answer = 400

        def is_handled(total: int) -> bool:
            return exporter.exported + exporter.dropped == total

        async def exports(count: int) -> None:
            for _ in range(count):
                handled = exporter.exported + exporter.dropped
                exporter.export(spans.Span("update", 1.0, 2.0), [spans.Span("commit", 1.0, 2.0)])
                await worker_stand.eventually(functools.partial(is_handled, handled + 2))
                exporter.report()

        with structlog.testing.capture_logs() as lines:
            await exports(3)
            collector.answer = 200
            await exports(3)
        assert [line["event"] for line in lines] == [
            "Traces cannot be exported; spans are dropped and counted",
            "Traces are exported again",
        ]
        assert (exporter.exported, exporter.dropped) == (6, 6)
        await exporter.close()


async def test_a_full_queue_drops_and_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    async with trace_collector.collecting() as collector:
        exporter = exporter_to(collector.url, monkeypatch)
        collector.may_answer.clear()
        for _ in range(2 * spans.QUEUE_SPANS_MAX):
            exporter.export(spans.Span("update", 1.0, 2.0), [])
        dropped = exporter.dropped
        assert 0 < dropped <= spans.QUEUE_SPANS_MAX
        collector.may_answer.set()
        await worker_stand.eventually(lambda: exporter.exported == 2 * spans.QUEUE_SPANS_MAX - dropped)
        assert exporter.dropped == dropped
        await exporter.close()


async def test_closing_does_not_wait_for_a_collector(monkeypatch: pytest.MonkeyPatch) -> None:
    async with trace_collector.collecting() as collector:
        exporter = exporter_to(collector.url, monkeypatch)
        collector.may_answer.clear()
        exporter.export(spans.Span("update", 1.0, 2.0), [])
        await worker_stand.eventually(lambda: collector.requests > 0)
        await exporter.close(seconds=0.01)
        assert (exporter.exported, exporter.dropped) == (0, 0)  # the libraries are still at it


async def test_a_collector_that_never_answers_delays_no_end(cluster: served.Cluster) -> None:
    async with (
        trace_collector.collecting() as collector,
        served.serving(
            cluster, "--workers", "1", **variables(collector.url), OTEL_EXPORTER_OTLP_TIMEOUT="100000"
        ) as service,
    ):
        collector.may_answer.clear()
        async with served.mirrors(await service.address(), 2) as clients:
            cluster.put("p1")
            await served.converged(cluster, clients)
            await worker_stand.eventually(lambda: collector.requests > 0)
        service.process.terminate()
        assert await service.ends() == 0
        assert not collector.spans
    assert "Drained" in service.text


@pytest.mark.parametrize(
    ("ratio", "more", "said"),
    [
        ("0", {}, None),
        ("1", {"OTEL_BSP_MAX_EXPORT_BATCH_SIZE": "100000"}, "Updates are not traced"),
    ],
)
async def test_off_or_misconfigured_it_serves_without_traces(
    cluster: served.Cluster, ratio: str, more: dict[str, str], said: str | None
) -> None:
    async with (
        trace_collector.collecting() as collector,
        served.serving(cluster, "--workers", "1", **(variables(collector.url, ratio=ratio) | more)) as service,
        served.mirrors(await service.address(), 1) as clients,
    ):
        cluster.put("p1")
        await served.converged(cluster, clients)
        if said:
            await service.logged(said)
        assert collector.requests == 0


@pytest.mark.parametrize("head", [b"", b"Content-Encoding: gzip\r\n"], ids=["plain", "gzip"])
async def test_an_answer_without_an_end_is_not_read(monkeypatch: pytest.MonkeyPatch, head: bytes) -> None:
    sent_bytes = 0
    part = zlib.compress(bytes(1_000_000), wbits=31) if head else bytes(100_000)

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal sent_bytes
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\n" + head + b"\r\n")
        with contextlib.suppress(ConnectionError):
            while sent_bytes < ENDLESS_BYTES:
                writer.write(part)
                await writer.drain()
                sent_bytes += len(part)
        writer.close()

    server = await asyncio.start_server(answer, "127.0.0.1", 0)
    host, port = server.sockets[0].getsockname()
    exporter = exporter_to(f"http://{host}:{port}", monkeypatch)
    exporter.export(spans.Span("update", 1.0, 2.0), [])
    await worker_stand.eventually(lambda: exporter.dropped + exporter.exported == 1)
    assert exporter.dropped == 1
    assert sent_bytes < ENDLESS_BYTES
    await exporter.close()
    server.close()


async def test_an_answer_that_drips_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(spans, "_ANSWER_SECONDS", 0.1)
    gone = asyncio.Event()

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 100000\r\n\r\n")
        with contextlib.suppress(ConnectionError):
            while True:
                writer.write(b"x")
                await writer.drain()
                await asyncio.sleep(0.02)
        gone.set()
        writer.close()

    server = await asyncio.start_server(answer, "127.0.0.1", 0)
    host, port = server.sockets[0].getsockname()
    exporter = exporter_to(f"http://{host}:{port}", monkeypatch)
    exporter.export(spans.Span("update", 1.0, 2.0), [])
    await worker_stand.eventually(lambda: exporter.dropped == 1)
    await asyncio.wait_for(gone.wait(), worker_stand.TIMEOUT_SECONDS)
    await exporter.close()
    server.close()


async def test_a_redirect_is_no_success(monkeypatch: pytest.MonkeyPatch) -> None:
    async with trace_collector.collecting() as collector:
        collector.answer = 307
        exporter = exporter_to(collector.url, monkeypatch)
        exporter.export(spans.Span("update", 1.0, 2.0), [])
        await worker_stand.eventually(lambda: exporter.dropped + exporter.exported == 1)
        assert (exporter.exported, exporter.dropped) == (0, 1)
        await exporter.close()
