"""Nothing that happens to a file ends the session to the API server: what worked stays in use, and it is said once."""

import json
import pathlib
import ssl
from collections.abc import AsyncIterator

import pytest
import structlog.testing
from aiohttp import web

from cache.kube import access, api, credentials
from tests.harness import authorities, faults, kubeconfig_cases, trust_cases

FILES = ("config", "ca.crt", "me.crt", "me.key", "token")
USER = "tokenFile: token, client-certificate: me.crt, client-key: me.key"
CASES = [
    (name, fault)
    for name in FILES
    for fault in faults.FAULTS
    # Half a token is a token, and so is a line of other text, for all that a client can tell.
    if (name, fault) not in {("token", "half written"), ("token", "other text")}
]


class Served:
    """An API server with TLS, and a session to it whose time is set by hand."""

    def __init__(self, folder: pathlib.Path) -> None:
        self.folder = folder
        self.now = 1000.0
        self.seen: list[str] = []
        self.environment: dict[str, str] = {}
        self.session = api.KubeApi(self._load, clock=lambda: self.now, wall_clock=lambda: self.now)

    async def _load(self) -> access.Access:
        return credentials.load(self.environment)

    async def answer(self, request: web.Request) -> web.Response:
        """Answer every request."""
        self.seen.append(request.headers.get("Authorization", ""))
        return web.Response(body=b"{}")

    async def get(self) -> bytes:
        """Send a request, a minute later."""
        self.now += 60.0
        response = await self.session.get("/version", {}, read_timeout_seconds=5.0)
        try:
            return await api.read_body(response, 100)
        finally:
            response.close()


@pytest.fixture
async def served(tmp_path: pathlib.Path) -> AsyncIterator[Served]:
    one = Served(tmp_path)
    root = authorities.issue("root")
    server = authorities.issue("server", root, is_authority=None, names=trust_cases.here())
    mine = authorities.issue("me", root, is_authority=None)
    application = web.Application()
    application.router.add_get("/{path:.*}", one.answer)
    runner = web.AppRunner(application)
    await runner.setup()
    context = trust_cases.server_context((server,))
    context.verify_mode = ssl.CERT_REQUIRED
    context.load_verify_locations(cadata=root.pem.decode())
    await web.TCPSite(runner, "127.0.0.1", 0, ssl_context=context).start()
    port = runner.addresses[0][1]
    cluster = f"server: 'https://127.0.0.1:{port}', certificate-authority: ca.crt"
    case = kubeconfig_cases.Case("", {}, {"config": kubeconfig_cases.config(cluster, USER)}, {})
    one.environment = case.write(tmp_path)
    for name, content in (("ca.crt", root.pem), ("me.crt", mine.pem), ("me.key", mine.key_pem)):
        (tmp_path / name).write_bytes(content)
    yield one
    await one.session.close()
    await runner.cleanup()


@pytest.mark.parametrize(("name", "fault"), CASES)
async def test_at_the_start_one_line_names_the_file(served: Served, name: str, fault: str) -> None:
    path = served.folder / name
    good = faults.cause(fault, path)
    with pytest.raises(access.AccessError) as caught:
        await served.session.start()
    message = str(caught.value)
    assert str(path) in message
    assert message.isprintable()
    assert len(message) < 500
    faults.repair(path, good)
    await served.session.start()
    assert await served.get() == b"{}"


@pytest.mark.parametrize(("name", "fault"), CASES)
async def test_while_running_the_old_stays_in_use(served: Served, name: str, fault: str) -> None:
    await served.session.start()
    assert await served.get() == b"{}"
    path = served.folder / name
    with structlog.testing.capture_logs() as lines:
        good = faults.cause(fault, path)
        for _ in range(3):
            assert await served.get() == b"{}"
        assert [line["log_level"] for line in lines] == ["warning"]  # once, however often it is tried
        assert "keeping the old ones" in lines[0]["event"]
        assert served.session.load_failures >= 1
        failures = served.session.load_failures
        faults.repair(path, good)
        assert await served.get() == b"{}"
        assert [line["log_level"] for line in lines] == ["warning", "info"]
        assert await served.get() == b"{}"
    assert (len(lines), served.session.load_failures) == (2, failures)
    assert set(served.seen) == {"Bearer from-file"}


async def test_a_certificate_and_its_key_that_change_one_after_the_other(served: Served) -> None:
    await served.session.start()
    root = authorities.issue("root")
    mine = authorities.issue("me", root)
    faults.repair(served.folder / "me.crt", mine.pem)
    assert await served.get() == b"{}"
    assert (served.session.loads, served.session.load_failures) == (1, 1)
    faults.repair(served.folder / "me.key", mine.key_pem)
    with pytest.raises(api.Interrupted):  # they fit together now, and the server does not know them
        await served.get()
    assert served.session.loads == 2


async def test_files_that_have_not_changed_are_not_loaded_again(served: Served) -> None:
    await served.session.start()
    for _ in range(3):
        await served.get()
    assert served.session.loads == 1
    (served.folder / "token").write_text("rotated")
    await served.get()
    assert (served.session.loads, served.seen[-1]) == (1, "Bearer rotated")


@pytest.mark.parametrize("fault", [fault for fault in faults.FAULTS if fault not in ("a FIFO", "a device")])
async def test_a_plugin_that_fails_before_the_credentials_expire(served: Served, fault: str) -> None:
    status = {"token": "p", "expirationTimestamp": "1970-01-01T00:30:00Z"}
    script = kubeconfig_cases.prints(json.dumps(status)).removeprefix("echo '").removesuffix("'")
    printed = served.folder / "printed"
    printed.write_text(script)
    config = (served.folder / "config").read_text()
    (served.folder / "config").write_text(config.replace(USER, kubeconfig_cases.plugin(f"cat {printed}")))
    with structlog.testing.capture_logs() as lines:
        await served.session.start()
        good = faults.cause(fault, printed)
        served.now = 1741.0
        for _ in range(2):
            await served.session._refresh()
            served.now += 20
        assert served.session.load_failures == 2
        assert served.session.loads == 1
        faults.repair(printed, good)
        await served.session._refresh()
    assert served.session.loads == 2
    assert [line["log_level"] for line in lines if line["event"] != "using the API server"] == ["warning", "info"]


async def test_whatever_loading_raises_keeps_what_worked(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    await served.session.start()

    async def broken() -> access.Access:
        raise ZeroDivisionError

    monkeypatch.setattr(served.session, "_load", broken)
    served.now += 60
    with pytest.raises(access.AccessError, match="ZeroDivisionError"):
        await served.session.reload()
    assert await served.get() == b"{}"
