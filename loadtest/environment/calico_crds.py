"""Minimal definitions of Calico's custom resources for tests and demos: names, scopes, defaults; any field is kept.

They are not part of Calico and validate nothing; a real cluster has Calico's own. For kubectl,
`python -m loadtest.environment.calico_crds [v1|v3]` prints them.
"""

import json
import sys
import types
from collections.abc import Mapping
from typing import Any, NamedTuple

V1 = "crd.projectcalico.org/v1"
V3 = "projectcalico.org/v3"
GROUPS = (V1, V3)
ADMIN_POLICIES = "policy.networking.k8s.io/v1alpha1"
"""What clusters up to 3.31 have."""
CLUSTER_POLICIES = "policy.networking.k8s.io/v1alpha2"
MIGRATIONS = "kubevirt.io/v1"
KEPT = "x-kubernetes-preserve-unknown-fields"

Schema = Mapping[str, Any]


class Kind(NamedTuple):
    """A kind. The default plural is the name in lower case with an `s`."""

    name: str
    defaults: Schema = types.MappingProxyType({})
    """Members of `spec` and their values; a nested mapping applies only if its parent exists."""
    plural: str = ""
    is_namespaced: bool = False
    has_status: bool = False
    groups: tuple[str, ...] = GROUPS
    v3_defaults: Schema | None = None


_TYPE_NAMES: Mapping[type, str] = {bool: "boolean", int: "integer", str: "string"}
_SECRET: Schema = {"secretKeyRef": {"name": ""}}
_TIER: Schema = {"tier": "default"}
_STAGED: Schema = {"tier": "default", "stagedAction": "Set"}

KINDS = (
    Kind(
        "BGPConfiguration",
        {"logSeverityScreen": "Info", "serviceLoadBalancerAggregation": "Enabled", "nodeMeshPassword": _SECRET},
    ),
    Kind("BGPFilter"),
    Kind("BGPPeer", {"password": _SECRET}),
    Kind("BlockAffinity", plural="blockaffinities", v3_defaults={"deleted": False}),
    Kind("CalicoNodeStatus", plural="caliconodestatuses", has_status=True),
    Kind("ClusterInformation"),
    Kind("FelixConfiguration", {"nftablesMode": "Auto", "nftablesFlowTableOffload": "Disabled"}),
    Kind("GlobalNetworkPolicy", _TIER, plural="globalnetworkpolicies"),
    Kind("GlobalNetworkSet"),
    Kind("HostEndpoint"),
    Kind("IPAMBlock", {"sequenceNumber": 0}),
    Kind("IPAMConfig", groups=(V1,)),
    Kind(
        "IPAMConfiguration", {"autoAllocateBlocks": True, "maxBlocksPerHost": 0, "strictAffinity": False}, groups=(V3,)
    ),
    Kind("IPAMHandle"),
    Kind("IPPool", {"assignmentMode": "Automatic", "nodeSelector": "all()"}, has_status=True),
    Kind("IPReservation"),
    Kind("KubeControllersConfiguration", has_status=True),
    Kind("NetworkPolicy", _TIER, plural="networkpolicies", is_namespaced=True),
    Kind("NetworkSet", is_namespaced=True),
    Kind("StagedGlobalNetworkPolicy", _STAGED, plural="stagedglobalnetworkpolicies"),
    Kind(
        "StagedKubernetesNetworkPolicy",
        {"stagedAction": "Set"},
        plural="stagedkubernetesnetworkpolicies",
        is_namespaced=True,
    ),
    Kind("StagedNetworkPolicy", _STAGED, plural="stagednetworkpolicies", is_namespaced=True),
    Kind("Tier", {"defaultAction": "Deny"}, has_status=True),
    Kind(
        "ClusterNetworkPolicy",
        plural="clusternetworkpolicies",
        has_status=True,
        groups=(CLUSTER_POLICIES,),
    ),
    Kind("AdminNetworkPolicy", plural="adminnetworkpolicies", has_status=True, groups=(ADMIN_POLICIES,)),
    Kind(
        "BaselineAdminNetworkPolicy", plural="baselineadminnetworkpolicies", has_status=True, groups=(ADMIN_POLICIES,)
    ),
    Kind("VirtualMachineInstanceMigration", is_namespaced=True, groups=(MIGRATIONS,)),
)


def definitions(*groups: str) -> list[dict[str, Any]]:
    """The definitions of some groups, such as `projectcalico.org/v3`."""
    return [definition(kind, group) for group in groups for kind in KINDS if group in kind.groups]


def definition(kind: Kind, group_version: str) -> dict[str, Any]:
    """The definition of one kind in one group."""
    group, _, version = group_version.partition("/")
    plural = kind.plural or f"{kind.name.lower()}s"
    defaults = kind.v3_defaults if group_version == V3 and kind.v3_defaults is not None else kind.defaults
    members = {"spec": _schema(defaults)} | ({"status": _schema({})} if kind.has_status else {})
    served = {
        "name": version,
        "served": True,
        "storage": True,
        "schema": {"openAPIV3Schema": {"type": "object", KEPT: True, "properties": members}},
        **({"subresources": {"status": {}}} if kind.has_status else {}),
    }
    # The API server protects the groups *.k8s.io: a definition there needs this annotation.
    approval = {"annotations": {"api-approved.kubernetes.io": "unapproved, for tests only"}}
    return {
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        "metadata": {"name": f"{plural}.{group}", **(approval if group.endswith(".k8s.io") else {})},
        "spec": {
            "group": group,
            "scope": "Namespaced" if kind.is_namespaced else "Cluster",
            "names": {
                "plural": plural,
                "singular": kind.name.lower(),
                "kind": kind.name,
                "listKind": f"{kind.name}List",
            },
            "versions": [served],
        },
    }


def _schema(defaults: Schema) -> dict[str, Any]:
    members = {name: _member(default) for name, default in defaults.items()}
    return {"type": "object", KEPT: True, **({"properties": members} if members else {})}


def _member(default: Any) -> dict[str, Any]:
    if isinstance(default, Mapping):
        return _schema(default)
    return {"type": _TYPE_NAMES[type(default)], "default": default}


def main(arguments: list[str]) -> None:
    """Print the definitions as one JSON list."""
    names = {"v1": V1, "v3": V3}
    groups = [names[argument] for argument in arguments] or [V1]
    found = definitions(*groups, CLUSTER_POLICIES, MIGRATIONS)
    print(json.dumps({"apiVersion": "v1", "kind": "List", "items": found}, indent=1))


if __name__ == "__main__":
    main(sys.argv[1:])
