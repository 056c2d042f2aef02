"""Namespaces and service accounts as profiles."""

import pytest

from cache import objects
from cache.feeds.calico import model, profiles
from tests.harness import builders

_TIME = "2026-01-02T03:04:05Z"


def test_a_namespace() -> None:
    metadata = {
        "uid": builders.UID,
        "creationTimestamp": _TIME,
        "labels": {"a": "1", "projectcalico.org/name": "lie"},
    }
    items = profiles.convert_namespace(builders.event("web", metadata=metadata))
    labels = '{"pcns.a":"1","pcns.projectcalico.org/name":"web"}'
    assert list(builders.values(items).items()) == [
        ("/calico/v1/policy/profile/kns.web/labels", labels),
        (
            "/calico/v1/policy/profile/kns.web/rules",
            '{"inbound_rules":[{"action":"allow"}],"outbound_rules":[{"action":"allow"}]}',
        ),
        (
            "/calico/resources/v3/projectcalico.org/profiles/kns.web",
            (
                '{"kind":"Profile","apiVersion":"projectcalico.org/v3","metadata":{"name":"kns.web",'
                f'"uid":"{builders.DERIVED_UID}","creationTimestamp":"{_TIME}"}},"spec":{{"ingress":'
                f'[{{"action":"Allow"}}],"egress":[{{"action":"Allow"}}],"labelsToApply":{labels}}}}}'
            ),
        ),
    ]
    assert {item.revision for item in items} == {"7/"}


def test_a_service_account() -> None:
    items = profiles.convert_service_account(builders.event("robot", "web"))
    values = builders.values(items)
    assert values["/calico/v1/policy/profile/ksa.web.robot/rules"] == "{}"
    assert values["/calico/v1/policy/profile/ksa.web.robot/labels"] == '{"pcsa.projectcalico.org/name":"robot"}'
    assert {item.revision for item in items} == {"/7"}


@pytest.mark.parametrize(
    ("origin", "version"), [(objects.Origin.LIST, ""), (objects.Origin.INITIAL, ""), (objects.Origin.EVENT, "/")]
)
def test_the_version_of_the_whole_resource_depends_on_its_origin(origin: objects.Origin, version: str) -> None:
    items = profiles.convert_namespace(builders.event("web", origin=origin))
    assert [item.v3_resource_version for item in items] == ["", "", version]


@pytest.mark.parametrize(("length", "is_invalid"), [(58, False), (59, True)])
def test_a_label_that_is_too_long_with_its_prefix_affects_only_the_whole_resource(
    length: int, is_invalid: bool
) -> None:
    metadata = {"labels": {"k" * length: "v"}}
    labels, rules, whole = profiles.convert_namespace(builders.event("web", metadata=metadata))
    assert bool(whole.invalid) is is_invalid
    assert labels.value is not None
    assert rules.value is not None


def test_a_service_account_with_a_long_name_has_no_valid_whole_resource() -> None:
    assert profiles.convert_service_account(builders.event("s" * 64, "web"))[2].invalid
    assert not profiles.convert_service_account(builders.event("s" * 63, "web"))[2].invalid


def test_a_bad_uid() -> None:
    with pytest.raises(model.ConversionError) as caught:
        profiles.convert_namespace(builders.event("web", metadata={"uid": "x"}))
    assert caught.value.reason == "bad-uid"


def test_the_built_in_profile() -> None:
    assert builders.values(profiles.built_in()) == {
        "/calico/v1/policy/profile/projectcalico-default-allow/rules": '{"inbound_rules":[{"action":"allow"}],'
        '"outbound_rules":[{"action":"allow"}]}',
        "/calico/resources/v3/projectcalico.org/profiles/projectcalico-default-allow": '{"kind":"Profile",'
        '"apiVersion":"projectcalico.org/v3","metadata":{"name":"projectcalico-default-allow"},'
        '"spec":{"ingress":[{"action":"Allow"}],"egress":[{"action":"Allow"}]}}',
    }
