"""A client for an API server that listens in another network namespace."""

import http.client
import json
import socket
import ssl
import time
from collections.abc import Callable
from typing import Any, Final

from loadtest.environment import calico_crds

JsonObject = dict[str, Any]

KINDS: Final = {
    "customresourcedefinitions": "CustomResourceDefinition",
    "namespaces": "Namespace",
    "nodes": "Node",
    "pods": "Pod",
    **{kind.plural or f"{kind.name.lower()}s": kind.name for kind in calico_crds.KINDS},
}
"""The kind of the objects in each list."""
TIMEOUT_SECONDS: Final = 30.0
BUSY_SECONDS: Final = 0.1


class ApiFailed(Exception):
    """The API server refuses, with its status."""

    def __init__(self, status: int, text: str) -> None:
        super().__init__(f"{status}: {text}")
        self.status = status


class Api:
    """One request a connection. `within` calls a function in the namespace from which the server can be reached."""

    def __init__(
        self,
        host: str,
        port: int,
        *,
        within: Callable[[Callable[[], socket.socket]], socket.socket],
        tls: ssl.SSLContext | None = None,
        token: str = "",
    ) -> None:
        self._host = host
        self.port = port
        self._within = within
        self._tls = tls
        self._headers = {"Authorization": f"Bearer {token}"} if token else {}

    def request(self, method: str, path: str, value: Any = None, *, kind: str = "application/json") -> JsonObject:
        """The answer to a request. Raises ApiFailed, OSError."""
        body = None if value is None else json.dumps(value)
        deadline = time.monotonic() + TIMEOUT_SECONDS
        status, text = self._exchange(method, path, body, kind)
        while status == http.HTTPStatus.TOO_MANY_REQUESTS and time.monotonic() < deadline:
            time.sleep(BUSY_SECONDS)  # a real API server prepares kinds that are new
            status, text = self._exchange(method, path, body, kind)
        if status >= 300:
            raise ApiFailed(status, _said(text))
        found = json.loads(text)
        if not isinstance(found, dict):
            raise ApiFailed(status, f"no object at {path}")
        return found

    def _exchange(self, method: str, path: str, body: str | None, kind: str) -> tuple[int, bytes]:
        connection = http.client.HTTPConnection(self._host, self.port, timeout=TIMEOUT_SECONDS)
        connection.sock = self._within(lambda: socket.create_connection((self._host, self.port), TIMEOUT_SECONDS))
        try:
            if self._tls is not None:
                connection.sock = self._tls.wrap_socket(connection.sock, server_hostname=self._host)
            connection.request(method, path, body, {"Content-Type": kind, **self._headers})
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
        """Add an object to the list at a path, from which its kind follows."""
        parts = path.strip("/").split("/")
        version = parts[1] if parts[0] == "api" else f"{parts[1]}/{parts[2]}"
        return self.request("POST", path, {"apiVersion": version, "kind": KINDS[parts[-1]], **value})

    def patch(self, path: str, value: JsonObject) -> JsonObject:
        """Change an object by a merge patch."""
        return self.request("PATCH", path, value, kind="application/merge-patch+json")

    def delete(self, path: str) -> JsonObject:
        """Delete an object at once: nobody would end a pod that terminates slowly."""
        return self.request("DELETE", path, {"gracePeriodSeconds": 0})


def _said(text: bytes) -> str:
    """The message of a Status, or else the beginning of the answer."""
    try:
        found = json.loads(text)
    except ValueError:
        found = None
    message = found.get("message") if isinstance(found, dict) else None
    return (message if isinstance(message, str) else text.decode(errors="replace"))[:500]
