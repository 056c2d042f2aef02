"""A client for an API server that listens in another network namespace."""

import http.client
import json
import socket
from collections.abc import Callable
from typing import Any, Final

JsonObject = dict[str, Any]

TIMEOUT_SECONDS: Final = 30.0


class ApiFailed(Exception):
    """The API server refuses, with its status."""

    def __init__(self, status: int, text: str) -> None:
        super().__init__(f"{status}: {text}")
        self.status = status


class Api:
    """One request a connection. `within` calls a function in the namespace from which the server can be reached."""

    def __init__(self, host: str, port: int, *, within: Callable[[Callable[[], socket.socket]], socket.socket]) -> None:
        self._host = host
        self._port = port
        self._within = within

    def request(self, method: str, path: str, value: Any = None, *, kind: str = "application/json") -> JsonObject:
        """The answer to a request. Raises ApiFailed, OSError."""
        status, text = self._exchange(method, path, None if value is None else json.dumps(value), kind)
        if status >= 300:
            raise ApiFailed(status, text.decode(errors="replace")[:500])
        found = json.loads(text)
        if not isinstance(found, dict):
            raise ApiFailed(status, f"no object at {path}")
        return found

    def _exchange(self, method: str, path: str, body: str | None, kind: str) -> tuple[int, bytes]:
        connection = http.client.HTTPConnection(self._host, self._port, timeout=TIMEOUT_SECONDS)
        connection.sock = self._within(lambda: socket.create_connection((self._host, self._port), TIMEOUT_SECONDS))
        try:
            connection.request(method, path, body, {"Content-Type": kind})
            response = connection.getresponse()
            return response.status, response.read()
        finally:
            connection.close()

    def status(self, path: str) -> int:
        """The status of the answer to a GET. Raises OSError."""
        status, _ = self._exchange("GET", path, None, "application/json")
        return status

    def get(self, path: str) -> JsonObject:
        """An object, or a list."""
        return self.request("GET", path)

    def items(self, path: str) -> list[JsonObject]:
        """The objects of a list."""
        items: list[JsonObject] = self.get(path)["items"]
        return items

    def create(self, path: str, value: JsonObject) -> JsonObject:
        """Add an object to the list at a path."""
        return self.request("POST", path, value)

    def patch(self, path: str, value: JsonObject) -> JsonObject:
        """Change an object by a merge patch."""
        return self.request("PATCH", path, value, kind="application/merge-patch+json")

    def delete(self, path: str) -> JsonObject:
        """Delete an object."""
        return self.request("DELETE", path)
