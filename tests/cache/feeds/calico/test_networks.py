"""IP pools, IPAM blocks, block affinities and network sets."""

from typing import Any

import pytest

from cache.feeds.calico import model, networks
from tests.harness import builders


@pytest.mark.parametrize(
    ("spec", "expected"),
    [
        (
            {},
            {
                "ipip": "",
                "ipip_mode": "",
                "vxlan_mode": "",
                "masquerade": False,
                "ipam": True,
                "assignment_mode": "Automatic",
            },
        ),
        ({"ipipMode": "Always", "vxlanMode": "Never"}, {"ipip": "tunl0", "ipip_mode": "always", "vxlan_mode": ""}),
        ({"ipipMode": "CrossSubnet"}, {"ipip": "tunl0", "ipip_mode": "cross-subnet"}),
        (
            {"vxlanMode": "CrossSubnet", "natOutgoing": True},
            {"ipip": "", "vxlan_mode": "cross-subnet", "masquerade": True},
        ),
        ({"disabled": True, "disableBGPExport": True}, {"ipam": False, "disabled": True, "disableBGPExport": True}),
        (
            {"assignmentMode": "Manual", "allowedUses": ["Tunnel"]},
            {"assignment_mode": "Manual", "allowed_uses": ["Tunnel"]},
        ),
    ],
)
def test_pools(spec: dict[str, Any], expected: dict[str, Any]) -> None:
    items = networks.convert_pool(builders.event(spec={"cidr": "10.1.2.3/16", **spec}), builders.V1)
    found = builders.value(items, "/calico/v1/ipam/v4/pool/10.1.0.0-16")
    assert found["cidr"] == "10.1.0.0/16"
    assert {name: found[name] for name in expected} == expected
    assert ("allowed_uses" in found) is ("allowedUses" in spec)


def test_a_pool_in_ipv6_notation() -> None:
    [item] = networks.convert_pool(builders.event(spec={"cidr": "::ffff:10.22.0.0/112"}), builders.V1)
    assert item.key == "/calico/v1/ipam/v4/pool/10.22.0.0-16"


_CONVERTERS = [networks.convert_pool, networks.convert_block, networks.convert_affinity]


@pytest.mark.parametrize(
    ("convert", "cidr"),
    [
        *((convert, cidr) for convert in _CONVERTERS for cidr in ["junk", "", None, "10.0.0.1"]),
        *((convert, "::ffff:10.0.0.0/120") for convert in _CONVERTERS[1:]),
    ],
)
def test_bad_cidrs(convert: Any, cidr: str | None) -> None:
    with pytest.raises(model.ConversionError) as caught:
        convert(builders.event(spec={"cidr": cidr, "node": "w"}), builders.V1)
    assert caught.value.reason == "bad-cidr"


def test_a_block() -> None:
    spec = {
        "cidr": "fd00:40::/126",
        "affinity": "host:w",
        "affinityClaimTime": "2026-01-02T04:04:05+01:00",
        "allocations": [0, None],
        "unallocated": [1],
        "attributes": [
            {"secondary": {"b": "<", "a": None}, "handle_id": ""},
            None,
            {"releasedAt": "2026-01-02T03:04:05Z"},
        ],
        "sequenceNumber": 1700000000000000001,
        "sequenceNumberForAllocation": {"2": 1, "10": 2},
        "strictAffinity": True,
    }
    assert builders.values(networks.convert_block(builders.event(spec=spec), builders.V1)) == {
        "/calico/ipam/v2/assignment/ipv6/block/fd00:40::-126": '{"cidr":"fd00:40::/126","affinity":"host:w",'
        '"affinity_claim_time":"2026-01-02T03:04:05Z","allocations":[0,null],"unallocated":[1],"attributes":'
        '[{"handle_id":"","secondary":{"a":"","b":"\\u003c"}},{},{"releasedAt":"2026-01-02T03:04:05Z"}],'
        '"sequenceNumber":1700000000000000001,"sequenceNumberForAllocation":{"10":2,"2":1},"deleted":false}'
    }


def test_an_empty_block() -> None:
    items = networks.convert_block(builders.event(spec={"cidr": "10.0.0.0/26", "deleted": True}), builders.V1)
    assert builders.value(items) == {
        "cidr": "10.0.0.0/26",
        "affinity": None,
        "allocations": None,
        "unallocated": None,
        "attributes": [],
        "sequenceNumber": 0,
        "sequenceNumberForAllocation": None,
        "deleted": True,
    }


def affinity(group: Any, **spec: Any) -> dict[str, str | None]:
    whole = {"cidr": "10.0.0.0/26", "node": "w", "state": "confirmed", **spec}
    return builders.values(networks.convert_affinity(builders.event(spec=whole), group))


def test_affinities() -> None:
    key, value = "/calico/ipam/v2/host/w/ipv4/block/10.0.0.0-26", '{"state":"confirmed","deleted":false}'
    assert affinity(builders.V1, deleted="false") == {key: value}
    assert affinity(builders.V1, deleted="") == {key: value}
    assert affinity(builders.V3, deleted=False) == {key: value}
    assert affinity(builders.V3) == {key: value}
    assert affinity(builders.V1, deleted="1") == {key: None}
    assert affinity(builders.V3, deleted=True) == {key: None}
    assert affinity(builders.V1, node="") == {}
    assert list(affinity(builders.V1, type="virtual")) == ["/calico/ipam/v2/virtual/w/ipv4/block/10.0.0.0-26"]


@pytest.mark.parametrize(("group", "deleted"), [(builders.V1, "maybe"), (builders.V1, True), (builders.V3, "true")])
def test_a_bad_deleted(group: Any, deleted: str | bool) -> None:
    with pytest.raises(model.ConversionError) as caught:
        affinity(group, deleted=deleted)
    assert caught.value.reason == "bad-deleted"


def test_sets() -> None:
    spec = {"nets": ["10.1.2.3/8", "1.2.3.4", "junk", "fd00::1", "1.2.3.4"]}
    nets = '"nets":["10.0.0.0/8","1.2.3.4/32","fd00::1/128","1.2.3.4/32"]'
    assert builders.values(networks.convert_global_set(builders.event("s", spec=spec), builders.V1)) == {
        "/calico/v1/netset/s": f'{{{nets},"labels":null}}'
    }
    event = builders.event("s", "n", metadata={"labels": {"projectcalico.org/namespace": "lie", "a": "1"}}, spec=spec)
    assert builders.values(networks.convert_set(event, builders.V1)) == {
        "/calico/v1/netset/n%2fs": f'{{{nets},"labels":{{"a":"1","projectcalico.org/namespace":"n"}},'
        '"profile_ids":["kns.n"]}'
    }
    assert builders.value(networks.convert_global_set(builders.event("s"), builders.V1)) == {"labels": None}


def test_metadata_in_the_annotation() -> None:
    text = '{"name":"inner","labels":{"a":"inner","b":"2"}}'
    metadata = {"labels": {"a": "outer", "c": "3"}, "annotations": {"projectcalico.org/metadata": text}}
    event = builders.event("s", metadata=metadata)
    assert builders.value(networks.convert_global_set(event, builders.V1), "/netset/inner") == {
        "labels": {"a": "inner", "b": "2", "c": "3"}
    }
    assert builders.value(networks.convert_global_set(event, builders.V3), "/netset/s") == {
        "labels": {"a": "outer", "c": "3"}
    }
