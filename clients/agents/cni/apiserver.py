"""Requests to the API server, one at a time, by http.client: it costs a short-lived process least."""

import http.client
import json
import time
import urllib.parse
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final, TypeVar

from clients.agents.cni import ipam
from clients.agents.cni.records import GROUP_VERSION, JsonObject

if TYPE_CHECKING:
    from clients.agents.cni.kubeconfig import Access

REQUEST_TIMEOUT_SECONDS: Final = 10.0
CALL_TIMEOUT_SECONDS: Final = 60.0
"""All requests of one call together; well below the minutes after which a runtime calls again."""
MAX_ANSWER_BYTES: Final = 256 << 20
"""A list of 20,000 blocks has 100 MB."""
MAX_MESSAGE_LENGTH: Final = 300
_ATTEMPTS: Final = 3
_RETRIED: Final = (429, 500, 502, 503, 504)
_RETRY_SECONDS: Final = 0.2

Result = TypeVar("Result")


class Unavailable(Exception):
    """The API server does not answer, or not now."""


class Refused(Exception):
    """The API server refuses the request."""


class ApiServer:
    """The API server of one cluster. Close it at the end."""

    def __init__(self, access: "Access", *, clock: Callable[[], float] = time.monotonic) -> None:
        self._access = access
        self._clock = clock
        self._deadline = clock() + CALL_TIMEOUT_SECONDS
        self._connection: http.client.HTTPConnection | None = None

    def close(self) -> None:
        """Close the connection."""
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def run(self, steps: ipam.Steps[Result]) -> Result:
        """Run an operation of IPAM. Raises its errors, Unavailable, Refused."""
        try:
            request = next(steps)
            while True:
                try:
                    answer = self._answer(request)
                except (ipam.Missing, ipam.Exists, ipam.Conflict) as error:
                    request = steps.throw(error)
                else:
                    request = steps.send(answer)
        except StopIteration as end:
            result: Result = end.value
            return result

    def pod(self, namespace: str, name: str) -> JsonObject:
        """A pod. Raises Missing, Unavailable, Refused."""
        return self._send("GET", _pod_path(namespace, name))

    def annotate_pod(self, namespace: str, name: str, *, uid: str, annotations: dict[str, str]) -> JsonObject:
        """Set annotations of this very pod. Raises Missing, Conflict, Unavailable, Refused."""
        return self._annotate(_pod_path(namespace, name), {"uid": uid, "annotations": annotations})

    def annotate_node(self, name: str, annotations: dict[str, str]) -> JsonObject:
        """Set annotations of a node. Raises Missing, Unavailable, Refused."""
        return self._annotate(f"/api/v1/nodes/{name}", {"annotations": annotations})

    def pods(self) -> list[JsonObject]:
        """All pods. Raises Unavailable, Refused."""
        items: list[JsonObject] = self._send("GET", "/api/v1/pods")["items"]
        return items

    def _annotate(self, path: str, metadata: JsonObject) -> JsonObject:
        """By way of the status, which Calico's roles allow."""
        kind = "application/strategic-merge-patch+json"
        return self._send("PATCH", f"{path}/status", {"metadata": metadata}, kind=kind)

    def _answer(self, request: ipam.Request) -> Any:
        path = f"/apis/{GROUP_VERSION}/{request.resource}"
        match request:
            case ipam.Get(name=name):
                return self._send("GET", f"{path}/{name}")
            case ipam.List(labels=labels):
                selector = ",".join(f"{name}={value}" for name, value in labels.items())
                query = "?" + urllib.parse.urlencode({"labelSelector": selector}) if selector else ""
                return self._send("GET", path + query)["items"]
            case ipam.Create(value=value):
                return self._send("POST", path, value)
            case ipam.Replace(value=value):
                return self._send("PUT", f"{path}/{value['metadata']['name']}", value)
            case ipam.Delete(value=value):
                conditions = {name: value["metadata"][name] for name in ("uid", "resourceVersion")}
                options = {"apiVersion": "v1", "kind": "DeleteOptions", "preconditions": conditions}
                return self._send("DELETE", f"{path}/{value['metadata']['name']}", options)

    def _send(
        self, method: str, path: str, value: JsonObject | None = None, kind: str = "application/json"
    ) -> JsonObject:
        """Send a request. Only what changes nothing is sent again, or what the API server has not begun (429)."""
        body = None if value is None else json.dumps(value, separators=(",", ":")).encode()
        headers = {"Accept": "application/json", "User-Agent": "typha-cni", **self._access.headers}
        if body is not None:
            headers["Content-Type"] = kind
        for attempt in range(1, _ATTEMPTS + 1):
            try:
                status, text = self._exchange(method, path, body, headers)
            except (OSError, http.client.HTTPException) as error:
                self.close()
                if attempt == _ATTEMPTS or method != "GET":
                    raise Unavailable(f"{self._access.server}: {error!r}"[:MAX_MESSAGE_LENGTH]) from error
            else:
                if status not in _RETRIED:
                    return self._read(status, text)
                if attempt == _ATTEMPTS or (method != "GET" and status != 429):
                    raise Unavailable(f"{self._access.server} answers {status}: {_message(text)}")
            time.sleep(_RETRY_SECONDS * attempt)
        raise AssertionError("the last attempt returns or raises")

    def _exchange(self, method: str, path: str, body: bytes | None, headers: dict[str, str]) -> tuple[int, bytes]:
        left_seconds = self._deadline - self._clock()
        if left_seconds <= 0:
            raise TimeoutError(f"the call takes longer than {CALL_TIMEOUT_SECONDS:.0f} s")
        if self._connection is None:
            self._connection = self._access.connect(timeout_seconds=min(REQUEST_TIMEOUT_SECONDS, left_seconds))
        self._connection.request(method, path, body, headers)
        response = self._connection.getresponse()
        text = response.read(MAX_ANSWER_BYTES + 1)
        if len(text) > MAX_ANSWER_BYTES:
            self.close()
            raise Refused(f"the answer to {method} {path} has more than {MAX_ANSWER_BYTES} bytes")
        return response.status, text

    def _read(self, status: int, text: bytes) -> JsonObject:
        if status < 300:
            try:
                value = json.loads(text)
            except ValueError as error:
                raise Unavailable(f"{self._access.server} answers no JSON") from error
            if not isinstance(value, dict):
                raise Unavailable(f"{self._access.server} answers no object")
            return value
        if status == 404:
            raise ipam.Missing(_message(text))
        if status == 409:
            raise (ipam.Exists if _reason(text) == "AlreadyExists" else ipam.Conflict)(_message(text))
        if _reason(text) == "Invalid" and "metadata.uid" in _message(text):
            raise ipam.Conflict(_message(text))  # a patch that is meant for another object of this name
        raise Refused(f"{self._access.server} answers {status}: {_message(text)}")


def _pod_path(namespace: str, name: str) -> str:
    return f"/api/v1/namespaces/{namespace}/pods/{name}"


def _status(text: bytes) -> JsonObject:
    try:
        found = json.loads(text)
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}


def _reason(text: bytes) -> str:
    return str(_status(text).get("reason"))


def _message(text: bytes) -> str:
    return str(_status(text).get("message") or text[:MAX_MESSAGE_LENGTH].decode(errors="replace"))[:MAX_MESSAGE_LENGTH]
