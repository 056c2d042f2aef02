"""Typed resources: reading, checking, and writing in the order of the fields."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cache.feeds.calico import model, schema
from cache.feeds.calico.codecs import durations, gojson

JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)


def rewritten(type_name: str, source: Any) -> str:
    return gojson.encode(schema.write(type_name, schema.read(type_name, source))).decode()


def test_fields_are_in_the_order_of_the_type_and_unknown_ones_are_dropped() -> None:
    source = {"asNumber": 64512, "unknown": {"x": 1}, "peerIP": "192.0.2.1", "node": "n"}
    assert rewritten("v3.BGPPeerSpec", source) == '{"node":"n","peerIP":"192.0.2.1","asNumber":64512}'


def test_empty_fields_are_left_out_but_pointers_only_when_absent() -> None:
    assert rewritten("v3.BGPPeerSpec", {"node": "", "keepOriginalNextHop": False, "filters": [], "asNumber": 0}) == "{}"
    assert (
        rewritten("v3.BGPPeerSpec", {"localASNumber": 0, "nextHopMode": ""}) == '{"localASNumber":0,"nextHopMode":""}'
    )
    assert rewritten("v3.BGPPeerSpec", {"localASNumber": None}) == "{}"
    assert (
        rewritten("v3.FelixConfigurationSpec", {"routeTableRanges": []}) == '{"bpfLogLevel":"","routeTableRanges":[]}'
    )


def test_fields_that_are_never_omitted_are_written_empty() -> None:
    assert rewritten("v3.CalicoNodeStatusStatus", {}) == (
        '{"lastUpdated":null,"agent":{"birdV4":{},"birdV6":{}},"bgp":{"numberEstablishedV4":0,"numberNotEstablishedV4":0,'
        '"numberEstablishedV6":0,"numberNotEstablishedV6":0},"routes":{}}'
    )
    assert rewritten("discovery.EndpointSlice", {"endpoints": [{}]}) == (
        '{"metadata":{},"addressType":"","endpoints":[{"addresses":null,"conditions":{}}],"ports":null}'
    )
    assert rewritten("corev1.ServicePort", {}) == '{"port":0,"targetPort":0}'
    assert rewritten("v3.BGPFilterAddCommunity", {}) == '{"value":null}'
    assert rewritten("v3.HealthTimeoutOverride", {}) == '{"name":"","timeout":"0s"}'


def test_maps_are_sorted_and_durations_and_times_reprinted() -> None:
    assert rewritten("metav1.ObjectMeta", {"labels": {"b": "1", "a": "2", "B": "3"}}) == (
        '{"labels":{"B":"3","a":"2","b":"1"}}'
    )
    assert rewritten("v3.BGPPeerSpec", {"keepaliveTime": "90s"}) == '{"keepaliveTime":"1m30s"}'
    assert rewritten("v3.CalicoNodeStatusStatus", {"lastUpdated": "2026-01-02T03:04:05.9+02:00"}).startswith(
        '{"lastUpdated":"2026-01-02T01:04:05Z"'
    )


@pytest.mark.parametrize(
    ("type_name", "source", "where"),
    [
        ("v3.BGPPeer", {"spec": {"asNumber": -1}}, "spec.asNumber"),
        ("v3.BGPPeer", {"spec": {"filters": ["a", 1]}}, r"spec.filters\[1\]"),
        ("v3.BGPPeer", {"spec": {"keepaliveTime": "soon"}}, "spec.keepaliveTime"),
        ("v3.BGPPeer", {"spec": []}, "spec: not an object"),
        ("v3.BGPPeer", [], "object: not an object"),
        ("v3.FelixConfigurationSpec", {"natPortRange": "99999"}, "natPortRange"),
        ("v3.FelixConfigurationSpec", {"bpfEnabled": "true"}, "bpfEnabled: not a boolean"),
        ("v3.FelixConfigurationSpec", {"bpfLogFilters": ["x"]}, "bpfLogFilters: not a map"),
        ("v3.FelixConfigurationSpec", {"routeTableRanges": {}}, "routeTableRanges: not a list"),
    ],
)
def test_a_value_of_the_wrong_kind_is_named(type_name: str, source: Any, where: str) -> None:
    with pytest.raises(model.ConversionError, match=where):
        schema.read(type_name, source)


def test_as_numbers_may_be_text() -> None:
    assert schema.read("v3.BGPPeerSpec", {"asNumber": "1.10"}) == {"asNumber": 65546}
    assert schema.read("v3.BGPPeerSpec", {"asNumber": "64512"}) == {"asNumber": 64512}


def test_names_ignore_case_only_on_request() -> None:
    source = {"Name": "a", "LABELS": {"X": "y"}, "ownerreferences": [{"UID": "u"}]}
    assert schema.read("metav1.ObjectMeta", source) == {}
    assert schema.read("metav1.ObjectMeta", source, fold_case=True) == {
        "name": "a",
        "labels": {"X": "y"},
        "ownerReferences": [{"uid": "u"}],
    }


def test_a_duration_is_nanoseconds() -> None:
    assert schema.read("v3.BGPPeerSpec", {"keepaliveTime": "1s"}) == {"keepaliveTime": durations.SECOND}


@given(st.sampled_from(sorted(schema.TYPES)), st.data())
def test_any_json_is_read_or_rejected(type_name: str, data: st.DataObject) -> None:
    names = [field.name for field in schema.TYPES[type_name]]
    source = data.draw(st.dictionaries(st.sampled_from(names), JSON_VALUES, max_size=6))
    try:
        values = schema.read(type_name, source)
    except model.ConversionError:
        return
    written = schema.write(type_name, values)
    assert schema.write(type_name, schema.read(type_name, written)) == written
    gojson.encode(written)
