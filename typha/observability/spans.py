"""Spans for OpenTelemetry: made of times that are known already, and exported over OTLP by a thread of the SDK.

`open_exporter` loads the libraries (the extra `otel`); nothing else here is used while tracing is off. Where spans go,
and with which headers and certificates, is said by the SDK's own variables (OTEL_EXPORTER_OTLP_ENDPOINT and others).
A collector that is slow, gone or hostile costs spans, which are counted, and nothing else.
"""

import asyncio
import contextlib
import io
import logging
import os
import threading
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import structlog

from typha import clock

if TYPE_CHECKING:
    import requests
    from opentelemetry.sdk.trace import ReadableSpan, TracerProvider

_log = structlog.get_logger("typha.tracing")

QUEUE_SPANS_MAX: Final = 2048
"""Spans that wait for their export, at some 2 kB each. More are dropped; the SDK's own default."""
_CLOSE_SECONDS: Final = 2.0
"""How long the end of the service waits for the last spans: enough for a collector that answers."""

_ANSWER_BYTES_MAX: Final = 64 * 1024
"""A collector says in some hundred bytes what it has rejected. The libraries would read an answer without an end."""
_ANSWER_SECONDS: Final = 10.0
"""For all of an answer's body: the libraries' timeout is one for each read. Their own default for a request."""
_READ_BYTES: Final = 16 * 1024


class Span(NamedTuple):
    """A span below the trace's own. Times are monotonic seconds."""

    name: str
    began_at: float
    ended_at: float
    attributes: Mapping[str, str | int | bool] = {}
    has_failed: bool = False


class Unavailable(Exception):
    """There can be no traces; the message says why in one line."""


class SpanExporter:
    """Makes spans, and counts what becomes of them."""

    def __init__(self, provider: "TracerProvider", counted: "_Counted") -> None:
        self._provider = provider
        self._tracer = provider.get_tracer("typha")
        self._counted = counted
        self._handed = 0
        self._dropped = 0
        self._complained = False

    @property
    def exported(self) -> int:
        """Spans that the collector has accepted."""
        return self._counted.exported

    @property
    def dropped(self) -> int:
        """Spans that nobody will see."""
        return self._dropped + self._counted.failed

    def drop(self) -> None:
        """A trace was given up before it had spans."""
        self._dropped += 1

    def export(self, whole: Span, parts: Sequence[Span]) -> None:
        """Queues a trace: a span, and others below it. Never waits."""
        from opentelemetry import trace

        waiting = self._handed - self._counted.taken
        if waiting + 1 + len(parts) > QUEUE_SPANS_MAX:
            self._dropped += 1 + len(parts)
            return
        offset_ns = clock.time_ns() - int(clock.monotonic() * 1e9)

        def unix_ns(at: float) -> int:
            return offset_ns + int(at * 1e9)

        root = self._tracer.start_span(
            whole.name, start_time=unix_ns(whole.began_at), attributes=dict(whole.attributes)
        )
        if root.is_recording():  # OTEL_TRACES_SAMPLER may leave out some more
            self._handed += 1 + len(parts)
        above = trace.set_span_in_context(root)
        for part in parts:
            span = self._tracer.start_span(
                part.name, above, start_time=unix_ns(part.began_at), attributes=dict(part.attributes)
            )
            if part.has_failed:
                span.set_status(trace.StatusCode.ERROR)
            span.end(unix_ns(part.ended_at))
        root.end(unix_ns(whole.ended_at))

    def report(self) -> None:
        """Logs, once, that the collector accepts nothing, and that it does again. Call it now and then."""
        error = self._counted.error
        if error is not None and not self._complained:
            _log.warning("Traces cannot be exported; spans are dropped and counted", error=error)
        elif error is None and self._complained:
            _log.info("Traces are exported again", dropped=self.dropped)
        self._complained = error is not None

    async def close(self, *, seconds: float = _CLOSE_SECONDS) -> None:
        """Exports what waits, for a moment at most. The SDK's thread may outlive this; it ends with the process."""
        loop = asyncio.get_running_loop()
        closed = asyncio.Event()

        def close() -> None:
            with contextlib.suppress(Exception):  # the libraries' affair; nothing depends on it any more
                self._provider.shutdown()
            with contextlib.suppress(RuntimeError):  # the loop may be closed by now
                loop.call_soon_threadsafe(closed.set)

        threading.Thread(target=close, name="close tracing", daemon=True).start()
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(closed.wait(), seconds)


class _Counted:
    """What the SDK's thread has done. Only that thread writes."""

    def __init__(self) -> None:
        self.taken = 0
        self.exported = 0
        self.failed = 0
        self.error: str | None = None


def open_exporter(version: str) -> SpanExporter:
    """Loads the libraries, and starts the thread that exports.

    Raises:
        Unavailable: a library is missing, or an OTEL_ variable is invalid.
    """
    try:
        from opentelemetry.exporter.otlp.proto.http import trace_exporter
        from opentelemetry.sdk import resources, trace
        from opentelemetry.sdk.trace import export
    except ImportError as error:
        raise Unavailable(f"OpenTelemetry is not installed: pip install typha[otel] ({error})") from error
    libraries = logging.getLogger("opentelemetry")  # they log each failure; `report` says it once
    libraries.addHandler(logging.NullHandler())
    libraries.propagate = False
    counted = _Counted()

    class CountingExporter(export.SpanExporter):
        def __init__(self, inner: "export.SpanExporter") -> None:
            self._inner = inner

        def export(self, spans: "Sequence[ReadableSpan]") -> "export.SpanExportResult":
            counted.taken += len(spans)
            error: str | None = "the collector cannot be reached, or refuses them"
            try:
                result = self._inner.export(spans)
            except Exception as raised:  # whatever a collector makes the libraries raise, it costs these spans
                result, error = export.SpanExportResult.FAILURE, str(raised)[:200]
            if result is export.SpanExportResult.SUCCESS:
                counted.exported += len(spans)
                counted.error = None
            else:
                counted.failed += len(spans)
                counted.error = error
            return result

        def shutdown(self) -> None:
            self._inner.shutdown()

    named = {} if os.environ.get("OTEL_SERVICE_NAME") else {"service.name": "typha"}
    try:
        provider = trace.TracerProvider(
            resource=resources.Resource.create({**named, "service.version": version}), shutdown_on_exit=False
        )
        exporter = CountingExporter(trace_exporter.OTLPSpanExporter(session=_bounded_session()))
        provider.add_span_processor(export.BatchSpanProcessor(exporter, max_queue_size=QUEUE_SPANS_MAX))
    except Exception as error:  # the libraries raise what they like for a variable that they do not understand
        raise Unavailable(f"OpenTelemetry cannot start: {error}") from error
    return SpanExporter(provider, counted)


def _bounded_session() -> "requests.Session":
    """A session that takes answers within a size and a time. The libraries trust a collector to end them."""
    import requests

    class BoundedSession(requests.Session):
        def send(self, request: requests.PreparedRequest, **options: Any) -> requests.Response:
            response = super().send(request, **{**options, "stream": True})
            try:
                if 300 <= response.status_code < 400:  # the libraries take it for success
                    raise requests.RequestException(f"status {response.status_code}")
                body = _read(response)
            except BaseException:
                response.close()
                raise
            response.raw = io.BytesIO(body)
            return response

    session = BoundedSession()
    session.headers["Accept-Encoding"] = "identity"  # what comes compressed all the same stays so: it may be a bomb
    return session


def _read(response: "requests.Response") -> bytes:
    import requests

    deadline = clock.monotonic() + _ANSWER_SECONDS
    body = bytearray()
    while part := response.raw.read1(_READ_BYTES, decode_content=False):
        body += part
        if len(body) > _ANSWER_BYTES_MAX:
            raise requests.RequestException(f"the answer has more than {_ANSWER_BYTES_MAX} bytes")
        if clock.monotonic() > deadline:
            raise requests.RequestException(f"no whole answer within {_ANSWER_SECONDS:g} s")
    return bytes(body)
