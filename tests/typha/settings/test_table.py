"""The settings table: names, documentation, readers of each setting, defaults."""

import pytest

from tests.harness.repository import ROOT
from typha import settings
from typha.settings import documentation
from typha.settings.table import BY_LOWER_NAME


def test_names_are_unique_and_every_default_is_a_valid_value() -> None:
    assert len(BY_LOWER_NAME) == len(settings.SETTINGS) == len({row.flag for row in settings.SETTINGS})
    for row in settings.SETTINGS:
        assert row.why
        assert row.help.endswith(".")
        text = str(row.default)
        if text:
            assert row.type.parse(text) == row.default, row.name


def test_attributes_are_derived_from_names() -> None:
    for row in settings.SETTINGS:
        words = row.flag.removeprefix("--").replace("-secs", "-seconds").replace("-", "_")
        assert row.attribute in (words, f"{words}_seconds"), row.name


@pytest.mark.parametrize(
    ("name", "flag", "variable"),
    [
        ("ServerPort", "--server-port", "TYPHA_SERVERPORT"),
        ("CAFile", "--ca-file", "TYPHA_CAFILE"),
        ("K8sNamespace", "--k8s-namespace", "TYPHA_K8SNAMESPACE"),
        ("PrometheusMetricsCAFile", "--prometheus-metrics-ca-file", "TYPHA_PROMETHEUSMETRICSCAFILE"),
        ("ClientURISAN", "--client-urisan", "TYPHA_CLIENTURISAN"),
    ],
)
def test_flag_and_variable(name: str, flag: str, variable: str) -> None:
    row = BY_LOWER_NAME[name.lower()]
    assert (row.flag, row.variable) == (flag, variable)


def test_the_page_has_the_tables_that_documentation_generates() -> None:
    assert documentation.tables() in (ROOT / "docs" / "configuration.md").read_text()


def test_a_setting_has_an_effect_exactly_if_some_module_reads_it() -> None:
    own = ROOT / "typha" / "settings"
    readers = [path for path in (ROOT / "typha").rglob("*.py") if own not in path.parents]
    text = "\n".join(path.read_text() for path in readers)
    # Read only by the checks of typha.settings itself.
    checked = {"datastore_type", "server_key_file", "server_cert_file", "ca_file", "client_cn", "client_urisan"}
    for row in settings.SETTINGS:
        read = f".{row.attribute}" in text or row.attribute in checked
        assert read == row.has_effect, row.name


def test_defaults_are_the_originals() -> None:
    found = settings.load(flags={}, environment={}).settings
    assert (found.server_port, found.health_port, found.prometheus_metrics_port) == (5473, 9098, 9093)
    assert (found.health_enabled, found.prometheus_metrics_enabled) == (False, False)
    assert (found.health_host, found.prometheus_metrics_host, found.server_host) == ("localhost", "", "")
    assert found.server_ping_interval_seconds == 10
    assert found.shutdown_timeout_seconds == 300


def test_settings_survive_the_trip_to_a_worker() -> None:
    sent = settings.Settings(server_port=1234)
    assert settings.from_dict(settings.to_dict(sent)) == sent
