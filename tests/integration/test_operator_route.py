"""The way into clusters of the Calico operator: an admission policy gives its Typha pods this service's image."""

import pathlib
import time
from collections.abc import Iterator
from typing import Any

import pytest
import yaml

from loadtest.environment.control_plane import ControlPlane

pytestmark = [pytest.mark.control_plane, pytest.mark.slow, pytest.mark.timeout(600)]

POLICY = pathlib.Path(__file__).parents[2] / "deploy/operator/image-policy.yaml"
ADMISSION = "/apis/admissionregistration.k8s.io/v1"
ORIGINAL = "quay.io/calico/calico:v3.33.0"
OURS = "registry.example.com/typha:0.1.0"
PATIENCE_SECONDS = 180.0

NEW_COMMAND = ["/usr/bin/calico", "component", "typha"]
"""Operators from 1.44 on give the command; those before leave it to the image."""


def pod(
    *, command: list[str] | None, labels: dict[str, str] | None = None, container: str = "calico-typha"
) -> dict[str, Any]:
    """A pod as the operator's Deployment makes it: mutual TLS, host network, unprivileged."""
    typha = {
        "name": container,
        "image": ORIGINAL,
        **({} if command is None else {"command": command}),
        "env": [
            {"name": "TYPHA_CAFILE", "value": "/etc/pki/tls/certs/tigera-ca-bundle.crt"},
            {"name": "TYPHA_SERVERCERTFILE", "value": "/typha-certs/tls.crt"},
            {"name": "TYPHA_CLIENTCN", "value": "typha-client"},
        ],
        "ports": [{"containerPort": 5473, "name": "calico-typha", "protocol": "TCP"}],
        "volumeMounts": [{"mountPath": "/typha-certs", "name": "typha-certs", "readOnly": True}],
        "securityContext": {"allowPrivilegeEscalation": False, "runAsNonRoot": True, "runAsUser": 10001},
    }
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {
            "generateName": "calico-typha-",
            "labels": {"k8s-app": "calico-typha"} if labels is None else labels,
        },
        "spec": {
            "hostNetwork": True,
            "initContainers": [{"name": "typha-certs-key-cert-provisioner", "image": "quay.io/tigera/key-cert:v1"}],
            "containers": [typha],
            "volumes": [{"name": "typha-certs", "secret": {"secretName": "typha-certs"}}],
        },
    }


@pytest.fixture(scope="module")
def plane(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ControlPlane]:
    with ControlPlane(tmp_path_factory.mktemp("plane")) as running:
        for name in ("calico-system", "other"):
            running.create("/api/v1/namespaces", {"metadata": {"name": name}})
        without = created(running, "calico-system", pod(command=NEW_COMMAND))
        assert image_of(without) == ORIGINAL
        policy, binding = yaml.safe_load_all(POLICY.read_text())
        running.create(f"{ADMISSION}/mutatingadmissionpolicies", policy)
        running.create(f"{ADMISSION}/mutatingadmissionpolicybindings", binding)
        deadline = time.monotonic() + PATIENCE_SECONDS
        while image_of(created(running, "calico-system", pod(command=None))) != OURS:
            assert time.monotonic() < deadline, "the policy has no effect"
            time.sleep(0.2)
        yield running


def created(plane: ControlPlane, namespace: str, body: dict[str, Any]) -> dict[str, Any]:
    """What the API server makes of a pod; it is not stored."""
    answer = plane.request("POST", f"/api/v1/namespaces/{namespace}/pods?dryRun=All", body)
    assert answer.status == 201, answer.body
    found: dict[str, Any] = answer.json()
    return found


def image_of(found: dict[str, Any]) -> str:
    [container] = found["spec"]["containers"]
    image: str = container["image"]
    return image


@pytest.mark.parametrize("command", [None, NEW_COMMAND])
def test_a_pod_of_the_operator_gets_our_image_and_nothing_else(plane: ControlPlane, command: list[str] | None) -> None:
    body = pod(command=command)
    [changed] = created(plane, "calico-system", body)["spec"]["containers"]
    [unchanged] = created(plane, "other", body)["spec"]["containers"]
    assert (changed.pop("image"), unchanged.pop("image")) == (OURS, ORIGINAL)
    assert changed == unchanged
    assert changed.get("command") == command


@pytest.mark.parametrize(
    ("namespace", "body"),
    [
        ("other", pod(command=NEW_COMMAND)),
        ("calico-system", pod(command=NEW_COMMAND, labels={"k8s-app": "calico-node"})),
        ("calico-system", pod(command=NEW_COMMAND, labels={})),
        ("calico-system", pod(command=NEW_COMMAND, container="calico-node")),
    ],
)
def test_other_pods_keep_their_images(plane: ControlPlane, namespace: str, body: dict[str, Any]) -> None:
    assert image_of(created(plane, namespace, body)) == ORIGINAL
