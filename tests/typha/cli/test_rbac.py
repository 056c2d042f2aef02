"""`typha rbac`: a role for the settings that are given."""

import pathlib

import pytest
import yaml

from tests.harness import chart
from typha.cli import main


def role(capsys: pytest.CaptureFixture[str], *arguments: str) -> set[tuple[str, str, str]]:
    assert main.run(["rbac", *arguments]) == 0
    found = yaml.safe_load(capsys.readouterr().out)
    assert (found["apiVersion"], found["kind"]) == ("rbac.authorization.k8s.io/v1", "ClusterRole")
    return chart.permissions(found)


def test_what_calicos_feeds_need(capsys: pytest.CaptureFixture[str]) -> None:
    found = role(capsys, "--api-group", "crd.projectcalico.org/v1")
    assert {("", "pods", "list"), ("", "pods", "watch"), ("crd.projectcalico.org", "ipamblocks", "watch")} <= found
    assert {triple for triple in found if triple[2] not in ("list", "watch")} == {
        ("crd.projectcalico.org", "tiers", "get"),
        ("crd.projectcalico.org", "tiers", "create"),
        ("crd.projectcalico.org", "clusterinformations", "get"),
        ("crd.projectcalico.org", "clusterinformations", "create"),
        ("crd.projectcalico.org", "clusterinformations", "update"),
    }
    assert not {resource for _, resource, _ in found} & {"secrets", "configmaps", "*"}


def test_both_groups_unless_one_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    v1, v3 = (role(capsys, "--api-group", name) for name in ("crd.projectcalico.org/v1", "projectcalico.org/v3"))
    assert v1 != v3
    assert role(capsys) == v1 | v3


def test_settings_that_need_less(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    everything = role(capsys)
    assert {verb for _, _, verb in role(capsys, "--read-only")} == {"list", "watch"}
    monkeypatch.setenv("USE_POD_CIDR", "true")
    assert {resource for _, resource, _ in everything - role(capsys)} == {"blockaffinities", "ipamblocks"}


def test_feeds_of_a_file(capsys: pytest.CaptureFixture[str], tmp_path: pathlib.Path) -> None:
    path = tmp_path / "feeds.yaml"
    path.write_text("feeds: {a: {resources: [{type: v1/configmaps}, {type: apps/v1/deployments}]}}")
    alone = role(capsys, "--feeds-file", str(path), "--calico-feeds", "false")
    assert alone == {
        (*type, verb) for type in (("", "configmaps"), ("apps", "deployments")) for verb in ("list", "watch")
    }
    assert role(capsys, "--feeds-file", str(path)) == role(capsys) | alone


@pytest.mark.parametrize("arguments", [["--feeds-file", "/no/file"], ["--api-group", "v1"], ["--no-such-flag"]])
def test_bad_arguments_give_exit_code_2(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main.run(["rbac", *arguments]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert len(err.splitlines()) == 1
