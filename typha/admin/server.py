"""Serves the pages for operators by HTTP, with the limits of all HTTP ports of the service (`http_connections`)."""

import asyncio
import socket
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, NamedTuple
from urllib.parse import parse_qsl

import structlog
from aiohttp import web

from typha.observability import http_connections, logs

_log = structlog.get_logger("typha.admin")

LIMITS = http_connections.Limits(connections=8, answer_seconds=30.0)
"""Operators ask a few times a second at most. An answer may have to be made first, and has up to some megabytes."""
_FIELDS_MAX = 20
_FAILED_PAGE_LINES_SECONDS = 60.0
_METHODS = frozenset({"GET", "HEAD"})
JSON = "application/json"
TEXT = "text/plain; charset=utf-8"


class BadQuery(ValueError):
    """The query cannot be answered; the message says why."""


class Answer(NamedTuple):
    """The response of a page."""

    body: bytes
    content_type: str = JSON
    status: int = 200


Query = dict[str, str]
Page = Callable[[Query], Awaitable[Answer]]
"""Makes an answer. Raises BadQuery."""


class AdminServer:
    """Serves pages on sockets that listen. Answers other paths with 404."""

    def __init__(
        self,
        name: str,
        pages: Mapping[str, Page],
        *,
        limits: http_connections.Limits = LIMITS,
        headers: Mapping[str, str] | None = None,
        answers_to: Callable[[str], bool] = lambda _host: True,
    ) -> None:
        """Args:
        headers: of every answer.
        answers_to: whether requests with this Host header are answered.
        """
        self.name = name
        self._headers = dict(headers or {})
        self._answers_to = answers_to
        self._connections: http_connections.HttpConnections | None = None
        self.pages = pages
        self._limits = limits
        self._failures = logs.LineLimit(1, seconds=_FAILED_PAGE_LINES_SECONDS)
        self.refused = dict.fromkeys((*http_connections.REASONS, http_connections.FORBIDDEN), 0)
        """Connections that the server closed early, and malformed requests, by reason."""

    async def run(
        self,
        listeners: list[socket.socket],
        *,
        peer_of: Callable[[socket.socket, Any], str] = http_connections.address_of,
    ) -> None:
        """Serve until cancelled. Takes the listeners."""
        server = web.Server(self._handle, handler_cancellation=True)
        connections = http_connections.HttpConnections(self.name, server, self.refused, self._limits, peer_of=peer_of)
        self._connections = connections
        try:
            connections.listen(listeners)
            await asyncio.Event().wait()
        finally:
            await connections.close()

    async def _handle(self, request: web.BaseRequest) -> web.Response:
        response = await self._response(request)
        response.headers.update(self._headers)
        return response

    async def _response(self, request: web.BaseRequest) -> web.Response:
        host = request.headers.get("Host", "")
        if not self._answers_to(host):
            if self._connections is not None:
                self._connections.note(http_connections.BAD_REQUEST, request.remote or "", f"unknown host {host!r}")
            return http_connections.answer(421, b"this server has another name\n")
        path, _, query = request.raw_path.partition("?")
        page = self.pages.get(path)
        if page is None:
            return http_connections.answer(404, b"404 page not found\n")
        if request.method not in _METHODS:
            return http_connections.answer(405, b"method not allowed\n", Allow="GET, HEAD")
        try:
            answer = await page(dict(parse_qsl(query, keep_blank_values=True, max_num_fields=_FIELDS_MAX)))
        except ValueError as error:
            return http_connections.answer(400, f"{error}\n".encode(errors="replace"))
        except Exception:
            if self._failures.allows():
                _log.exception(
                    "Page failed",
                    server=self.name,
                    path=path,
                    other_failures_not_logged=self._failures.take_suppressed(),
                )
            return http_connections.answer(500, b"internal error\n")
        return http_connections.answer(answer.status, answer.body, answer.content_type)
