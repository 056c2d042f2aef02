"""IP pools, IPAM blocks, block affinities and network sets (docs/data-model.md, sections 5.12, 5.14, 5.15). Pure."""

import contextlib
from collections.abc import Sequence
from typing import Any

import msgspec

from cache import objects
from cache.feeds.calico import customresource, model, schema
from cache.feeds.calico.codecs import addresses, gojson, scalars

_IPIP_INTERFACE = "tunl0"
_ENCAPSULATION_MODES = {"Always": "always", "CrossSubnet": "cross-subnet"}
_ASSIGNMENT_DEFAULT = "Automatic"
_AFFINITY_DEFAULT = "host"


class _PoolSpec(msgspec.Struct, gc=False):
    cidr: str | None = None
    ipipMode: str | None = None  # noqa: N815
    vxlanMode: str | None = None  # noqa: N815
    natOutgoing: bool | None = None  # noqa: N815
    disabled: bool | None = None
    disableBGPExport: bool | None = None  # noqa: N815
    assignmentMode: str | None = None  # noqa: N815
    allowedUses: list[str] | None = None  # noqa: N815


class _Pool(msgspec.Struct, gc=False):
    metadata: customresource.Metadata
    spec: _PoolSpec = msgspec.field(default_factory=_PoolSpec)


class _Attribute(msgspec.Struct, gc=False):
    handle_id: str | None = None
    secondary: dict[str, str | None] | None = None
    alternateOwnerAttrs: dict[str, str | None] | None = None  # noqa: N815
    releasedAt: str | None = None  # noqa: N815


class _BlockSpec(msgspec.Struct, gc=False):
    cidr: str | None = None
    affinity: str | None = None
    affinityClaimTime: str | None = None  # noqa: N815
    allocations: list[int | None] | None = None
    unallocated: list[int] | None = None
    attributes: list[_Attribute | None] | None = None
    sequenceNumber: int | None = None  # noqa: N815
    sequenceNumberForAllocation: dict[str, int] | None = None  # noqa: N815
    deleted: bool | None = None


class _Block(msgspec.Struct, gc=False):
    metadata: customresource.Metadata
    spec: _BlockSpec = msgspec.field(default_factory=_BlockSpec)


class _AffinitySpec(msgspec.Struct, gc=False):
    cidr: str | None = None
    node: str | None = None
    state: str | None = None
    type: str | None = None
    deleted: str | bool | None = None


class _Affinity(msgspec.Struct, gc=False):
    metadata: customresource.Metadata
    spec: _AffinitySpec = msgspec.field(default_factory=_AffinitySpec)


class _SetSpec(msgspec.Struct, gc=False):
    nets: list[str] | None = None


class _Set(msgspec.Struct, gc=False):
    metadata: customresource.Metadata
    spec: _SetSpec = msgspec.field(default_factory=_SetSpec)


_decode_pool = msgspec.json.Decoder(_Pool)
_decode_block = msgspec.json.Decoder(_Block)
_decode_affinity = msgspec.json.Decoder(_Affinity)
_decode_set = msgspec.json.Decoder(_Set)


def convert_pool(event: objects.ObjectEvent, group: customresource.Group) -> Sequence[model.Item]:
    """Convert an IP pool. Raises ConversionError: bad-cidr, bad-metadata-annotation, invalid-object."""
    pool = model.typed(_decode_pool, event)
    customresource.effective_metadata(pool.metadata, group)
    spec = pool.spec
    network = _network(spec.cidr, allows_mapped=True)
    ipip_mode = _ENCAPSULATION_MODES.get(spec.ipipMode or "", "")
    value = {
        "cidr": str(network),
        "ipip": _IPIP_INTERFACE if ipip_mode else "",
        "ipip_mode": ipip_mode,
        "vxlan_mode": _ENCAPSULATION_MODES.get(spec.vxlanMode or "", ""),
        "masquerade": bool(spec.natOutgoing),
        "ipam": not spec.disabled,
        "disabled": bool(spec.disabled),
        "disableBGPExport": bool(spec.disableBGPExport),
        "assignment_mode": _ASSIGNMENT_DEFAULT if spec.assignmentMode is None else spec.assignmentMode,
        **({"allowed_uses": spec.allowedUses} if spec.allowedUses else {}),
    }
    key = f"/calico/v1/ipam/v{network.version}/pool/{_key_part(network)}"
    return (model.Item(key, gojson.encode(value), event.resource_version),)


def convert_block(event: objects.ObjectEvent, group: customresource.Group) -> Sequence[model.Item]:
    """Convert an IPAM block. Raises ConversionError: bad-cidr, bad-time, bad-metadata-annotation, invalid-object."""
    block = model.typed(_decode_block, event)
    customresource.effective_metadata(block.metadata, group)
    spec = block.spec
    network = _network(spec.cidr)
    sequence_numbers = spec.sequenceNumberForAllocation
    claimed = _time(spec.affinityClaimTime)
    value = {
        "cidr": str(network),
        "affinity": spec.affinity,
        **({} if spec.affinityClaimTime is None else {"affinity_claim_time": claimed}),
        "allocations": spec.allocations,
        "unallocated": spec.unallocated,
        "attributes": [_attribute(attribute or _Attribute()) for attribute in spec.attributes or ()],
        "sequenceNumber": spec.sequenceNumber or 0,
        "sequenceNumberForAllocation": None if sequence_numbers is None else gojson.sorted_map(sequence_numbers),
        "deleted": bool(spec.deleted),
    }
    return (model.Item(_block_key(network), gojson.encode(value), event.resource_version),)


def bare_block(event: objects.ObjectEvent, network: addresses.Network) -> model.Item:
    """Return a network of a node as a block with an affinity to it, as the original makes it of a pod CIDR."""
    value = {
        "cidr": str(network),
        "affinity": f"{_AFFINITY_DEFAULT}:{event.name}",
        **dict.fromkeys(("allocations", "unallocated", "attributes")),
        "sequenceNumber": 0,
        "sequenceNumberForAllocation": None,
        "deleted": False,
    }
    return model.Item(_block_key(network), gojson.encode(value), event.resource_version)


def _block_key(network: addresses.Network) -> str:
    return f"/calico/ipam/v2/assignment/ipv{network.version}/block/{_key_part(network)}"


def _attribute(attribute: _Attribute) -> dict[str, Any]:
    written: dict[str, Any] = {}
    if attribute.handle_id is not None:
        written["handle_id"] = attribute.handle_id
    if attribute.secondary:
        written["secondary"] = _text_map(attribute.secondary)
    if attribute.alternateOwnerAttrs:
        written["alternateOwnerAttrs"] = _text_map(attribute.alternateOwnerAttrs)
    if attribute.releasedAt is not None:
        written["releasedAt"] = _time(attribute.releasedAt)
    return written


def _text_map(members: dict[str, str | None]) -> dict[str, str]:
    return gojson.sorted_map({key: value or "" for key, value in members.items()})


def _time(text: str | None) -> str | None:
    try:
        return schema.parse_time(text) or None if text else None
    except ValueError as error:
        raise model.ConversionError("bad-time", str(error)) from error


def convert_affinity(event: objects.ObjectEvent, group: customresource.Group) -> Sequence[model.Item]:
    """Convert the affinity of a block to a host. Without a host, or marked as deleted, it counts as absent.

    Raises:
        ConversionError: bad-cidr, bad-deleted, bad-metadata-annotation, invalid-object.
    """
    affinity = model.typed(_decode_affinity, event)
    customresource.effective_metadata(affinity.metadata, group)
    spec = affinity.spec
    network = _network(spec.cidr)
    deleted = _is_deleted(spec.deleted, group)
    if not spec.node:
        return ()
    key = (
        f"/calico/ipam/v2/{spec.type or _AFFINITY_DEFAULT}/{spec.node}/ipv{network.version}/block/{_key_part(network)}"
    )
    if deleted:
        return (model.Item(key, None, ""),)
    value = gojson.encode({"state": spec.state or "", "deleted": False})
    return (model.Item(key, value, event.resource_version),)


def _is_deleted(deleted: str | bool | None, group: customresource.Group) -> bool:
    """Read the deletion mark: in group v1 a text that Go reads as a bool, in v3 a bool."""
    if deleted is None:
        return False
    if group is customresource.Group.V1 and isinstance(deleted, str):
        with contextlib.suppress(ValueError):
            return scalars.parse_boolean(deleted)
    if group is customresource.Group.V3 and isinstance(deleted, bool):
        return deleted
    raise model.ConversionError("bad-deleted", f"spec.deleted is not a boolean: {deleted!r:.80}")


def convert_global_set(event: objects.ObjectEvent, group: customresource.Group) -> Sequence[model.Item]:
    """Convert a global network set. Raises ConversionError: bad-metadata-annotation, invalid-object."""
    found = model.typed(_decode_set, event)
    metadata = customresource.effective_metadata(found.metadata, group)
    labels = None if metadata.labels is None else gojson.sorted_map(metadata.labels)
    value = {**_nets(found.spec), "labels": labels}
    key = f"/calico/v1/netset/{model.escaped(metadata.name or event.name)}"
    return (model.Item(key, gojson.encode(value), event.resource_version),)


def convert_set(event: objects.ObjectEvent, group: customresource.Group) -> Sequence[model.Item]:
    """Convert a namespaced network set. Raises ConversionError: bad-metadata-annotation, invalid-object."""
    found = model.typed(_decode_set, event)
    metadata = customresource.effective_metadata(found.metadata, group)
    labels = {**(metadata.labels or {}), "projectcalico.org/namespace": event.namespace}
    value = {**_nets(found.spec), "labels": gojson.sorted_map(labels), "profile_ids": [f"kns.{event.namespace}"]}
    key = f"/calico/v1/netset/{model.escaped(f'{event.namespace}/{event.name}')}"
    return (model.Item(key, gojson.encode(value), event.resource_version),)


def _nets(spec: _SetSpec) -> dict[str, Any]:
    nets = [net for net in map(addresses.network_text, spec.nets or ()) if net is not None]
    return {"nets": nets} if nets else {}


def _network(text: str | None, *, allows_mapped: bool = False) -> addresses.Network:
    network = addresses.parse_cidr(text or "")
    # A block or affinity of an IPv4 network in IPv6 notation has no key. Pools of releases up to 3.32 have one.
    if network is None or (network.version == 4 and ":" in (text or "") and not allows_mapped):
        raise model.ConversionError("bad-cidr", f"spec.cidr is not a CIDR: {text!r:.80}")
    return network


def _key_part(network: addresses.Network) -> str:
    return str(network).replace("/", "-")
