"""The port of the status page: what it answers, to whom, and what it lets a browser do."""

import asyncio
import re
import subprocess
import sys
import zipfile
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.harness import repository, status_page
from typha.admin import page, server

FOLDER = repository.ROOT / "typha" / "admin" / "page"
TEXT_CONTRAST = 4.5
"""WCAG 2, level AA, for text."""
SHAPE_CONTRAST = 3.0
"""The same for parts of pictures."""


class Port:
    """The page's port, by raw requests."""

    def __init__(self, served: status_page.Served, data: status_page.Data) -> None:
        self.served = served
        self.data = data

    async def ask(
        self, path: str = "/", *, method: str = "GET", host: str = "", more: str = ""
    ) -> tuple[int, str, str]:
        """Status, head and body of an answer."""
        reader, writer = await asyncio.open_connection(status_page.HOST, self.served.port)
        writer.write(f"{method} {path} HTTP/1.1\r\nHost: {host or 'localhost'}\r\n{more}\r\n".encode())
        head, _, body = (await reader.read()).partition(b"\r\n\r\n")
        writer.close()
        await writer.wait_closed()
        return int(head.split()[1]), head.decode(), body.decode()


@pytest.fixture
async def port() -> AsyncIterator[Port]:
    """A page with a little data."""
    data = status_page.Data()
    async with status_page.served(data) as served:
        yield Port(served, data)


@pytest.mark.parametrize(
    ("host", "status"),
    [
        ("localhost", 200),
        ("LOCALHOST:9097", 200),
        ("127.0.0.1:9097", 200),
        ("[::1]:9097", 200),
        ("[::1]", 200),
        ("10.1.2.3", 200),
        ("status.example:80", 200),
        ("evil.example", 421),
        ("localhost.evil.example", 421),
        ("127.0.0.1.evil.example", 421),
        ("evil.example:127.0.0.1", 421),
        ("localhost:80:80", 421),
        ("localhost:x", 421),
        ("[evil.example]", 421),
        ("[::1]evil", 421),
        ("@localhost", 421),
    ],
)
async def test_only_known_names_are_answered(port: Port, host: str, status: int) -> None:
    """By DNS rebinding, a strange page in the operator's browser could read the answers under its own name."""
    for path in ("/", "/v1/clients"):
        found, _, body = await port.ask(path, host=host)
        assert found == status
        assert ("node-0001" in body or "<!DOCTYPE" in body) == (status == 200)
    assert port.served.server.refused["bad-request"] == (0 if status == 200 else 2)


async def test_a_request_without_a_host_is_refused(port: Port) -> None:
    reader, writer = await asyncio.open_connection(status_page.HOST, port.served.port)
    writer.write(b"GET /v1/status HTTP/1.0\r\n\r\n")
    assert b" 421 " in (await reader.read()).partition(b"\r\n")[0]
    writer.close()


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "OPTIONS", "TRACE", "PATCH"])
async def test_it_only_shows(port: Port, method: str) -> None:
    status, head, _ = await port.ask("/v1/status", method=method, more="Origin: http://evil.example\r\n")
    assert status == 405
    assert "access-control" not in head.lower()
    assert port.data.asked["/v1/status"] == []


async def test_other_origins_learn_nothing(port: Port) -> None:
    for path in ("/", "/v1/status"):
        _, head, _ = await port.ask(path, more="Origin: http://evil.example\r\n")
        assert "access-control" not in head.lower()
        assert "Cross-Origin-Resource-Policy: same-origin" in head


async def test_every_answer_has_the_policy_of_the_page(port: Port) -> None:
    asked = [
        await port.ask("/"),
        await port.ask("/page.js"),
        await port.ask("/v1/status"),
        await port.ask("/nothing"),
        await port.ask("/", method="POST"),
        await port.ask("/", host="evil.example"),
    ]
    assert [status for status, _, _ in asked] == [200, 200, 200, 404, 405, 421]
    for _, head, _ in asked:
        assert "Content-Security-Policy: default-src 'none'; script-src 'self'; style-src 'self';" in head
        assert "unsafe" not in head
        assert "X-Content-Type-Options: nosniff" in head
        assert "Cache-Control: no-store" in head


async def test_the_files_have_their_types(port: Port) -> None:
    kinds = {"/": "text/html", "/look.css": "text/css", "/page.js": "text/javascript", "/icon.svg": "image/svg+xml"}
    for path, kind in kinds.items():
        status, head, body = await port.ask(path)
        assert status == 200
        assert f"Content-Type: {kind}" in head
        assert body
    status, _, body = await port.ask("/", method="HEAD")
    assert (status, body) == (200, "")


@pytest.mark.parametrize(
    "path", ["/../page/__init__.py", "/__init__.py", "//", "/index.html", "/v1/objects", "/v1/explain"]
)
async def test_there_is_nothing_else(port: Port, path: str) -> None:
    assert (await port.ask(path))[0] == 404


async def test_many_pages_cost_as_much_as_one(port: Port) -> None:
    answers = await asyncio.gather(*(port.ask("/v1/clients?sort=lag") for _ in range(10)))
    assert {status for status, _, _ in answers} == {200}
    assert len(port.data.asked["/v1/clients"]) == 1


@pytest.mark.looptime(start=1000.0)
async def test_a_few_different_answers_a_second_are_made() -> None:
    made: list[server.Query] = []

    async def answer(query: server.Query) -> server.Answer:
        made.append(query)
        return server.Answer(b"{}")

    shared = page.Shared(answer)
    for second in range(3):
        for number in range(page.ANSWERS_PER_SECOND_MAX):
            assert (await shared({"limit": str(number)})).status == 200
        assert (await shared({"limit": "other"})).status == 429
        assert (await shared({"limit": "0"})).status == 200
        assert len(made) == (second + 1) * page.ANSWERS_PER_SECOND_MAX
        await asyncio.sleep(1.001)


@pytest.mark.looptime(start=1000.0)
async def test_an_answer_that_takes_long_is_not_kept_for_longer() -> None:
    made = 0

    async def slow(_query: server.Query) -> server.Answer:
        nonlocal made
        made += 1
        await asyncio.sleep(1.5)
        return server.Answer(str(made).encode())

    shared = page.Shared(slow)
    assert [(await shared({})).body for _ in range(2)] == [b"1", b"1"]
    await asyncio.sleep(1.001)
    assert (await shared({})).body == b"2"


async def test_a_page_that_fails_once_is_made_again(port: Port) -> None:
    good, port.data.clients = port.data.clients, [{"node": object()}]
    assert (await port.ask("/v1/clients"))[0] == 500
    port.data.clients = good
    assert (await port.ask("/v1/clients"))[0] == 200


def test_the_files_have_no_way_for_markup_and_no_other_host() -> None:
    """A second defence beside the policy in the header, and one that other browsers have, too."""
    script = (FOLDER / "page.js").read_text()
    assert not re.findall(
        r"innerHTML|outerHTML|insertAdjacent|document\.write|\beval\b|new Function|DOMParser|srcdoc|javascript:", script
    )
    markup = (FOLDER / "index.html").read_text()
    assert not re.findall(r"<style|\bstyle=|\son\w+=|<script(?![^>]* src=)", markup)
    for file in FOLDER.iterdir():
        if file.suffix in (".html", ".css", ".js", ".svg"):
            hosts = set(re.findall(r"(?:https?:)?//[\w.-]+\.\w+", file.read_text()))
            assert hosts <= {"http://www.w3.org"}, file.name
            assert "@import" not in file.read_text()


def colours(theme: int) -> dict[str, str]:
    """The colours of a theme: 0 is light, 1 is dark."""
    found = re.findall(r"--([\w-]+): light-dark\((#\w{6}), (#\w{6})\)", (FOLDER / "look.css").read_text())
    return {name: values[theme] for name, *values in found}


def contrast(one: str, other: str) -> float:
    """The contrast of two colours, as WCAG 2 defines it."""

    def luminance(colour: str) -> float:
        parts = [int(colour[at : at + 2], 16) / 255 for at in (1, 3, 5)]
        linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
        return sum(weight * part for weight, part in zip((0.2126, 0.7152, 0.0722), linear, strict=True))

    brighter, darker = sorted((luminance(one), luminance(other)), reverse=True)
    return (brighter + 0.05) / (darker + 0.05)


@pytest.mark.parametrize("theme", [0, 1], ids=["light", "dark"])
def test_colours_have_enough_contrast(theme: int) -> None:
    found = colours(theme)
    for background in ("surface", "page"):
        for name in ("ink", "quiet", "accent", "good", "warn", "bad", *(f"line-{number}" for number in range(1, 6))):
            assert contrast(found[name], found[background]) >= TEXT_CONTRAST, f"{name} on {background}"
    for name in ("edge", *(f"lag-{number}" for number in range(5))):
        assert contrast(found[name], found["surface"]) >= SHAPE_CONTRAST, name


@pytest.mark.slow
def test_the_wheel_has_the_files(tmp_path: Path) -> None:
    subprocess.run(
        [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation", "-w", tmp_path, "."],
        cwd=repository.ROOT,
        check=True,
    )
    [wheel] = tmp_path.glob("typha-*.whl")
    names = set(zipfile.ZipFile(wheel).namelist())
    assert {f"typha/admin/page/{name}" for name in ("index.html", "look.css", "page.js", "icon.svg")} <= names
    assert "loadtest/reporting/look.css" in names
