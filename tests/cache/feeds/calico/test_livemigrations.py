"""KubeVirt's migrations in each phase."""

import json
from typing import Any

import pytest

from cache import objects, resources
from cache.feeds.calico import livemigrations, model

TYPE = resources.ResourceType("kubevirt.io", "v1", "virtualmachineinstancemigrations")
KEY = "/calico/resources/v3/projectcalico.org/livemigrations/n/m"


def convert(status: Any, spec: Any, **metadata: Any) -> model.Item:
    source = {"metadata": {"name": "m", "namespace": "n", "uid": "u-1", **metadata}, "spec": spec, "status": status}
    raw = json.dumps(source).encode()
    (item,) = livemigrations.convert(
        objects.ObjectEvent(TYPE, "n", "m", "7", raw, "kubevirt.io/v1", "X", objects.Origin.EVENT)
    )
    return item


def test_the_target_is_known_from_the_start() -> None:
    item = convert({"phase": "Scheduling"}, {"vmiName": "v"}, labels={"l": "x"}, generation=4)
    assert item.key == KEY
    assert item.value == (
        b'{"kind":"LiveMigration","apiVersion":"projectcalico.org/v3","metadata":{"name":"m","namespace":"n","uid":"u-1",'
        b'"labels":{"l":"x"}},"spec":{"target":{"selector":'
        b"\"(vmi.kubevirt.io/id == 'v' || vm.kubevirt.io/name == 'v')"
        b" \\u0026\\u0026 kubevirt.io/migrationJobUID == 'u-1'\"}}}"
    )
    assert (item.revision, item.v3_resource_version) == ("7", "7")


def test_the_source_follows() -> None:
    item = convert({"phase": "Running", "migrationState": {"sourcePod": "p"}}, {"vmiName": "v"})
    assert item.value is not None
    assert json.loads(item.value)["spec"]["source"] == {"workload": {"orchestratorID": "k8s", "workloadID": "n/p"}}


@pytest.mark.parametrize("phase", ["Scheduling", "Scheduled", "PreparingTarget", "TargetReady", "Running", "Failed"])
def test_phases_with_an_item(phase: str) -> None:
    assert convert({"phase": phase}, {"vmiName": "v"}).value is not None


@pytest.mark.parametrize("phase", ["", "Pending", "Succeeded", "running", None])
def test_phases_without_an_item(phase: str | None) -> None:
    assert convert({"phase": phase}, {"vmiName": "v"}) == model.Item(KEY, None, "")


@pytest.mark.parametrize(
    ("status", "spec"),
    [(None, {"vmiName": "v"}), ({}, {"vmiName": "v"}), ({"phase": "Running"}, {}), ({"phase": "Running"}, None)],
)
def test_incomplete_migrations_have_no_item(status: Any, spec: Any) -> None:
    assert convert(status, spec).value is None


def test_a_migration_without_a_uid_has_no_item() -> None:
    assert convert({"phase": "Running"}, {"vmiName": "v"}, uid="").value is None


def test_another_form_is_rejected() -> None:
    with pytest.raises(model.ConversionError, match="invalid-object"):
        convert({"phase": ["Running"]}, {"vmiName": "v"})
