"""Objects that a real API server accepts, and that no controller has to act on. Pure."""

from typing import Any, Final

from loadtest.environment import calico_crds

GROUP: Final = "loadtest.typha"
LABEL: Final = "loadtest.typha/run"

JsonObject = dict[str, Any]

_WIDGET: Final = calico_crds.Kind("Widget", is_namespaced=True, groups=(f"{GROUP}/v1",))
CUSTOM_RESOURCE_DEFINITION: Final[JsonObject] = calico_crds.definition(_WIDGET, f"{GROUP}/v1")


def namespace(name: str) -> JsonObject:
    """A namespace."""
    return {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}}


def pod(name: str, namespace: str) -> JsonObject:
    """A pod of some 2 kB as stored. It is not scheduled, so its deletion is immediate."""
    container = {
        "name": "main",
        "image": "registry.example.com/web:1.0",
        "ports": [{"name": "http", "containerPort": 8080}],
        "resources": {"limits": {"memory": "256Mi"}, "requests": {"cpu": "100m", "memory": "128Mi"}},
        "env": [{"name": f"SETTING_{number}", "value": f"value of setting {number}"} for number in range(6)],
    }
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": name, "namespace": namespace, "labels": {"app": "web", LABEL: "0"}},
        "spec": {"containers": [container], "automountServiceAccountToken": False},
    }


def service(name: str, namespace: str) -> JsonObject:
    """A Service; the API server gives it an address."""
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": name, "namespace": namespace},
        "spec": {"selector": {"app": name}, "ports": [{"name": "http", "port": 80, "targetPort": 8080}]},
    }


def endpoint_slice(name: str, namespace: str) -> JsonObject:
    """An EndpointSlice with five addresses."""
    endpoints = [{"addresses": [f"10.1.{number}.1"], "conditions": {"ready": True}} for number in range(5)]
    return {
        "apiVersion": "discovery.k8s.io/v1",
        "kind": "EndpointSlice",
        "metadata": {"name": name, "namespace": namespace, "labels": {"kubernetes.io/service-name": name}},
        "addressType": "IPv4",
        "endpoints": endpoints,
        "ports": [{"name": "http", "port": 8080, "protocol": "TCP"}],
    }


def widget(name: str, namespace: str) -> JsonObject:
    """An object of the custom type."""
    return {
        "apiVersion": f"{GROUP}/v1",
        "kind": "Widget",
        "metadata": {"name": name, "namespace": namespace},
        "spec": {"size": 3, "text": "größer ✓", "nested": {"list": [1, 2.5, None]}},
    }
