"""FelixConfiguration and ClusterInformation: one key per value (docs/data-model.md, sections 5.10 and 5.11). Pure.

The object `default` has the global values, `node.NAME` those of a node. Objects with other names are sent whole.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from cache import objects
from cache.feeds.calico import customresource, model, schema, wholeresource
from cache.feeds.calico.codecs import addresses, durations

_GLOBAL_NAME = "default"
_NODE_PREFIX = "node."
_OVERRIDE_PREFIX = "config.projectcalico.org/"
_NO_CONFIG_NAME = "-"
_READY = "DatastoreReady"
_READY_KEY = "/calico/v1/Ready"
_CLUSTER_NAMES = {
    "clusterGUID": "ClusterGUID",
    "clusterType": "ClusterType",
    "calicoVersion": "CalicoVersion",
    "datastoreReady": _READY,
    "variant": "Variant",
}
_CONNTRACK_NAMES = {
    "creationGracePeriod": "CreationGracePeriod",
    "tcpSynSent": "TCPSynSent",
    "tcpEstablished": "TCPEstablished",
    "tcpFinsSeen": "TCPFinsSeen",
    "tcpResetSeen": "TCPResetSeen",
    "udpTimeout": "UDPTimeout",
    "genericTimeout": "GenericTimeout",
    "icmpTimeout": "ICMPTimeout",
}


def convert_felix_configuration(event: objects.ObjectEvent, group: customresource.Group) -> Sequence[model.Item]:
    """Convert a FelixConfiguration. Annotations with its prefix override fields and add names.

    Older items follow: the values of fields that are gone, and those that an annotation gives to later fields.

    Raises:
        ConversionError: bad-net (of a failsafe port), undecodable, invalid-object, bad-uid, bad-metadata-annotation.
    """
    values = wholeresource.read(event, wholeresource.FELIX_CONFIGURATION, group)
    node = _node(event.name)
    if node is None:
        return (wholeresource.item(event, wholeresource.FELIX_CONFIGURATION, values),)
    spec = values.get("spec", {})
    overrides = {
        name.removeprefix(_OVERRIDE_PREFIX): text
        for name, text in sorted(values["metadata"].get("annotations", {}).items())
        if name.startswith(_OVERRIDE_PREFIX)
    }
    texts: dict[str, str | None] = {}
    older = _gone_fields(event, overrides)
    for field in schema.TYPES[schema.FELIX_CONFIGURATION_SPEC]:
        if field.config_name != _NO_CONFIG_NAME:
            name = field.config_name
            if field.since and name in overrides:
                older[name] = overrides[name]
            texts[name] = overrides.pop(name) if name in overrides else _text(field, spec.get(field.name))
    return [*_items(event, node, {**texts, **overrides}), *_items(event, node, older, is_older=True)]


def convert_cluster_information(event: objects.ObjectEvent, group: customresource.Group) -> Sequence[model.Item]:
    """Convert a ClusterInformation. One of its values is the flag that the datastore is ready.

    Raises:
        ConversionError: undecodable, invalid-object, bad-uid, bad-metadata-annotation.
    """
    values = wholeresource.read(event, wholeresource.CLUSTER_INFORMATION, group)
    node = _node(event.name)
    if node is None:
        return (wholeresource.item(event, wholeresource.CLUSTER_INFORMATION, values),)
    spec = values.get("spec", {})
    texts = {
        _CLUSTER_NAMES[field.name]: _text(field, spec.get(field.name))
        for field in schema.TYPES["v3.ClusterInformationSpec"]
        if not node or _CLUSTER_NAMES[field.name] != _READY
    }
    return _items(event, node, texts)


def _gone_fields(event: objects.ObjectEvent, overrides: Mapping[str, str]) -> dict[str, str | None]:
    """Return the values of fields that only older releases have; none if one of them is not of its kind."""
    spec = model.members(event).get("spec")
    try:
        values = schema.read(schema.OLDER_FELIX_CONFIGURATION_SPEC, spec) if isinstance(spec, dict) else {}
    except model.ConversionError:
        return {}
    fields = schema.TYPES[schema.OLDER_FELIX_CONFIGURATION_SPEC]
    texts = {field.config_name: _text(field, values.get(field.name)) for field in fields}
    return {name: text for name, text in texts.items() if text is not None and name not in overrides}


def _node(name: str) -> str | None:
    """Return the node that the object configures: empty for the global object, None for a whole resource."""
    if name == _GLOBAL_NAME:
        return ""
    return name.removeprefix(_NODE_PREFIX) if name.startswith(_NODE_PREFIX) else None


def _items(
    event: objects.ObjectEvent, node: str, texts: Mapping[str, str | None], *, is_older: bool = False
) -> list[model.Item]:
    prefix = f"/calico/v1/host/{node}/config/" if node else "/calico/v1/config/"
    return [
        model.Item(
            _READY_KEY if name == _READY and _is_cluster_information(event) else prefix + name,
            None if text is None else text.encode(),
            event.resource_version,
            is_older=is_older,
        )
        for name, text in texts.items()
    ]


def _is_cluster_information(event: objects.ObjectEvent) -> bool:
    # An annotation of a FelixConfiguration may have the flag's name. It is an ordinary value then.
    return event.type.resource == wholeresource.CLUSTER_INFORMATION.plural


def _text(field: schema.Field, value: Any) -> str | None:
    """Return the value as agents read it. None if it is absent, or empty in a way that means absent."""
    if value is None or (value == "" and not field.pointer):
        return None
    if field.kind == "object":
        return _OBJECT_TEXTS[field.type](value)
    if field.kind == "list" and field.of is not None:
        return _list_text(field.of, value)
    if field.kind == "map":
        return "".join(f"{name}={text}," for name, text in sorted(value.items()))
    if field.kind == "duration":
        in_milliseconds = field.timescale == "milliseconds"
        return durations.milliseconds_text(value) if in_milliseconds else durations.seconds_text(value)
    if field.kind == "bool":
        return "true" if value else "false"
    return str(value)


def _list_text(of: schema.FieldType, value: list[Any]) -> str | None:
    if of.kind == "string":
        return ",".join(value)
    if of.kind == "port":
        return f"[{' '.join(map(str, value))}]"
    if of.type == "v3.ProtoPort":
        return ",".join(map(_failsafe_port_text, value)) or "none"
    if of.type == "v3.HealthTimeoutOverride":
        texts = (f"{entry.get('name', '')}={durations.text(entry.get('timeout', 0))}" for entry in value)
        return ",".join(texts) or None
    return ",".join(map(_range_text, value))


def _failsafe_port_text(entry: schema.Values) -> str:
    protocol, port = entry.get("protocol", "").lower(), entry.get("port", 0)
    net = entry.get("net", "")
    if not net:
        return f"{protocol}:{port}"
    version = addresses.version(net)
    if not version:
        raise model.ConversionError("bad-net", f"the net of a failsafe port is not a CIDR or IP: {net!r:.80}")
    return f"{protocol}:[{net}]:{port}" if version == 6 else f"{protocol}:{net}:{port}"


def _range_text(entry: schema.Values) -> str:
    return f"{entry.get('min', 0)}-{entry.get('max', 0)}"


def _conntrack_text(entry: schema.Values) -> str:
    return ",".join(f"{name}={entry[field]}" for field, name in _CONNTRACK_NAMES.items() if field in entry)


_OBJECT_TEXTS: dict[str, Callable[[schema.Values], str]] = {
    "v3.RouteTableRange": _range_text,
    "v3.BPFConntrackTimeouts": _conntrack_text,
}
