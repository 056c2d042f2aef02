"""Small clusters as the content of the `felix` feed."""

from collections.abc import Mapping, Sequence
from typing import Any

from tests.harness import felix_recordings

Json = Mapping[str, Any]
NODE = "n1"
TIERS = ("kube-admin", 1000, "Pass"), ("default", 1_000_000, "Deny"), ("kube-baseline", 10_000_000, "Pass")
"""Those that every cluster has."""


def content(objects: Sequence[Json]) -> dict[str, bytes]:
    """What the service makes of objects."""
    return {
        item.key: item.value for item in felix_recordings.convert_steps(list(objects), [])[0] if item.value is not None
    }


def cluster(*objects: Json) -> dict[str, bytes]:
    """The content for a node `n1`, a namespace `default`, and more objects."""
    return content(
        [
            {
                "apiVersion": "crd.projectcalico.org/v1",
                "kind": "ClusterInformation",
                "metadata": {"name": "default"},
                "spec": {"datastoreReady": True},
            },
            {
                "apiVersion": "v1",
                "kind": "Node",
                "metadata": {"name": NODE, "annotations": {"projectcalico.org/IPv4Address": "172.20.0.11/24"}},
            },
            {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "default"}},
            *(
                {
                    "apiVersion": "crd.projectcalico.org/v1",
                    "kind": "Tier",
                    "metadata": {"name": name},
                    "spec": {"order": order, "defaultAction": action},
                }
                for name, order, action in TIERS
            ),
            *objects,
        ]
    )


def pod(name: str, address: str, *, labels: Mapping[str, str] | None = None, node: str = NODE) -> Json:
    """A running pod."""
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": name, "namespace": "default", "labels": dict(labels or {})},
        "spec": {"nodeName": node, "containers": [{"name": "c", "image": "i"}]},
        "status": {"phase": "Running", "podIP": address, "podIPs": [{"ip": address}]},
    }


def policy(name: str, spec: Json) -> Json:
    """A Kubernetes network policy."""
    return {
        "apiVersion": "networking.k8s.io/v1",
        "kind": "NetworkPolicy",
        "metadata": {"name": name, "namespace": "default"},
        "spec": spec,
    }


def changes(before: Mapping[str, bytes], after: Mapping[str, bytes]) -> list[tuple[str, bytes | None]]:
    """What leads from one content to another."""
    gone: list[tuple[str, bytes | None]] = [(key, None) for key in before.keys() - after.keys()]
    return gone + [(key, value) for key, value in after.items() if before.get(key) != value]
