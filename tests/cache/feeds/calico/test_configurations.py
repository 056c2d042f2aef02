"""FelixConfiguration and ClusterInformation, value by value."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cache import objects, resources
from cache.feeds.calico import configurations, customresource, model, schema

GROUP = customresource.Group.V3


def event(
    resource: str, name: str, spec: dict[str, Any], annotations: dict[str, str] | None = None
) -> objects.ObjectEvent:
    source = {"metadata": {"name": name, "resourceVersion": "7", "annotations": annotations or {}}, "spec": spec}
    type = resources.ResourceType(GROUP.group, GROUP.version, resource)
    return objects.ObjectEvent(type, "", name, "7", json.dumps(source).encode(), GROUP.value, "", objects.Origin.LIST)


def felix_items(spec: dict[str, Any], name: str = "default", **annotations: str) -> dict[str, str | None]:
    prefixed = {f"config.projectcalico.org/{key}": text for key, text in annotations.items()}
    found = configurations.convert_felix_configuration(event("felixconfigurations", name, spec, prefixed), GROUP)
    assert all(item.revision == "7" and not item.v3_resource_version for item in found)
    return {item.key: None if item.value is None else item.value.decode() for item in found}


def felix_value(name: str, value: Any) -> str | None:
    field = next(field for field in schema.TYPES["v3.FelixConfigurationSpec"] if field.config_name == name)
    return felix_items({field.name: value})[f"/calico/v1/config/{name}"]


@pytest.mark.parametrize(
    ("name", "value", "text"),
    [
        ("LogSeverityScreen", "Info", "Info"),
        ("LogSeverityScreen", "", None),
        ("HealthHost", "", ""),
        ("LogPrefix", 'é "x"', 'é "x"'),
        ("BPFEnabled", True, "true"),
        ("BPFEnabled", False, "false"),
        ("VXLANPort", 4789, "4789"),
        ("VXLANPort", 0, "0"),
        ("IptablesMarkMask", 4294901760, "4294901760"),
        ("IptablesRefreshInterval", "90s", "90"),
        ("IptablesRefreshInterval", "1000000s", "1e+06"),
        ("IptablesLockProbeIntervalMillis", "50ms", "50"),
        ("IptablesLockProbeIntervalMillis", "1500us", "1.5"),
        ("WireguardPersistentKeepAlive", "25s", "25"),
        ("ExternalNodesCIDRList", ["10.0.0.0/8", "b"], "10.0.0.0/8,b"),
        ("ExternalNodesCIDRList", [], ""),
        ("BPFLogFilters", {"all": "tcp"}, "all=tcp,"),
        ("BPFLogFilters", {}, ""),
        ("KubeNodePortRanges", ["30000:32767", 40000, "5:5"], "[30000:32767 40000 5]"),
        ("KubeNodePortRanges", [], "[]"),
        ("NATPortRange", "1024:65535", "1024:65535"),
        ("IstioDSCPMark", 23, "23"),
        ("IstioDSCPMark", "007", "7"),
        ("IstioDSCPMark", "EF", "EF"),
        ("FailsafeInboundHostPorts", [], "none"),
        (
            "FailsafeInboundHostPorts",
            [
                {"protocol": "TCP", "port": 22},
                {"protocol": "UDP", "port": 68, "net": "10.0.0.0/8"},
                {"protocol": "TCP", "port": 1, "net": "FD00::/8"},
            ],
            "tcp:22,udp:10.0.0.0/8:68,tcp:[FD00::/8]:1",
        ),
        ("RouteTableRange", {"min": 1, "max": 250}, "1-250"),
        ("RouteTableRanges", [{"min": 1, "max": 2}, {"min": 5, "max": 5}], "1-2,5-5"),
        ("RouteTableRanges", [], ""),
        ("HealthTimeoutOverrides", [], None),
        ("HealthTimeoutOverrides", [{"name": "A", "timeout": "5m"}, {"name": "B", "timeout": "90s"}], "A=5m0s,B=1m30s"),
        (
            "BPFConntrackTimeouts",
            {"udpTimeout": "Auto", "creationGracePeriod": "10s", "tcpSynSent": ""},
            "CreationGracePeriod=10s,TCPSynSent=,UDPTimeout=Auto",
        ),
        ("BPFConntrackTimeouts", {}, ""),
        ("BPFConntrackTimeouts", None, None),
    ],
)
def test_every_kind_of_value_is_printed_as_felix_reads_it(name: str, value: Any, text: str | None) -> None:
    assert felix_value(name, value) == text


def test_every_field_has_a_key_in_the_order_of_the_type() -> None:
    items = felix_items({"nodeSelector": "all()", "bpfEnabled": True})
    names = [field.config_name for field in schema.TYPES["v3.FelixConfigurationSpec"] if field.config_name != "-"]
    assert list(items) == [f"/calico/v1/config/{name}" for name in names]
    assert {key: text for key, text in items.items() if text is not None} == {"/calico/v1/config/BPFEnabled": "true"}


def test_values_of_a_node_have_keys_of_the_node() -> None:
    assert felix_items({"bpfEnabled": True}, "node.a.b-c")["/calico/v1/host/a.b-c/config/BPFEnabled"] == "true"


def test_annotations_override_fields_and_add_names() -> None:
    items = felix_items({"bpfEnabled": True}, BPFEnabled="maybe", Unknown="x", Empty="")
    assert items["/calico/v1/config/BPFEnabled"] == "maybe"
    assert items["/calico/v1/config/Unknown"] == "x"
    assert items["/calico/v1/config/Empty"] == ""
    assert list(items)[-2:] == ["/calico/v1/config/Empty", "/calico/v1/config/Unknown"]


def test_an_annotation_of_the_ready_flags_name_is_an_ordinary_value() -> None:
    assert felix_items({}, DatastoreReady="x")["/calico/v1/config/DatastoreReady"] == "x"


def test_values_are_not_validated_but_whole_configurations_are() -> None:
    assert felix_value("GoMaxProcs", -5) == "-5"
    (whole,) = configurations.convert_felix_configuration(
        event("felixconfigurations", "other", {"goMaxProcs": -5}), GROUP
    )
    assert whole.key == "/calico/resources/v3/projectcalico.org/felixconfigurations/other"
    assert whole.value is None
    assert "goMaxProcs" in whole.invalid


def test_a_failsafe_port_with_a_bad_net_rejects_the_object() -> None:
    with pytest.raises(model.ConversionError, match="bad-net"):
        felix_value("FailsafeOutboundHostPorts", [{"protocol": "TCP", "port": 1, "net": "x"}])


def cluster_items(name: str, spec: dict[str, Any]) -> list[tuple[str, bytes | None]]:
    found = configurations.convert_cluster_information(event("clusterinformations", name, spec), GROUP)
    return [(item.key, item.value) for item in found]


def test_cluster_information_has_the_ready_flag_among_its_values() -> None:
    spec = {"clusterGUID": "g", "clusterType": "", "datastoreReady": False}
    assert cluster_items("default", spec) == [
        ("/calico/v1/config/ClusterGUID", b"g"),
        ("/calico/v1/config/ClusterType", None),
        ("/calico/v1/config/CalicoVersion", None),
        ("/calico/v1/Ready", b"false"),
        ("/calico/v1/config/Variant", None),
    ]


def test_a_nodes_cluster_information_has_no_ready_flag() -> None:
    keys = [key for key, _ in cluster_items("node.n", {"datastoreReady": True})]
    assert keys == [
        f"/calico/v1/host/n/config/{name}" for name in ("ClusterGUID", "ClusterType", "CalicoVersion", "Variant")
    ]


def test_other_cluster_information_is_whole() -> None:
    ((key, value),) = cluster_items("other", {"datastoreReady": False})
    assert key == "/calico/resources/v3/projectcalico.org/clusterinformations/other"
    assert value is not None
    assert value.endswith(b'"spec":{"datastoreReady":false}}')


@given(
    st.dictionaries(
        st.sampled_from([f.name for f in schema.TYPES["v3.FelixConfigurationSpec"]]),
        st.text() | st.integers() | st.booleans() | st.lists(st.text()),
    )
)
def test_any_configuration_is_converted_or_rejected(spec: dict[str, Any]) -> None:
    try:
        felix_items(spec)
    except model.ConversionError:
        return
