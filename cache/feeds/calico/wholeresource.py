"""Resources that are sent whole: their key, their metadata and their JSON (docs/data-model.md, section 6). Pure."""

from collections.abc import Sequence
from typing import NamedTuple

import msgspec

from cache import objects
from cache.feeds.calico import customresource, model, schema, validation
from cache.feeds.calico.codecs import gojson, uids

_API_VERSION = "projectcalico.org/v3"
_OBJECT_META = "metav1.ObjectMeta"


class Kind(NamedTuple):
    """A kind: its type in `schema`, the plural in its keys, and the kind in its values (empty for Kubernetes kinds)."""

    type_name: str
    plural: str
    kind: str = ""


BGP_CONFIGURATION = Kind("v3.BGPConfiguration", "bgpconfigurations", "BGPConfiguration")
BGP_PEER = Kind("v3.BGPPeer", "bgppeers", "BGPPeer")
BGP_FILTER = Kind("v3.BGPFilter", "bgpfilters", "BGPFilter")
NODE_STATUS = Kind("v3.CalicoNodeStatus", "caliconodestatuses", "CalicoNodeStatus")
FELIX_CONFIGURATION = Kind("v3.FelixConfiguration", "felixconfigurations", "FelixConfiguration")
CLUSTER_INFORMATION = Kind("v3.ClusterInformation", "clusterinformations", "ClusterInformation")
SERVICE = Kind("corev1.Service", "kubernetesservice")
ENDPOINT_SLICE = Kind("discovery.EndpointSlice", "kubernetesendpointslices")
LIVE_MIGRATION = Kind("internal.LiveMigration", "livemigrations", "LiveMigration")


class _ManagedFields(msgspec.Struct, gc=False):
    fieldsV1: msgspec.Raw | msgspec.UnsetType = msgspec.UNSET  # noqa: N815


class _RawMetadata(msgspec.Struct, gc=False):
    managedFields: list[_ManagedFields] | None = None  # noqa: N815


class _RawParts(msgspec.Struct, gc=False):
    metadata: _RawMetadata | None = None


_raw_parts = msgspec.json.Decoder(_RawParts)


def convert_bgp_configuration(event: objects.ObjectEvent, group: customresource.Group) -> Sequence[model.Item]:
    """Convert a BGPConfiguration. Raises ConversionError, as all converters here do: see `read`."""
    return (item(event, BGP_CONFIGURATION, read(event, BGP_CONFIGURATION, group)),)


def convert_bgp_peer(event: objects.ObjectEvent, group: customresource.Group) -> Sequence[model.Item]:
    """Convert a BGPPeer."""
    return (item(event, BGP_PEER, read(event, BGP_PEER, group)),)


def convert_bgp_filter(event: objects.ObjectEvent, group: customresource.Group) -> Sequence[model.Item]:
    """Convert a BGPFilter."""
    return (item(event, BGP_FILTER, read(event, BGP_FILTER, group)),)


def convert_node_status(event: objects.ObjectEvent, group: customresource.Group) -> Sequence[model.Item]:
    """Convert a CalicoNodeStatus."""
    return (item(event, NODE_STATUS, read(event, NODE_STATUS, group)),)


def convert_service(event: objects.ObjectEvent) -> Sequence[model.Item]:
    """Convert a Kubernetes Service."""
    return (item(event, SERVICE, read(event, SERVICE, None)),)


def convert_endpoint_slice(event: objects.ObjectEvent) -> Sequence[model.Item]:
    """Convert a Kubernetes EndpointSlice."""
    return (item(event, ENDPOINT_SLICE, read(event, ENDPOINT_SLICE, None)),)


def key(kind: Kind, namespace: str, name: str) -> str:
    """Return the key of a whole resource. `namespace` is empty for cluster-wide resources."""
    path = f"{namespace}/{name}" if namespace else name
    return f"/calico/resources/v3/{_API_VERSION.partition('/')[0]}/{kind.plural}/{path}"


def read(event: objects.ObjectEvent, kind: Kind, group: customresource.Group | None) -> schema.Values:
    """Read the object's fields, with the metadata that Calico's API shows. `group` is None for other objects.

    Raises:
        ConversionError: undecodable, invalid-object, bad-uid, bad-metadata-annotation.
    """
    source = model.members(event)
    values = schema.read(kind.type_name, source)
    metadata = values.get("metadata", {})
    if metadata.get("managedFields"):
        _keep_raw_fields(event, metadata["managedFields"])
    if group is customresource.Group.V1:
        metadata = _shown_metadata(metadata)
    values["metadata"] = metadata
    return values


def item(event: objects.ObjectEvent, kind: Kind, values: schema.Values) -> model.Item:
    """Return the item of a whole resource, without value if validation rejects it.

    Raises:
        ConversionError: selector-too-deep.
    """
    resource_key = key(kind, event.namespace, event.name)
    problem = validation.problem(kind.type_name, values)
    if problem:
        return model.Item(resource_key, None, event.resource_version, invalid=problem)
    metadata = {name: value for name, value in values["metadata"].items() if name != "resourceVersion"}
    names = {"kind": kind.kind, "apiVersion": _API_VERSION} if kind.kind else {"kind": "", "apiVersion": ""}
    written = schema.write(kind.type_name, {**values, **names, "metadata": metadata})
    return model.Item(resource_key, gojson.encode(written), event.resource_version, event.resource_version)


def _keep_raw_fields(event: objects.ObjectEvent, entries: list[schema.Values]) -> None:
    """Replace the managed fields by their original text: order and escapes must stay as the API server wrote them."""
    parts = model.typed(_raw_parts, event)
    raw_entries = parts.metadata.managedFields if parts.metadata else None
    for entry, raw in zip(entries, raw_entries or (), strict=False):
        if "fieldsV1" in entry and raw.fieldsV1 is not msgspec.UNSET:
            entry["fieldsV1"] = gojson.compact(bytes(raw.fieldsV1))


def _shown_metadata(metadata: schema.Values) -> schema.Values:
    """Return a v1 object's metadata as the API of v3 shows it: with another uid, and with the annotation's metadata."""
    shown = dict(metadata)
    if uid := metadata.get("uid"):
        try:
            shown["uid"] = uids.reversed_uid(uid)
        except ValueError as error:
            raise model.ConversionError("bad-uid", f"not a UUID: {uid!r:.80}") from error
    annotations = metadata.get("annotations", {})
    if customresource.METADATA_ANNOTATION not in annotations:
        return shown
    inner = customresource.annotation_metadata(annotations[customresource.METADATA_ANNOTATION])
    others = {name: text for name, text in annotations.items() if name != customresource.METADATA_ANNOTATION}
    inner["labels"] = {**metadata.get("labels", {}), **inner.get("labels", {})}
    inner["annotations"] = {**others, **inner.get("annotations", {})}
    inner["name"] = inner.get("name") or metadata.get("name", "")
    inner["creationTimestamp"] = inner.get("creationTimestamp") or metadata.get("creationTimestamp", "")
    inner["namespace"] = metadata.get("namespace", "")
    inner["uid"] = shown.get("uid", "")
    return inner
