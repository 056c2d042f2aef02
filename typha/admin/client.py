"""Asks a running service: by its Unix socket, or by HTTP where its status page is served."""

import contextlib
import http.client
import os
import socket
import ssl
import threading
import time
from typing import Any
from urllib.parse import urlencode, urlsplit

import msgspec

from typha.admin import local_socket

ANSWER_BYTES_MAX = 64 * 1024 * 1024
"""Ten thousand clients take 5 MB; a service that sends more than this is none."""
ANSWER_SECONDS = 15.0
_READ_BYTES = 256 * 1024
_STATUS_OK = 200
_GONE = 410


class Unanswered(Exception):
    """There is no answer that can be used; the message says why."""


class Changed(Exception):
    """What is read in pages has changed its form meanwhile: begin again."""


class _LocalConnection(http.client.HTTPConnection):
    def __init__(self, path: str) -> None:
        super().__init__("localhost", timeout=ANSWER_SECONDS)
        self._path = path

    def connect(self) -> None:
        self.sock = local_socket.connect(self._path)
        self.sock.settimeout(ANSWER_SECONDS)


class Service:
    """A service that answers. `server` is a path, or an http(s) URL; empty means the one service here."""

    def __init__(self, server: str = "") -> None:
        """Chooses the way.

        Raises:
            Unanswered: there is no such service.
        """
        self.name = server
        self._is_url = server.startswith(("http://", "https://"))
        if not server:
            configured = os.environ.get("TYPHA_ADMINSOCKET", "")
            try:
                self.name = configured if configured.startswith("/") else local_socket.find()
            except local_socket.Unusable as error:
                raise Unanswered(str(error)) from error

    def get(self, path: str, **query: object) -> Any:
        """The JSON of an answer. Parameters that are None are left out.

        Raises:
            Unanswered: there is none.
            Changed: see there.
        """
        given = {name: str(value) for name, value in query.items() if value is not None}
        body = self.get_bytes(f"{path}?{urlencode(given)}" if given else path)
        try:
            return msgspec.json.decode(body)
        except (msgspec.DecodeError, RecursionError) as error:  # the second: brackets within brackets
            raise Unanswered(f"{self.name}: the answer is no JSON: {error}") from error

    def get_bytes(self, target: str) -> bytes:
        """The body of an answer. Raises as `get`."""
        connection = self._connection()
        patience = threading.Timer(ANSWER_SECONDS, _cut, (connection,))  # the socket's own is one for each read
        patience.daemon = True
        try:
            connection.connect()
            patience.start()
            connection.request("GET", target, headers={"Accept-Encoding": "identity"})
            response = connection.getresponse()
            patience.cancel()
            body = _read(response)
        except local_socket.Unusable as error:
            raise Unanswered(str(error)) from error  # it names the path
        except (OSError, http.client.HTTPException) as error:
            raise Unanswered(f"{self.name}: {str(error) or type(error).__name__}") from error
        finally:
            patience.cancel()
            connection.close()
        if response.status == _GONE:
            raise Changed
        if response.status != _STATUS_OK:
            said = body[:200].decode(errors="replace").strip()
            raise Unanswered(f"{self.name}: status {response.status}: {said}")
        return body

    def _connection(self) -> http.client.HTTPConnection:
        if not self._is_url:
            return _LocalConnection(self.name)
        try:
            url = urlsplit(self.name)
            host, port = url.hostname or "", url.port
        except ValueError as error:
            raise Unanswered(f"{self.name}: {error}") from error
        if url.scheme == "https":
            return http.client.HTTPSConnection(host, port, timeout=ANSWER_SECONDS, context=ssl.create_default_context())
        return http.client.HTTPConnection(host, port, timeout=ANSWER_SECONDS)


def _cut(connection: http.client.HTTPConnection) -> None:
    """End a connection whose peer drips the head of its answer: reading fails then."""
    connected = connection.sock
    with contextlib.suppress(OSError):
        if connected is not None:
            connected.shutdown(socket.SHUT_RDWR)


def _read(response: http.client.HTTPResponse) -> bytes:
    """The body, within a size and a time: a peer that drips does not extend it."""
    deadline = time.monotonic() + ANSWER_SECONDS
    parts: list[bytes] = []
    size_bytes = 0
    while part := response.read1(_READ_BYTES):
        size_bytes += len(part)
        if size_bytes > ANSWER_BYTES_MAX:
            raise OSError(f"the answer has more than {ANSWER_BYTES_MAX} bytes")
        if time.monotonic() > deadline:
            raise TimeoutError(f"no whole answer within {ANSWER_SECONDS:g} s")
        parts.append(part)
    return b"".join(parts)
