"""`typha config`: every setting and variable, where it comes from, and no secret."""

import json
import pathlib
from typing import Any

import pytest

from tests.typha.cli.test_main import COMMAND, rejected, typha
from typha import settings

pytestmark = pytest.mark.slow


def configuration(*arguments: str, **variables: str) -> dict[str, Any]:
    """What `typha config --json` prints."""
    result = typha("config", "--json", *arguments, command=COMMAND, **variables)
    assert result.returncode == 0, result.stderr
    found: dict[str, Any] = json.loads(result.stdout)
    return found


def test_every_setting_and_variable_is_there() -> None:
    found = configuration()
    assert [row["name"] for row in found["settings"]] == [row.name for row in settings.SETTINGS]
    assert [row["name"] for row in found["variables"]] == [row.name for row in settings.KUBERNETES_VARIABLES]
    assert found["version"].startswith("v")
    assert found["machine"]["cpus"] >= 1


def test_value_and_source(tmp_path: pathlib.Path) -> None:
    file = tmp_path / "typha.cfg"
    file.write_text("HealthPort = 1\nServerPort = 2\nMaxHeldRefusals = 3\n")
    found = configuration(
        "-c", str(file), "--max-held-refusals", "4", TYPHA_SERVERPORT="5", CALICO_K8S_API_ENDPOINT="u"
    )
    rows = {row["name"]: row for row in (*found["settings"], *found["variables"])}
    shown = {name: (rows[name]["value"], rows[name]["source"]) for name in rows}
    assert shown["HealthPort"] == ("1", str(file))
    assert shown["ServerPort"] == ("5", "environment")
    assert shown["MaxHeldRefusals"] == ("4", "command line")
    assert shown["ListPageSize"] == ("500", "default")
    assert shown["Workers"][1] == "CPUs"
    assert shown["CALICO_K8S_API_ENDPOINT"] == ("u", "environment")
    assert not rows["DebugPort"]["has_effect"]
    assert rows["DebugPort"]["effect"] == "the service has no profiling server."
    assert rows["ServerPort"]["has_effect"]


@pytest.mark.parametrize("arguments", [(), ("--json",)])
def test_secrets_are_redacted_and_what_has_no_effect_is_named(arguments: tuple[str, ...]) -> None:
    result = typha(
        "config",
        *arguments,
        K8S_API_TOKEN="abc-secret",
        CALICO_K8S_API_ENDPOINT="https://user:secret@host:1/path",
        TYPHA_DEBUGPORT="1",
        K8S_CLIENT_QPS="50",
    )
    assert result.returncode == 0
    assert "secret" not in result.stdout + result.stderr
    assert "(redacted)@host:1/path" in result.stdout
    assert result.stdout.count("Setting has no effect here") == 2


@pytest.mark.parametrize("value", ["-----BEGIN PRIVATE KEY----- secret", "eyJhbGciOi.eyJzdWIi.secret"])
def test_a_secret_in_place_of_its_path_is_redacted(value: str) -> None:
    result = typha("config", TYPHA_PROMETHEUSMETRICSKEYFILE=value, TYPHA_ETCDKEYFILE=value)
    assert result.returncode == 0
    assert "Invalid value of setting" in result.stdout
    assert "secret" not in result.stdout + result.stderr


def test_the_table_has_a_line_for_each() -> None:
    lines = typha("config", TYPHA_SERVERPORT="77").stdout.splitlines()
    [port] = [line for line in lines if line.startswith("ServerPort ")]
    assert port.split()[:3] == ["ServerPort", "77", "environment"]
    names = [row.name for row in settings.SETTINGS] + [row.name for row in settings.KUBERNETES_VARIABLES]
    assert [sum(line.startswith(f"{name} ") for line in lines) for name in names] == [1] * len(names)


def test_what_serve_rejects_is_rejected() -> None:
    assert rejected(typha("config", TYPHA_DATASTORETYPE="etcdv3")).startswith("DatastoreType: ")
