"""The chart of deploy/chart, rendered by helm."""

import functools
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final, NamedTuple

import yaml

from tests.harness.repository import ROOT

CHART: Final = ROOT / "deploy" / "chart"
NAMESPACE: Final = "kube-system"

Object = dict[str, Any]
Values = dict[str, Any]

PLAIN: Final[Values] = {"image": {"repository": "registry.example.com/typha"}, "tls": {"mode": "none"}}
"""The least that can be installed."""
SECRET: Final[Values] = {"mode": "secret", "clientCN": "typha-client", "secret": {"name": "typha-certs"}}
OPERATOR: Final[Values] = {**SECRET, "ca": {"configMap": "tigera-ca-bundle", "key": "tigera-ca-bundle.crt"}}
ISSUED: Final[Values] = {"mode": "certManager", "clientCN": "typha-client", "certManager": {"agentSecret": "agents"}}
FEEDS: Final[Values] = {
    "workloads": {"resources": [{"type": "v1/pods", "fields": ["metadata.labels"]}, {"type": "v1/configmaps"}]},
    "apps": {"resources": [{"type": "apps/v1/deployments"}, {"type": "core/v1/configmaps"}]},
}
MONITORING: Final[Values] = {name: {"enabled": True} for name in ("serviceMonitor", "rules", "dashboard")}

MATRIX: Final[dict[str, Values]] = {
    "plain": PLAIN,
    "secret": PLAIN | {"tls": SECRET},
    "as the operator": PLAIN | {"tls": OPERATOR},
    "another authority": PLAIN | {"tls": SECRET | {"ca": {"secret": "authority"}, "clientURISAN": "spiffe://x/y"}},
    "names like numbers": PLAIN
    | {
        "priorityClassName": "123",
        "tls": {**SECRET, "secret": {"name": "123"}, "ca": {"configMap": "456", "key": "123"}},
    },
    "cert-manager": PLAIN | {"tls": ISSUED},
    "an issuer": PLAIN | {"tls": ISSUED | {"certManager": {"issuer": {"name": "corp", "kind": "ClusterIssuer"}}}},
    "beside": PLAIN | {"mode": "beside", "tls": SECRET},
    "join": PLAIN | {"mode": "join", "tls": SECRET},
    "a name": PLAIN | {"name": "typha-two", "mode": "beside"},
    "pod network": PLAIN | {"hostNetwork": False},
    "network policy": PLAIN
    | {"hostNetwork": False, "networkPolicy": {"enabled": True, "agents": ["10.0.0.0/8"], "prometheus": {"a": "b"}}},
    "network policy for all": PLAIN | {"hostNetwork": False, "networkPolicy": {"enabled": True}},
    "autoscaling": PLAIN | {"autoscaling": {"enabled": True}},
    "monitoring": PLAIN | {"metrics": MONITORING},
    "no metrics": PLAIN | {"metrics": {"enabled": False}},
    "feeds": PLAIN | {"feeds": FEEDS},
    "feeds alone": PLAIN | {"feeds": FEEDS, "calico": {"feeds": False}},
    "v1": PLAIN | {"calico": {"apiGroup": "crd.projectcalico.org/v1"}},
    "v3": PLAIN | {"calico": {"apiGroup": "projectcalico.org/v3", "usePodCIDR": True, "readOnly": True}},
    "everything": PLAIN
    | {
        "image": {"repository": "registry.example.com/typha", "digest": f"sha256:{'ab' * 32}", "pullPolicy": "Always"},
        "imagePullSecrets": [{"name": "pull"}],
        "mode": "beside",
        "ports": {"client": 7001, "health": 7002, "metrics": 7003},
        "autoscaling": {"enabled": True, "nodesPerReplica": 100, "maxReplicas": 20},
        "tls": ISSUED,
        "feeds": FEEDS,
        "metrics": MONITORING,
        "settings": {"LogSeverityScreen": "warning", "SegmentBytes": 4194304, "LogFormat": "json"},
        "environment": {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://collector:4318", "TLS_MIN_VERSION": "1.3"},
        "drainSeconds": 600,
        "nodeAffinity": {
            "preferredDuringSchedulingIgnoredDuringExecution": [
                {"weight": 1, "preference": {"matchExpressions": [{"key": "disk", "operator": "Exists"}]}}
            ]
        },
        "podAnnotations": {"a": "b"},
        "podLabels": {"c": "d"},
    },
}
"""Values with every feature on and off."""


@functools.cache
def _parsed(text: str) -> list[Object]:
    return [found for found in yaml.load_all(text, yaml.CSafeLoader) if found]


class Rendered(NamedTuple):
    """What helm printed: exit code, manifests and errors."""

    code: int
    text: str
    errors: str

    @property
    def objects(self) -> list[Object]:
        """The objects, in the order of their installation. Shared: they must not be changed."""
        assert self.code == 0, self.errors
        return _parsed(self.text)

    def one(self, kind: str, name: str | None = None) -> Object:
        """The one object of a kind, or of a kind and name."""
        [found] = [item for item in self.objects if item["kind"] == kind and name in (None, item["metadata"]["name"])]
        return found

    @property
    def deployment(self) -> Object:
        """The Deployment of the service."""
        return next(
            item
            for item in self.objects
            if item["kind"] == "Deployment" and "autoscaler" not in item["metadata"]["name"]
        )

    @property
    def pod(self) -> Object:
        """The spec of the service's pods."""
        found: Object = self.deployment["spec"]["template"]["spec"]
        return found

    @property
    def environment(self) -> dict[str, str]:
        """The variables of the service that have a fixed value."""
        [container] = self.pod["containers"]
        return {item["name"]: item["value"] for item in container["env"] if "value" in item}


def run(tools: Path, *arguments: object, values: Values, command: Sequence[str] = ("template", "typha")) -> Rendered:
    """Run helm with values on standard input."""
    done = subprocess.run(
        [tools / "helm", *command, CHART, "--namespace", NAMESPACE, "--values", "-", *map(str, arguments)],
        input=yaml.safe_dump(values),
        capture_output=True,
        text=True,
        check=False,
    )
    return Rendered(done.returncode, done.stdout, done.stderr)


def permissions(role: Object) -> set[tuple[str, str, str]]:
    """The (group, resource, verb) triples that a role allows."""
    return {
        (group, resource, verb)
        for rule in role["rules"]
        for group in rule["apiGroups"]
        for resource in rule["resources"]
        for verb in rule["verbs"]
    }
