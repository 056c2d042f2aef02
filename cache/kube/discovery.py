"""Single requests to the API server, and the API groups and resource types that it serves."""

from typing import NamedTuple, TypeVar

import msgspec

from cache import resources
from cache.kube import api
from cache.watch import decoding
from cache.watch.policy import Failure

T = TypeVar("T")

_ANSWER_SECONDS = 30.0
"""Limit for a whole exchange."""
_MAX_ERROR_BYTES = 4096
_MAX_BODY_BYTES = 4 * 1024 * 1024
"""A list of a thousand groups has 300 kB, and a custom resource 1.5 MB at most."""
NOT_FOUND = 404
FORBIDDEN = 403


class Answer(NamedTuple):
    """An answer of any HTTP status."""

    status: int
    body: bytes


class _Named(msgspec.Struct):
    name: str = ""


class _GroupList(msgspec.Struct):
    groups: list[_Named] = []


class _ResourceList(msgspec.Struct):
    resources: list[_Named] = []


class Refused(Exception):
    """The API server answered with an unexpected status."""

    def __init__(self, status: int, detail: str) -> None:
        super().__init__(f"{status}: {detail}" if detail else str(status))
        self.status = status


async def exchange(
    session: api.KubeApi,
    method: str,
    path: str,
    *,
    limit: int | None = None,
    json_body: bytes | None = None,
    answer_seconds: float = _ANSWER_SECONDS,
) -> Answer:
    """Send one request and read the whole answer. `limit` is the limit of a list.

    Of an error's body, read only the beginning.

    Raises:
        api.Interrupted.
    """
    query = {} if limit is None else {"limit": str(limit)}
    async with api.deadline(answer_seconds, f"{path}: no whole answer"):
        response = await session.request(method, path, query, read_timeout_seconds=answer_seconds, json_body=json_body)
        try:
            if response.status >= 400:
                body = await api.read_beginning(response, _MAX_ERROR_BYTES, seconds=answer_seconds / 2)
            else:
                body = await api.read_body(response, _MAX_BODY_BYTES)
        finally:
            api.close_response(response)
    return Answer(response.status, body)


async def lists(session: api.KubeApi, type: resources.ResourceType) -> bool:
    """Return whether the API server lists the type among those that it serves.

    Raises:
        api.Interrupted, Refused.
    """
    path = f"/apis/{type.group}/{type.version}" if type.group else f"/api/{type.version}"
    try:
        listed = await _get(session, path, _ResourceList)
    except Refused as error:
        if error.status != NOT_FOUND:
            raise
        return False
    return any(resource.name == type.resource for resource in listed.resources)


async def group_names(session: api.KubeApi) -> frozenset[str]:
    """Return the names of the API groups, without the core group. Raises api.Interrupted, Refused."""
    listed = await _get(session, "/apis", _GroupList)
    return frozenset(group.name for group in listed.groups)


async def installed_types(
    session: api.KubeApi, types: list[resources.ResourceType]
) -> frozenset[resources.ResourceType]:
    """Return those of the types that the API server serves. All must have the same group and version.

    Raises:
        api.Interrupted, Refused.
    """
    first = types[0]
    try:
        listed = await _get(session, f"/apis/{first.group}/{first.version}", _ResourceList)
    except Refused as error:
        if error.status == NOT_FOUND:
            return frozenset()
        if error.status != FORBIDDEN:
            raise
        # Without the permission to list resource types, we may still have the permission to read them.
        return frozenset([type for type in types if await _is_served(session, type)])
    names = {resource.name for resource in listed.resources}
    return frozenset(type for type in types if type.resource in names)


async def _is_served(session: api.KubeApi, type: resources.ResourceType) -> bool:
    answer = await exchange(session, "GET", type.list_path, limit=1)
    return answer.status == 200


async def _get(session: api.KubeApi, path: str, shape: type[T]) -> T:
    answer = await exchange(session, "GET", path)
    if answer.status != 200:
        raise Refused(answer.status, answer.body[:200].decode("utf-8", "replace"))
    try:
        return msgspec.json.decode(answer.body, type=shape)
    except decoding.UNDECODABLE as error:
        raise api.Interrupted(Failure.MALFORMED, f"{path}: {error}") from error
