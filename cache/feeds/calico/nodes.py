"""Nodes (docs/data-model.md, section 5.3): the whole resource, and host configuration and WireGuard for Felix. Pure.

Kubelets update their nodes often, but rarely what the items contain. The converter therefore remembers a digest of its
input for each node. Feeds that share the converter also share the result of one event.
"""

import hashlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import msgspec

from cache import objects
from cache.feeds.calico import model, networks
from cache.feeds.calico.codecs import addresses, gojson, kubenames

_ANNOTATION = "projectcalico.org/"
_KUBE_LABELS = _ANNOTATION + "kube-labels"
_ADDRESS_TYPES = frozenset({"InternalIP", "ExternalIP"})
_AS_NUMBER_BITS = 32
_KNOWN_NODES_MAX = 50_000


class _Metadata(msgspec.Struct, gc=False):
    name: str = ""
    uid: str = ""
    creationTimestamp: str | None = None  # noqa: N815
    labels: dict[str, str] | None = None
    annotations: dict[str, str] | None = None


class _Spec(msgspec.Struct, gc=False):
    podCIDR: str = ""  # noqa: N815
    podCIDRs: list[str] | None = None  # noqa: N815


class _Address(msgspec.Struct, gc=False):
    type: str = ""
    address: str = ""


class _Status(msgspec.Struct, gc=False):
    addresses: list[_Address] | None = None


class _Node(msgspec.Struct, gc=False):
    metadata: _Metadata
    spec: _Spec = msgspec.field(default_factory=_Spec)
    status: _Status = msgspec.field(default_factory=_Status)


_encode = msgspec.json.Encoder().encode
_decoder = msgspec.json.Decoder(_Node)
_decode_map = msgspec.json.Decoder(dict[str, str | None] | None).decode
_decode_interfaces = msgspec.json.Decoder(list[dict[str, Any] | None] | None).decode


class _Converted(NamedTuple):
    """The items of a node, and a digest of the input that they were made from."""

    digest: bytes
    all_items: Sequence[model.Item]
    whole: Sequence[model.Item]


class NodeConverter:
    """Converts nodes for all feeds that use them. For an unchanged node it returns the identical items again.

    Args:
        use_pod_cidr: pods get their addresses from their node's `podCIDRs` (host-local IPAM), not from Calico's IPAM.
            Felix then gets these networks as blocks, and tunnel addresses come from `podCIDR`.
    """

    def __init__(self, *, use_pod_cidr: bool = False) -> None:
        self._use_pod_cidr = use_pod_cidr
        self._last_event: objects.ObjectEvent | None = None
        self._known: dict[str, _Converted] = {}

    def felix(self, event: objects.ObjectEvent) -> Sequence[model.Item]:
        """Convert to host configuration, whole resource, WireGuard keys, and blocks with host-local IPAM.

        Raises:
            ConversionError: invalid-object, bad-cidr.
        """
        return self._converted(event).all_items

    def whole(self, event: objects.ObjectEvent) -> Sequence[model.Item]:
        """Convert to the whole resource. Raises ConversionError: invalid-object, bad-cidr."""
        return self._converted(event).whole

    def _converted(self, event: objects.ObjectEvent) -> _Converted:
        known = self._known.get(event.name)
        if known is not None and self._last_event is event:
            return known
        self._last_event = None
        node = model.typed(_decoder, event)
        digest = hashlib.blake2b(_encode(node), digest_size=16).digest()
        if known is None or known.digest != digest or any(item.invalid for item in known.whole):
            items = tuple(_convert(event, node, use_pod_cidr=self._use_pod_cidr))
            key = _whole_key(event.name)
            known = _Converted(digest, items, tuple(item for item in items if item.key == key))
            if len(self._known) >= _KNOWN_NODES_MAX:
                self._known.clear()
            self._known[event.name] = known
        self._last_event = event
        return known


def _whole_key(name: str) -> str:
    return f"/calico/resources/v3/projectcalico.org/nodes/{name}"


def _convert(event: objects.ObjectEvent, node: _Node, *, use_pod_cidr: bool) -> Sequence[model.Item]:
    annotations = node.metadata.annotations or {}
    static_tunnel = _static_tunnel(node.spec.podCIDR) if use_pod_cidr and node.spec.podCIDR else None
    bgp, wireguard, tunnels = (
        _bgp(annotations, static_tunnel),
        _wireguard(annotations, static_tunnel),
        _tunnels(annotations),
    )
    spec: dict[str, Any] = gojson.omit_empty(
        {
            "bgp": bgp,
            **tunnels,
            "orchRefs": [{"nodeName": event.name, "orchestrator": "k8s"}],
            "wireguard": wireguard,
            "addresses": _addresses(bgp, node.status.addresses or ()),
            "interfaces": _interfaces(annotations.get(_ANNOTATION + "Interfaces")),
        }
    )
    status = gojson.omit_empty(
        {
            "wireguardPublicKey": annotations.get(_ANNOTATION + "WireguardPublicKey"),
            "wireguardPublicKeyV6": annotations.get(_ANNOTATION + "WireguardPublicKeyV6"),
            "podCIDRs": node.spec.podCIDRs,
        }
    )
    metadata = _metadata(event.name, node.metadata)
    return [
        _bird_ip(event, annotations, node.status.addresses or ()),
        *_host_configuration(event, bgp, tunnels),
        _whole_item(event, metadata, spec, status),
        _wireguard_item(event, wireguard, status),
        *(_pod_blocks(event, node.spec.podCIDRs or ()) if use_pod_cidr else ()),
    ]


def _metadata(name: str, metadata: _Metadata) -> dict[str, Any]:
    annotations = metadata.annotations or {}
    labels = {**_text_map(annotations.get(_ANNOTATION + "labels")), **(metadata.labels or {})}
    kube_labels = None if metadata.labels is None else gojson.sorted_map(metadata.labels)
    copied = _text_map(annotations.get(_ANNOTATION + "annotations"))
    copied[_KUBE_LABELS] = gojson.encode(kube_labels).decode()
    return gojson.omit_empty(
        {
            "name": name,
            "uid": metadata.uid,
            "creationTimestamp": metadata.creationTimestamp,
            "labels": gojson.sorted_map(labels),
            "annotations": gojson.sorted_map(copied),
        }
    )


def _text_map(text: str | None) -> dict[str, str]:
    if text is None:
        return {}
    try:
        return {key: value or "" for key, value in (_decode_map(gojson.without_lone_surrogates(text)) or {}).items()}
    except (msgspec.DecodeError, RecursionError):
        return {}


def _annotation(annotations: Mapping[str, str], name: str, is_valid: Callable[[str], bool]) -> str:
    text = annotations.get(_ANNOTATION + name, "")
    return text if text and is_valid(text) else ""


def _is_ipv4_interface(text: str) -> bool:
    return addresses.version(text) == 4


def _is_ipv6_interface(text: str) -> bool:
    return addresses.version(text) == 6


def _is_strict_network(text: str, version: int) -> bool:
    if "/" not in text:
        address = addresses.parse_ip(text)
        return address is not None and address.version == version
    parsed = addresses.parse_interface(text)
    return parsed is not None and parsed[0] == (version, parsed[1].value) and parsed[1].version == version


def _is_ipv4_network(text: str) -> bool:
    return _is_strict_network(text, 4)


def _is_ipv6_network(text: str) -> bool:
    return _is_strict_network(text, 6)


def _as_number(text: str | None) -> int | None:
    if text is None:
        return None
    number = _decimal(text, _AS_NUMBER_BITS)
    if number is not None:
        return number
    high_text, dot, low_text = text.partition(".")
    high, low = _decimal(high_text, 16), _decimal(low_text, 16)
    return (high << 16) + low if dot and high is not None and low is not None else None


def _decimal(text: str, bits: int) -> int | None:
    if not text.isascii() or not text.isdigit() or len(text.lstrip("0")) > bits:
        return None
    number = int(text.lstrip("0") or "0")
    return number if number < 1 << bits else None


def _bgp(annotations: Mapping[str, str], static_tunnel: str | None) -> dict[str, Any]:
    if static_tunnel is None:
        tunnel = _annotation(annotations, "IPv4IPIPTunnelAddr", _is_ipv4_network)
    else:
        tunnel = static_tunnel
    as_number = _as_number(annotations.get(_ANNOTATION + "ASNumber"))
    return {
        **({} if as_number is None else {"asNumber": as_number}),
        **gojson.omit_empty(
            {
                "ipv4Address": _annotation(annotations, "IPv4Address", _is_ipv4_interface),
                "ipv6Address": _annotation(annotations, "IPv6Address", _is_ipv6_interface),
                "ipv4IPIPTunnelAddr": tunnel,
                "routeReflectorClusterID": _annotation(annotations, "RouteReflectorClusterID", _is_ipv4_network),
            }
        ),
    }


def _wireguard(annotations: Mapping[str, str], static_tunnel: str | None) -> dict[str, str]:
    if static_tunnel is not None:
        has_key = bool(annotations.get(_ANNOTATION + "WireguardPublicKey"))
        return gojson.omit_empty({"interfaceIPv4Address": static_tunnel if has_key else ""})
    return gojson.omit_empty(
        {
            "interfaceIPv4Address": _annotation(annotations, "IPv4WireguardInterfaceAddr", _is_ipv4_network),
            "interfaceIPv6Address": _annotation(annotations, "IPv6WireguardInterfaceAddr", _is_ipv6_network),
        }
    )


def _static_tunnel(pod_cidr: str) -> str:
    """Return the address that follows that of the pod CIDR, for the IPIP and WireGuard tunnels. Empty for IPv6.

    Only the last byte of the address counts up, as in the original.
    """
    parsed = addresses.parse_interface(pod_cidr)
    if parsed is None:
        raise model.ConversionError("bad-cidr", f"spec.podCIDR is not a CIDR: {pod_cidr!r:.80}")
    first, _ = parsed
    return addresses.ipv4_text(first.value & ~0xFF | (first.value + 1) & 0xFF) if first.version == 4 else ""


def _pod_blocks(event: objects.ObjectEvent, pod_cidrs: Sequence[str]) -> list[model.Item]:
    """Return the node's networks as blocks of Calico's IPAM. A bad one is ignored alone."""
    found = (addresses.parse_cidr(text) for text in pod_cidrs)
    by_key = {item.key: item for item in (networks.bare_block(event, network) for network in found if network)}
    return list(by_key.values())


def _tunnels(annotations: Mapping[str, str]) -> dict[str, str]:
    return {
        "ipv4VXLANTunnelAddr": _annotation(annotations, "IPv4VXLANTunnelAddr", _is_ipv4_network),
        "vxlanTunnelMACAddr": _annotation(annotations, "VXLANTunnelMACAddr", addresses.is_mac),
        "ipv6VXLANTunnelAddr": _annotation(annotations, "IPv6VXLANTunnelAddr", _is_ipv6_network),
        "vxlanTunnelMACAddrV6": _annotation(annotations, "VXLANTunnelMACAddrV6", addresses.is_mac),
    }


def _addresses(bgp: Mapping[str, Any], reported: Sequence[_Address]) -> list[dict[str, str]]:
    own = [bgp[name] for name in ("ipv4Address", "ipv6Address") if name in bgp]
    return [
        *({"address": text, "type": "CalicoNodeIP"} for text in own),
        *({"address": address.address, "type": address.type} for address in reported if address.type in _ADDRESS_TYPES),
    ]


def _interfaces(text: str | None) -> list[dict[str, Any]]:
    """Return the interfaces. None of them if any has an unexpected form."""
    if text is None:
        return []
    try:
        found = _decode_interfaces(gojson.without_lone_surrogates(text)) or []
    except (msgspec.DecodeError, RecursionError):
        return []
    interfaces = []
    for members in found:
        # Go ignores the case of member names.
        by_name = {name.lower(): value for name, value in (members or {}).items()}
        name, texts = by_name.get("name") or "", by_name.get("addresses") or []
        if not isinstance(name, str) or not isinstance(texts, list):
            return []
        if not all(entry is None or isinstance(entry, str) for entry in texts):
            return []
        valid = _without_bad_addresses([entry or "" for entry in texts])
        interfaces.append(gojson.omit_empty({"name": name, "addresses": valid}))
    return interfaces


def _without_bad_addresses(texts: list[str]) -> list[str]:
    """Remove invalid addresses as the original does.

    The original removes while it iterates, so it can skip an invalid address after another one. At the end of the list
    this would crash it; in that case, remove all invalid addresses.
    """
    left = list(texts)
    length = len(left)
    for index in range(len(texts)):
        if addresses.parse_ip(left[index]) is None:
            if index + 1 > length:
                return [text for text in texts if addresses.parse_ip(text) is not None]
            left[index : length - 1] = left[index + 1 : length]
            length -= 1
    return left[:length]


def _bird_ip(event: objects.ObjectEvent, annotations: Mapping[str, str], reported: Sequence[_Address]) -> model.Item:
    """Return the node's IPv4 address for Felix of releases up to 3.32 (docs/data-model.md, section 8)."""
    texts = [annotations.get(_ANNOTATION + "IPv4Address", "").partition("/")[0]]
    for type in ("InternalIP", "ExternalIP"):
        texts += [address.address for address in reported if address.type == type]
    found = (addresses.parse_ip(text) for text in texts)
    address = next((str(address) for address in found if address is not None and address.version == 4), "")
    key = f"/calico/v1/host/{event.name}/bird_ip"
    return model.Item(key, address.encode() or None, event.resource_version, is_older=True)


def _host_configuration(
    event: objects.ObjectEvent, bgp: Mapping[str, Any], tunnels: Mapping[str, str]
) -> list[model.Item]:
    values = {
        "IpInIpTunnelAddr": _printed_ip(bgp.get("ipv4IPIPTunnelAddr", "")),
        "IPv4VXLANTunnelAddr": _printed_ip(tunnels["ipv4VXLANTunnelAddr"]),
        "VXLANTunnelMACAddr": tunnels["vxlanTunnelMACAddr"],
        "IPv6VXLANTunnelAddr": _printed_ip(tunnels["ipv6VXLANTunnelAddr"]),
        "VXLANTunnelMACAddrV6": tunnels["vxlanTunnelMACAddrV6"],
    }
    return [
        model.Item(f"/calico/v1/host/{event.name}/config/{name}", value.encode() or None, event.resource_version)
        for name, value in values.items()
    ]


def _printed_ip(text: str) -> str:
    address = addresses.parse_ip(text) if text else None
    return "" if address is None else str(address)


def _whole_item(
    event: objects.ObjectEvent, metadata: dict[str, Any], spec: dict[str, Any], status: dict[str, Any]
) -> model.Item:
    key = _whole_key(event.name)
    problem = _problem(metadata, spec, status)
    if problem:
        return model.Item(key, None, event.resource_version, invalid=problem)
    value = gojson.encode(
        {"kind": "Node", "apiVersion": "projectcalico.org/v3", "metadata": metadata, "spec": spec, "status": status}
    )
    return model.Item(key, value, event.resource_version, event.resource_version)


def _problem(metadata: dict[str, Any], spec: dict[str, Any], status: dict[str, Any]) -> str:
    """Return why validation rejects the node. Bad annotations are ignored before, so only masks and keys are
    checked."""
    bgp, wireguard = spec.get("bgp", {}), spec.get("wireguard", {})
    tunnels = {name: spec.get(name, "") for name in ("ipv4VXLANTunnelAddr", "ipv6VXLANTunnelAddr")}
    tunnels["ipv4IPIPTunnelAddr"] = bgp.get("ipv4IPIPTunnelAddr", "")
    tunnels["routeReflectorClusterID"] = bgp.get("routeReflectorClusterID", "")
    for name, text in {**tunnels, **wireguard}.items():
        if "/" in text:
            return f"{name} has a mask: {text!r}"
    for name in ("wireguardPublicKey", "wireguardPublicKeyV6"):
        text = status.get(name, "")
        if text and not kubenames.is_wireguard_key(text):
            return f"{name} is not a key: {text!r}"
    return kubenames.metadata_problem(metadata)


def _wireguard_item(event: objects.ObjectEvent, wireguard: Mapping[str, str], status: Mapping[str, Any]) -> model.Item:
    value = gojson.omit_empty(
        {
            "interfaceIPv4Addr": _printed_ip(wireguard.get("interfaceIPv4Address", "")),
            "publicKey": status.get("wireguardPublicKey", ""),
            "interfaceIPv6Addr": _printed_ip(wireguard.get("interfaceIPv6Address", "")),
            "publicKeyV6": status.get("wireguardPublicKeyV6", ""),
        }
    )
    key = f"/calico/v1/host/{event.name}/wireguard"
    return model.Item(key, gojson.encode(value) if value else None, event.resource_version)
