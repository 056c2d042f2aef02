"""The resource types a simulated API server serves."""

import dataclasses


@dataclasses.dataclass(frozen=True, slots=True, order=True)
class Resource:
    """One resource type. `group` is empty for the core group; `name` is the plural in the path.

    Objects of `custom` types have their members sorted, and items of their lists have apiVersion and kind.
    """

    group: str
    version: str
    name: str
    kind: str
    namespaced: bool = True
    custom: bool = False

    def __str__(self) -> str:
        return f"{self.group or 'core'}/{self.version}/{self.name}"

    @property
    def api_version(self) -> str:
        """`v1` or `group/v1`, as in an object."""
        return f"{self.group}/{self.version}" if self.group else self.version

    @property
    def path(self) -> str:
        """Path of the list over all namespaces."""
        return f"/apis/{self.group}/{self.version}/{self.name}" if self.group else f"/api/{self.version}/{self.name}"

    def key(self, namespace: str, name: str) -> str:
        """Key in the store. Lists are in the order of keys, as in etcd."""
        return f"{namespace}/{name}" if self.namespaced else name


PODS = Resource("", "v1", "pods", "Pod")
NODES = Resource("", "v1", "nodes", "Node", namespaced=False)
NAMESPACES = Resource("", "v1", "namespaces", "Namespace", namespaced=False)
SERVICES = Resource("", "v1", "services", "Service")
ENDPOINTS = Resource("", "v1", "endpoints", "Endpoints")
CONFIG_MAPS = Resource("", "v1", "configmaps", "ConfigMap")
SERVICE_ACCOUNTS = Resource("", "v1", "serviceaccounts", "ServiceAccount")
ENDPOINT_SLICES = Resource("discovery.k8s.io", "v1", "endpointslices", "EndpointSlice")
NETWORK_POLICIES = Resource("networking.k8s.io", "v1", "networkpolicies", "NetworkPolicy")
WIDGETS = Resource("loadtest.example.com", "v1", "widgets", "Widget", custom=True)

BUILT_IN = (
    PODS,
    NODES,
    NAMESPACES,
    SERVICES,
    ENDPOINTS,
    CONFIG_MAPS,
    SERVICE_ACCOUNTS,
    ENDPOINT_SLICES,
    NETWORK_POLICIES,
)
