"""The HTTP servers on real sockets: pages, occupied ports, HTTPS with client certificates, renewed files."""

import asyncio
import contextlib
import gzip
import pathlib
import socket
import ssl
from collections.abc import AsyncIterator
from typing import Any

import aiohttp
import pytest
import structlog
import trustme

from typha import clock, settings
from typha.observability import health, metrics, webserver

SHORT = webserver.Intervals(listen_retry_seconds=0.01, tls_check_seconds=0.02)


def page(body: str, status: int = 200) -> webserver.Page:
    return lambda: webserver.Response(status, body.encode())


@contextlib.asynccontextmanager
async def running(server: webserver.WebServer, *, wait: bool = True) -> AsyncIterator[webserver.WebServer]:
    task = asyncio.create_task(server.run(), name="web server")
    try:
        if wait:
            await asyncio.wait_for(server.wait_listening(), 180)
        yield server
    finally:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task


async def get(url: str, *, method: str = "GET", tls: ssl.SSLContext | None = None) -> tuple[int, str, str]:
    async with aiohttp.ClientSession() as session, session.request(method, url, ssl=tls or True) as response:
        return response.status, await response.text(), response.headers["Content-Type"]


async def test_pages_and_unknown_paths() -> None:
    def broken() -> webserver.Response:
        raise ValueError("secret detail")

    pages = {"/good": page("fine"), "/bad": page("ill", 503), "/broken": broken}
    async with running(webserver.WebServer("test", pages, host="127.0.0.1", port=0)) as server:
        url = f"http://127.0.0.1:{server.port}"
        assert await get(f"{url}/good?x=1") == (200, "fine", "text/plain; charset=utf-8")
        assert (await get(f"{url}/good", method="POST"))[0] == 200
        assert (await get(f"{url}/bad"))[:2] == (503, "ill")
        assert (await get(f"{url}/other"))[0] == 404
        status, text, _ = await get(f"{url}/broken")
        assert status == 500
        assert "secret" not in text


async def test_a_metrics_page_is_compressed_for_those_who_ask() -> None:
    text = "typha_connections_active 1\n" * 1000
    made = webserver.OncePerSecond(page(text))
    async with running(webserver.WebServer("test", {"/metrics": made}, host="127.0.0.1", port=0)) as server:

        async def body(encodings: str) -> tuple[bool, bytes]:
            asked = f"GET /metrics HTTP/1.1\r\nHost: a\r\nAccept-Encoding: {encodings}\r\n\r\n".encode()
            reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
            writer.write(asked)
            head, _, rest = (await asyncio.wait_for(reader.read(), 180)).partition(b"\r\n\r\n")
            writer.close()
            assert b"Vary: Accept-Encoding" in head
            return b"Content-Encoding: gzip" in head, rest

        for encodings in ("gzip", "deflate, gzip;q=0.5", "GZIP , br"):
            is_compressed, got = await body(encodings)
            assert is_compressed
            assert len(got) < 1000
            assert gzip.decompress(got).decode() == text
        for encodings in ("", "br", "gzip;q=0", "gzip; q=0.0", "xgzip", "identity"):
            assert await body(encodings) == (False, text.encode()), encodings


async def say(server: webserver.WebServer, said: bytes) -> tuple[bytes, bytes]:
    """The first line and the body of the answer to these bytes."""
    reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
    writer.write(said)
    head, _, body = (await asyncio.wait_for(reader.read(), 180)).partition(b"\r\n\r\n")
    writer.close()
    return head.partition(b"\r\n")[0], body


async def test_unusual_requests() -> None:
    async with running(webserver.WebServer("test", {"/": page("fine")}, host="127.0.0.1", port=0)) as server:
        assert await say(server, b"HEAD / HTTP/1.1\r\nHost: a\r\n\r\n") == (b"HTTP/1.1 200 OK", b"")
        assert await say(server, b"GET / HTTP/1.0\r\n\r\n") == (b"HTTP/1.0 200 OK", b"fine")
        upgrade = b"GET / HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n"
        assert await say(server, upgrade) == (b"HTTP/1.1 200 OK", b"fine")
        for said, status in (
            (b"GET http://evil/ HTTP/1.1\r\nHost: a\r\n\r\n", b"404 Not Found"),
            (b"TRACE / HTTP/1.1\r\nHost: a\r\nSecret: b\r\n\r\n", b"405 Method Not Allowed"),
            (b"CONNECT a:1 HTTP/1.1\r\nHost: a\r\n\r\n", b"404 Not Found"),
            (b"OPTIONS * HTTP/1.1\r\nHost: a\r\n\r\n", b"404 Not Found"),
        ):
            line, body = await say(server, said)
            assert line == b"HTTP/1.1 " + status
            assert b"Secret" not in body


async def test_a_page_that_fails_is_logged_once() -> None:
    def broken() -> webserver.Response:
        raise ValueError("defect")

    async with running(webserver.WebServer("test", {"/": broken}, host="127.0.0.1", port=0)) as server:
        with structlog.testing.capture_logs() as lines:
            for _ in range(5):
                assert (await get(f"http://127.0.0.1:{server.port}/"))[0] == 500
    assert [line["event"] for line in lines] == ["Page failed"]


def test_a_page_is_made_once_a_second_for_everybody() -> None:
    now, made = 100.0, []

    def make() -> webserver.Response:
        made.append(now)
        return webserver.Response(200, b"%d" % len(made))

    cached = webserver.OncePerSecond(make, now=lambda: now)
    first = cached()
    assert first.body == b"1"
    now = 100.99
    assert cached() is first
    now = 101.0
    assert cached().body == b"2"
    assert cached().body == b"2"
    assert made == [100.0, 101.0]


async def test_an_occupied_port_is_retried() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        server = webserver.WebServer("test", {"/": page("fine")}, host="127.0.0.1", port=port, intervals=SHORT)
        async with running(server, wait=False):
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(server.wait_listening(), 0.1)
            taken.close()
            await asyncio.wait_for(server.wait_listening(), 180)
            assert (await get(f"http://127.0.0.1:{port}/"))[0] == 200


async def test_a_host_without_an_address_is_tried_again(monkeypatch: pytest.MonkeyPatch) -> None:
    real = socket.getaddrinfo
    tries = 0

    def getaddrinfo(host: str | None, *args: Any, **options: Any) -> list[Any]:
        nonlocal tries
        if host != "later.example":
            return real(host, *args, **options)
        tries += 1
        if tries < 4:
            raise socket.gaierror(socket.EAI_AGAIN, "Temporary failure in name resolution")
        return real("127.0.0.1", *args, **options)

    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)
    with structlog.testing.capture_logs() as logs:
        server = webserver.WebServer("test", {"/": page("fine")}, host="later.example", port=0, intervals=SHORT)
        async with running(server):
            assert (await get(f"http://127.0.0.1:{server.port}/"))[0] == 200
    assert [entry["log_level"] for entry in logs] == ["error", "info"]


async def test_without_a_thread_for_the_name_it_is_tried_again(monkeypatch: pytest.MonkeyPatch) -> None:
    loop = asyncio.get_running_loop()
    real = loop.run_in_executor
    failures = iter([RuntimeError("can't start new thread")] * 3)

    def run_in_executor(*arguments: Any) -> Any:
        for failure in failures:
            raise failure
        return real(*arguments)

    monkeypatch.setattr(loop, "run_in_executor", run_in_executor)
    server = webserver.WebServer("test", {"/": page("fine")}, host="127.0.0.1", port=0, intervals=SHORT)
    async with running(server):
        assert (await get(f"http://127.0.0.1:{server.port}/"))[0] == 200


def local_addresses() -> list[str]:
    """The loopback addresses of this machine."""
    found = ["127.0.0.1"]
    with contextlib.suppress(OSError), socket.create_server(("::1", 0), family=socket.AF_INET6):
        found.append("[::1]")
    return found


async def test_a_server_without_a_host_listens_on_all_addresses() -> None:
    async with running(webserver.WebServer("test", {"/": page("fine")}, host="", port=0)) as server:
        for address in local_addresses():
            assert (await get(f"http://{address}:{server.port}/"))[0] == 200


async def test_the_server_survives_garbage_and_long_headers() -> None:
    async with running(webserver.WebServer("test", {"/": page("fine")}, host="127.0.0.1", port=0)) as server:
        for data in (b"\x00\xff\r\n\r\n", b"GET / HTTP/1.1\r\nHost: a\r\nX: " + b"x" * 100_000 + b"\r\n\r\n"):
            reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
            writer.write(data)
            assert (await reader.readline()).startswith(b"HTTP/1.")
            writer.close()
        assert (await get(f"http://127.0.0.1:{server.port}/"))[0] == 200


async def test_health_pages() -> None:
    aggregator = health.HealthAggregator()
    configured = settings.Settings(health_host="127.0.0.1", health_port=0)
    async with running(webserver.health_server(aggregator, configured)) as server:
        url = f"http://127.0.0.1:{server.port}"
        assert (await get(f"{url}/readiness"))[0] == 200
        aggregator.drain()
        status, text, content_type = await get(f"{url}/readiness")
        assert (status, content_type) == (503, "text/plain; charset=utf-8")
        assert "COMPONENT" in text
        assert (await get(f"{url}/liveness"))[0] == 200


async def test_scrapes_in_the_same_second_get_the_same_page() -> None:
    made = []

    def exposition() -> bytes:
        made.append(1)
        return b"page"

    configured = settings.Settings(prometheus_metrics_host="127.0.0.1", prometheus_metrics_port=0)
    server = webserver.metrics_server(exposition, metrics.CONTENT_TYPE, configured)
    with clock.replaced(monotonic=lambda: 5.0, time_ns=lambda: 0):
        async with running(server):
            url = f"http://127.0.0.1:{server.port}/metrics"
            assert [(await get(url))[1] for _ in range(3)] == ["page"] * 3
            assert (await get(url, method="POST"))[0] == 405
    assert made == [1]


async def test_metrics_page() -> None:
    registry = metrics.make_registry(metrics.SamplesCollector(dict), runtime=False, process=False)
    configured = settings.Settings(prometheus_metrics_host="127.0.0.1", prometheus_metrics_port=0)
    server = webserver.metrics_server(lambda: metrics.exposition(registry), metrics.CONTENT_TYPE, configured)
    async with running(server):
        status, text, content_type = await get(f"http://127.0.0.1:{server.port}/metrics")
        assert (status, content_type) == (200, "text/plain; version=0.0.4; charset=utf-8")
        assert "typha_connections_accepted 0\n" in text


class Certificates:
    """A CA with the files of a server, and TLS contexts for its clients."""

    def __init__(self, folder: pathlib.Path) -> None:
        self.folder = folder
        self.authority = trustme.CA()
        self.write()

    def write(self) -> None:
        issued = self.authority.issue_cert("127.0.0.1")
        issued.private_key_pem.write_to_path(self.folder / "key.pem")
        issued.cert_chain_pems[0].write_to_path(self.folder / "cert.pem")
        self.authority.cert_pem.write_to_path(self.folder / "ca.pem")

    def server(self, client_auth: str) -> webserver.WebServer:
        configured = settings.Settings(
            prometheus_metrics_host="127.0.0.1",
            prometheus_metrics_port=0,
            prometheus_metrics_cert_file=str(self.folder / "cert.pem"),
            prometheus_metrics_key_file=str(self.folder / "key.pem"),
            prometheus_metrics_ca_file=str(self.folder / "ca.pem"),
            prometheus_metrics_client_auth=client_auth,
        )
        return webserver.metrics_server(lambda: b"metrics", metrics.CONTENT_TYPE, configured, intervals=SHORT)

    def client(self, *, certificate_of: trustme.CA | None = None) -> ssl.SSLContext:
        context = ssl.create_default_context()
        self.authority.configure_trust(context)
        if certificate_of:
            certificate_of.issue_cert("scraper").configure_cert(context)
        return context


@pytest.mark.parametrize(
    ("client_auth", "without", "with_foreign"),
    [
        ("NoClientCert", True, True),
        ("VerifyClientCertIfGiven", True, False),
        ("RequireAnyClientCert", False, False),
        ("RequireAndVerifyClientCert", False, False),
    ],
)
async def test_https(tmp_path: pathlib.Path, client_auth: str, without: bool, with_foreign: bool) -> None:
    certificates = Certificates(tmp_path)

    async def answers(tls: ssl.SSLContext) -> bool:
        try:
            return (await get(f"https://127.0.0.1:{server.port}/metrics", tls=tls))[0] == 200
        except (aiohttp.ClientError, OSError):
            return False

    async with running(certificates.server(client_auth)) as server:
        assert await answers(certificates.client(certificate_of=certificates.authority))
        assert await answers(certificates.client()) is without
        assert await answers(certificates.client(certificate_of=trustme.CA())) is with_foreign


async def test_renewed_files_are_loaded_and_broken_files_are_not(tmp_path: pathlib.Path) -> None:
    certificates = Certificates(tmp_path)

    async def serial() -> int:
        tls = certificates.client()
        while True:
            try:
                _, writer = await asyncio.open_connection("127.0.0.1", server.port, ssl=tls)
            except ConnectionError:  # the server is reopening its port
                continue
            serial_number = int(writer.get_extra_info("peercert")["serialNumber"], 16)
            writer.close()
            await writer.wait_closed()
            return serial_number

    async with running(certificates.server("NoClientCert")) as server:
        first = await serial()
        (tmp_path / "cert.pem").write_text("broken")
        await asyncio.sleep(0.1)  # long enough for several checks of the files
        assert await serial() == first
        certificates.write()
        async with asyncio.timeout(180):
            while await serial() == first:
                pass


async def test_the_server_waits_for_missing_files(tmp_path: pathlib.Path) -> None:
    certificates = Certificates(tmp_path)
    (tmp_path / "key.pem").rename(tmp_path / "later.pem")
    async with running(certificates.server("NoClientCert"), wait=False) as server:
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(server.wait_listening(), 0.1)
        (tmp_path / "later.pem").rename(tmp_path / "key.pem")
        await asyncio.wait_for(server.wait_listening(), 180)
