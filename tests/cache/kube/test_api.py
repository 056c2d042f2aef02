"""The session: token rotation, certificates, and the classification of transport failures."""

import asyncio
import base64
import contextlib
import pathlib
import socket
import ssl
from collections.abc import AsyncIterator, Callable

import pytest
import trustme
import uvloop
from aiohttp import web
from msgspec import structs

from cache.kube import access, api
from cache.watch.policy import Failure
from tests.harness import http_proxy
from tests.harness.scripted_server import ScriptedServer


@pytest.fixture
async def opened() -> AsyncIterator[list[api.KubeApi]]:
    sessions: list[api.KubeApi] = []
    yield sessions
    for session in sessions:
        await session.close()


async def open_session(opened: list[api.KubeApi], how: access.Access, clock: list[float] | None = None) -> api.KubeApi:
    now = clock or [0.0]

    async def load() -> access.Access:
        return how

    session = api.KubeApi(load, clock=lambda: now[0], wall_clock=lambda: now[0])
    opened.append(session)
    await session.start()
    return session


async def get(session: api.KubeApi, seconds: float = 5.0) -> bytes:
    response = await session.get("/api/v1/pods", {"a": "b c"}, read_timeout_seconds=seconds)
    try:
        return await api.read_body(response, 1000)
    finally:
        response.close()


async def test_a_token_file_is_read_again_every_minute(
    server: ScriptedServer, opened: list[api.KubeApi], tmp_path: pathlib.Path
) -> None:
    token, now = tmp_path / "token", [1000.0]
    token.write_text("one\n")
    session = await open_session(opened, access.Access(host=server.url, token_file=str(token)), now)
    server.script = [server.body(b"{}")] * 3
    for text, seconds in (("one", 0), ("two", 59), ("three", 1)):
        token.write_text(text)
        now[0] += seconds
        await get(session)
    assert [request.headers["Authorization"] for request in server.requests] == [
        "Bearer one",
        "Bearer one",
        "Bearer three",
    ]
    token.unlink()
    now[0] += 60
    server.script = [server.body(b"{}")] * 2
    await get(session)
    assert server.requests[-1].headers["Authorization"] == "Bearer three"  # what worked stays in use
    assert session.load_failures == 1
    token.write_text("four")
    now[0] += 60
    await get(session)
    assert server.requests[-1].headers["Authorization"] == "Bearer four"
    assert session.load_failures == 1


@pytest.mark.parametrize("content", [b"", b" \n", b"x" * 70_000, b"\xff", b"a\nb"])
def test_an_invalid_token_raises(tmp_path: pathlib.Path, content: bytes) -> None:
    path = tmp_path / "token"
    path.write_bytes(content)
    with pytest.raises(access.AccessError, match=f"^token file {path}: (contains no token|is larger)"):
        access.read_token(str(path))


async def test_credentials_are_reloaded_before_they_expire(server: ScriptedServer, opened: list[api.KubeApi]) -> None:
    now = [1000.0]
    session = await open_session(opened, access.Access(host=server.url, expires_at=2000.0), now)
    server.script = [server.body(b"{}")] * 2
    await get(session)
    assert session.loads == 1
    now[0] = 1941.0
    await get(session)
    assert session.loads == 2


async def test_reloads_keep_a_minimum_distance(server: ScriptedServer, opened: list[api.KubeApi]) -> None:
    now = [1000.0]
    session = await open_session(opened, access.Access(host=server.url), now)
    await session.reload()
    assert session.loads == 1
    now[0] += 10
    await session.reload()
    await session.reload()
    assert session.loads == 2


async def test_refused_silent_and_broken_connections_are_distinguished(
    server: ScriptedServer, opened: list[api.KubeApi]
) -> None:
    session = await open_session(opened, access.Access(host=server.url))
    server.script = [server.silence(), server.stream(b"{", then="abort"), server.body(b"x" * 2000)]
    failures = []
    for _ in range(3):
        with pytest.raises(api.Interrupted) as caught:
            await get(session, 0.1)
        failures.append(caught.value.failure)
    assert failures[0] is Failure.IDLE
    assert failures[1] in (Failure.TRUNCATED, Failure.NETWORK)
    assert failures[2] is Failure.TOO_LARGE
    await server.stop()
    with pytest.raises(api.Interrupted) as caught:
        await get(session)
    assert caught.value.failure is Failure.NETWORK


async def test_the_socket_of_a_watch_has_keepalive() -> None:
    address = (socket.AF_INET, socket.SOCK_STREAM, 0, "", ("127.0.0.1", 1))
    with api._keepalive_socket(address) as made:
        assert made.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE) == 1
        assert made.getsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE) == 30


@pytest.fixture
async def tls_port(authority: trustme.CA) -> AsyncIterator[int]:
    """An API server with a certificate for `kube.example`. It requires a client certificate."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("kube.example").configure_cert(context)
    authority.configure_trust(context)
    context.verify_mode = ssl.CERT_REQUIRED
    async with serving_tls(context) as port:
        yield port


@contextlib.asynccontextmanager
async def serving_tls(context: ssl.SSLContext) -> AsyncIterator[int]:
    over = asyncio.Event()

    async def answer(request: web.Request) -> web.Response:
        return web.Response(body=b"{}")

    async def stream(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse()
        await response.prepare(request)
        await response.write(b"{}")
        await over.wait()
        return response

    app = web.Application()
    app.router.add_get("/stream", stream)
    app.router.add_get("/{path:.*}", answer)
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    listener = socket.create_server(("127.0.0.1", 0))
    await web.SockSite(runner, listener, ssl_context=context).start()
    yield listener.getsockname()[1]
    over.set()
    await runner.cleanup()


@pytest.fixture
def authority() -> trustme.CA:
    return trustme.CA()


def secure(authority: trustme.CA, port: int) -> access.Access:
    certificate = authority.issue_cert("agent")
    return access.Access(
        host=f"https://127.0.0.1:{port}",
        certificate_authority=authority.cert_pem.bytes(),
        client_certificate=certificate.cert_chain_pems[0].bytes(),
        client_key=certificate.private_key_pem.bytes(),
        server_name="kube.example",
        source="test",
    )


async def test_both_sides_present_certificates(authority: trustme.CA, tls_port: int, opened: list[api.KubeApi]) -> None:
    assert await get(await open_session(opened, secure(authority, tls_port))) == b"{}"
    assert (
        await get(
            await open_session(opened, structs.replace(secure(authority, tls_port), server_name="", verify=False))
        )
        == b"{}"
    )


async def test_requests_go_through_a_proxy(
    authority: trustme.CA, tls_port: int, server: ScriptedServer, opened: list[api.KubeApi]
) -> None:
    async with http_proxy.running() as proxy:
        through = f"http://me:secret@127.0.0.1:{proxy.port}"
        assert (
            await get(await open_session(opened, structs.replace(secure(authority, tls_port), proxy=through))) == b"{}"
        )
        assert proxy.requests == [f"CONNECT 127.0.0.1:{tls_port} HTTP/1.1"]
        assert proxy.authorizations == ["Basic " + base64.b64encode(b"me:secret").decode()]
        server.script = [server.body(b"{}")]
        assert await get(await open_session(opened, access.Access(host=server.url, proxy=through))) == b"{}"
        assert proxy.requests[1].startswith(f"GET {server.url}/api/v1/pods")
        await close_all(opened)


@pytest.mark.parametrize("make_loop", [uvloop.new_event_loop, asyncio.new_event_loop])
def test_tls_in_tls_through_a_proxy(make_loop: Callable[[], asyncio.AbstractEventLoop], authority: trustme.CA) -> None:
    async def through_proxy() -> None:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        authority.issue_cert("127.0.0.1", "kube.example").configure_cert(context)
        opened: list[api.KubeApi] = []
        async with serving_tls(context) as port, http_proxy.running(context) as proxy:
            how = structs.replace(secure(authority, port), proxy=f"https://127.0.0.1:{proxy.port}", server_name="")
            assert await get(await open_session(opened, how)) == b"{}"
            assert proxy.requests == [f"CONNECT 127.0.0.1:{port} HTTP/1.1"]
            await close_all(opened)

    with asyncio.Runner(loop_factory=make_loop) as runner:
        runner.run(through_proxy())


async def close_all(opened: list[api.KubeApi]) -> None:
    for session in opened:
        await session.close()


async def test_a_stream_that_is_left_leaves_no_socket_open(
    authority: trustme.CA, tls_port: int, opened: list[api.KubeApi]
) -> None:
    session = await open_session(opened, secure(authority, tls_port))
    response = await session.get("/stream", {}, read_timeout_seconds=5.0)
    assert await api.read_chunk(response) == b"{}"
    assert response.connection is not None
    assert response.connection.transport is not None
    end = response.connection.transport.get_extra_info("socket")
    api.close_response(response)
    await session.close()
    await asyncio.sleep(0)  # the loop closes sockets in its next turn
    assert end.fileno() == -1


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"server_name": "other.example"}, "Hostname mismatch, certificate is not valid for 'other.example'."),
        ({"certificate_authority": b""}, "self-signed certificate in certificate chain"),
    ],
)
async def test_wrong_certificates_count_as_wrong_credentials(
    authority: trustme.CA, tls_port: int, opened: list[api.KubeApi], changes: dict[str, str | bytes], problem: str
) -> None:
    session = await open_session(opened, structs.replace(secure(authority, tls_port), **changes))
    with pytest.raises(api.Interrupted) as caught:
        await get(session)
    assert caught.value.failure is Failure.CREDENTIALS
    assert caught.value.detail == f"TLS: 127.0.0.1:{tls_port}: certificate verify failed: {problem}"


@pytest.mark.parametrize(
    ("changes", "culprit"),
    [({"certificate_authority": b"x"}, "certificate authority of test"), ({"client_key": b"x"}, "certificate and key")],
)
def test_broken_certificates_are_named(authority: trustme.CA, changes: dict[str, str | bytes], culprit: str) -> None:
    with pytest.raises(access.AccessError, match=culprit):
        access.make_ssl_context(structs.replace(secure(authority, 1), **changes))


@pytest.mark.parametrize("name", ["a..b", "x" * 70 + ".example", "ä" * 70, ".a", "a\0b"])
@pytest.mark.parametrize("field", ["host", "proxy", "server_name"])
async def test_a_name_that_cannot_be_used_ends_nothing(
    tls_port: int, opened: list[api.KubeApi], field: str, name: str
) -> None:
    how = access.Access(host=f"https://127.0.0.1:{tls_port}")
    value = {"host": f"https://{name}:1", "proxy": f"http://{name}:1", "server_name": name}[field]
    with pytest.raises((api.Interrupted, access.AccessError)):
        await get(await open_session(opened, structs.replace(how, **{field: value})))


async def test_a_name_is_looked_up_later_if_no_thread_is_left(
    opened: list[api.KubeApi], monkeypatch: pytest.MonkeyPatch
) -> None:
    def cannot_start(*_: object) -> None:
        raise RuntimeError("can't start new thread")

    session = await open_session(opened, access.Access(host="http://localhost:1"))
    monkeypatch.setattr(asyncio.get_running_loop(), "run_in_executor", cannot_start)
    with pytest.raises(api.Interrupted, match="can't start new thread"):
        await get(session)


async def test_impersonation_is_in_every_request(server: ScriptedServer, opened: list[api.KubeApi]) -> None:
    headers = (("Impersonate-User", "me"), ("Impersonate-Group", "a"), ("Impersonate-Group", "ä"))
    session = await open_session(opened, access.Access(host=server.url, headers=headers))
    server.script = [server.body(b"{}")] * 2
    for _ in range(2):
        await get(session)
    for request in server.requests:
        assert request.headers["Impersonate-User"] == "me"
        assert request.headers.getall("Impersonate-Group") == ["a", "ä"]


async def test_a_body_is_sent_as_json(server: ScriptedServer, opened: list[api.KubeApi]) -> None:
    seen: list[tuple[str, str, bytes]] = []

    async def answer(request: web.Request) -> web.Response:
        seen.append((request.method, request.content_type, await request.read()))
        return web.Response(body=b"{}", status=201)

    server.script = [answer]
    session = await open_session(opened, access.Access(host=server.url))
    response = await session.request("POST", "/apis/x/v1/y", {}, read_timeout_seconds=5.0, json_body=b'{"a":1}')
    assert response.status == 201
    assert await api.read_body(response, 100) == b"{}"
    assert seen == [("POST", "application/json", b'{"a":1}')]
