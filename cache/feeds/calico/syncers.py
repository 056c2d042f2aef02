"""The contents of the four feeds: their kinds, where the objects come from, and their converters. Pure.

Source: docs/data-model.md, section 2. If two kinds claim one key, the kind that comes first in the feed wins.
"""

import functools
from collections.abc import Callable, Sequence
from typing import NamedTuple

import msgspec

from cache import objects, resources
from cache.feeds.calico import (
    adminpolicies,
    clusterpolicies,
    configurations,
    customresource,
    hostendpoints,
    kubepolicies,
    livemigrations,
    model,
    networks,
    nodes,
    pods,
    policies,
    profiles,
    wholeresource,
)

FELIX = "felix"
BGP = "bgp"
TUNNEL_IP_ALLOCATION = "tunnel-ip-allocation"
NODE_STATUS = "node-status"
NAMES = (FELIX, BGP, TUNNEL_IP_ALLOCATION, NODE_STATUS)

Group = customresource.Group


class Source(NamedTuple):
    """One kind of a feed: the type of its objects, and their converter."""

    kind: str
    """The kind as the objects name it."""
    type: resources.ResourceType
    convert: model.Converter
    last_wins: bool = True
    """Which of several objects that claim one key wins: the last in the byte order of names, or the first."""
    is_memoised: bool = False
    """Whether the converter returns the identical items again if nothing relevant changed."""
    quick_bytes: int = 16 * 1024
    """An object of at most this size takes at most 5 ms (docs/decisions/expensive-conversions.md)."""
    is_older: bool = False
    """Whether only agents of older releases get the kind: its items are marked as older."""


class FeedSpec(NamedTuple):
    """A feed: its name, its kinds, and its items that exist without any object."""

    name: str
    sources: tuple[Source, ...]
    built_in: Sequence[model.Item] = ()


_PODS = resources.ResourceType("", "v1", "pods")
_NODES = resources.ResourceType("", "v1", "nodes")
_NAMESPACES = resources.ResourceType("", "v1", "namespaces")
_SERVICE_ACCOUNTS = resources.ResourceType("", "v1", "serviceaccounts")
_SERVICES = resources.ResourceType("", "v1", "services")
_ENDPOINT_SLICES = resources.ResourceType("discovery.k8s.io", "v1", "endpointslices")
_NETWORK_POLICIES = resources.ResourceType("networking.k8s.io", "v1", "networkpolicies")
_CLUSTER_POLICIES = resources.ResourceType("policy.networking.k8s.io", "v1alpha2", "clusternetworkpolicies")
ADMIN_POLICIES = resources.ResourceType("policy.networking.k8s.io", "v1alpha1", "adminnetworkpolicies")
BASELINE_POLICIES = resources.ResourceType("policy.networking.k8s.io", "v1alpha1", "baselineadminnetworkpolicies")
_MIGRATIONS = resources.ResourceType("kubevirt.io", "v1", "virtualmachineinstancemigrations")

_PLURALS = {
    "BGPConfiguration": "bgpconfigurations",
    "BGPFilter": "bgpfilters",
    "BGPPeer": "bgppeers",
    "BlockAffinity": "blockaffinities",
    "CalicoNodeStatus": "caliconodestatuses",
    "ClusterInformation": "clusterinformations",
    "FelixConfiguration": "felixconfigurations",
    "GlobalNetworkPolicy": "globalnetworkpolicies",
    "GlobalNetworkSet": "globalnetworksets",
    "HostEndpoint": "hostendpoints",
    "IPAMBlock": "ipamblocks",
    "IPPool": "ippools",
    "NetworkPolicy": "networkpolicies",
    "NetworkSet": "networksets",
    "StagedGlobalNetworkPolicy": "stagedglobalnetworkpolicies",
    "StagedKubernetesNetworkPolicy": "stagedkubernetesnetworkpolicies",
    "StagedNetworkPolicy": "stagednetworkpolicies",
    "Tier": "tiers",
}

_MULTIPLYING_QUICK_BYTES = 4 * 1024
"""The same where peers and ports multiply."""

_GroupConverter = Callable[..., Sequence[model.Item]]


def custom_type(group: Group, plural: str) -> resources.ResourceType:
    """Return the resource type of one of Calico's own kinds."""
    return resources.ResourceType(group.group, group.version, plural)


def _older(kind: str, type: resources.ResourceType, convert: model.Converter) -> Source:
    def marked(event: objects.ObjectEvent) -> Sequence[model.Item]:
        return [msgspec.structs.replace(item, is_older=True) for item in convert(event)]

    return Source(kind, type, marked, quick_bytes=_MULTIPLYING_QUICK_BYTES, is_older=True)


def specs(group: Group, *, use_pod_cidr: bool = False) -> tuple[FeedSpec, ...]:
    """Return the four feeds, with Calico's own kinds from this group. They share the converters' caches.

    With `use_pod_cidr`, nodes stand for the kinds of Calico's IPAM (see `nodes.NodeConverter`).
    """
    node_converter = nodes.NodeConverter(use_pod_cidr=use_pod_cidr)

    def own(kind: str, convert: _GroupConverter, *, last_wins: bool = True, **options: str) -> Source:
        bound = functools.partial(convert, group=group, **options)
        return Source(kind, custom_type(group, _PLURALS[kind]), bound, last_wins)

    pools = own("IPPool", networks.convert_pool, last_wins=False)
    policy = policies.convert_policy
    bgp_configurations = own("BGPConfiguration", wholeresource.convert_bgp_configuration)
    bgp_peers = own("BGPPeer", wholeresource.convert_bgp_peer)
    felix = (
        own("ClusterInformation", configurations.convert_cluster_information),
        own("FelixConfiguration", configurations.convert_felix_configuration),
        own("GlobalNetworkPolicy", policy, policy_kind=policies.GLOBAL_NETWORK_POLICY),
        own("StagedGlobalNetworkPolicy", policy, policy_kind=policies.STAGED_GLOBAL_NETWORK_POLICY),
        own("GlobalNetworkSet", networks.convert_global_set, last_wins=False),
        pools,
        Source("Node", _NODES, node_converter.felix, is_memoised=True),
        Source("Namespace", _NAMESPACES, profiles.convert_namespace),
        Source("ServiceAccount", _SERVICE_ACCOUNTS, profiles.convert_service_account),
        Source("Pod", _PODS, pods.convert),
        own("NetworkPolicy", policy, policy_kind=policies.NETWORK_POLICY),
        own("StagedNetworkPolicy", policy, policy_kind=policies.STAGED_NETWORK_POLICY),
        own("StagedKubernetesNetworkPolicy", kubepolicies.convert_staged_policy)._replace(
            quick_bytes=_MULTIPLYING_QUICK_BYTES
        ),
        own("NetworkSet", networks.convert_set),
        own("Tier", policies.convert_tier),
        own("HostEndpoint", hostendpoints.convert, last_wins=False),
        bgp_configurations,
        bgp_peers,
        Source("VirtualMachineInstanceMigration", _MIGRATIONS, livemigrations.convert),
        Source("NetworkPolicy", _NETWORK_POLICIES, kubepolicies.convert_policy, quick_bytes=_MULTIPLYING_QUICK_BYTES),
        Source(
            "ClusterNetworkPolicy", _CLUSTER_POLICIES, clusterpolicies.convert, quick_bytes=_MULTIPLYING_QUICK_BYTES
        ),
        _older("AdminNetworkPolicy", ADMIN_POLICIES, adminpolicies.convert_admin),
        _older("BaselineAdminNetworkPolicy", BASELINE_POLICIES, adminpolicies.convert_baseline),
        Source("EndpointSlice", _ENDPOINT_SLICES, wholeresource.convert_endpoint_slice),
        Source("Service", _SERVICES, wholeresource.convert_service),
        *(() if use_pod_cidr else (own("IPAMBlock", networks.convert_block),)),
    )
    whole_nodes = Source("Node", _NODES, node_converter.whole, is_memoised=True)
    bgp = (
        pools,
        bgp_configurations,
        whole_nodes,
        bgp_peers,
        own("BGPFilter", wholeresource.convert_bgp_filter),
        *(() if use_pod_cidr else (own("BlockAffinity", networks.convert_affinity),)),
    )
    return (
        FeedSpec(FELIX, felix, profiles.built_in()),
        FeedSpec(BGP, bgp),
        FeedSpec(TUNNEL_IP_ALLOCATION, (pools, whole_nodes)),
        FeedSpec(NODE_STATUS, (own("CalicoNodeStatus", wholeresource.convert_node_status),)),
    )
