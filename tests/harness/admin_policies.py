"""The two kinds of policies that only agents of Calico 3.29 to 3.31 get, for feeds of their own in tests."""

from cache import resources
from cache.feeds.calico import adminpolicies, syncers

GROUP_VERSION = "policy.networking.k8s.io/v1alpha1"
_GROUP, _, _VERSION = GROUP_VERSION.partition("/")
ADMIN = syncers.Source(
    "AdminNetworkPolicy",
    resources.ResourceType(_GROUP, _VERSION, "adminnetworkpolicies"),
    adminpolicies.convert_admin,
)
BASELINE = syncers.Source(
    "BaselineAdminNetworkPolicy",
    resources.ResourceType(_GROUP, _VERSION, "baselineadminnetworkpolicies"),
    adminpolicies.convert_baseline,
)
