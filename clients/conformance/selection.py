"""What a subscription selects, by the kit's own reading of section 4 of docs/protocol.md."""

import json
from collections.abc import Mapping
from typing import Any, NamedTuple

from clients.conformance.link import check_text
from clients.conformance.report import Broken

MAX_TEXTS = 64
_RESOURCE_KEY_PARTS = 6
"""Of the key of a Kubernetes resource; the first is empty."""
_CALICO_GROUPS = ("crd.projectcalico.org", "projectcalico.org")
_CALICO_IN_SPEC = ("blockaffinities", "caliconodestatuses", "hostendpoints", "workloadendpoints")
_CALICO_HOSTS = ("/calico/v1/host/", "/calico/ipam/v2/host/")
_CALICO_NODES = "/calico/resources/v3/projectcalico.org/nodes/"
_CALICO_STATUSES = "/calico/resources/v3/projectcalico.org/caliconodestatuses/"


class Selection(NamedTuple):
    """A subscription, and the node of the client that has it."""

    node: str
    kinds: list[str] | None = None
    namespaces: list[str] | None = None
    prefixes: list[str] | None = None
    own_node: bool = False

    def selects(self, key: str, value: bytes) -> bool:
        """Whether the client is to have this key."""
        parts = key.split("/")
        return (
            (self.kinds is None or any(key.startswith(f"/{kind}/") for kind in self.kinds))
            and (self.prefixes is None or any(key.startswith(prefix) for prefix in self.prefixes))
            and (self.namespaces is None or (len(parts) == _RESOURCE_KEY_PARTS and parts[4] in self.namespaces))
            and (not self.own_node or owner(key, value) in (None, self.node))
        )

    def of(self, content: Mapping[str, bytes]) -> dict[str, bytes]:
        """The selected part of a map."""
        return {key: value for key, value in content.items() if self.selects(key, value)}


def owner(key: str, value: bytes) -> str | None:
    """The node that a key belongs to; None if it is common to all, and empty if the value names no node."""
    for prefix in _CALICO_HOSTS:
        if key.startswith(prefix):
            return key.removeprefix(prefix).split("/")[0]
    if key.startswith(_CALICO_NODES):
        return key.removeprefix(_CALICO_NODES)
    if key.startswith(_CALICO_STATUSES):
        return _in_spec(value, "node")
    parts = key.split("/")
    if len(parts) != _RESOURCE_KEY_PARTS:
        return None
    _, group, _, resource, namespace, name = parts
    match group, resource:
        case ("core", "nodes") | ("storage.k8s.io", "csinodes"):
            return name
        case "coordination.k8s.io", "leases":
            return name if namespace == "kube-node-lease" else None
        case "core", "pods":
            return _in_spec(value, "nodeName")
    return _in_spec(value, "node") if group in _CALICO_GROUPS and resource in _CALICO_IN_SPEC else None


def _in_spec(value: bytes, name: str) -> str:
    try:
        found = json.loads(value)["spec"][name]
    except (ValueError, TypeError, KeyError, RecursionError):
        return ""
    return found if isinstance(found, str) else ""


def asked_for(hello: Mapping[str, Any]) -> Selection:
    """What a client's hello asks for.

    Raises:
        Broken: that is not well-formed.
    """
    subscription = hello.get("subscription")
    if not isinstance(subscription, dict):
        raise Broken("M2", f"`subscription` of the hello is {subscription!r:.60}")
    kinds, namespaces, prefixes = (_texts(subscription.get(name), name) for name in ("kinds", "namespaces", "prefixes"))
    own_node = subscription.get("own_node")
    if own_node not in (None, True, False):
        raise Broken("M2", f"`own_node` is {own_node!r:.60}")
    return Selection(hello.get("node") or "", kinds, namespaces, prefixes, bool(own_node))


def _texts(value: object, name: str) -> list[str] | None:
    if value is None:
        return None
    if not isinstance(value, list) or not 1 <= len(value) <= MAX_TEXTS:
        raise Broken("S1", f"`{name}` of the subscription is no array of 1 to {MAX_TEXTS} texts")
    return [check_text(one, f"`{name}` of the subscription") for one in value]
