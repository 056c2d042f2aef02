"""One object of each kind that Calico's feeds have, and what `typha get` shows of it.

The agents get less than the API has. `expected` is the specification that can come back; None means the object's own.
"""

import json
from typing import Any, NamedTuple

from cache import objects, resources
from cache.feeds.calico import feed, syncers
from typha.admin import answers

GROUP = syncers.Group.V3
_V3 = f"{GROUP.group}/{GROUP.version}"
_NS = "prod"


class Example(NamedTuple):
    """An object."""

    kind: str
    """As `typha get` has it."""
    resource: str
    api_version: str
    api_kind: str
    metadata: dict[str, Any]
    content: dict[str, Any]
    """Its other members."""
    name: str
    """Of the resource that `typha get` shows."""
    expected: dict[str, Any] | None = None
    is_partial: bool = False
    """More members than the expected ones may come back: what the API server fills in."""

    @property
    def type(self) -> resources.ResourceType:
        """The resource type."""
        group, _, version = self.api_version.rpartition("/")
        return resources.ResourceType(group, version, self.resource)

    @property
    def body(self) -> dict[str, Any]:
        """The whole object."""
        return {"apiVersion": self.api_version, "kind": self.api_kind, "metadata": self.metadata, **self.content}

    def specification(self, resource: dict[str, Any]) -> dict[str, Any]:
        """The part of a resource to be compared with `spec`."""
        others = {name: value for name, value in resource.items() if name not in ("apiVersion", "kind", "metadata")}
        found: dict[str, Any] = resource.get("spec", others)
        return {name: value for name, value in found.items() if name in self.spec} if self.is_partial else found

    @property
    def spec(self) -> dict[str, Any]:
        """What `typha get` shows as its specification."""
        found: dict[str, Any] = self.content.get("spec", {}) if self.expected is None else self.expected
        return found


_RULE = {
    "action": "Allow",
    "protocol": "TCP",
    "ipVersion": 4,
    "source": {
        "nets": ["10.1.0.0/16"],
        "selector": "app == 'web'",
        "namespaceSelector": "team == 'a'",
        "notPorts": [22],
        "serviceAccounts": {"names": ["robot"], "selector": "role == 'x'"},
    },
    "destination": {"ports": [80, "8000:8080", "http"], "notNets": ["10.2.0.0/16"], "notSelector": "app == 'db'"},
    "metadata": {"annotations": {"why": "test"}},
}
_POLICY = {
    "tier": "default",
    "order": 12.5,
    "selector": "app == 'web' || app == 'db'",
    "types": ["Ingress", "Egress"],
    "ingress": [_RULE, {"action": "Deny", "notProtocol": "UDP"}],
    "egress": [{"action": "Pass"}, {"action": "Log", "protocol": "ICMP", "icmp": {"type": 8, "code": 0}}],
}
_POD = {
    "spec": {
        "nodeName": "n1",
        "serviceAccountName": "robot",
        "containers": [
            {"name": "c", "image": "i", "ports": [{"name": "http", "containerPort": 80, "protocol": "TCP"}]}
        ],
    },
    "status": {"phase": "Running", "podIP": "10.0.0.5", "podIPs": [{"ip": "10.0.0.5"}]},
}


def _calico(kind: str, resource: str, name: str, spec: dict[str, Any], **options: Any) -> Example:
    namespace = {"namespace": _NS} if options.pop("namespaced", False) else {}
    labels = {"labels": options.pop("labels")} if "labels" in options else {}
    metadata = {"name": name, **namespace, **labels}
    return Example(kind, resource, _V3, kind, metadata, {"spec": spec}, options.pop("shown", name), **options)


EXAMPLES: tuple[Example, ...] = (
    Example(
        "WorkloadEndpoint",
        "pods",
        "v1",
        "Pod",
        {"name": "web-1", "namespace": _NS, "labels": {"app": "web"}},
        _POD,
        "n1-k8s-web--1-eth0",
        {
            "orchestrator": "k8s",
            "node": "n1",
            "pod": "web-1",
            "endpoint": "eth0",
            "serviceAccountName": "robot",
            "interfaceName": "cali91bef8fbcc9",
            "ipNetworks": ["10.0.0.5/32"],
            "profiles": [f"kns.{_NS}", f"ksa.{_NS}.robot"],
            "ports": [{"name": "http", "protocol": "TCP", "port": 80}],
        },
    ),
    Example(
        "Profile",
        "namespaces",
        "v1",
        "Namespace",
        {"name": _NS, "labels": {"team": "a"}},
        {},
        f"kns.{_NS}",
        {"ingress": [{"action": "Allow"}], "egress": [{"action": "Allow"}]},
        is_partial=True,
    ),
    Example(
        "Node",
        "nodes",
        "v1",
        "Node",
        {"name": "n1", "annotations": {"projectcalico.org/ASNumber": "64512"}},
        {"spec": {"podCIDR": "10.0.0.0/24"}},
        "n1",
        {"bgp": {"asNumber": 64512}},
        is_partial=True,
    ),
    Example(
        "KubernetesService",
        "services",
        "v1",
        "Service",
        {"name": "web", "namespace": _NS},
        {"spec": {"selector": {"app": "web"}, "ports": [{"port": 80, "protocol": "TCP", "targetPort": 8080}]}},
        "web",
        {"selector": {"app": "web"}, "ports": [{"port": 80, "protocol": "TCP", "targetPort": 8080}]},
        is_partial=True,
    ),
    Example(
        "KubernetesNetworkPolicy",
        "networkpolicies",
        "networking.k8s.io/v1",
        "NetworkPolicy",
        {"name": "db", "namespace": _NS},
        {
            "spec": {
                "podSelector": {"matchLabels": {"app": "db"}},
                "policyTypes": ["Ingress"],
                "ingress": [
                    {
                        "from": [{"podSelector": {"matchLabels": {"app": "web"}}}],
                        "ports": [{"port": 5432, "protocol": "TCP"}],
                    }
                ],
            }
        },
        "db",
        {
            "tier": "default",
            "order": 1000,
            "selector": "projectcalico.org/orchestrator == 'k8s' && app == 'db'",
            "types": ["Ingress"],
            "ingress": [
                {
                    "action": "Allow",
                    "protocol": "TCP",
                    "source": {"selector": "projectcalico.org/orchestrator == 'k8s' && app == 'web'"},
                    "destination": {"ports": [5432]},
                }
            ],
        },
    ),
    Example(
        "KubernetesClusterNetworkPolicy",
        "clusternetworkpolicies",
        "policy.networking.k8s.io/v1alpha2",
        "ClusterNetworkPolicy",
        {"name": "first"},
        {
            "spec": {
                "tier": "Admin",
                "priority": 5,
                "subject": {"namespaces": {"matchLabels": {"team": "a"}}},
                "ingress": [{"name": "r", "action": "Deny", "from": [{"namespaces": {"matchLabels": {"team": "b"}}}]}],
            }
        },
        "first",
        {"tier": "kube-admin", "order": 5, "types": ["Ingress"]},
        is_partial=True,
    ),
    Example(
        "KubernetesEndpointSlice",
        "endpointslices",
        "discovery.k8s.io/v1",
        "EndpointSlice",
        {"name": "web-x", "namespace": _NS, "labels": {"kubernetes.io/service-name": "web"}},
        {
            "addressType": "IPv4",
            "endpoints": [{"addresses": ["10.0.0.5"]}],
            "ports": [{"name": "http", "port": 8080, "protocol": "TCP"}],
        },
        "web-x",
        {"addressType": "IPv4", "ports": [{"name": "http", "port": 8080, "protocol": "TCP"}]},
        is_partial=True,
    ),
    Example(
        "LiveMigration",
        "virtualmachineinstancemigrations",
        "kubevirt.io/v1",
        "VirtualMachineInstanceMigration",
        {"name": "move", "namespace": _NS},
        {"spec": {"vmiName": "vm-1"}, "status": {"phase": "Running", "migrationState": {"sourcePod": "vm-1-a"}}},
        "move",
        {"source": {"workload": {"orchestratorID": "k8s", "workloadID": f"{_NS}/vm-1-a"}}},
        is_partial=True,
    ),
    _calico("NetworkPolicy", "networkpolicies", "web", _POLICY, namespaced=True),
    _calico(
        "GlobalNetworkPolicy",
        "globalnetworkpolicies",
        "all",
        {**_POLICY, "doNotTrack": True, "applyOnForward": True, "performanceHints": ["AssumeNeededOnEveryNode"]},
    ),
    _calico(
        "StagedNetworkPolicy",
        "stagednetworkpolicies",
        "next",
        {**_POLICY, "stagedAction": "Set"},
        namespaced=True,
    ),
    _calico(
        "StagedGlobalNetworkPolicy",
        "stagedglobalnetworkpolicies",
        "next",
        {**_POLICY, "stagedAction": "Set"},
    ),
    _calico(
        "StagedKubernetesNetworkPolicy",
        "stagedkubernetesnetworkpolicies",
        "next",
        {"podSelector": {"matchLabels": {"app": "db"}}, "policyTypes": ["Egress"], "stagedAction": "Set"},
        namespaced=True,
        expected={
            "tier": "default",
            "order": 1000,
            "selector": "projectcalico.org/orchestrator == 'k8s' && app == 'db'",
            "types": ["Egress"],
            "stagedAction": "Set",
        },
    ),
    _calico("Tier", "tiers", "security", {"order": 50, "defaultAction": "Pass"}),
    _calico("GlobalNetworkSet", "globalnetworksets", "bad", {"nets": ["192.0.2.0/24"]}, labels={"kind": "bad"}),
    _calico("NetworkSet", "networksets", "good", {"nets": ["198.51.100.0/24"]}, labels={"a": "b"}, namespaced=True),
    _calico(
        "HostEndpoint",
        "hostendpoints",
        "n1-eth0",
        {
            "node": "n1",
            "interfaceName": "eth0",
            "expectedIPs": ["192.0.2.1"],
            "profiles": ["p"],
            "ports": [{"name": "ssh", "protocol": "TCP", "port": 22}],
        },
        labels={"role": "node"},
    ),
    _calico(
        "IPPool",
        "ippools",
        "pool-1",
        {
            "cidr": "10.0.0.0/16",
            "ipipMode": "CrossSubnet",
            "vxlanMode": "Never",
            "natOutgoing": True,
            "allowedUses": ["Workload"],
            "assignmentMode": "Automatic",
        },
    ),
    _calico(
        "IPAMBlock",
        "ipamblocks",
        "10-0-0-0-30",
        {
            "cidr": "10.0.0.0/30",
            "affinity": "host:n1",
            "allocations": [0, None, None, None],
            "unallocated": [1, 2, 3],
            "attributes": [{"handle_id": "h"}],
            "sequenceNumber": 1,
            "deleted": False,
        },
        expected={
            "cidr": "10.0.0.0/30",
            "affinity": "host:n1",
            "allocations": [0, None, None, None],
            "unallocated": [1, 2, 3],
            "attributes": [{"handle_id": "h"}],
            "sequenceNumber": 1,
            "sequenceNumberForAllocation": None,
            "deleted": False,
        },
    ),
    _calico(
        "BlockAffinity",
        "blockaffinities",
        "n1-10-0-0-0-30",
        {"state": "confirmed", "node": "n1", "type": "host", "cidr": "10.0.0.0/30", "deleted": False},
        expected={"state": "confirmed", "node": "n1", "type": "host", "cidr": "10.0.0.0/30"},
    ),
    _calico(
        "BGPConfiguration",
        "bgpconfigurations",
        "default",
        {"asNumber": 64513, "nodeToNodeMeshEnabled": False, "logSeverityScreen": "Info"},
        is_partial=True,
    ),
    _calico("BGPPeer", "bgppeers", "rack", {"peerIP": "192.0.2.9", "asNumber": 64514}, is_partial=True),
    _calico(
        "BGPFilter",
        "bgpfilters",
        "some",
        {"exportV4": [{"action": "Accept", "matchOperator": "In", "cidr": "10.0.0.0/8"}]},
        is_partial=True,
    ),
    _calico(
        "FelixConfiguration",
        "felixconfigurations",
        "default",
        {"logSeverityScreen": "Warning", "ipipEnabled": True, "routeRefreshInterval": "1m30s"},
        expected={"logSeverityScreen": "Warning", "ipInIpEnabled": "true", "routeRefreshInterval": "90"},
        is_partial=True,
    ),
    _calico(
        "ClusterInformation",
        "clusterinformations",
        "default",
        {"clusterGUID": "0" * 32, "clusterType": "typha,kdd", "datastoreReady": True},
        expected={"clusterGUID": "0" * 32, "clusterType": "typha,kdd", "datastoreReady": "true"},
        is_partial=True,
    ),
    _calico(
        "CalicoNodeStatus",
        "caliconodestatuses",
        "n1",
        {"node": "n1", "classes": ["Agent", "BGP"], "updatePeriodSeconds": 10},
    ),
)


def entries(example: Example) -> list[answers.Entry]:
    """The keys and values that the example becomes in the feed that `typha get` reads."""
    from typha.admin import kinds

    kind = kinds.find(example.kind)
    assert kind is not None
    spec = next(one for one in syncers.specs(GROUP) if one.name == kind.feed)
    source = feed.CalicoFeed(spec, max_value_bytes=1 << 20)
    metadata = {**example.metadata, "resourceVersion": "7", "uid": "30316465-6365-4463-ad63-3564622d3638"}
    raw = json.dumps({**example.body, "metadata": metadata}).encode()
    namespace, name = example.metadata.get("namespace", ""), example.metadata["name"]
    event = objects.ObjectEvent(
        example.type, namespace, name, "7", raw, example.api_version, example.api_kind, objects.Origin.LIST
    )
    rejection = source.apply(event)
    assert rejection is None, rejection
    source.take()
    found = []
    for entry in source.store:
        owner = source.owner_of(entry.key)
        if owner is not None:
            found.append(
                answers.Entry(
                    key=entry.key,
                    value=entry.value.decode(),
                    revision=entry.revision,
                    sequence=entry.sequence,
                    owner_kind=owner[0],
                    owner_name=owner[1],
                )
            )
    return found
