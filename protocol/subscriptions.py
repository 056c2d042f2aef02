"""Internal: subscriptions, the part of a feed that a client asks for, and the node that a key belongs to.

Both ends use it: the server to select what it sends, and a client whose server cannot select (docs/protocol.md,
section 4).
"""

import functools
import hashlib
from typing import Annotated, Self, TypeAlias

import msgspec

MAX_TEXTS = 64
"""Limit of each list of a subscription. Every text is compared with the key of every change."""
MAX_TEXT_CHARS = 1024

Texts: TypeAlias = Annotated[
    tuple[Annotated[str, msgspec.Meta(max_length=MAX_TEXT_CHARS)], ...],
    msgspec.Meta(min_length=1, max_length=MAX_TEXTS),
]

COMMON = 0
"""The tag of what belongs to no node: every client of the subscription gets it."""
_TAGS_CACHED = 16_384
"""Node names whose tags are remembered. A cluster has 5,000 nodes."""
_RESOURCE_KEY_PARTS = 6
"""Of the key of a Kubernetes resource, split at its slashes; the first part is empty."""
_HEARTBEATS_NAMESPACE = "kube-node-lease"


class Subscription(msgspec.Struct, frozen=True, omit_defaults=True):
    """What a client wants of a feed: the keys that match all members. None stands for no restriction."""

    kinds: Texts | None = None
    """As at the beginning of a key of a Kubernetes resource: `core/v1/pods`."""
    namespaces: Texts | None = None
    """Of Kubernetes resources. The empty text stands for those without a namespace."""
    prefixes: Texts | None = None
    """Of keys."""
    own_node: bool | None = None
    """Of keys that belong to a node, only those of the client's node."""

    def normalized(self) -> Self:
        """The same, so that equal subscriptions are equal values."""
        sort = _sorted
        return type(self)(sort(self.kinds), sort(self.namespaces), sort(self.prefixes), self.own_node or None)

    @property
    def is_for_any_keys(self) -> bool:
        """Whether it can select from keys that are not those of Kubernetes resources."""
        return self.kinds is None and self.namespaces is None

    @property
    def label(self) -> str:
        """In short, for logs and lists: `kinds=core/v1/pods,core/v1/nodes own_node`."""
        lists = {"kinds": self.kinds, "namespaces": self.namespaces, "prefixes": self.prefixes}
        words = [f"{name}={','.join(texts)}" for name, texts in lists.items() if texts is not None]
        return " ".join([*words, *(["own_node"] if self.own_node else [])])

    @property
    def is_everything(self) -> bool:
        """Whether it selects the whole feed."""
        return self == Subscription()


def _sorted(texts: tuple[str, ...] | None) -> tuple[str, ...] | None:
    return None if texts is None else tuple(sorted(set(texts)))


class Selector:
    """Tells which keys a subscription selects, whatever their node."""

    def __init__(self, subscription: Subscription) -> None:
        self._kinds = None if subscription.kinds is None else tuple(f"/{kind}/" for kind in subscription.kinds)
        self._prefixes = subscription.prefixes
        self._namespaces = None if subscription.namespaces is None else frozenset(subscription.namespaces)

    def selects(self, key: str) -> bool:
        """Whether the key is selected."""
        if self._kinds is not None and not key.startswith(self._kinds):
            return False
        if self._prefixes is not None and not key.startswith(self._prefixes):
            return False
        if self._namespaces is None:
            return True
        parts = key.split("/", _RESOURCE_KEY_PARTS)
        return len(parts) == _RESOURCE_KEY_PARTS and parts[4] in self._namespaces


class _Spec(msgspec.Struct, frozen=True, rename={"node_name": "nodeName"}):
    node_name: str = ""
    node: str = ""


class _Object(msgspec.Struct, frozen=True):
    spec: _Spec = _Spec()


_decode = msgspec.json.Decoder(_Object).decode

_NAMED_AFTER_NODE = {("core", "nodes"), ("storage.k8s.io", "csinodes")}
_CALICO_GROUPS = ("crd.projectcalico.org", "projectcalico.org")
_CALICO_RESOURCES = ("blockaffinities", "caliconodestatuses", "hostendpoints", "workloadendpoints")
_NODE_IN_SPEC = {
    ("core", "pods"): "nodeName",
    **{(group, resource): "node" for group in _CALICO_GROUPS for resource in _CALICO_RESOURCES},
}
_CALICO_HOST = ("/calico/v1/host/", "/calico/ipam/v2/host/")
_CALICO_NODES = "/calico/resources/v3/projectcalico.org/nodes/"
_CALICO_STATUSES = "/calico/resources/v3/projectcalico.org/caliconodestatuses/"


def node_of(key: str, value: bytes) -> str | None:
    """Return the name of the node that a key belongs to; None if it is common to all nodes.

    The empty text means that it belongs to a node that is not known: a pod that is not scheduled yet.
    """
    if key.startswith("/calico/"):
        return _node_in_calico_key(key, value)
    parts = key.split("/", _RESOURCE_KEY_PARTS)
    if len(parts) != _RESOURCE_KEY_PARTS:
        return None
    kind = parts[1], parts[3]
    if kind in _NAMED_AFTER_NODE:
        return parts[5]
    if kind == ("coordination.k8s.io", "leases"):
        return parts[5] if parts[4] == _HEARTBEATS_NAMESPACE else None
    field = _NODE_IN_SPEC.get(kind)
    return None if field is None else _node_in_spec(value, field)


def _node_in_calico_key(key: str, value: bytes) -> str | None:
    for prefix in _CALICO_HOST:
        if key.startswith(prefix):
            return key[len(prefix) :].partition("/")[0]
    if key.startswith(_CALICO_NODES):
        return key[len(_CALICO_NODES) :]
    return _node_in_spec(value, "node") if key.startswith(_CALICO_STATUSES) else None


def _node_in_spec(value: bytes, field: str) -> str:
    try:
        spec = _decode(value).spec
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return ""
    return spec.node_name if field == "nodeName" else spec.node


@functools.lru_cache(maxsize=_TAGS_CACHED)
def tag_of(node: str) -> int:
    """Return the number that stands for a node in logs and snapshots, the same in each process: never `COMMON`.

    It is a hash. That two of 50,000 nodes have the same is less likely than one in ten thousand million.
    """
    return int.from_bytes(hashlib.sha256(node.encode(errors="surrogatepass")).digest()[:8], "big") or 1
