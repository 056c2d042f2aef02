"""The objects of a cluster, the same for the same seed. Pure."""

import dataclasses
import random
import string
from collections.abc import Iterator
from typing import Final

from loadtest.apiserver import resources
from loadtest.apiserver.objects import JsonObject
from loadtest.apiserver.resources import Resource
from loadtest.apiserver.store import Store
from loadtest.environment import calico_crds

_APPS = ("api", "auth", "billing", "cache", "catalog", "checkout", "frontend", "gateway", "indexer", "mailer", "search")
_TIERS = ("backend", "data", "edge")
_DIGEST_BITS = 256
_POD_BYTES = 1_800
_LABEL_BYTES = 63 + len('"padding-00":"",')
_LABEL_CHARS = string.ascii_letters + string.digits

_CALICO_GROUP: Final = (calico_crds.V3.partition("/")[0], calico_crds.V3.partition("/")[2])
CALICO_RESOURCES: Final = {
    kind.name: Resource(
        *_CALICO_GROUP,
        kind.plural or f"{kind.name.lower()}s",
        kind.name,
        namespaced=kind.is_namespaced,
        custom=True,
    )
    for kind in calico_crds.KINDS
    if calico_crds.V3 in kind.groups
}
"""Calico's custom resources by kind."""
_CALICO_OBJECTS: Final[tuple[tuple[str, str, JsonObject], ...]] = (
    ("ClusterInformation", "default", {"clusterType": "k8s", "datastoreReady": True}),
    ("FelixConfiguration", "default", {"bpfEnabled": False, "reportingInterval": "0s"}),
    ("IPPool", "default-ipv4-ippool", {"cidr": "10.0.0.0/8", "ipipMode": "Never", "vxlanMode": "Always"}),
    ("Tier", "default", {"order": 1_000_000, "defaultAction": "Deny"}),
)
"""The few that every cluster with Calico has."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Population:
    """Number of objects of each kind. Each Service has an EndpointSlice with some of the pods."""

    nodes: int = 500
    pods: int = 5_000
    namespaces: int = 20
    services: int = 200
    widgets: int = 100
    calico: bool = False
    """Add the types and objects of a cluster with Calico."""
    pod_bytes: int = 0
    """Approximate size of a pod's JSON, made with labels: Calico's feeds carry labels, but no annotations."""

    def __post_init__(self) -> None:
        if min(self.nodes, self.namespaces) < 1 or min(self.pods, self.services, self.widgets) < 0:
            raise ValueError(f"a population needs at least one node and one namespace: {self}")


class Maker:
    """Makes objects. The n-th of a kind is the same for the same seed and population."""

    def __init__(self, population: Population, *, seed: int) -> None:
        self.population = population
        self._seed = seed

    def node(self, number: int) -> JsonObject:
        """Node `node-00001`."""
        name = node_name(number)
        address = f"10.{128 + number // 65536}.{number // 256 % 256}.{number % 256}"
        condition = {
            "type": "Ready",
            "status": "True",
            "lastHeartbeatTime": "2025-01-01T00:00:00Z",
            "lastTransitionTime": "2025-01-01T00:00:00Z",
            "reason": "KubeletReady",
            "message": "kubelet is posting ready status",
        }
        return {
            "metadata": {
                "name": name,
                "labels": {
                    "kubernetes.io/arch": "amd64",
                    "kubernetes.io/hostname": name,
                    "kubernetes.io/os": "linux",
                    "topology.kubernetes.io/zone": f"zone-{number % 3}",
                },
                "annotations": {
                    "node.alpha.kubernetes.io/ttl": "0",
                    **(_calico_annotations(address) if self.population.calico else {}),
                },
                "managedFields": _managed("kubelet", {"f:metadata": {"f:labels": {"f:kubernetes.io/hostname": {}}}}),
            },
            "spec": {"podCIDR": f"10.{number // 256 % 128}.{number % 256}.0/24", "providerID": f"sim://{name}"},
            "status": {
                "capacity": {"cpu": "8", "memory": "32Gi", "pods": "110"},
                "allocatable": {"cpu": "7900m", "memory": "31Gi", "pods": "110"},
                "conditions": [condition],
                "addresses": [
                    {"type": "InternalIP", "address": address},
                    {"type": "Hostname", "address": name},
                ],
                "nodeInfo": {"kubeletVersion": "v1.37.0", "operatingSystem": "linux", "architecture": "amd64"},
            },
        }

    def namespace(self, number: int) -> JsonObject:
        """Namespace `ns-001`."""
        name = namespace_name(number)
        labels = {"kubernetes.io/metadata.name": name, "team": f"team-{number % 7}"}
        return {
            "metadata": {"name": name, "labels": labels},
            "spec": {"finalizers": ["kubernetes"]},
            "status": {"phase": "Active"},
        }

    def pod(self, number: int, *, prefix: str = "") -> JsonObject:
        """Pod of 1.5 to 2 kB, or of `pod_bytes`; numbers are spread over namespaces and nodes."""
        chance = random.Random(f"{self._seed}/pod/{prefix}{number}")
        app = _APPS[number % len(_APPS)]
        owner = f"{prefix}{app}-{chance.getrandbits(36):09x}"
        node = chance.randrange(self.population.nodes)
        address = pod_address(number)
        labels = {
            "app": app,
            "app.kubernetes.io/name": app,
            "pod-template-hash": owner.rpartition("-")[2],
            "tier": _TIERS[number % len(_TIERS)],
            **_padding(self.population.pod_bytes - _POD_BYTES, chance),
        }
        container = {
            "name": app,
            "image": f"registry.example.com/{app}:1.{number % 40}",
            "ports": [{"name": "http", "containerPort": 8080, "protocol": "TCP"}],
            "resources": {"limits": {"memory": "256Mi"}, "requests": {"cpu": "100m", "memory": "128Mi"}},
            "volumeMounts": [{"name": "token", "readOnly": True, "mountPath": "/var/run/secrets/serviceaccount"}],
            "terminationMessagePath": "/dev/termination-log",
            "terminationMessagePolicy": "File",
            "imagePullPolicy": "IfNotPresent",
        }
        return {
            "metadata": {
                "name": f"{owner}-{number:05d}",
                "namespace": namespace_name(number % self.population.namespaces),
                "labels": labels,
                "annotations": {"example.com/config-digest": f"{chance.getrandbits(64):016x}"},
                "ownerReferences": [_owner(owner, chance)],
                "managedFields": _managed(
                    "kube-controller-manager", {"f:metadata": {"f:labels": {f"f:{name}": {} for name in labels}}}
                ),
            },
            "spec": {
                "volumes": [{"name": "token", "projected": {"sources": [], "defaultMode": 420}}],
                "containers": [container],
                "restartPolicy": "Always",
                "terminationGracePeriodSeconds": 30,
                "dnsPolicy": "ClusterFirst",
                "serviceAccountName": app,
                "nodeName": node_name(node),
                "schedulerName": "default-scheduler",
            },
            "status": _pod_status(app, address, chance),
        }

    def service(self, number: int) -> JsonObject:
        """Service `api-0001`."""
        app = _APPS[number % len(_APPS)]
        return {
            "metadata": {
                "name": f"{app}-{number:04d}",
                "namespace": namespace_name(number % self.population.namespaces),
                "labels": {"app": app},
            },
            "spec": {
                "ports": [{"name": "http", "protocol": "TCP", "port": 80, "targetPort": 8080}],
                "selector": {"app": app},
                "clusterIP": f"10.96.{number // 250 % 256}.{number % 250 + 1}",
                "type": "ClusterIP",
            },
            "status": {"loadBalancer": {}},
        }

    def endpoint_slice(self, number: int) -> JsonObject:
        """EndpointSlice of the Service with the same number."""
        chance = random.Random(f"{self._seed}/slice/{number}")
        service = self.service(number)["metadata"]
        endpoints = [
            {
                "addresses": [pod_address(chance.randrange(max(1, self.population.pods)))],
                "conditions": {"ready": True, "serving": True, "terminating": False},
                "nodeName": node_name(chance.randrange(self.population.nodes)),
            }
            for _ in range(chance.randint(1, 10))
        ]
        return {
            "metadata": {
                "name": f"{service['name']}-{chance.getrandbits(20):05x}",
                "namespace": service["namespace"],
                "labels": {"kubernetes.io/service-name": service["name"]},
            },
            "addressType": "IPv4",
            "endpoints": endpoints,
            "ports": [{"name": "http", "port": 8080, "protocol": "TCP"}],
        }

    def widget(self, number: int, *, prefix: str = "widget-") -> JsonObject:
        """Custom object `widget-00001`."""
        return {
            "metadata": {
                "name": f"{prefix}{number:05d}",
                "namespace": namespace_name(number % self.population.namespaces),
                "labels": {"size": ("small", "large")[number % 2]},
            },
            "spec": {"size": number % 10, "note": "ein Größenvergleich ✓", "nested": {"list": [1, 2.5, None, "x"]}},
        }


def node_name(number: int) -> str:
    """Name of the n-th node."""
    return f"node-{number:05d}"


def namespace_name(number: int) -> str:
    """Name of the n-th namespace."""
    return f"ns-{number:03d}"


def pod_address(number: int) -> str:
    """IP address of the n-th pod."""
    return f"10.{number // 65536 % 128}.{number // 256 % 256}.{number % 256}"


def generate(population: Population, *, seed: int) -> Iterator[tuple[Resource, JsonObject]]:
    """All objects of a population, in the order in which they are created."""
    maker = Maker(population, seed=seed)
    for number in range(population.namespaces):
        yield resources.NAMESPACES, maker.namespace(number)
    for number in range(population.nodes):
        yield resources.NODES, maker.node(number)
    for number in range(population.pods):
        yield resources.PODS, maker.pod(number)
    for number in range(population.services):
        yield resources.SERVICES, maker.service(number)
        yield resources.ENDPOINT_SLICES, maker.endpoint_slice(number)
    for number in range(population.widgets):
        yield resources.WIDGETS, maker.widget(number)
    if population.calico:
        for kind, name, spec in _CALICO_OBJECTS:
            yield CALICO_RESOURCES[kind], {"metadata": {"name": name}, "spec": spec}


def _padding(size_bytes: int, chance: random.Random) -> dict[str, str]:
    """Labels of about this size, which compression can hardly shorten."""
    count = max(0, size_bytes) // _LABEL_BYTES
    return {f"padding-{number:02d}": "".join(chance.choices(_LABEL_CHARS, k=63)) for number in range(count)}


def populate(store: Store, population: Population, *, seed: int) -> None:
    """Install the custom types and create all objects of a population."""
    store.install(resources.WIDGETS)
    if population.calico:
        for resource in CALICO_RESOURCES.values():
            store.install(resource)
    for resource, value in generate(population, seed=seed):
        store.create(resource, value)


def _managed(manager: str, fields: JsonObject) -> list[JsonObject]:
    return [
        {
            "manager": manager,
            "operation": "Update",
            "apiVersion": "v1",
            "time": "2025-01-01T00:00:00Z",
            "fieldsType": "FieldsV1",
            "fieldsV1": fields,
        }
    ]


def _owner(name: str, chance: random.Random) -> JsonObject:
    uid = f"{chance.getrandbits(32):08x}-0000-4000-8000-{chance.getrandbits(48):012x}"
    return {"apiVersion": "apps/v1", "kind": "ReplicaSet", "name": name, "uid": uid, "controller": True}


def _pod_status(app: str, address: str, chance: random.Random) -> JsonObject:
    digest = f"{chance.getrandbits(_DIGEST_BITS):064x}"
    return {
        "phase": "Running",
        "conditions": [
            {"type": "Ready", "status": "True", "lastTransitionTime": "2025-01-01T00:00:00Z"},
            {"type": "PodScheduled", "status": "True", "lastTransitionTime": "2025-01-01T00:00:00Z"},
        ],
        "podIP": address,
        "podIPs": [{"ip": address}],
        "startTime": "2025-01-01T00:00:00Z",
        "containerStatuses": [{"name": app, "ready": True, "restartCount": 0, "containerID": f"containerd://{digest}"}],
        "qosClass": "Burstable",
    }


def _calico_annotations(address: str) -> dict[str, str]:
    """The annotations that calico-node sets on its node."""
    return {
        "projectcalico.org/IPv4Address": f"{address}/24",
        "projectcalico.org/IPv4VXLANTunnelAddr": address,
    }
