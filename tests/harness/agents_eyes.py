"""What a value means to an agent of an older release: two values are equal if the agent decodes the same from them."""

import json
import re
from typing import Any, Final

_ORDER: Final = ("3.29", "3.30", "3.31", "3.32", "3.33")
_NEVER: Final = "never"

_CONFIGURATION: Final = re.compile(r"/calico/v1/(Ready|config/.*|host/[^/]+/config/.*)")
_LABELS: Final = re.compile(r"/calico/v1/policy/profile/[^/]+/labels")
_POLICY: Final = r"/calico/v1/policy/(?!profile/|tier/[^/]+/metadata)"
_FILTER_LISTS: Final = ("importV4", "exportV4", "importV6", "exportV6")
_FILTER_FIELDS: Final = ("peerType", "communities", "asPathPrefix", "priority", "operations")

FIELDS: Final = (
    (_POLICY, "tier", "3.32"),
    (_POLICY, "staged_action", "3.30"),
    ("/calico/v1/host/[^/]+/workload/", "qosControls", "3.30"),
    ("/calico/v1/host/[^/]+/workload/", "qosControls.dscp", "3.31"),
    ("/calico/v1/host/[^/]+/endpoint/", "qosControls", "3.31"),
    ("/calico/v1/ipam/", "assignment_mode", "3.30"),
    ("/calico/v1/ipam/", "allowed_uses", "3.31"),
    ("/calico/ipam/v2/assignment/", "affinity_claim_time", "3.32"),
    ("/calico/ipam/v2/assignment/", "attributes.*.alternateOwnerAttrs", "3.32"),
    ("/calico/ipam/v2/assignment/", "attributes.*.releasedAt", _NEVER),
    ("/calico/resources/.*/nodes/", "spec.interfaces", "3.31"),
    ("/calico/resources/.*/bgpconfigurations/", "spec.localWorkloadPeeringIPV4", "3.30"),
    ("/calico/resources/.*/bgpconfigurations/", "spec.localWorkloadPeeringIPV6", "3.30"),
    ("/calico/resources/.*/bgpconfigurations/", "spec.serviceLoadBalancerAggregation", "3.31"),
    ("/calico/resources/.*/bgpconfigurations/", "spec.programClusterRoutes", "3.32"),
    ("/calico/resources/.*/bgpconfigurations/", "spec.ipv4NormalRoutePriority", "3.32"),
    ("/calico/resources/.*/bgpconfigurations/", "spec.ipv6NormalRoutePriority", "3.32"),
    ("/calico/resources/.*/bgppeers/", "spec.nextHopMode", "3.30"),
    ("/calico/resources/.*/bgppeers/", "spec.localWorkloadSelector", "3.30"),
    ("/calico/resources/.*/bgppeers/", "spec.reversePeering", "3.30"),
    ("/calico/resources/.*/bgppeers/", "spec.localASNumber", "3.31"),
    ("/calico/resources/.*/bgppeers/", "spec.keepaliveTime", "3.32"),
    *(
        ("/calico/resources/.*/bgpfilters/", f"spec.{rules}.*.{field}", "3.32")
        for rules in _FILTER_LISTS
        for field in _FILTER_FIELDS
    ),
    ("/calico/resources/", "metadata.managedFields", _NEVER),
)
"""What agents of a release do not have in their types: beginning of the key, path (`*` is any element), first release
that has it."""


def meaning(key: str, value: str | None, release: str) -> Any:
    """Return what an agent of a release, such as v3.31.7, reads in a value.

    Configuration values are texts; of a list `a=b,c=d,` that was made from a map the order is random. Everything else
    is JSON, whose absent members equal null, {} and []. In values that are not whole resources, absent equals false and
    "", too. Numbers have no such equal.
    """
    if value is None:
        return None
    if _CONFIGURATION.fullmatch(key):
        return sorted(value.split(",")) if value.endswith(",") and "=" in value else value
    try:
        decoded = json.loads(value)
    except ValueError:
        return value
    for beginning, path, since in FIELDS:
        if _lacks(release, since) and re.match(beginning, key):
            _drop(decoded, path.split("."))
    if _LABELS.fullmatch(key):
        return decoded or {}
    is_whole = key.startswith("/calico/resources/")
    labels = decoded.pop("labels", None) if isinstance(decoded, dict) and not is_whole else None
    tidy = _tidy(decoded, is_whole=is_whole)
    return {**tidy, "labels": labels} if labels else tidy


def _lacks(release: str, since: str) -> bool:
    own = ".".join(release.removeprefix("v").split(".")[:2])
    return since == _NEVER or _ORDER.index(own) < _ORDER.index(since)


def _drop(value: Any, path: list[str]) -> None:
    first, *rest = path
    if first == "*":
        for inner in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
            _drop(inner, rest)
    elif isinstance(value, dict) and first in value:
        if rest:
            _drop(value[first], rest)
        else:
            del value[first]


def _tidy(value: Any, *, is_whole: bool) -> Any:
    if isinstance(value, list):
        return [_tidy(inner, is_whole=is_whole) for inner in value]
    if not isinstance(value, dict):
        return value
    tidied = {name: _tidy(inner, is_whole=is_whole) for name, inner in value.items()}
    absent: tuple[Any, ...] = (None, {}, []) if is_whole else (None, {}, [], False, "")
    return {name: inner for name, inner in tidied.items() if not any(inner is a or _same(inner, a) for a in absent)}


def _same(value: Any, absent: Any) -> bool:
    return type(value) is type(absent) and value == absent
