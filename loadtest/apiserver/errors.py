"""Errors of a simulated API server, each with its Status as kube-apiserver writes it."""

import json
from typing import Any, ClassVar

from loadtest.apiserver.resources import Resource


class ApiError(Exception):
    """An error that is answered with a Status; `retry_after_seconds` becomes the Retry-After header."""

    def __init__(
        self,
        code: int,
        reason: str,
        message: str,
        *,
        details: dict[str, Any] | None = None,
        retry_after_seconds: int | None = None,
    ) -> None:
        super().__init__(message)
        self.code = code
        self.reason = reason
        self.details = dict(details or {})
        self.retry_after_seconds = retry_after_seconds
        if retry_after_seconds is not None:
            self.details["retryAfterSeconds"] = retry_after_seconds

    def status(self) -> bytes:
        """The Status object as JSON, without a newline."""
        status: dict[str, Any] = {
            "kind": "Status",
            "apiVersion": "v1",
            "metadata": {},
            "status": "Failure",
            "message": str(self),
        }
        if self.reason:
            status["reason"] = self.reason
        if self.details or self.reason == "NotFound":
            status["details"] = self.details
        status["code"] = self.code
        return json.dumps(status, separators=(",", ":")).encode()

    def event_line(self) -> bytes:
        """An ERROR event with the Status."""
        return b'{"type":"ERROR","object":%b}\n' % self.status()


class TypeUnknown(ApiError):
    """The resource type is not served."""

    def __init__(self, resource: Resource | None = None) -> None:
        super().__init__(404, "NotFound", "the server could not find the requested resource")
        self.resource = resource


class PageNotFound(Exception):
    """Nothing is served at this path, not even a group of types. The answer is text, without a Status."""


class _ObjectError(ApiError):
    """An error about one object."""

    answer: ClassVar[tuple[int, str, str]]
    """Code, reason, and what the message says of the object."""

    def __init__(self, resource: Resource, name: str) -> None:
        code, reason, text = self.answer
        group = {"group": resource.group} if resource.group else {}
        qualified = ".".join([resource.name, *group.values()])
        super().__init__(
            code, reason, f'{qualified} "{name}"{text}', details={"name": name, **group, "kind": resource.name}
        )


class NotFound(_ObjectError):
    """The object does not exist."""

    answer = 404, "NotFound", " not found"


class AlreadyExists(_ObjectError):
    """An object of this name exists already."""

    answer = 409, "AlreadyExists", " already exists"


class Conflict(_ObjectError):
    """The object has changed since the version that the caller knows."""

    answer = 409, "Conflict", ": the object has been modified, apply the change to its newest version"


class Invalid(ApiError):
    """The object is not valid."""

    def __init__(self, resource: Resource, name: str, problem: str) -> None:
        message = f'{resource.kind} "{name}" is invalid: {problem}'
        super().__init__(
            422, "Invalid", message, details={"name": name, "group": resource.group, "kind": resource.kind}
        )


class InvalidOptions(ApiError):
    """Options of list or watch that contradict each other."""

    def __init__(self, field: str, problem: str) -> None:
        message = f'ListOptions.meta.k8s.io "" is invalid: {field}: Forbidden: {problem}'
        cause = {"reason": "FieldValueForbidden", "message": f"Forbidden: {problem}", "field": field}
        details = {"group": "meta.k8s.io", "kind": "ListOptions", "causes": [cause]}
        super().__init__(422, "Invalid", message, details=details)


class BadRequest(ApiError):
    """The request cannot be parsed."""

    def __init__(self, message: str) -> None:
        super().__init__(400, "BadRequest", message)


class Expired(ApiError):
    """The history no longer reaches back to the requested version."""

    def __init__(self, version: int, oldest: int) -> None:
        super().__init__(410, "Expired", f"too old resource version: {version} ({oldest})")


class ResourceVersionTooLarge(ApiError):
    """The requested version does not exist yet."""

    def __init__(self, version: int, current: int) -> None:
        # Older clients recognize the error by this text.
        message = f"Timeout: Too large resource version: {version}, current: {current}"
        cause = {"reason": "ResourceVersionTooLarge", "message": "Too large resource version"}
        super().__init__(504, "Timeout", message, details={"causes": [cause]}, retry_after_seconds=1)


#: Reasons that kube-apiserver gives with each code, for scripted faults.
REASONS = {
    400: "BadRequest",
    401: "Unauthorized",
    403: "Forbidden",
    404: "NotFound",
    409: "Conflict",
    410: "Expired",
    422: "Invalid",
    429: "TooManyRequests",
    500: "InternalError",
    503: "ServiceUnavailable",
    504: "Timeout",
}
