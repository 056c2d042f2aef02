"""Calico's custom resources on a simulated API server, and the few objects that every such cluster has. Pure."""

from collections.abc import Iterator
from typing import Final

from loadtest.apiserver.objects import JsonObject
from loadtest.apiserver.resources import Resource
from loadtest.environment import calico_crds

_GROUP: Final = (calico_crds.V3.partition("/")[0], calico_crds.V3.partition("/")[2])
RESOURCES: Final = {
    kind.name: Resource(
        *_GROUP,
        kind.plural or f"{kind.name.lower()}s",
        kind.name,
        namespaced=kind.is_namespaced,
        custom=True,
    )
    for kind in calico_crds.KINDS
    if calico_crds.V3 in kind.groups
}
"""By kind."""
_OBJECTS: Final[tuple[tuple[str, str, JsonObject], ...]] = (
    ("ClusterInformation", "default", {"clusterType": "k8s", "datastoreReady": True}),
    ("FelixConfiguration", "default", {"bpfEnabled": False, "reportingInterval": "0s"}),
    ("IPPool", "default-ipv4-ippool", {"cidr": "10.0.0.0/8", "ipipMode": "Never", "vxlanMode": "Always"}),
    ("Tier", "default", {"order": 1_000_000, "defaultAction": "Deny"}),
)


def generate() -> Iterator[tuple[Resource, JsonObject]]:
    """The objects that every cluster with Calico has."""
    for kind, name, spec in _OBJECTS:
        yield RESOURCES[kind], {"metadata": {"name": name}, "spec": spec}


def node_annotations(address: str) -> dict[str, str]:
    """The annotations that calico-node sets on its node."""
    return {
        "projectcalico.org/IPv4Address": f"{address}/24",
        "projectcalico.org/IPv4VXLANTunnelAddr": address,
    }
