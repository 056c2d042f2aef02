"""Host endpoints (docs/data-model.md, section 5.13). Pure."""

import re
from collections.abc import Sequence
from typing import Any

import msgspec

from cache import objects
from cache.feeds.calico import customresource, model, qos, rules
from cache.feeds.calico.codecs import addresses, gojson

_INTERFACE = re.compile(r"\*|[a-zA-Z0-9_.-]{1,15}")
_NAME = re.compile(r"[a-zA-Z0-9_.-]{1,128}")
_PORT_PROTOCOLS = frozenset({"tcp", "udp", "sctp"})
_UINT16_MAX = 0xFFFF


class _Port(msgspec.Struct, gc=False):
    name: str | None = None
    protocol: int | str | None = None
    port: int | None = None


class _Spec(msgspec.Struct, gc=False):
    node: str | None = None
    interfaceName: str | None = None  # noqa: N815
    expectedIPs: list[str | None] | None = None  # noqa: N815
    profiles: list[str | None] | None = None
    ports: list[_Port | None] | None = None


class _HostEndpoint(msgspec.Struct, gc=False):
    metadata: customresource.Metadata
    spec: _Spec = msgspec.field(default_factory=_Spec)


_decoder = msgspec.json.Decoder(_HostEndpoint)


def convert(event: objects.ObjectEvent, group: customresource.Group) -> Sequence[model.Item]:
    """Convert a host endpoint.

    Raises:
        ConversionError: no-node, bad-metadata-annotation, undecodable, invalid-object.
    """
    endpoint = model.typed(_decoder, event)
    metadata = customresource.effective_metadata(endpoint.metadata, group)
    spec = endpoint.spec
    if not spec.node:
        raise model.ConversionError("no-node", "spec.node is empty")
    addresses_by_family = _expected(spec.expectedIPs or ())
    class_ = qos.dscp(metadata.annotations or {})
    value: dict[str, Any] = {
        **({"name": spec.interfaceName} if spec.interfaceName else {}),
        **addresses_by_family,
        "labels": None if metadata.labels is None else gojson.sorted_map(metadata.labels),
        **({"profile_ids": [profile or "" for profile in spec.profiles]} if spec.profiles else {}),
        **({"ports": [_port(port or _Port()) for port in spec.ports]} if spec.ports else {}),
        **({} if class_ is None else {"qosControls": {"dscp": class_}}),
    }
    key = f"/calico/v1/host/{spec.node}/endpoint/{model.escaped(metadata.name or event.name)}"
    problem = _problem(value)
    if problem:
        return (model.Item(key, None, event.resource_version, invalid=problem),)
    return (model.Item(key, gojson.encode(value), event.resource_version),)


def _expected(texts: Sequence[str | None]) -> dict[str, list[str]]:
    found = [address for text in texts if (address := addresses.parse_ip(text or "")) is not None]
    return gojson.omit_empty(
        {
            "expected_ipv4_addrs": [str(address) for address in found if address.version == 4],
            "expected_ipv6_addrs": [str(address) for address in found if address.version == 6],
        }
    )


def _port(port: _Port) -> dict[str, Any]:
    number = port.port or 0
    if not 0 <= number <= _UINT16_MAX:
        raise model.ConversionError("undecodable", f"spec.ports: not a port: {number}")
    protocol = 0 if port.protocol is None else rules.protocol_value(port.protocol)
    return {"name": port.name or "", "protocol": protocol, "port": number}


def _problem(value: dict[str, Any]) -> str:
    """Return why validation rejects the endpoint. Empty if it is valid."""
    interface = value.get("name", "")
    if interface and not _INTERFACE.fullmatch(interface):
        return f"not an interface: {interface!r}"
    for profile in value.get("profile_ids", ()):
        if not _NAME.fullmatch(profile):
            return f"not a profile name: {profile!r}"
    for port in value.get("ports", ()):
        if not _NAME.fullmatch(port["name"]):
            return f"not a port name: {port['name']!r}"
        if port["port"] == 0 or port["protocol"] not in _PORT_PROTOCOLS:
            return f"not a port: {port['protocol']} {port['port']}"
    return ""
