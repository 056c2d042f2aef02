"""Loading of settings: precedence, mistakes, `none`, fallbacks, and settings that depend on each other."""

import pathlib

import pytest

from typha import settings
from typha.settings.machine import Machine


def load(
    environment: dict[str, str] | None = None,
    *,
    file: str | None = None,
    default_file: str = settings.DEFAULT_CONFIG_FILE,
    flags: dict[str, str] | None = None,
    strict: bool = False,
) -> settings.Loaded:
    return settings.load(
        flags=flags or {},
        environment=environment or {},
        config_file=file,
        default_config_file=default_file,
        strict=strict,
    )


def config(tmp_path: pathlib.Path, text: str) -> str:
    path = tmp_path / "typha.cfg"
    path.write_text(text)
    return str(path)


# Precedence and mistakes


def test_precedence_is_flags_then_environment_then_file_then_default(tmp_path: pathlib.Path) -> None:
    file = config(tmp_path, "serverport = 1\nHealthPort = 2\nPrometheusMetricsPort = 3\n")
    environment = {"TYPHA_SERVERPORT": "11", "TYPHA_HEALTHPORT": "12"}
    found = load(environment, file=file, flags={"ServerPort": "21"}).settings
    assert (found.server_port, found.health_port, found.prometheus_metrics_port) == (21, 12, 3)
    assert found.k8s_namespace == "kube-system"


def test_an_invalid_value_hides_a_source_of_lower_precedence(tmp_path: pathlib.Path) -> None:
    loaded = load({"TYPHA_SERVERPORT": "x"}, file=config(tmp_path, "ServerPort = 1\n"))
    assert loaded.settings.server_port == 5473
    assert "ServerPort" not in loaded.given


def test_an_invalid_value_is_counted_even_if_another_source_overrides_it(tmp_path: pathlib.Path) -> None:
    loaded = load({"TYPHA_SERVERPORT": "1"}, file=config(tmp_path, "ServerPort = x\n"))
    assert loaded.settings.server_port == 1
    assert loaded.settings.config_invalid_values == 1
    assert "ServerPort" in loaded.given


def test_the_last_of_two_variables_that_differ_in_case_is_used() -> None:
    loaded = load({"TYPHA_SERVERPORT": "1", "typha_serverport": "2"})
    assert loaded.settings.server_port == 2
    assert loaded.notices[0].fields["name"] == "typha_serverport"


def test_unknown_variables_are_reported_once_without_their_values() -> None:
    environment = {"TYPHA_PORT": "tcp://10.0.0.1:5473", "TYPHA_SERVICE_HOST": "10.0.0.1", "HOME": "/", "TYPHA_": "x"}
    [notice] = load(environment).notices
    assert notice.level == "info"
    assert notice.fields["names"] == "TYPHA_, TYPHA_PORT, TYPHA_SERVICE_HOST"
    assert "10.0.0.1" not in str(notice)


def test_unknown_keys_of_the_file_are_ignored_as_in_the_original(tmp_path: pathlib.Path) -> None:
    [notice] = load(file=config(tmp_path, "[global]\nFelixHostname = x\n")).notices
    assert (notice.level, notice.fields["names"]) == ("info", "FelixHostname")


@pytest.mark.parametrize(
    ("environment", "message"),
    [
        ({"TYPHA_PORT": "tcp://x"}, r"^TYPHA_PORT: unknown setting"),
        ({"TYPHA_SERVERPORT": "x"}, r"^ServerPort: expected an integer, not 'x'"),
    ],
)
def test_strict_rejects_unknown_names_and_invalid_values(environment: dict[str, str], message: str) -> None:
    with pytest.raises(settings.ConfigurationError, match=message):
        load(environment, strict=True)


def test_strict_accepts_valid_settings_and_foreign_variables() -> None:
    assert load({"TYPHA_SERVERPORT": "7", "PATH": "/bin"}, strict=True).settings.server_port == 7


@pytest.mark.parametrize("name", ["Workers", "SegmentBytes", "NoProgressTimeoutSecs", "LogFormat", "FeedsFile"])
def test_an_invalid_value_of_an_additional_setting_is_fatal(name: str) -> None:
    with pytest.raises(settings.ConfigurationError, match=f"^{name}: expected .*, not '-7x' "):
        load({f"TYPHA_{name.upper()}": "-7x"})


def test_an_error_is_one_short_printable_line() -> None:
    with pytest.raises(settings.ConfigurationError) as caught:
        load({"TYPHA_WORKERS": "1\n\x1b[31m" + "x" * 1000})
    assert str(caught.value).isprintable()
    assert len(str(caught.value)) < 250


def test_only_a_file_that_is_named_must_exist(tmp_path: pathlib.Path) -> None:
    with pytest.raises(settings.ConfigurationError, match="no such file"):
        load(file=str(tmp_path / "missing"))
    with pytest.raises(settings.ConfigurationError, match="cannot be read: Is a directory"):
        load(file=str(tmp_path))
    assert load(default_file=str(tmp_path / "missing")).settings.server_port == 5473
    assert load(default_file=config(tmp_path, "ServerPort = 99")).settings.server_port == 99


# none and empty


def test_none_sets_the_zero_value() -> None:
    loaded = load({"TYPHA_LOGFILEPATH": "None", "TYPHA_LOGSEVERITYSCREEN": "none", "TYPHA_HEALTHPORT": "NONE"})
    assert loaded.settings.log_file_path == ""
    assert loaded.settings.log_severity_screen == ""
    assert loaded.settings.health_port == 0
    assert loaded.settings.config_invalid_values == 0
    rebalancing = load({"TYPHA_CONNECTIONREBALANCINGMODE": "none"})
    assert rebalancing.settings.connection_rebalancing_mode == "none"


@pytest.mark.parametrize("name", ["DatastoreType", "Workers", "LogBudgetBytes", "NoProgressTimeoutSecs"])
def test_none_is_rejected_where_zero_is_not_a_value(name: str) -> None:
    with pytest.raises(settings.ConfigurationError, match=f"^{name}: expected a value other than none"):
        load({f"TYPHA_{name.upper()}": "none"})


def test_empty_values_are_ignored(tmp_path: pathlib.Path) -> None:
    loaded = load({"TYPHA_SERVERPORT": ""}, file=config(tmp_path, "ServerPort = 1234\n"))
    assert loaded.settings.server_port == 1234
    assert [notice.level for notice in loaded.notices] == ["info"]


# Fallbacks


def test_a_timing_of_zero_or_less_means_the_built_in_default() -> None:
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
def test_a_pong_timeout_of_at_most_two_ping_intervals_becomes_six(interval: str, timeout: str, used: float) -> None:
    loaded = load({"TYPHA_SERVERPINGINTERVALSECS": interval, "TYPHA_SERVERPONGTIMEOUTSECS": timeout})
    assert loaded.settings.server_pong_timeout_seconds == used


def test_a_port_of_minus_one_means_any_free_port() -> None:
    assert load({"TYPHA_SERVERPORT": "-1"}).settings.server_port == -1


# Settings that depend on each other


def test_incomplete_tls_settings_are_rejected(tmp_path: pathlib.Path) -> None:
    with pytest.raises(settings.ConfigurationError) as caught:
        load({"TYPHA_CLIENTCN": "calico", "TYPHA_SERVERKEYFILE": str(tmp_path)})
    assert str(caught.value) == (
        "ServerKeyFile, ClientCN: incomplete TLS settings: TLS also needs ServerCertFile, CAFile"
    )
    with pytest.raises(settings.ConfigurationError, match=r"TLS also needs ClientCN or ClientURISAN$"):
        load({name: str(tmp_path) for name in ("TYPHA_SERVERKEYFILE", "TYPHA_SERVERCERTFILE", "TYPHA_CAFILE")})


def test_a_missing_tls_file_does_not_turn_tls_off(tmp_path: pathlib.Path) -> None:
    missing = str(tmp_path / "missing")
    with pytest.raises(settings.ConfigurationError, match=r"^ServerKeyFile: expected a file that exists, not '/.*TLS"):
        load({"TYPHA_SERVERKEYFILE": missing})
    with pytest.raises(
        settings.ConfigurationError, match=r"^CAFile: expected a file that exists.* \(and ClientCN\): TLS"
    ):
        load({"TYPHA_SERVERKEYFILE": str(tmp_path), "TYPHA_CAFILE": missing, "TYPHA_CLIENTCN": "a\nb"})


def test_none_turns_tls_off() -> None:
    assert load({"TYPHA_CLIENTCN": "none", "TYPHA_CAFILE": "none"}).settings.client_cn == ""


def test_complete_tls_settings_are_accepted(tmp_path: pathlib.Path) -> None:
    names = ("TYPHA_SERVERKEYFILE", "TYPHA_SERVERCERTFILE", "TYPHA_CAFILE")
    loaded = load({**{name: str(tmp_path) for name in names}, "TYPHA_CLIENTURISAN": "spiffe://x"}).settings
    assert (loaded.server_key_file, loaded.ca_file) == (str(tmp_path), str(tmp_path))
    assert (loaded.client_cn, loaded.client_urisan) == ("", "spiffe://x")


def test_https_metrics_need_three_files() -> None:
    environment = {"TYPHA_PROMETHEUSMETRICSENABLED": "true", "TYPHA_PROMETHEUSMETRICSKEYFILE": "/key"}
    with pytest.raises(settings.ConfigurationError, match=r"^PrometheusMetricsCertFile, PrometheusMetricsCAFile: "):
        load(environment)


def test_etcd_is_rejected() -> None:
    with pytest.raises(settings.ConfigurationError, match=r"^DatastoreType: etcdv3 is not supported"):
        load({"TYPHA_DATASTORETYPE": "etcdv3"})
    assert load({"TYPHA_DATASTORETYPE": "KUBERNETES"}).settings.datastore_type == "kubernetes"


def test_a_segment_is_at_most_half_the_budget() -> None:
    with pytest.raises(settings.ConfigurationError, match=r"^SegmentBytes: "):
        load({"TYPHA_LOGBUDGETBYTES": "4194304"})


@pytest.mark.parametrize(
    ("environment", "is_used"),
    [
        ({}, False),
        ({"USE_POD_CIDR": ""}, False),
        ({"USE_POD_CIDR": "true"}, True),
        ({"USE_POD_CIDR": "T"}, True),
        ({"USE_POD_CIDR": "0"}, False),
        ({"USE_POD_CIDR": "true", "CALICO_USE_POD_CIDR": "false"}, False),
        ({"USE_POD_CIDR": "false", "CALICO_USE_POD_CIDR": "1"}, True),
    ],
)
def test_whether_pod_cidrs_are_used(environment: dict[str, str], *, is_used: bool) -> None:
    assert settings.uses_pod_cidrs(environment) is is_used


def test_an_unclear_use_of_pod_cidrs_ends_the_start() -> None:
    with pytest.raises(settings.ConfigurationError, match="USE_POD_CIDR: not true or false: 'yes'"):
        settings.uses_pod_cidrs({"USE_POD_CIDR": "yes"})


# What has no effect, and what follows from the machine


def test_each_setting_that_is_set_in_vain_is_named_once(tmp_path: pathlib.Path) -> None:
    file = config(tmp_path, "DebugPort = 1\nServerMaxMessageSize = 5\n")
    environment = {"TYPHA_SERVERMAXMESSAGESIZE": "6", "CALICO_K8S_CLIENT_QPS": "9", "K8S_CLIENT_BURST": ""}
    found = {notice.fields["setting"]: notice for notice in load(environment, file=file).notices}
    assert {name: notice.fields["source"] for name, notice in found.items()} == {
        "DebugPort": file,
        "ServerMaxMessageSize": "environment",
        "CALICO_K8S_CLIENT_QPS": "environment",
    }
    assert {(notice.level, notice.event) for notice in found.values()} == {("warning", "Setting has no effect here")}
    assert found["DebugPort"].fields["instead"] == "the service has no profiling server."


def test_every_setting_without_effect_is_warned_about() -> None:
    vain = [row for row in settings.SETTINGS if not row.has_effect]
    values = {row.variable: str(row.default) or "/dev/null" for row in vain}
    values |= {"TYPHA_EARLYLOGSEVERITYSCREEN": "info", "TYPHA_ETCDENDPOINTS": "http://a:1"}
    assert [notice.fields["setting"] for notice in load(values).notices] == [row.name for row in vain]


def test_a_setting_that_has_an_effect_is_not_warned_about() -> None:
    assert load({"TYPHA_SERVERPORT": "1", "TYPHA_LOGSEVERITYSCREEN": "info"}).notices == ()


def derived(machine: Machine, environment: dict[str, str] | None = None) -> settings.Loaded:
    return settings.load(flags={}, environment=environment or {}, default_config_file="/nowhere", machine=machine)


def test_workers_follow_from_the_machine_unless_they_are_set() -> None:
    machine = Machine(cpus=16, cpu_quota=3.0)
    assert derived(machine).settings.workers == 2
    assert derived(machine).derived == {"Workers": "CPUs"}
    assert derived(machine, {"TYPHA_WORKERS": "-1"}).settings.workers == 2
    for asked in (0, 1, 30):
        found = derived(machine, {"TYPHA_WORKERS": str(asked)})
        assert (found.settings.workers, found.derived) == (asked, {})


def test_the_log_budget_follows_from_the_memory_limit_unless_it_is_set() -> None:
    mebibyte = 1 << 20
    for limit, budget in ((None, 64), (1024, 64), (256, 64), (200, 50), (100, 25), (32, 8), (1, 8)):
        machine = Machine(memory_limit_bytes=None if limit is None else limit * mebibyte)
        assert derived(machine).settings.log_budget_bytes == budget * mebibyte
        assert bool(derived(machine).derived.get("LogBudgetBytes")) == (budget != 64)
    small = Machine(memory_limit_bytes=100 * mebibyte)
    assert derived(small, {"TYPHA_LOGBUDGETBYTES": "67108864"}).settings.log_budget_bytes == 64 * mebibyte
    assert derived(small, {"TYPHA_SEGMENTBYTES": str(16 * mebibyte)}).settings.log_budget_bytes == 32 * mebibyte


def test_secrets_in_invalid_values_are_redacted() -> None:
    for value in ("-----BEGIN RSA PRIVATE KEY----- abc", "eyJhbGciOi.eyJzdWIi.abc"):
        assert "abc" not in str(load({"TYPHA_ETCDKEYFILE": value}).notices)
        with pytest.raises(settings.ConfigurationError) as caught:
            load({"TYPHA_FEEDSFILE": value})
        assert "abc" not in str(caught.value)
