"""The contents of the feeds."""

import pytest

from cache.feeds.calico import syncers


def kinds(name: str, group: syncers.Group = syncers.Group.V1) -> list[str]:
    [spec] = [spec for spec in syncers.specs(group) if spec.name == name]
    return sorted(source.kind for source in spec.sources if not source.is_older)


def test_felix() -> None:
    assert kinds(syncers.FELIX) == sorted(
        [
            *("BGPConfiguration", "BGPPeer", "ClusterInformation", "ClusterNetworkPolicy", "EndpointSlice"),
            *("FelixConfiguration", "GlobalNetworkPolicy", "GlobalNetworkSet", "HostEndpoint", "IPAMBlock", "IPPool"),
            *("Namespace", "NetworkPolicy", "NetworkPolicy", "NetworkSet", "Node", "Pod", "Service", "ServiceAccount"),
            *("StagedGlobalNetworkPolicy", "StagedKubernetesNetworkPolicy", "StagedNetworkPolicy", "Tier"),
            "VirtualMachineInstanceMigration",
        ]
    )


def test_the_other_feeds() -> None:
    assert kinds(syncers.BGP) == ["BGPConfiguration", "BGPFilter", "BGPPeer", "BlockAffinity", "IPPool", "Node"]
    assert kinds(syncers.TUNNEL_IP_ALLOCATION) == ["IPPool", "Node"]
    assert kinds(syncers.NODE_STATUS) == ["CalicoNodeStatus"]


@pytest.mark.parametrize("group", syncers.Group)
def test_calicos_own_kinds_come_from_the_group(group: syncers.Group) -> None:
    others = {
        *("", "discovery.k8s.io", "networking.k8s.io", "policy.networking.k8s.io", "kubevirt.io"),
    }
    for spec in syncers.specs(group):
        types = [source.type for source in spec.sources]
        assert len(set(types)) == len(types)
        assert {type.group for type in types} - others == ({group.group} if types else set())
    assert syncers.custom_type(group, "ippools").list_path == f"/apis/{group.value}/ippools"
