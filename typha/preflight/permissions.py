"""What the service may ask of the API server: the verbs and kinds that its role needs, no more and no less. Pure."""

import collections
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final

from cache import resources
from cache.feeds.calico import syncers

READING: Final = ("list", "watch")
"""The verbs for every kind that is served."""

LEASES: Final = resources.ResourceType("coordination.k8s.io", "v1", "leases")
ELECTING: Final = ("get", "create", "update")
"""The verbs for the Lease of an elected fleet."""
ENDPOINT_SLICES: Final = resources.ResourceType("discovery.k8s.io", "v1", "endpointslices")

Verbs = Mapping[resources.ResourceType, Sequence[str]]


def calico_types(group: syncers.Group, *, use_pod_cidr: bool) -> dict[resources.ResourceType, bool]:
    """The kinds of Calico's feeds, and whether only agents of older releases get them."""
    specs = syncers.specs(group, use_pod_cidr=use_pod_cidr)
    return {source.type: source.is_older for spec in specs for source in spec.sources}


def creating(group: syncers.Group) -> dict[resources.ResourceType, tuple[str, ...]]:
    """The verbs for the objects that are created at start if they are missing."""
    return {
        syncers.custom_type(group, "tiers"): ("get", "create"),
        syncers.custom_type(group, "clusterinformations"): ("get", "create", "update"),
    }


def rules(needed: Iterable[Verbs]) -> list[dict[str, Any]]:
    """The rules of a role: one for all kinds of an API group that need the same verbs, in a fixed order."""
    by_verbs = collections.defaultdict[tuple[str, tuple[str, ...]], set[str]](set)
    for verbs_by_type in needed:
        for type, verbs in verbs_by_type.items():
            by_verbs[type.group, tuple(verbs)].add(type.resource)
    return [
        {"apiGroups": [group], "resources": sorted(by_verbs[group, verbs]), "verbs": list(verbs)}
        for group, verbs in sorted(by_verbs, key=lambda key: (key[0], key[1] != READING, key[1]))
    ]
