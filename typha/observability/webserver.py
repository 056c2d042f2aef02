"""The HTTP servers for metrics and health: pages, ports and TLS files. http_connections.py has their connections.

The service does not start if another process has a port, because probes must not be answered by others. If a server
cannot listen for another reason, it retries every second, with one log line per outage. Changed TLS files are reloaded
within ten seconds. (The original reads them at every handshake.)
"""

import asyncio
import gzip
import socket
import ssl
from collections.abc import Callable, Iterable, Mapping
from typing import NamedTuple

import structlog
from aiohttp import web

from cache.kube import tls_contexts, tls_reload
from typha import clock, listening, settings
from typha.observability import health, http_connections, logs

_BACKLOG = 128
_PAGE_SECONDS = 1.0
"""A metrics page that is younger than this is served again: scrapes cost the hub at most one page per second."""
_GZIP_LEVEL = 5
"""A page of 60 kB becomes 6 kB in 0.6 ms. Level 9 saves 3 % more and takes three times as long."""
_FAILED_PAGE_LINES_SECONDS = 60.0
_ANY_METHOD: frozenset[str] = frozenset()
_READING_METHODS = frozenset({"GET", "HEAD"})

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
    compressed: bytes = b""
    """The body for clients that accept gzip; empty for a page that is not worth it."""


Page = Callable[[], Response]


class TlsFiles(NamedTuple):
    """HTTPS: the paths of the files, and the policy for client certificates by its name in the original."""

    cert_file: str
    key_file: str
    ca_file: str
    client_auth: str

    def load(self) -> ssl.SSLContext:
        """Build the TLS context. Raises tls_contexts.TlsUnusable."""
        return tls_contexts.server_context(
            certificate=tls_contexts.NamedFile("PrometheusMetricsCertFile", self.cert_file),
            key=tls_contexts.NamedFile("PrometheusMetricsKeyFile", self.key_file),
            authorities=tls_contexts.NamedFile("PrometheusMetricsCAFile", self.ca_file),
            client_certificates=_VERIFY_MODES[self.client_auth],
        )


class OncePerSecond:
    """A page that is made at most once a second. All requests in between get the same bytes."""

    def __init__(self, page: Page, *, now: Callable[[], float] = clock.monotonic) -> None:
        self._page = page
        self._now = now
        self._made: Response | None = None
        self._made_at = 0.0

    def __call__(self) -> Response:
        """The page."""
        now = self._now()
        if self._made is None or now - self._made_at >= _PAGE_SECONDS:
            made = self._page()
            self._made = made._replace(compressed=gzip.compress(made.body, _GZIP_LEVEL))
            self._made_at = now
        return self._made


class WebServer:
    """Serves a few pages on one port, to one request per connection. Answers other paths with 404."""

    def __init__(
        self,
        name: str,
        pages: Mapping[str, Page],
        *,
        host: str,
        port: int,
        methods: frozenset[str] = _ANY_METHOD,
        tls_files: TlsFiles | None = None,
        intervals: Intervals = DEFAULT_INTERVALS,
        limits: http_connections.Limits = http_connections.DEFAULT_LIMITS,
    ) -> None:
        self._pages = pages
        self.host = host
        self._listeners: list[socket.socket] = []
        """Open, but not served yet."""
        self._methods = methods
        self._tls_files = tls_files
        self._intervals = intervals
        self._limits = limits
        self._log = structlog.get_logger("typha.webserver")
        self._failures = logs.LineLimit(1, seconds=_FAILED_PAGE_LINES_SECONDS)
        self._listening = asyncio.Event()
        self._complained = False  # one log line per outage
        self._tls: tls_reload.Reloaded[ssl.SSLContext] | None = None
        self.name = name
        self.port = port
        """The configured port. If that is 0, the actual port once the server listens."""
        self.refused = dict.fromkeys(http_connections.REASONS, 0)
        """Connections that the server closed early, and malformed requests, by reason."""

    def __repr__(self) -> str:
        state = "listening" if self._listening.is_set() else "not listening"
        return f"WebServer({self.name} on {self.host or '*'}:{self.port}, {state})"

    def open(self, found: list[listening.Address] | None = None) -> None:
        """Open the port, unless it is open; `found` as in `listening.open_all`. Raises OSError."""
        if not self._listeners:
            self._listeners = listening.open_all(self.host, self.port, backlog=_BACKLOG, found=found)

    def close(self) -> None:
        """Close the port if it is open and not served."""
        for listener in self._listeners:
            listener.close()
        self._listeners.clear()

    @property
    def tls_failures(self) -> int:
        """Changes of the TLS files that could not be used."""
        return self._tls.failures if self._tls else 0

    async def wait_listening(self) -> None:
        """Return once the server listens."""
        await self._listening.wait()

    async def run(self) -> None:
        """Serve until cancelled."""
        connections = http_connections.HttpConnections(self.name, web.Server(self._handle), self.refused, self._limits)
        try:
            await self._listen_with_retries(connections)
            while True:
                await asyncio.sleep(self._intervals.tls_check_seconds)
                if self._tls is not None:
                    self._tls.refresh()
                    connections.tls = self._tls.current  # open connections keep the old one
        finally:
            self._listening.clear()
            self.close()
            await connections.close()

    async def _listen_with_retries(self, connections: http_connections.HttpConnections) -> None:
        while True:
            try:
                if self._tls_files is not None:
                    self._tls = tls_reload.Reloaded(self._tls_files.load, self._tls_files[:3], server=self.name)
                    connections.tls = self._tls.current
                if not self._listeners:
                    self.open(await asyncio.to_thread(listening.addresses, self.host, self.port))
            except (OSError, RuntimeError, tls_contexts.TlsUnusable) as error:  # RuntimeError: no thread is left
                self.close()  # rather refuse connections than let them wait
                if not self._complained:
                    self._log.error("HTTP server cannot listen, retrying every second", **self._fields(error=error))
                self._complained = True
                await asyncio.sleep(self._intervals.listen_retry_seconds)
                continue
            self._complained = False
            listeners, self._listeners = self._listeners, []
            self.port = listeners[0].getsockname()[1]
            connections.listen(listeners)
            self._listening.set()
            self._log.info("HTTP server is listening", **self._fields(tls=self._tls_files is not None))
            return

    def _fields(self, **fields: object) -> dict[str, object]:
        return {"server": self.name, "host": self.host, "port": self.port, **fields}

    async def _handle(self, request: web.BaseRequest) -> web.Response:
        path = request.raw_path.partition("?")[0]  # the absolute form, for proxies, is no page
        page = self._pages.get(path)
        if page is None:
            return http_connections.answer(404, b"404 page not found\n")
        if request.method == "TRACE" or (self._methods and request.method not in self._methods):
            return http_connections.answer(405, b"method not allowed\n", Allow="GET, HEAD")
        try:
            response = page()
        except Exception:
            if self._failures.allows():
                self._log.exception(
                    "Page failed",
                    server=self.name,
                    path=path,
                    other_failures_not_logged=self._failures.take_suppressed(),
                )
            return http_connections.answer(500, b"internal error\n")
        if not response.compressed:
            return http_connections.answer(response.status, response.body, response.content_type)
        if _accepts_gzip(request.headers.getall("Accept-Encoding", [])):
            return http_connections.answer(
                response.status,
                response.compressed,
                response.content_type,
                **{"Content-Encoding": "gzip", "Vary": "Accept-Encoding"},
            )
        return http_connections.answer(response.status, response.body, response.content_type, Vary="Accept-Encoding")


def _accepts_gzip(headers: Iterable[str]) -> bool:
    """Whether a client takes gzip. One that refuses it by a quality of 0 does not."""
    for choice in ",".join(headers).split(","):
        name, _, quality = choice.replace(" ", "").lower().partition(";")
        if name == "gzip":
            return quality.rstrip(".0") != "q="
    return False


def health_server(aggregator: health.HealthAggregator, configured: settings.Settings) -> WebServer:
    """The server of /liveness and /readiness. Its time is `clock.monotonic`."""

    def page(ask: Callable[[float], health.Answer]) -> Page:
        def answer() -> Response:
            status, body = ask(clock.monotonic())
            return Response(status, body.encode())

        return answer

    pages = {"/liveness": page(aggregator.liveness), "/readiness": page(aggregator.readiness)}
    return WebServer("health", pages, host=configured.health_host, port=configured.health_port)


def metrics_tls(configured: settings.Settings) -> TlsFiles | None:
    """The files for HTTPS of /metrics. None: plain HTTP."""
    if not (configured.prometheus_metrics_cert_file or configured.prometheus_metrics_key_file):
        return None
    return TlsFiles(
        configured.prometheus_metrics_cert_file,
        configured.prometheus_metrics_key_file,
        configured.prometheus_metrics_ca_file,
        configured.prometheus_metrics_client_auth,
    )


def metrics_server(
    exposition: Callable[[], bytes],
    content_type: str,
    configured: settings.Settings,
    *,
    intervals: Intervals = DEFAULT_INTERVALS,
) -> WebServer:
    """The server of /metrics. It uses HTTPS if the settings name a certificate or a key."""
    return WebServer(
        "metrics",
        {"/metrics": OncePerSecond(lambda: Response(200, exposition(), content_type))},
        host=configured.prometheus_metrics_host,
        port=configured.prometheus_metrics_port,
        methods=_READING_METHODS,
        tls_files=metrics_tls(configured),
        intervals=intervals,
    )
