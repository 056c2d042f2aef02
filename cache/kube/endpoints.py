"""The endpoints of a Service: its replicas, for those that ask or count them."""

import re
from collections.abc import Mapping
from typing import NamedTuple

import msgspec

from cache.kube import api, discovery
from cache.watch import decoding
from cache.watch.policy import Failure

NAME = re.compile(r"[a-z0-9]([-a-z0-9.]{0,251}[a-z0-9])?")
"""What Kubernetes calls its objects."""
_BYTES_MAX = 16 * 1024 * 1024
_OK = 200


class Endpoint(NamedTuple):
    """One endpoint of one slice."""

    addresses: tuple[str, ...]
    pod: str
    """The pod's name; empty if it is something else."""
    ports: Mapping[str, int]
    """Its slice's ports, by name; 0 stands for all of them."""


class _TargetRef(msgspec.Struct):
    kind: str = ""
    name: str = ""


class _Endpoint(msgspec.Struct, rename="camel"):
    addresses: tuple[str, ...] = ()
    target_ref: _TargetRef | None = None


class _Port(msgspec.Struct):
    name: str | None = None
    port: int | None = None


class _Slice(msgspec.Struct):
    endpoints: list[_Endpoint] | None = None
    ports: list[_Port] | None = None


class _Slices(msgspec.Struct):
    items: list[_Slice]


async def of_service(session: api.KubeApi, namespace: str, name: str, *, answer_seconds: float) -> list[Endpoint]:
    """All endpoints in the Service's EndpointSlices, ready or not.

    Raises:
        ValueError: that is no name.
        api.Interrupted, discovery.Refused.
    """
    for part in (namespace, name):
        if not NAME.fullmatch(part):
            raise ValueError(f"not a name: {part[:60]!r}")
    path = f"/apis/discovery.k8s.io/v1/namespaces/{namespace}/endpointslices"
    query = {"labelSelector": f"kubernetes.io/service-name={name}"}
    async with api.deadline(answer_seconds, "no list of EndpointSlices"):
        response = await session.get(path, query, read_timeout_seconds=answer_seconds)
        try:
            body = await api.read_body(response, _BYTES_MAX)
        finally:
            api.close_response(response)
    if response.status != _OK:
        raise discovery.Refused(response.status, "EndpointSlices cannot be listed")
    try:
        slices = msgspec.json.decode(body, type=_Slices).items
    except decoding.UNDECODABLE as error:
        raise api.Interrupted(Failure.MALFORMED, f"EndpointSlices cannot be read: {error}") from error
    return [
        Endpoint(
            endpoint.addresses,
            endpoint.target_ref.name if endpoint.target_ref is not None and endpoint.target_ref.kind == "Pod" else "",
            {port.name or "": port.port or 0 for port in one.ports or ()},
        )
        for one in slices
        for endpoint in one.endpoints or ()
    ]
