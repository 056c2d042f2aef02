"""The status page in a real browser: what it shows, with which keys it works, and what strangers' words do to it."""

import asyncio
import contextlib
import functools
import itertools
import json
import shutil
import subprocess
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest

from tests.harness import browser, repository, status_page, worker_stand

pytestmark = [browser.needs_browser, pytest.mark.slow, pytest.mark.xdist_group("browser")]
HOSTILE = (
    "<img src=x onerror=\"document.title='owned'\">",
    "</td></table><script>document.title='owned'</script>",
    "javascript:document.title='owned'",
    "\u202egnp.exe\u200b",
    "=cmd|' /C calc'!A1",
    "{{constructor.constructor('document.title=1')()}}",
    "n" * 253,
    "",
)
ACTIVE = "document.activeElement"
SHOWN = "document.querySelector('#clients tbody td:not([colspan])')"
LEGEND = "document.getElementById('legend').innerText"


class Shown:
    """A page that is open in a browser, and its data."""

    def __init__(self, page: browser.Page, served: status_page.Served, data: status_page.Data) -> None:
        self.page = page
        self.served = served
        self.data = data

    async def open(self) -> None:
        """Load the page; returns once it shows clients, a history and ends."""
        await self.page.open(self.served.url)
        await self.page.shows(
            f"{SHOWN} && document.querySelector('#ends td') && document.querySelector('#chart-latency path')"
        )

    async def column(self, number: int) -> list[str]:
        """The texts of a column of the table of clients."""
        found = await self.page.value(
            f"[...document.querySelectorAll('#clients tbody tr')].map((row) => row.cells[{number}].innerText)"
        )
        return list(found)

    async def text(self, element: str) -> str:
        """The text of an element, by its id."""
        return str(await self.page.value(f"document.getElementById({json.dumps(element)}).innerText"))

    def is_clean(self) -> None:
        """No error, no warning, no breach of the policy, and no request to another host."""
        assert self.page.console == []
        assert self.page.requests
        assert {url for url in self.page.requests if not url.startswith(self.served.url)} == set()


Open = Callable[[status_page.Data], contextlib.AbstractAsyncContextManager[Shown]]


@pytest.fixture
def opened(tmp_path: Path) -> Open:
    """Opens a page with this data."""

    @contextlib.asynccontextmanager
    async def open_page(data: status_page.Data) -> AsyncIterator[Shown]:
        async with status_page.served(data) as served, browser.page(tmp_path) as page:
            await page.resize(1280, 900)
            shown = Shown(page, served, data)
            await shown.open()
            yield shown

    return open_page


def many() -> status_page.Data:
    """2,000 clients, some of which lag, wait or catch up, and an hour of history."""
    data = status_page.Data(2000)
    for number, lag in ((3, 0.5), (4, 5.0), (5, 30.0), (6, 300.0)):
        data.clients[number] = status_page.client(number, lag_seconds=lag)
    data.clients[7]["state"] = "held"
    data.clients[8]["state"] = "catching-up"
    data.clients.append(status_page.client(2000, state="handshake", node="", feed=""))
    data.points = [status_page.point(time.time() - 10 * number) for number in range(360, 0, -1)]
    data.points[100]["latency_p50"] = data.points[100]["latency_p99"] = None
    data.points[50]["ends"] = {"pong-timeout": 3, "client-closed": 1}
    data.ends = [
        {
            "at": time.time() - number,
            "node": f"gone-{number}",
            "address": "10.9.9.9:1",
            "feed": "felix",
            "reason": "pong-timeout",
            "age_seconds": 60.0,
            "worker": 1,
        }
        for number in range(30)
    ]
    return data


async def test_two_thousand_clients_are_shown_and_sorted(opened: Open) -> None:
    async with opened(many()) as shown:
        assert (await shown.column(0))[:4] == ["node-0006", "node-0005", "node-0004", "node-0003"]
        assert (await shown.column(1))[:4] == ["5 min 0 s", "30 s", "5 s", "500 ms"]
        legend = await shown.page.value(LEGEND)
        for part in ("up to 0.1 s: 1,996", "up to 1 s: 1", "up to 10 s: 1", "up to 1 min: 1", "more than 1 min: 1"):
            assert part in legend
        assert "held: 1" in legend
        assert "snapshot or catching up: 1" in legend
        assert "1 client is more than a minute late." in await shown.text("verdict")
        assert await shown.text("tile-clients") == "2,000"
        assert await shown.text("tile-lag") == "5 min 0 s"
        assert await shown.text("tile-deliveries") == "10,000/s"
        assert await shown.text("tile-latency") == "20 ms"
        assert await shown.text("tile-ends") == "4"
        assert await shown.text("reasons") == "pong-timeout\n3\nclient-closed\n1"
        assert await shown.text("ends-more") == "Show all 30"

        await shown.page.value("document.querySelector('#clients th button').click()")
        assert (await shown.column(0))[0] == "–"  # it has not said its name yet
        await shown.page.value("document.querySelector('#clients th button').click()")
        assert (await shown.column(0))[0] == "node-1999"
        assert await shown.page.value("document.querySelector('#clients th').getAttribute('aria-sort')") == "descending"
        rows = len(await shown.column(0))
        await shown.page.value("document.getElementById('clients-more').click()")
        assert len(await shown.column(0)) > rows
        await shown.page.value("document.getElementById('clients-node').focus()")
        await shown.page.press(*"0042")
        assert await shown.column(0) == ["node-0042"]
        await shown.page.press("x")
        assert await shown.column(0) == ["No client of such a node"]
        shown.is_clean()


async def test_what_changes_is_seen_and_nothing_is_asked_more_than_every_two_seconds(opened: Open) -> None:
    async with opened(status_page.Data()) as shown:
        assert "All 3 clients are up to date." in await shown.text("verdict")
        shown.data.clients[1]["lag_seconds"] = 20.0
        shown.data.feeds[0].update(status="resync", held=2)
        shown.data.kinds[1]["confirmed_seconds"] = 400.0
        await shown.page.shows(
            "document.getElementById('verdict').innerText.includes('1 client is more than 10 s late')"
        )
        verdict = await shown.text("verdict")
        assert "felix is resync" in verdict
        assert "1 resource not confirmed by the API server for 150 s: projectcalico.org/v3/ippools." in verdict
        assert "2 clients wait for a snapshot." in verdict
        assert (await shown.column(0))[0] == "node-0001"
        first = (await shown.page.value("document.querySelector('#kinds tr').innerText")).split()
        assert first[0] == "ippools"
        for times in shown.data.asked.values():
            assert all(later - earlier >= 1.9 for earlier, later in itertools.pairwise(times))
        shown.is_clean()


def asked(shown: Shown) -> int:
    """How often the page has asked for anything."""
    return sum(map(len, shown.data.asked.values()))


def _asks_again(shown: Shown, before: int) -> bool:
    return asked(shown) > before


async def test_it_asks_nothing_while_hidden_or_paused(opened: Open) -> None:
    async with opened(status_page.Data()) as shown:
        await shown.page.value("Object.defineProperty(document, 'hidden', { get: () => window.isHidden })")
        for begin, end in (
            ("window.isHidden = true", "window.isHidden = false"),
            ("document.getElementById('pause').click()", "document.getElementById('pause').click()"),
        ):
            await shown.page.value(begin)
            await asyncio.sleep(1.0)  # an answer may be on its way
            before = asked(shown)
            await asyncio.sleep(3.0)
            assert asked(shown) == before
            assert await shown.page.value("document.getElementById('outage').hidden")
            await shown.page.value(end)
            await worker_stand.eventually(functools.partial(_asks_again, shown, before))
        shown.is_clean()


async def test_an_outage_is_said_and_the_end_of_it_seen(opened: Open) -> None:
    async with opened(status_page.Data()) as shown:
        await shown.served.stop()
        await shown.page.shows("!document.getElementById('outage').hidden")
        assert "The service does not answer" in await shown.text("outage")
        await shown.page.shows(
            "/is from \\d\\d:\\d\\d:\\d\\d, \\d+ s ago/.test(document.getElementById('outage').innerText)"
        )
        assert (await shown.column(0))[0] == "node-0000"  # the old data stays
        shown.data.clients = shown.data.clients[:1]
        shown.served.start()
        await shown.page.shows("document.getElementById('outage').hidden")
        await shown.page.shows("document.querySelectorAll('#clients tbody tr').length == 1")


async def test_strangers_words_stay_text(opened: Open) -> None:
    data = status_page.Data(0)
    for number, text in enumerate(HOSTILE):
        more: dict[str, Any] = dict.fromkeys(
            ("node", "version", "info", "address", "release", "tls_name", "format"), text
        )
        data.clients.append(status_page.client(number, **more))
        data.ends.append(
            {"at": 1e9, "node": text, "address": text, "feed": text, "reason": text, "age_seconds": 1.0, "worker": 1}
        )
        data.feeds.append(status_page.feed(f"f{text}", status=text, formats=[text]))
        data.kinds.append(status_page.kind(text, state=text))
        data.points[number]["ends"] = {text: 1}
    data.service["pod"] = data.service["incarnation"] = data.service["version"] = HOSTILE[0]
    async with opened(data) as shown:
        await shown.page.value("document.getElementById('clients-more').click()")
        await shown.page.value("document.getElementById('hour-details').open = true")
        names = await shown.column(0)
        for text in HOSTILE[:-1]:
            assert await shown.page.value(
                f"[...document.querySelectorAll('#clients td')].some((cell) => cell.textContent === {json.dumps(text)})"
            )
        assert len(names) == len(HOSTILE)
        await shown.page.value("document.getElementById('fleet').focus()")
        await shown.page.press("Home", "ArrowRight", "ArrowRight", "Enter")
        answers = len(data.asked["/v1/clients"])
        await worker_stand.eventually(lambda: len(data.asked["/v1/clients"]) > answers + 1)  # all is shown again
        assert (
            await shown.page.value("document.querySelectorAll('main img, main script, main a, main iframe').length")
            == 0
        )
        assert await shown.page.value("document.title") == f"typha {HOSTILE[0]}"
        wide = "[...document.querySelectorAll('body *')].filter((one) => one.getBoundingClientRect().right > innerWidth"
        assert (
            await shown.page.value(f"{wide} && !one.closest('.scroll')).map((one) => one.outerHTML.slice(0, 99))") == []
        )
        shown.is_clean()


async def test_everything_is_reached_by_keys(opened: Open) -> None:
    async with opened(many()) as shown:
        seen: list[str] = []
        for _ in range(60):
            await shown.page.press("Tab")
            if await shown.page.value(f"{ACTIVE} === document.body"):
                break  # after the last one
            seen.append(await shown.page.value(f"{ACTIVE}.id || {ACTIVE}.innerText || {ACTIVE}.ariaLabel || ''"))
            outline = await shown.page.value("getComputedStyle(document.activeElement).outlineStyle")
            assert outline != "none", seen
        wanted = (
            "pause",
            "theme",
            "fleet-feed",
            "fleet",
            "chart-deliveries",
            "chart-latency",
            "clients-node",
            "Node",
            "clients-more",
            "kinds-more",
            "ends-more",
        )
        assert [name for name in wanted if name not in seen and name != "kinds-more"] == []

        def value_of(element: str) -> str:
            return f"document.getElementById('{element}').getAttribute('aria-valuetext')"

        await shown.page.value("document.getElementById('fleet').focus()")
        assert await shown.page.value(value_of("fleet")) == "2,000 nodes, none selected"
        await shown.page.press("ArrowRight")
        assert (await shown.page.value(value_of("fleet"))).startswith("node-0000: lag 0 s, following, feed felix")
        await shown.page.press("End")
        assert (await shown.page.value(value_of("fleet"))).startswith("node-1999:")
        await shown.page.press("Home", "ArrowDown")
        below = await shown.page.value(value_of("fleet"))
        assert not below.startswith(("node-0000:", "node-0001:"))
        await shown.page.press("Enter")
        assert await shown.column(0) == [below.partition(":")[0]]
        await shown.page.value("document.getElementById('chart-latency').focus()")
        await shown.page.press("End")
        newest = await shown.page.value(value_of("chart-latency"))
        assert "p50 4 ms, p99 20 ms" in newest
        await shown.page.press("ArrowLeft")
        assert await shown.page.value(value_of("chart-latency")) != newest
        shown.is_clean()


BACKGROUND = "getComputedStyle(document.body).backgroundColor"
LIGHT, DARK = "rgb(246, 247, 249)", "rgb(14, 18, 22)"


async def test_both_themes_by_the_system_and_by_the_switch(opened: Open) -> None:
    async with opened(many()) as shown:
        page = shown.page
        picture = "document.querySelector('#fleet canvas').toDataURL()"
        assert await page.value(BACKGROUND) == LIGHT
        await page.value("document.getElementById('pause').click()")  # no answer draws the map again
        light = await page.value(picture)
        await page.prefer(color_scheme="dark")
        await page.shows(f"{BACKGROUND} == '{DARK}' && {picture} != '{light}'")
        choose = "theme.value = '{}'; theme.dispatchEvent(new Event('change'))"
        await page.value(choose.format("light"))
        assert await page.value(BACKGROUND) == LIGHT
        assert await page.value(picture) == light
        await shown.open()
        assert await page.value(BACKGROUND) == LIGHT  # it is remembered
        await page.value(choose.format("auto"))
        assert await page.value(BACKGROUND) == DARK
        assert await page.value("document.getAnimations().length") == 0  # nothing moves, for nobody
        shown.is_clean()


async def test_it_fits_on_a_narrow_screen(opened: Open) -> None:
    """320 pixels are a window of 1280 at a zoom of 400 %."""
    async with opened(many()) as shown:
        await shown.page.resize(320, 640)
        await shown.page.shows("document.documentElement.scrollWidth <= 320")
        shown.is_clean()


@pytest.fixture(scope="module")
def axe() -> str:
    """The rules of axe-core, fetched once."""
    build = repository.ROOT / "tools" / "axe" / "build.sh"
    done = subprocess.run([build], stdout=subprocess.PIPE, check=True, text=True)
    return Path(done.stdout.strip()).read_text()


@pytest.mark.skipif(shutil.which("npm") is None, reason="needs npm, which fetches axe-core (tools/axe)")
async def test_the_rules_of_accessibility_hold(opened: Open, axe: str) -> None:
    async with opened(many()) as shown:
        await shown.page.value(f"{{{axe}}}; 0")
        await shown.page.value("document.getElementById('hour-details').open = true")
        for scheme in ("light", "dark"):
            await shown.page.prefer(color_scheme=scheme)
            await shown.page.shows(f"{BACKGROUND} == '{LIGHT if scheme == 'light' else DARK}'")
            found: list[dict[str, Any]] = await shown.page.value(
                "axe.run(document).then((result) => result.violations.map((one) => ({id: one.id, help: one.help,"
                " nodes: one.nodes.slice(0, 3).map((node) => node.html + node.failureSummary)})))"
            )
            assert found == [], json.dumps(found, indent=1)
            passed = await shown.page.value("axe.run(document).then((result) => result.passes.map((one) => one.id))")
            assert {"color-contrast", "aria-valid-attr-value", "label", "button-name"} <= set(passed)


async def test_ten_thousand_clients_are_asked_for_less_often(opened: Open) -> None:
    async with opened(status_page.Data(10_000)) as shown:
        assert "up to 0.1 s: 10,000" in await shown.page.value(LEGEND)
        before = len(shown.data.asked["/v1/clients"])
        statuses = len(shown.data.asked["/v1/status"])
        await worker_stand.eventually(lambda: len(shown.data.asked["/v1/status"]) >= statuses + 3)
        assert len(shown.data.asked["/v1/clients"]) == before
        shown.is_clean()
