"""Where the other replicas are: the addresses of the Service's EndpointSlices, ready or not.

They are read while the API server answers, so that they are known when it does not.
"""

import ipaddress
from typing import Annotated

import msgspec

from cache import resources
from cache.kube import api
from typha import networks

KUBERNETES = "kubernetes"
"""The setting that asks for it."""
ENDPOINT_SLICES = resources.ResourceType("discovery.k8s.io", "v1", "endpointslices")
PEERS_MAX = 100
"""More replicas than a cluster has. A replica asks all of them."""
_BYTES_MAX = 4 * 1024 * 1024
_ANSWER_SECONDS = 30.0
"""As the original."""
_OK = 200


class Unreadable(Exception):
    """The addresses cannot be read; the message says why."""


class _Port(msgspec.Struct, frozen=True):
    name: str | None = None
    port: Annotated[int, msgspec.Meta(ge=1, le=65535)] | None = None


class _Endpoint(msgspec.Struct, frozen=True):
    addresses: list[str]


class _Slice(msgspec.Struct, frozen=True, rename="camel"):
    endpoints: list[_Endpoint] | None = None
    ports: list[_Port] | None = None


class _SliceList(msgspec.Struct, frozen=True):
    items: list[_Slice]


async def read(session: api.KubeApi, *, namespace: str, service: str, port_name: str) -> list[str]:
    """The addresses of the Service's port as HOST:PORT, this replica's included.

    Raises:
        Unreadable: the API server does not answer, or not with EndpointSlices.
    """
    path = f"/apis/discovery.k8s.io/v1/namespaces/{namespace}/endpointslices"
    query = {"labelSelector": f"kubernetes.io/service-name={service}"}
    try:
        async with api.deadline(_ANSWER_SECONDS, "no list of EndpointSlices"):
            response = await session.get(path, query, read_timeout_seconds=_ANSWER_SECONDS)
            try:
                body = await api.read_body(response, _BYTES_MAX)
            finally:
                api.close_response(response)
    except api.Interrupted as error:
        raise Unreadable(str(error)) from error
    if response.status != _OK:
        raise Unreadable(f"EndpointSlices of {namespace}/{service}: status {response.status}")
    return addresses(body, port_name=port_name)


def addresses(body: bytes, *, port_name: str) -> list[str]:
    """The addresses in a list of EndpointSlices. What is no IP address is left out.

    Raises:
        Unreadable: it is no such list.
    """
    try:
        slices = msgspec.json.decode(body, type=_SliceList).items
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise Unreadable(f"EndpointSlices cannot be read: {error}") from error
    found = {
        networks.with_port(address, port.port)
        for one in slices
        for port in one.ports or ()
        if port.port is not None and (port.name or "") == port_name
        for endpoint in one.endpoints or ()
        for address in endpoint.addresses
        if _is_address(address)
    }
    return sorted(found)[:PEERS_MAX]


def _is_address(text: str) -> bool:
    try:
        ipaddress.ip_address(text)
    except ValueError:
        return False
    return True


def listed(text: str) -> list[str]:
    """The addresses of the setting PeerAddresses."""
    return [one.strip() for one in text.split(",") if one.strip()][:PEERS_MAX]
