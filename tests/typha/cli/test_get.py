"""`typha get`: resources of each kind in each form, from the pages of a hub."""

import json
import pathlib
import re
from collections.abc import AsyncIterator
from typing import Any

import pytest
import yaml

from tests.harness import admin_stand, hub_stand, one_of_each
from tests.harness.worker_stand import FEED, pod, raw_feed
from typha.admin import client, kinds
from typha.cli import get


@pytest.fixture
async def path(tmp_path: pathlib.Path) -> AsyncIterator[str]:
    """The socket of a hub with one object of each kind."""
    made = admin_stand.calico_hub()
    async with admin_stand.serving(made, tmp_path) as opened:
        yield opened
    made.close()


def cells(output: str) -> list[list[str]]:
    return [re.split(r" {3,}", line) for line in output.splitlines()]


async def test_tables(path: str, capsys: pytest.CaptureFixture[str]) -> None:
    async def shown(*arguments: str) -> list[list[str]]:
        code, output, errors = await admin_stand.run(capsys, "get", *arguments, "--server", path)
        assert (code, errors) == (0, "")
        return cells(output)

    assert await shown("gnp") == [["NAME", "TIER"], ["all", "default"]]
    assert await shown("policies", "-n", "prod", "-o", "wide") == [
        ["NAME", "TIER", "ORDER", "SELECTOR"],
        ["web", "default", "12.5", "app == 'web' || app == 'db'"],
    ]
    assert await shown("NetworkPolicy") == [["NAME", "TIER"]]  # of namespace default
    assert await shown("np", "-A") == [["NAMESPACE", "NAME", "TIER"], ["prod", "web", "default"]]
    assert await shown("wep", "-n", "prod") == [
        ["WORKLOAD", "NODE", "NETWORKS", "INTERFACE"],
        ["web-1", "n1", "10.0.0.5/32", "cali91bef8fbcc9"],
    ]
    assert await shown("pods", "web-1", "-n", "prod", "-o", "name") == [["NAME"], ["n1-k8s-web--1-eth0"]]
    assert await shown("tiers") == [["NAME", "ORDER"], ["security", "50"]]
    assert await shown("nodes", "-o", "wide") == [["NAME", "ASN", "IPV4", "IPV6"], ["n1", "64512", "-", "-"]]
    assert ["default"] in await shown("felixconfig")
    assert [row[0] for row in await shown("profiles")] == ["NAME", f"kns.{'prod'}", "projectcalico-default-allow"]


@pytest.mark.parametrize("example", one_of_each.EXAMPLES, ids=lambda example: example.kind)
async def test_every_kind_as_yaml_and_json(
    path: str, capsys: pytest.CaptureFixture[str], example: one_of_each.Example
) -> None:
    found: list[dict[str, Any]] = []
    for form, load in (("yaml", yaml.safe_load), ("json", json.loads)):
        arguments = ("get", example.kind, example.name, "-A", "-o", form, "--server", path)
        code, output, errors = await admin_stand.run(capsys, *arguments)
        assert (code, errors) == (0, "")
        found.append(load(output))
    assert found[0] == found[1]
    assert found[0]["kind"] == example.kind
    assert found[0]["metadata"]["resourceVersion"].rstrip("/") == "7"  # a profile has two versions, and one is empty
    assert example.specification(found[0]) == example.spec


async def test_lists_and_names_that_are_not_there(path: str, capsys: pytest.CaptureFixture[str]) -> None:
    code, output, _ = await admin_stand.run(capsys, "get", "tiers", "-o", "json", "--server", path)
    found = json.loads(output)
    assert (code, found["kind"], [one["metadata"]["name"] for one in found["items"]]) == (0, "TierList", ["security"])
    code, output, errors = await admin_stand.run(capsys, "get", "tiers", "none", "--server", path)
    assert (code, output, errors) == (1, "", "Tier none: not found\n")
    for form in ("table", "yaml", "raw", "name"):
        command = ("get", "tiers", "security", "none", "-o", form, "--server", path)
        code, output, errors = await admin_stand.run(capsys, *command)
        assert (code, "security" in output, errors) == (1, True, "Tier none: not found\n")
    code, output, errors = await admin_stand.run(capsys, "get", "secrets", "--server", path)
    assert (code, "KIND is one of BGPConfiguration, " in errors) == (2, True)


async def test_raw_keys_and_values(path: str, capsys: pytest.CaptureFixture[str]) -> None:
    code, output, _ = await admin_stand.run(capsys, "get", "ippool", "-o", "raw", "--server", path)
    [line] = output.splitlines()
    assert (code, json.loads(line)["key"]) == (0, "/calico/v1/ipam/v4/pool/10.0.0.0-16")
    assert json.loads(json.loads(line)["value"])["cidr"] == "10.0.0.0/16"


async def test_a_feed_of_whole_objects(tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]) -> None:
    stand = hub_stand.HubStand(raw_feed())
    stand.hub.apply(pod("a", {"x": 1}))
    stand.hub.apply(pod("b"))
    stand.hub.feeds[FEED].store.put("/odd", b"\xff\x1b", "1")
    stand.hub.commit()
    async with admin_stand.serving(stand.hub, tmp_path) as path:
        code, output, _ = await admin_stand.run(capsys, "get", "-f", FEED, "pods", "--server", path)
        assert [row[0] for row in cells(output)] == ["KEY", "/core/v1/pods/default/a", "/core/v1/pods/default/b"]
        code, output, _ = await admin_stand.run(capsys, "get", "-f", FEED, "pods", "-o", "name", "--server", path)
        assert output.split() == ["KEY", "/core/v1/pods/default/a", "/core/v1/pods/default/b"]
        code, output, _ = await admin_stand.run(capsys, "get", "-f", FEED, "pods", "a", "-o", "yaml", "--server", path)
        assert (code, [one["spec"] for one in yaml.safe_load(output)]) == (0, [{"x": 1}])
        code, output, _ = await admin_stand.run(capsys, "get", "-f", FEED, "-o", "raw", "--server", path)
        assert [json.loads(line).get("value_base64") for line in output.splitlines()] == [None, None, "/xs="]
        code, output, errors = await admin_stand.run(capsys, "get", "-f", FEED, "pods", "a", "c", "--server", path)
        assert (code, "default/a" in output, errors) == (1, True, "pods c: not found\n")
        code, output, errors = await admin_stand.run(capsys, "get", "-f", "none", "--server", path)
        assert (code, f"feed is one of {FEED}" in errors) == (1, True)
    stand.hub.close()


def test_pages_are_read_again_when_the_store_splits(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[object] = []

    def answer(_service: client.Service, _path: str, **query: object) -> object:
        calls.append(query["after"])
        if len(calls) == 2:
            raise client.Changed
        entry = {"key": f"/k{len(calls)}"}
        return {"entries": [entry], "next": "" if query["after"] else "1/2"}

    monkeypatch.setattr(client.Service, "get", answer)
    found = get.entries(client.Service("/x"), "felix", "")
    assert ([entry.key for entry in found], calls) == (["/k3", "/k4"], [None, "1/2", None, "1/2"])


@pytest.mark.parametrize("answer", [{"entries": 5}, {"entries": [], "next": "1/2"}, "gone"])
def test_a_service_that_answers_nonsense_ends_the_command(monkeypatch: pytest.MonkeyPatch, answer: object) -> None:
    def say(_service: client.Service, _path: str, **_query: object) -> object:
        if answer == "gone":
            raise client.Changed
        return answer

    monkeypatch.setattr(client.Service, "get", say)
    with pytest.raises(client.Unanswered):
        get.entries(client.Service("/x"), "felix", "")


def test_every_kind_is_in_a_feed_of_its_own_name() -> None:
    assert {kind.feed for kind in kinds.KINDS} == {"felix", "bgp", "node-status"}
