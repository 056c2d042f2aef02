"""`typha status --service`: pods by EndpointSlices, and exec by the protocol of a real API server."""

import contextlib
from collections.abc import AsyncIterator, Callable, Sequence
from typing import Any

import click
import msgspec
import pytest
from aiohttp import web

from cache.kube import access
from typha.admin import answers, replicas
from typha.cli import pod_exec, status

QUESTION = status.Question(sort="age", limit=3, feed="felix", node=None, state=None)
SUCCESS = b'{"metadata":{},"status":"Success"}'
FAILURE = (
    b'{"metadata":{},"status":"Failure","message":"command terminated with exit code 1","reason":"NonZeroExitCode"}'
)
Say = Callable[[web.WebSocketResponse, str], Any]


def fleet(pod: str) -> bytes:
    """What `typha status --json` writes in a pod."""
    service = answers.Service(version="1", pod=pod)
    one = replicas.Replica(
        server="/run/typha/admin-5473.sock",
        status=answers.Status(service=service),
        clients=answers.Clients(clients=[], total=0, complete=True),
    )
    return msgspec.json.encode(replicas.Fleet(replicas=[one]))


async def answer_well(socket: web.WebSocketResponse, pod: str) -> None:
    """In pieces, the first of which has no more than its channel."""
    said = fleet(pod)
    for part in (b"", said[:10], said[10:]):
        await socket.send_bytes(b"\x01" + part)
    await socket.send_bytes(b"\x02a warning")
    await socket.send_bytes(b"\x03" + SUCCESS)
    await socket.send_bytes(b"\xff\x01")  # version 5: the channel is closed


async def fail(socket: web.WebSocketResponse, _pod: str) -> None:
    """The command is not there."""
    await socket.send_bytes(b"\x02typha: not\x1b found\n")
    await socket.send_bytes(b"\x03" + FAILURE)


async def break_off(socket: web.WebSocketResponse, pod: str) -> None:
    """No end."""
    await socket.send_bytes(b"\x01" + fleet(pod))


async def say_nonsense(socket: web.WebSocketResponse, _pod: str) -> None:
    """Not a status."""
    await socket.send_str("text")
    await socket.send_bytes(b"")
    await socket.send_bytes(b"\x01[1")
    await socket.send_bytes(b"\x03" + SUCCESS)


async def nest(socket: web.WebSocketResponse, _pod: str) -> None:
    """Brackets within brackets, in a field that nobody knows."""
    await socket.send_bytes(b'\x01{"replicas":[],"x":' + b"[" * 100_000 + b"]" * 100_000 + b"}")
    await socket.send_bytes(b"\x03" + SUCCESS)


async def nest_the_end(socket: web.WebSocketResponse, pod: str) -> None:
    """The same at the end; some releases of the decoder take so few."""
    await socket.send_bytes(b"\x01" + fleet(pod))
    await socket.send_bytes(b'\x03{"x":' + b"[" * 4000 + b"]" * 4000 + b"}")


async def claim_much(socket: web.WebSocketResponse, pod: str) -> None:
    """A line for each feed, and there is no end of feeds."""
    feeds = [{"feed": "f", "status": "in-sync"}] * 10_001
    said = {"replicas": [{"server": "s", "status": {"service": {"version": "1", "pod": pod}, "feeds": feeds}}]}
    await socket.send_bytes(b"\x01" + msgspec.json.encode(said))
    await socket.send_bytes(b"\x03" + SUCCESS)


async def say_too_much(socket: web.WebSocketResponse, _pod: str) -> None:
    """More than is taken."""
    with contextlib.suppress(ConnectionError):
        for _ in range(100):
            await socket.send_bytes(b"\x01" + b"x" * 100_000)


async def hang(socket: web.WebSocketResponse, _pod: str) -> None:
    """Neither words nor end, until the peer goes."""
    await socket.receive()


class ApiServer:
    """EndpointSlices and pods/exec."""

    def __init__(self, say: dict[str, Say], *, protocols: Sequence[str] = ("v5.channel.k8s.io",)) -> None:
        self._say = say
        self._protocols = protocols
        self.queries: list[Any] = []
        self.slices: Any = {
            "items": [
                {"endpoints": [{"targetRef": {"kind": "Pod", "name": name}} for name in say]},
                {"endpoints": None},
                {"endpoints": [{"addresses": ["10.0.0.1"]}, {"targetRef": {"kind": "Pod", "name": "../../secrets"}}]},
            ]
        }
        self.status = 200

    async def _list(self, request: web.Request) -> web.Response:
        assert request.headers["Authorization"] == "Bearer T"
        self.queries.append(dict(request.query))
        return web.json_response(self.slices, status=self.status)

    async def _exec(self, request: web.Request) -> web.StreamResponse:
        assert request.headers["Authorization"] == "Bearer T"
        self.queries.append(list(request.query.items()))
        pod = request.match_info["pod"]
        if pod == "moved":
            raise web.HTTPTemporaryRedirect(str(request.url).replace("moved", "good"))
        if pod == "forbidden":
            return web.json_response({"message": "no"}, status=403)
        socket = web.WebSocketResponse(protocols=self._protocols)
        await socket.prepare(request)
        await self._say[pod](socket, pod)
        await socket.close()
        return socket

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[Callable[[], Any]]:
        """Returns the loader of an access to it."""
        app = web.Application()
        app.router.add_get("/apis/discovery.k8s.io/v1/namespaces/calico-system/endpointslices", self._list)
        app.router.add_get("/api/v1/namespaces/calico-system/pods/{pod}/exec", self._exec)
        runner = web.AppRunner(app, shutdown_timeout=0.1)
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        host, port = runner.addresses[0][:2]

        async def load() -> access.Access:
            return access.Access(host=f"http://{host}:{port}", source="test", authorization="Bearer T")

        try:
            yield load
        finally:
            await runner.cleanup()


async def asked(server: ApiServer, *, container: str | None = None) -> dict[str, replicas.Replica]:
    async with server.running() as load:
        found = await pod_exec.asker("calico-system/calico-typha", container, QUESTION, load=load)()
    return {one.server: one for one in found}


@pytest.mark.parametrize("protocol", ["v5.channel.k8s.io", "v4.channel.k8s.io"])
async def test_every_pod_is_asked(protocol: str) -> None:
    server = ApiServer({"typha-1": answer_well, "typha-2": answer_well}, protocols=[protocol])
    found = await asked(server, container="calico-typha")
    assert [one.status.service.pod for one in found.values() if one.status] == ["typha-1", "typha-2"]
    assert list(found) == ["typha-1", "typha-2"]
    slices, *execs = server.queries
    assert slices == {"labelSelector": "kubernetes.io/service-name=calico-typha"}
    command = ["typha", "status", "--json", "--sort", "age", "--limit", "3", "--feed", "felix"]
    others = [("stdout", "true"), ("stderr", "true"), ("container", "calico-typha")]
    assert execs == [[*(("command", part) for part in command), *others]] * 2


async def test_pods_that_do_not_answer_are_named_beside_those_that_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pod_exec, "_EXEC_SECONDS", 5.0)
    monkeypatch.setattr("typha.admin.client.ANSWER_BYTES_MAX", 1_000_000)
    say: dict[str, Say] = {
        "broken": break_off,
        "deep": nest,
        "deep-end": nest_the_end,
        "endless": claim_much,
        "failing": fail,
        "forbidden": hang,
        "good": answer_well,
        "loud": say_too_much,
        "moved": hang,
        "nonsense": say_nonsense,
        "silent": hang,
    }
    found = await asked(ApiServer(say))
    assert {name for name, one in found.items() if one.status is not None} == {"good"}
    problems = {
        "broken": "the connection ended before the command",
        "deep": "maximum recursion depth exceeded while deserializing an object",
        "deep-end": "the connection ended before the command",
        "endless": "Expected `array` of length <= 10000 - at `$.replicas[0].status.feeds`",
        "failing": "command terminated with exit code 1: typha: not\x1b found",
        "forbidden": "status 403 instead of a WebSocket",
        "moved": "status 307: redirects are not followed",
        "loud": "the answer has more than 1000000 bytes",
        "silent": "no whole answer within 5 s",
    }
    assert {name: found[name].error for name in problems} == problems
    assert found["nonsense"].error


async def test_an_api_server_without_the_protocol() -> None:
    found = await asked(ApiServer({"typha-1": answer_well}, protocols=["v3.channel.k8s.io"]))
    assert "speaks none of" in found["typha-1"].error


@pytest.mark.parametrize(
    ("status_code", "slices", "problem"),
    [
        (403, {"items": []}, "status 403"),
        (200, {"items": []}, "has no pods"),
        (200, {"items": 5}, "cannot be read"),
        (200, [], "cannot be read"),
    ],
)
async def test_a_service_that_cannot_be_read(status_code: int, slices: Any, problem: str) -> None:
    server = ApiServer({})
    server.status, server.slices = status_code, slices
    [one] = (await asked(server)).values()
    assert (one.status, problem in one.error) == (None, True)


async def test_without_access_there_is_one_error() -> None:
    async def load() -> access.Access:
        raise access.AccessError("no kubeconfig")

    [one] = await pod_exec.asker("a/b", None, QUESTION, load=load)()
    assert (one.server, one.error) == ("a/b", "no kubeconfig")


@pytest.mark.parametrize("service", ["a", "a/", "/b", "a/b/c", "A/b", "a/../b", "a/b?x"])
def test_names_are_checked(service: str) -> None:
    with pytest.raises(click.UsageError):
        pod_exec.asker(service, None, QUESTION)


async def test_an_api_server_that_nests_without_end(monkeypatch: pytest.MonkeyPatch) -> None:
    async def deep(_request: web.Request) -> web.Response:
        return web.Response(body=b'{"items":[],"x":' + b"[" * 100_000 + b"]" * 100_000 + b"}")

    server = ApiServer({})
    monkeypatch.setattr(server, "_list", deep)
    found = await asked(server)
    assert "EndpointSlices cannot be read" in found["calico-system/calico-typha"].error
