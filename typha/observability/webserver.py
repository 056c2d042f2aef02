"""The HTTP servers for metrics and health, on aiohttp.

The service runs even if a server cannot listen: the server retries every second, with one log line per outage. Changed
TLS files are reloaded within ten seconds. (The original reads them at every handshake.)
"""

import asyncio
import os
import ssl
from collections.abc import Callable, Mapping
from typing import NamedTuple

import structlog
from aiohttp import web

from typha import clock, settings
from typha.observability import health

_HEADER_BYTES_LIMIT = 8190
_KEEPALIVE_SECONDS = 75.0
_BACKLOG = 128

_VERIFY_MODES = {
    "NoClientCert": ssl.CERT_NONE,
    "VerifyClientCertIfGiven": ssl.CERT_OPTIONAL,
    # Python's ssl module cannot require a certificate without verifying it.
    "RequireAnyClientCert": ssl.CERT_REQUIRED,
    "RequireAndVerifyClientCert": ssl.CERT_REQUIRED,
}


class Intervals(NamedTuple):
    """How often a server retries to listen, and checks its TLS files."""

    listen_retry_seconds: float = 1.0
    tls_check_seconds: float = 10.0


DEFAULT_INTERVALS = Intervals()


class Response(NamedTuple):
    """The response of a page."""

    status: int
    body: bytes
    content_type: str = "text/plain; charset=utf-8"


Page = Callable[[], Response]


class TlsFiles(NamedTuple):
    """HTTPS: the paths of the files, and the policy for client certificates by its name in the original."""

    cert_file: str
    key_file: str
    ca_file: str
    client_auth: str

    def load(self) -> ssl.SSLContext:
        """Build the TLS context. Raises OSError (or its subclass ssl.SSLError) if a file is unusable."""
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        context.load_cert_chain(self.cert_file, self.key_file)
        context.load_verify_locations(self.ca_file)
        context.verify_mode = _VERIFY_MODES[self.client_auth]
        return context

    def fingerprint(self) -> tuple[tuple[int, int, int], ...]:
        """A value that changes whenever a file changes. Raises OSError if a file is missing."""
        stats = [os.stat(path) for path in (self.cert_file, self.key_file, self.ca_file)]
        return tuple((stat.st_ino, stat.st_mtime_ns, stat.st_size) for stat in stats)


class WebServer:
    """Serves a few pages on one port. Accepts any method, and answers other paths with 404."""

    def __init__(
        self,
        name: str,
        pages: Mapping[str, Page],
        *,
        host: str,
        port: int,
        tls_files: TlsFiles | None = None,
        intervals: Intervals = DEFAULT_INTERVALS,
    ) -> None:
        self._name = name
        self._pages = pages
        self._host = host or None
        self._tls_files = tls_files
        self._intervals = intervals
        self._log = structlog.get_logger("typha.webserver")
        self._listening = asyncio.Event()
        self._listener: asyncio.Server | None = None
        self._complained = False  # one log line per outage
        self.port = port
        """The configured port. If that is 0, the actual port once the server listens."""

    def __repr__(self) -> str:
        state = "listening" if self._listening.is_set() else "not listening"
        return f"WebServer({self._name} on {self._host or '*'}:{self.port}, {state})"

    async def wait_listening(self) -> None:
        """Return once the server listens."""
        await self._listening.wait()

    async def run(self) -> None:
        """Serve until cancelled."""
        server = web.Server(
            self._handle,
            access_log=None,
            max_line_size=_HEADER_BYTES_LIMIT,
            max_field_size=_HEADER_BYTES_LIMIT,
            keepalive_timeout=_KEEPALIVE_SECONDS,
        )
        try:
            fingerprint = await self._listen_with_retries(server)
            while True:
                await asyncio.sleep(self._intervals.tls_check_seconds)
                fingerprint = await self._maybe_reload(server, fingerprint)
        finally:
            self._listening.clear()
            if self._listener is not None:
                self._listener.close()
            await server.shutdown(timeout=1.0)

    async def _listen_with_retries(self, server: web.Server) -> object:
        while True:
            try:
                fingerprint = self._tls_files.fingerprint() if self._tls_files else None
                await self._listen(server)
            except OSError as error:
                if not self._complained:
                    self._log.error("HTTP server cannot listen, retrying every second", **self._fields(error=error))
                self._complained = True
                await asyncio.sleep(self._intervals.listen_retry_seconds)
            else:
                self._complained = False
                self._log.info("HTTP server is listening", **self._fields(tls=self._tls_files is not None))
                return fingerprint

    async def _maybe_reload(self, server: web.Server, known: object) -> object:
        """Reopen the port if the TLS files have changed and are usable. Open connections stay open."""
        if self._tls_files is None or self._listener is None:
            return known
        try:
            fingerprint = self._tls_files.fingerprint()
            if fingerprint == known:
                return known
            self._tls_files.load()
        except OSError as error:
            if not self._complained:
                self._log.warning("Changed TLS files cannot be used, keeping the old ones", **self._fields(error=error))
            self._complained = True
            return known
        self._listener.close()
        return await self._listen_with_retries(server)

    async def _listen(self, server: web.Server) -> None:
        context = self._tls_files.load() if self._tls_files else None
        loop = asyncio.get_running_loop()
        # In two steps, because create_server leaves its sockets open if it is cancelled while it starts to serve.
        self._listener = await loop.create_server(
            server, self._host, self.port, ssl=context, backlog=_BACKLOG, start_serving=False
        )
        try:
            await self._listener.start_serving()
        except BaseException:
            self._listener.close()
            raise
        self.port = self._listener.sockets[0].getsockname()[1]  # also used again after a reload
        self._listening.set()

    def _fields(self, **fields: object) -> dict[str, object]:
        return {"server": self._name, "host": self._host or "", "port": self.port, **fields}

    async def _handle(self, request: web.BaseRequest) -> web.Response:
        page = self._pages.get(request.path)
        if page is None:
            return web.Response(status=404, text="404 page not found\n")
        try:
            response = page()
        except Exception:
            self._log.exception("Page failed", server=self._name, path=request.path)
            return web.Response(status=500, text="internal error\n")
        headers = {"Content-Type": response.content_type}
        return web.Response(status=response.status, body=response.body, headers=headers)


def health_server(aggregator: health.HealthAggregator, configured: settings.Settings) -> WebServer:
    """The server of /liveness and /readiness. Its time is `clock.monotonic`."""

    def page(ask: Callable[[float], health.Answer]) -> Page:
        def answer() -> Response:
            status, body = ask(clock.monotonic())
            return Response(status, body.encode())

        return answer

    pages = {"/liveness": page(aggregator.liveness), "/readiness": page(aggregator.readiness)}
    return WebServer("health", pages, host=configured.health_host, port=configured.health_port)


def metrics_server(
    exposition: Callable[[], bytes],
    content_type: str,
    configured: settings.Settings,
    *,
    intervals: Intervals = DEFAULT_INTERVALS,
) -> WebServer:
    """The server of /metrics. It uses HTTPS if the settings name a certificate or a key."""
    tls_files = None
    if configured.prometheus_metrics_cert_file or configured.prometheus_metrics_key_file:
        tls_files = TlsFiles(
            configured.prometheus_metrics_cert_file,
            configured.prometheus_metrics_key_file,
            configured.prometheus_metrics_ca_file,
            configured.prometheus_metrics_client_auth,
        )
    return WebServer(
        "metrics",
        {"/metrics": lambda: Response(200, exposition(), content_type)},
        host=configured.prometheus_metrics_host,
        port=configured.prometheus_metrics_port,
        tls_files=tls_files,
        intervals=intervals,
    )
