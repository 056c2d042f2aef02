"""Settings: the table and its docs, types, `none`, fallbacks and contradictions."""

import math
import pathlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.harness.repository import ROOT
from typha import settings
from typha.settings import documentation
from typha.settings.table import BY_LOWER_NAME


def load(environment: dict[str, str] | None = None, *, file: str | None = None) -> settings.Loaded:
    return settings.load(flags={}, environment=environment or {}, config_file=file)


def value(name: str, text: str) -> object:
    """What the environment's text makes of a setting."""
    row = BY_LOWER_NAME[name.lower()]
    return getattr(load({row.variable: text}).settings, row.attribute)


def config(tmp_path: pathlib.Path, text: str) -> str:
    path = tmp_path / "typha.cfg"
    path.write_text(text)
    return str(path)


# The table


def test_names_are_unique_and_every_row_can_be_read_back() -> None:
    assert len(BY_LOWER_NAME) == len(settings.SETTINGS) == len({row.flag for row in settings.SETTINGS})
    for row in settings.SETTINGS:
        assert row.why
        assert row.help.endswith(".")
        text = str(row.default)
        if text:
            assert row.type.parse(text) == row.default, row.name


def test_attributes_follow_from_names() -> None:
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


def test_documentation_is_generated_from_the_table() -> None:
    assert documentation.tables() in (ROOT / "docs" / "configuration.md").read_text()


def test_a_setting_has_an_effect_exactly_if_it_is_read_somewhere() -> None:
    own = ROOT / "typha" / "settings"
    readers = [path for path in (ROOT / "typha").rglob("*.py") if own not in path.parents]
    text = "\n".join(path.read_text() for path in readers)
    # Read only by the checks of typha.settings itself.
    checked = {"datastore_type", "server_key_file", "server_cert_file", "ca_file", "client_cn", "client_urisan"}
    for row in settings.SETTINGS:
        read = f".{row.attribute}" in text or row.attribute in checked
        assert read == row.has_effect, row.name


def test_defaults_are_the_originals() -> None:
    found = load().settings
    assert (found.server_port, found.health_port, found.prometheus_metrics_port) == (5473, 9098, 9093)
    assert (found.health_enabled, found.prometheus_metrics_enabled) == (False, False)
    assert (found.health_host, found.prometheus_metrics_host, found.server_host) == ("localhost", "", "")
    assert found.server_ping_interval_seconds == 10
    assert found.shutdown_timeout_seconds == 300


def test_settings_travel_to_a_worker_as_plain_values() -> None:
    sent = load({"TYPHA_SERVERPORT": "1234"}).settings
    assert settings.from_dict(settings.to_dict(sent)) == sent


# Types


@pytest.mark.parametrize(
    ("text", "expected"),
    [("true", True), ("YES", True), ("1", True), ("t", True), ("False", False), ("n", False), ("0", False)],
)
def test_booleans(text: str, expected: bool) -> None:
    assert value("HealthEnabled", text) is expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [("010", 8), ("0x1F", 31), ("0b11", 3), ("0o17", 15), ("0_10", 8), ("1_000", 1000), ("+7", 7), ("65535", 65535)],
)
def test_integers_take_their_base_from_the_prefix(text: str, expected: int) -> None:
    assert value("HealthPort", text) == expected


@pytest.mark.parametrize("text", ["65536", "-1", "08", "1.5", "x", "٣", "1__0", "_1", " 80", "9" * 5000])
def test_invalid_integers_leave_the_default(text: str) -> None:
    loaded = load({"TYPHA_HEALTHPORT": text})
    assert loaded.settings.health_port == 9098
    assert loaded.settings.config_invalid_values == 1
    [notice] = loaded.notices
    assert notice.level == "warning"
    assert notice.fields["setting"] == "HealthPort"


@pytest.mark.parametrize(("text", "expected"), [("0.5", 0.5), ("1e2", 100.0), (".25", 0.25), ("3.", 3.0)])
def test_seconds(text: str, expected: float) -> None:
    assert value("ServerHandshakeTimeoutSecs", text) == expected


@pytest.mark.parametrize("text", ["nan", "inf", "1e400", "10s", ""])
def test_invalid_seconds_leave_the_default(text: str) -> None:
    assert value("ServerHandshakeTimeoutSecs", text) == 10


def test_choices_ignore_case_and_are_stored_as_in_the_table() -> None:
    assert value("LogSeverityScreen", "debug") == "DEBUG"
    assert value("PrometheusMetricsClientAuth", "noclientcert") == "NoClientCert"
    assert value("LogSeverityScreen", "chatty") == "INFO"


@pytest.mark.parametrize(
    ("name", "good", "bad"),
    [
        ("ServerHost", "fe80::1", "a b"),
        ("ServerHost", "x" * 64, "x" * 65),
        ("EtcdAddr", "host:1", "[::1]:1"),
        ("EtcdEndpoints", "http://a:1,http://b:2", "http://a:1,https://b:2"),
        ("ClientCN", "typha client", "line\nbreak"),
    ],
)
def test_texts(name: str, good: str, bad: str) -> None:
    row = BY_LOWER_NAME[name.lower()]
    assert row.parse(good) == good
    with pytest.raises(ValueError, match="expected"):
        row.parse(bad)


def test_a_file_that_must_exist_and_does_not_is_empty(tmp_path: pathlib.Path) -> None:
    loaded = load({"TYPHA_ETCDKEYFILE": str(tmp_path / "missing"), "TYPHA_ETCDCERTFILE": str(tmp_path)})
    assert loaded.settings.etcd_key_file == ""
    assert loaded.settings.etcd_cert_file == str(tmp_path)
    assert loaded.settings.config_invalid_values == 1


@given(st.text(max_size=40))
def test_any_text_is_parsed_or_refused(text: str) -> None:
    for row in settings.SETTINGS:
        try:
            parsed = row.parse(text)
        except ValueError:
            continue
        assert isinstance(parsed, type(row.default)), row.name
        assert not (isinstance(parsed, float) and math.isnan(parsed))


# none and empty


def test_none_sets_the_zero_value() -> None:
    loaded = load({"TYPHA_LOGFILEPATH": "None", "TYPHA_LOGSEVERITYSCREEN": "none", "TYPHA_HEALTHPORT": "NONE"})
    assert loaded.settings.log_file_path == ""
    assert loaded.settings.log_severity_screen == ""
    assert loaded.settings.health_port == 0
    assert loaded.settings.config_invalid_values == 0
    assert value("ConnectionRebalancingMode", "none") == "none"


@pytest.mark.parametrize("name", ["DatastoreType", "Workers", "LogBudgetBytes", "NoProgressTimeoutSecs"])
def test_none_is_refused_where_zero_is_no_value(name: str) -> None:
    with pytest.raises(settings.ConfigurationError, match=f"^{name}: expected a value other than none"):
        value(name, "none")


def test_empty_values_are_ignored(tmp_path: pathlib.Path) -> None:
    loaded = load({"TYPHA_SERVERPORT": ""}, file=config(tmp_path, "ServerPort = 1234\n"))
    assert loaded.settings.server_port == 1234
    assert [notice.level for notice in loaded.notices] == ["info"]


# Fallbacks


def test_zero_or_less_in_a_timing_is_the_built_in_default() -> None:
    found = load(
        {
            "TYPHA_SERVERPINGINTERVALSECS": "0",
            "TYPHA_SERVERHANDSHAKETIMEOUTSECS": "-3",
            "TYPHA_SHUTDOWNTIMEOUTSECS": "none",
            "TYPHA_SERVERMINBATCHINGAGETHRESHOLDSECS": "0",
            "TYPHA_SERVERPORT": "0",
        }
    ).settings
    assert found.server_ping_interval_seconds == 10
    assert found.server_handshake_timeout_seconds == 10
    assert found.shutdown_timeout_seconds == 300
    assert found.server_min_batching_age_threshold_seconds == 0.1
    assert found.server_port == 5473


@pytest.mark.parametrize(
    ("interval", "timeout", "used"), [("5", "10", 30.0), ("5", "10.1", 10.1), ("100", "60", 600.0)]
)
def test_pong_timeout_within_two_intervals_becomes_six(interval: str, timeout: str, used: float) -> None:
    loaded = load({"TYPHA_SERVERPINGINTERVALSECS": interval, "TYPHA_SERVERPONGTIMEOUTSECS": timeout})
    assert loaded.settings.server_pong_timeout_seconds == used


def test_any_free_port_for_clients() -> None:
    assert value("ServerPort", "-1") == -1


# Contradictions


def test_tls_settings_are_all_or_nothing(tmp_path: pathlib.Path) -> None:
    with pytest.raises(settings.ConfigurationError) as caught:
        load({"TYPHA_CLIENTCN": "calico", "TYPHA_SERVERKEYFILE": str(tmp_path)})
    assert str(caught.value) == (
        "ServerKeyFile, ClientCN: contradictory TLS settings: TLS needs ServerCertFile, CAFile as well"
    )
    with pytest.raises(settings.ConfigurationError, match="TLS needs ClientCN or ClientURISAN as well"):
        load({name: str(tmp_path) for name in ("TYPHA_SERVERKEYFILE", "TYPHA_SERVERCERTFILE", "TYPHA_CAFILE")})


def test_a_missing_tls_file_never_ends_in_plain_text(tmp_path: pathlib.Path) -> None:
    with pytest.raises(settings.ConfigurationError, match=r"^ServerKeyFile: contradictory TLS settings"):
        load({"TYPHA_SERVERKEYFILE": str(tmp_path / "missing")})


def test_tls_switched_off_by_none_is_no_contradiction() -> None:
    assert load({"TYPHA_CLIENTCN": "none", "TYPHA_CAFILE": "none"}).settings.client_cn == ""


def test_complete_tls_for_clients(tmp_path: pathlib.Path) -> None:
    names = ("TYPHA_SERVERKEYFILE", "TYPHA_SERVERCERTFILE", "TYPHA_CAFILE")
    loaded = load({**{name: str(tmp_path) for name in names}, "TYPHA_CLIENTURISAN": "spiffe://x"}).settings
    assert (loaded.server_key_file, loaded.ca_file) == (str(tmp_path), str(tmp_path))
    assert (loaded.client_cn, loaded.client_urisan) == ("", "spiffe://x")


def test_https_metrics_need_three_files() -> None:
    environment = {"TYPHA_PROMETHEUSMETRICSENABLED": "true", "TYPHA_PROMETHEUSMETRICSKEYFILE": "/key"}
    with pytest.raises(settings.ConfigurationError, match=r"^PrometheusMetricsCertFile, PrometheusMetricsCAFile: "):
        load(environment)


def test_etcd_is_refused() -> None:
    with pytest.raises(settings.ConfigurationError, match=r"^DatastoreType: etcdv3 is not supported"):
        load({"TYPHA_DATASTORETYPE": "etcdv3"})
    assert value("DatastoreType", "KUBERNETES") == "kubernetes"


def test_a_segment_is_at_most_half_the_budget() -> None:
    with pytest.raises(settings.ConfigurationError, match=r"^SegmentBytes: "):
        load({"TYPHA_LOGBUDGETBYTES": "4194304"})
