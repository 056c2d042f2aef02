"""Runs `typha status --json` in every pod of a Service, by `pods/exec` of the API server.

The kubeconfig is that of the environment (KUBECONFIG, K8S_CURRENT_CONTEXT), read as the service reads it. Its user
needs `list` on endpointslices, and `get` and `create` on pods/exec.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, NamedTuple

import aiohttp
import click
import msgspec
import structlog

from cache.kube import access, api, discovery, endpoints, loader
from typha.admin import client, replicas
from typha.cli import status

_PROTOCOLS = ("v5.channel.k8s.io", "v4.channel.k8s.io")
_STDOUT, _STDERR, _ERROR = 1, 2, 3
"""The first byte of a message: the channel that the rest belongs to."""
_REPLICAS_MAX = 100
_AT_A_TIME = 8
_ACCESS_SECONDS = 70.0
_ANSWER_SECONDS = 15.0
_EXEC_SECONDS = 30.0
"""For one pod: a new process starts there, which takes a second on a busy node, and asks the service."""
_STDERR_BYTES_MAX = 8 * 1024


class _Unanswered(Exception):
    """There is no answer; the message says why."""


class _Pod(NamedTuple):
    namespace: str
    name: str


class _ExecStatus(msgspec.Struct, frozen=True):
    """What ends an exec: a `Status` of Kubernetes."""

    status: str = ""
    message: str = ""


def asker(
    service: str,
    container: str | None,
    question: status.Question,
    *,
    load: Callable[[], Awaitable[access.Access]] = loader.load_access,
) -> status.Ask:
    """Asks all pods of a Service each time that it is called."""
    namespace, _, name = service.partition("/")
    if not (endpoints.NAME.fullmatch(namespace) and endpoints.NAME.fullmatch(name)):
        raise click.UsageError("--service needs NAMESPACE/NAME")

    def ask() -> Coroutine[None, None, list[replicas.Replica]]:
        return _ask(namespace, name, container, question, load)

    return ask


async def _ask(
    namespace: str,
    name: str,
    container: str | None,
    question: status.Question,
    load: Callable[[], Awaitable[access.Access]],
) -> list[replicas.Replica]:
    session = api.KubeApi(load)
    before = structlog.get_config()
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.CRITICAL))  # stdout is ours
    try:
        async with asyncio.timeout(_ACCESS_SECONDS):
            await session.start()
        pods = await _pods(session, namespace, name)
        places = asyncio.Semaphore(_AT_A_TIME)

        async def ask_pod(pod: _Pod) -> replicas.Replica:
            async with places:
                return await _ask_pod(session, pod, container, question)

        return list(await asyncio.gather(*map(ask_pod, pods)))
    except discovery.Refused as error:
        detail = f"EndpointSlices cannot be listed: status {error.status}"
        return [replicas.Replica(server=f"{namespace}/{name}", error=detail)]
    except (TimeoutError, access.AccessError, api.Interrupted, _Unanswered) as error:
        detail = str(error) or "no credentials in time"
        return [replicas.Replica(server=f"{namespace}/{name}", error=detail)]
    finally:
        structlog.configure(**before)
        await session.close()


async def _pods(session: api.KubeApi, namespace: str, name: str) -> list[_Pod]:
    listed = await endpoints.of_service(session, namespace, name, answer_seconds=_ANSWER_SECONDS)
    found = {_Pod(namespace, one.pod) for one in listed if endpoints.NAME.fullmatch(one.pod)}
    if not found:
        raise _Unanswered("the Service has no pods")
    if len(found) > _REPLICAS_MAX:
        raise _Unanswered(f"the Service has {len(found)} pods, and {_REPLICAS_MAX} can be asked")
    return sorted(found)


async def _ask_pod(
    session: api.KubeApi, pod: _Pod, container: str | None, question: status.Question
) -> replicas.Replica:
    try:
        async with api.deadline(_EXEC_SECONDS, "no whole answer"):
            said = await execute(session, pod, container, ["typha", "status", "--json", *question.arguments()])
        [one] = msgspec.json.decode(said, type=replicas.Fleet).replicas
    except (_Unanswered, api.Interrupted, msgspec.DecodeError, RecursionError, ValueError) as error:
        return replicas.Replica(server=pod.name, error=str(error))
    return msgspec.structs.replace(one, server=pod.name)


async def execute(session: api.KubeApi, pod: _Pod, container: str | None, command: list[str]) -> bytes:
    """What a command in a pod writes to its standard output.

    Raises:
        _Unanswered: it ended with an error, or wrote too much.
        api.Interrupted: the API server cannot be asked, or refuses.
    """
    query: list[tuple[str, str]] = [("command", part) for part in command]
    query += [("stdout", "true"), ("stderr", "true")]
    if container:
        query.append(("container", container))
    path = f"/api/v1/namespaces/{pod.namespace}/pods/{pod.name}/exec"
    limit = client.ANSWER_BYTES_MAX
    socket = await session.websocket(path, query, protocols=_PROTOCOLS, message_bytes_max=limit)
    parts: dict[int, bytearray] = {_STDOUT: bytearray(), _STDERR: bytearray(), _ERROR: bytearray()}
    try:
        if socket.protocol not in _PROTOCOLS:
            raise _Unanswered(f"the API server speaks none of {', '.join(_PROTOCOLS)}")
        async for message in socket:
            _take(message, parts)
            if len(parts[_STDOUT]) > limit:
                raise _Unanswered(f"the answer has more than {limit} bytes")
    finally:
        await socket.close()
    _check_end(bytes(parts[_ERROR]), bytes(parts[_STDERR]), is_empty=not parts[_STDOUT])
    return bytes(parts[_STDOUT])


def _take(message: aiohttp.WSMessage, parts: dict[int, bytearray]) -> None:
    data: Any = message.data
    if message.type is not aiohttp.WSMsgType.BINARY or not isinstance(data, bytes) or not data:
        return
    part = parts.get(data[0])
    if part is None:
        return  # such as 255 of version 5: a channel is closed
    part += data[1:]
    if data[0] != _STDOUT:
        del part[_STDERR_BYTES_MAX:]


def _check_end(ending: bytes, said: bytes, *, is_empty: bool) -> None:
    try:
        ended = msgspec.json.decode(ending, type=_ExecStatus) if ending else None
    except (msgspec.DecodeError, RecursionError):
        ended = None
    if ended is None:
        raise _Unanswered("the connection ended before the command")
    if ended.status == "Success" or not is_empty:  # `typha status` says in its answer what failed
        return
    detail = " ".join(said.decode(errors="replace").split())
    raise _Unanswered(f"{ended.message or 'the command failed'}{f': {detail}' if detail else ''}"[:1000])
