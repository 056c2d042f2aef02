"""The known fields in the specifications of Calico's kinds. Other fields are dropped. Pure."""

from collections.abc import Iterator
from typing import Any

from cache.feeds.calico import schema

_POLICY = ("tier", "order", "ingress", "egress", "selector", "types", "serviceAccountSelector", "performanceHints")
_GLOBAL_POLICY = (*_POLICY, "namespaceSelector", "doNotTrack", "preDNAT", "applyOnForward")
_KUBERNETES_POLICY = ("podSelector", "ingress", "egress", "policyTypes")
_BLOCK = (
    *("cidr", "affinity", "affinityClaimTime", "allocations", "unallocated", "attributes", "sequenceNumber"),
    *("sequenceNumberForAllocation", "deleted", "strictAffinity"),
)
_POOL = (
    *("cidr", "vxlanMode", "ipipMode", "natOutgoing", "disabled", "disableBGPExport", "blockSize", "nodeSelector"),
    *("namespaceSelector", "allowedUses", "assignmentMode"),
)

_FIELDS = {
    kind: frozenset(fields)
    for kind, fields in {
        "BlockAffinity": ("state", "node", "type", "cidr", "deleted"),
        "GlobalNetworkPolicy": _GLOBAL_POLICY,
        "GlobalNetworkSet": ("nets",),
        "HostEndpoint": ("node", "interfaceName", "expectedIPs", "profiles", "ports"),
        "IPAMBlock": _BLOCK,
        "IPPool": _POOL,
        "NetworkPolicy": _POLICY,
        "NetworkSet": ("nets",),
        "StagedGlobalNetworkPolicy": (*_GLOBAL_POLICY, "stagedAction"),
        "StagedKubernetesNetworkPolicy": (*_KUBERNETES_POLICY, "stagedAction"),
        "StagedNetworkPolicy": (*_POLICY, "stagedAction"),
        "Tier": ("order", "defaultAction"),
    }.items()
}

_RULE = {
    **dict.fromkeys(("action", "ipVersion", "protocol", "notProtocol")),
    "icmp": dict.fromkeys(("type", "code")),
    "notICMP": dict.fromkeys(("type", "code")),
    "http": {"methods": None, "paths": dict.fromkeys(("exact", "prefix"))},
    "metadata": {"annotations": None},
}
_ENTITY = {
    **dict.fromkeys(("nets", "selector", "namespaceSelector", "ports", "notNets", "notSelector", "notPorts")),
    "services": dict.fromkeys(("name", "namespace")),
    "serviceAccounts": dict.fromkeys(("names", "selector")),
}
_RULE_FIELDS: dict[str, Any] = {**_RULE, "source": _ENTITY, "destination": _ENTITY}


def unknown_fields(kind: str, spec: Any) -> list[str]:
    """Return the paths of the fields that Calico does not know, in the specification of one of its kinds."""
    if not isinstance(spec, dict):
        return []
    type_name = f"v3.{kind}Spec"
    if type_name in schema.TYPES:
        return list(_unknown_in_schema(type_name, spec, "spec"))
    known = _FIELDS.get(kind)
    if known is None:
        return []
    unknown = [f"spec.{name}" for name in spec if name not in known]
    if "serviceAccountSelector" in known:
        for direction in ("ingress", "egress"):
            unknown += _unknown_in_tree(_RULE_FIELDS, spec.get(direction), f"spec.{direction}")
    return unknown


def _unknown_in_tree(fields: dict[str, Any] | None, value: Any, where: str) -> Iterator[str]:
    """Yield the unknown paths in a value. `fields` maps each known field to its own fields, or None for a scalar."""
    if fields is None:
        return
    if isinstance(value, list):
        for index, element in enumerate(value):
            yield from _unknown_in_tree(fields, element, f"{where}[{index}]")
    elif isinstance(value, dict):
        for name, inner in value.items():
            if name in fields:
                yield from _unknown_in_tree(fields[name], inner, f"{where}.{name}")
            else:
                yield f"{where}.{name}"


def _unknown_in_schema(type_name: str, value: Any, where: str) -> Iterator[str]:
    if not isinstance(value, dict):
        return
    fields = {field.name: field.value_type for field in schema.TYPES[type_name]}
    for name, inner in value.items():
        if name not in fields:
            yield f"{where}.{name}"
        else:
            yield from _unknown_in_value(fields[name], inner, f"{where}.{name}")


def _unknown_in_value(value_type: schema.FieldType, value: Any, where: str) -> Iterator[str]:
    if value_type.kind == "object" and value_type.type in schema.TYPES:
        yield from _unknown_in_schema(value_type.type, value, where)
    elif value_type.kind == "list" and value_type.of is not None and isinstance(value, list):
        for index, element in enumerate(value):
            yield from _unknown_in_value(value_type.of, element, f"{where}[{index}]")
