"""Objects for a real API server: what its validation accepts, and no controller has to act on. Pure."""

from typing import Any, Final

GROUP: Final = "loadtest.typha"
LABEL: Final = "loadtest.typha/run"

JsonObject = dict[str, Any]

CUSTOM_RESOURCE_DEFINITION: Final[JsonObject] = {
    "apiVersion": "apiextensions.k8s.io/v1",
    "kind": "CustomResourceDefinition",
    "metadata": {"name": f"widgets.{GROUP}"},
    "spec": {
        "group": GROUP,
        "names": {"plural": "widgets", "singular": "widget", "kind": "Widget", "listKind": "WidgetList"},
        "scope": "Namespaced",
        "versions": [
            {
                "name": "v1",
                "served": True,
                "storage": True,
                "schema": {
                    "openAPIV3Schema": {
                        "type": "object",
                        "properties": {"spec": {"type": "object", "x-kubernetes-preserve-unknown-fields": True}},
                    }
                },
            }
        ],
    },
}


def namespace(name: str) -> JsonObject:
    """A namespace."""
    return {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}}


def pod(name: str, namespace: str) -> JsonObject:
    """A pod of some 2 kB as it is stored; unscheduled, so its deletion is at once."""
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
