"""The status page: its files, what they may do in a browser, and which requests are answered.

The port has no authentication. So it is off unless a setting says otherwise, it listens on the loopback address unless
another one is set, and it only shows. A page of another origin learns nothing: there is no CORS, and a name that leads
to this port by DNS rebinding is refused, because the Host header has to be a known name or an address.
"""

import asyncio
import importlib.resources
import ipaddress
from collections.abc import Callable, Mapping
from typing import Final

from typha.admin import server
from typha.observability import http_connections

LIMITS: Final = http_connections.Limits(connections=16, answer_seconds=30.0)
"""A browser opens up to six connections. The largest answer has some megabytes."""
ANSWERS_PER_SECOND_MAX: Final = 5
"""Answers of one path that are made in a second. Equal questions share one: many open pages cost as much as one."""
_SHARED_SECONDS: Final = 1.0
_FILES: Final = {
    "/": ("index.html", "text/html; charset=utf-8"),
    "/look.css": ("look.css", "text/css; charset=utf-8"),
    "/page.js": ("page.js", "text/javascript; charset=utf-8"),
    "/icon.svg": ("icon.svg", "image/svg+xml"),
}
_POLICY: Final = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; base-uri 'none'; "
    "form-action 'none'; frame-ancestors 'none'; require-trusted-types-for 'script'; trusted-types 'none'"
)
HEADERS: Final[Mapping[str, str]] = {
    "Content-Security-Policy": _POLICY,
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-store",
}
"""Of every answer. No script of a page may make markup from text (Trusted Types), and none comes from elsewhere."""


def pages(data: Mapping[str, server.Page]) -> dict[str, server.Page]:
    """The files of the page, and the data that it shows."""
    folder = importlib.resources.files("typha.admin.page")
    files = {path: (folder.joinpath(name).read_bytes(), kind) for path, (name, kind) in _FILES.items()}
    return {
        **{path: _file(server.Answer(body, kind)) for path, (body, kind) in files.items()},
        **{path: Shared(page) for path, page in data.items()},
    }


def _file(answer: server.Answer) -> server.Page:
    async def page(_query: server.Query) -> server.Answer:
        return answer

    return page


class Shared:
    """Makes a few answers of a page a second, whoever asks."""

    def __init__(self, page: server.Page) -> None:
        self._page = page
        self._answers: dict[tuple[tuple[str, str], ...], server.Answer] = {}
        self._made = 0
        self._lock = asyncio.Lock()

    async def __call__(self, query: server.Query) -> server.Answer:
        """The answer, at most a second old. Status 429: there were too many different questions."""
        key = tuple(sorted(query.items()))
        async with self._lock:
            if key in self._answers:
                return self._answers[key]
            if self._made >= ANSWERS_PER_SECOND_MAX:
                return server.Answer(b"too many different queries, try again in a second\n", server.TEXT, 429)
            loop = asyncio.get_running_loop()
            self._made += 1
            loop.call_later(_SHARED_SECONDS, self._uncount)
            answer = self._answers[key] = await self._page(query)
            loop.call_later(_SHARED_SECONDS, self._answers.pop, key)  # from here on: making it may take longer
            return answer

    def _uncount(self) -> None:
        self._made -= 1


def answers_to(configured_host: str) -> Callable[[str], bool]:
    """Which Host headers are answered: the configured name, localhost, and addresses, with any port."""
    names = {"localhost", configured_host.lower()} - {""}

    def is_known(host: str) -> bool:
        name, bracket, port = host.lower().partition("]")
        if bracket:
            name, port = name.removeprefix("["), port.removeprefix(":")
        else:
            name, _, port = name.partition(":")
        return (not port or (port.isascii() and port.isdigit())) and (name in names or _is_address(name))

    return is_known


def _is_address(text: str) -> bool:
    try:
        ipaddress.ip_address(text)
    except ValueError:
        return False
    return True
