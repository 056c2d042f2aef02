"""A collector of traces on loopback: OTLP over real HTTP."""

import asyncio
import contextlib
from collections.abc import AsyncIterator

from aiohttp import web
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2
from opentelemetry.proto.trace.v1 import trace_pb2


class Collector:
    """Keeps the spans that it is sent."""

    def __init__(self) -> None:
        self.spans: list[trace_pb2.Span] = []
        self.resource: dict[str, str] = {}
        self.answer = 200
        self.requests = 0
        self.may_answer = asyncio.Event()
        self.may_answer.set()
        self.url = ""

    async def take(self, request: web.Request) -> web.Response:
        """One request of the exporter."""
        body = await request.read()
        self.requests += 1
        await self.may_answer.wait()
        if self.answer == 200:
            message = trace_service_pb2.ExportTraceServiceRequest.FromString(body)
            for resource in message.resource_spans:
                self.resource = {one.key: one.value.string_value for one in resource.resource.attributes}
                for scope in resource.scope_spans:
                    self.spans.extend(scope.spans)
        return web.Response(status=self.answer, content_type="application/x-protobuf")

    def traces(self) -> list[dict[str, list[trace_pb2.Span]]]:
        """The spans of each trace, by name."""
        found: dict[bytes, dict[str, list[trace_pb2.Span]]] = {}
        for span in self.spans:
            found.setdefault(span.trace_id, {}).setdefault(span.name, []).append(span)
        return [trace for trace in found.values() if "update" in trace]


@contextlib.asynccontextmanager
async def collecting() -> AsyncIterator[Collector]:
    """Run a collector until the end of the block."""
    collector = Collector()
    application = web.Application()
    application.router.add_post("/v1/traces", collector.take)
    runner = web.AppRunner(application, shutdown_timeout=0.1)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    [(host, port)] = runner.addresses
    collector.url = f"http://{host}:{port}"
    try:
        yield collector
    finally:
        collector.may_answer.set()
        await runner.cleanup()
