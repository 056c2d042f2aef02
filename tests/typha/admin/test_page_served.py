"""The status page of a running service: off unless it is wanted, and it shows the service's own clients."""

import pathlib
import socket
from collections.abc import AsyncIterator

import aiohttp
import pytest

from clients import mirror
from tests.harness import browser, served
from tests.harness.served import FEED, Cluster, mirrors, serving
from typha import service, settings

pytestmark = pytest.mark.slow
HOSTILE = "<img src=x onerror=\"document.title='owned'\">"
WANTED = {"TYPHA_STATUSPAGEENABLED": "true", "TYPHA_STATUSPAGEHOST": "127.0.0.1", "TYPHA_STATUSPAGEPORT": "0"}


@pytest.fixture
async def cluster(tmp_path: pathlib.Path) -> AsyncIterator[Cluster]:
    """An API server with a few pods."""
    async with Cluster(tmp_path) as opened:
        yield opened


async def url_of(running: served.Service) -> str:
    """The address of the page."""
    found = await running.logged(r"Status page is listening .*port=(\d+)")
    return f"http://127.0.0.1:{found[1]}"


async def test_it_is_off_unless_it_is_wanted(cluster: Cluster) -> None:
    configured = settings.Settings()
    assert configured.status_page_enabled is False
    assert configured.status_page_host == "localhost"
    async with serving(cluster, "--workers", "1") as running, mirrors(await running.address(), 1):
        pass
    assert "Status page" not in running.text


async def test_another_process_on_the_port_does_not_stop_the_service(cluster: Cluster) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        async with (
            serving(cluster, "--workers", "1", **{**WANTED, "TYPHA_STATUSPAGEPORT": port}) as running,
            mirrors(await running.address(), 1),
        ):
            await running.logged("The status page cannot listen, retrying")
            taken.close()
            assert await url_of(running) == f"http://127.0.0.1:{port}"
    assert running.text.count("cannot listen") == 1


async def test_the_page_has_numbers_and_names_and_no_object() -> None:
    configured = settings.Settings(server_port=-1, server_host="127.0.0.1", workers=0, status_page_enabled=True)
    with service.open_listener(configured) as listener:
        made = service.Service(configured, listener)
        files = {"/", "/look.css", "/page.js", "/icon.svg"}
        assert set(made.status_page.pages) == files | {"/v1/status", "/v1/clients", "/v1/history", "/v1/ends"}
        made.hub.close()


@browser.needs_browser
@pytest.mark.xdist_group("browser")
async def test_a_browser_shows_the_clients_of_a_service(cluster: Cluster, tmp_path: pathlib.Path) -> None:
    async with (
        serving(cluster, "--workers", "2", **WANTED) as running,
        mirrors(await running.address(), 29),
        mirror.Mirror(await running.address(), feed=FEED, agent=HOSTILE),
        browser.page(tmp_path) as shown,
        aiohttp.ClientSession() as session,
    ):
        url = await url_of(running)
        async with mirror.Mirror(await running.address(), feed=FEED, agent="leaves"):
            await shown.open(url)
            await shown.shows("document.getElementById('tile-clients').innerText == '31'")
            await shown.shows("document.getElementById('legend').innerText.includes('up to 0.1 s: 31')")
            await shown.value("document.getElementById('clients-more').click()")
            await shown.shows("document.getElementById('clients').innerText.includes('agent-28')")
            assert await shown.value(f"document.getElementById('clients').innerText.includes({HOSTILE!r})")
        cluster.put("p1", "new")
        await shown.shows("document.getElementById('tile-clients').innerText == '30'")
        await shown.shows("/leaves\\s+client-closed\\s+web/.test(document.getElementById('ends').innerText)")
        await shown.shows("/^[1-9]/.test(document.getElementById('tile-ends').innerText)")  # after ten seconds
        await shown.shows("document.querySelector('#chart-latency path')")
        assert "in-sync" in await shown.value("document.getElementById('kinds').innerText")
        assert shown.console == []
        assert {address for address in shown.requests if not address.startswith(url)} == set()
        assert await shown.value("document.title") == f"typha {socket.gethostname()}"
        async with session.get(f"{url}/v1/clients", headers={"Host": "evil.example"}) as response:
            assert response.status == 421
        await running.metric_is('typha_http_refused_total{server="status-page",reason="bad-request"}', 1)
