"""Types of settings: what each accepts, what it rejects, and the value it stores."""

import math
import pathlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from typha import settings
from typha.settings.table import BY_LOWER_NAME


def load(environment: dict[str, str]) -> settings.Loaded:
    return settings.load(flags={}, environment=environment)


def value(name: str, text: str) -> object:
    """The value of a setting that the environment sets to the text."""
    row = BY_LOWER_NAME[name.lower()]
    return getattr(load({row.variable: text}).settings, row.attribute)


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
def test_an_invalid_integer_leaves_the_default(text: str) -> None:
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
def test_an_invalid_duration_leaves_the_default(text: str) -> None:
    assert value("ServerHandshakeTimeoutSecs", text) == 10


def test_choices_ignore_case_and_are_stored_as_the_table_spells_them() -> None:
    assert value("LogSeverityScreen", "debug") == "DEBUG"
    assert value("PrometheusMetricsClientAuth", "noclientcert") == "NoClientCert"
    assert value("LogSeverityScreen", "chatty") == "INFO"


@pytest.mark.parametrize(
    ("name", "good", "bad"),
    [
        ("ServerHost", "fe80::1", "a b"),
        ("ServerHost", "x" * 253, "x" * 254),
        ("EtcdAddr", "host:1", "[::1]:1"),
        ("EtcdEndpoints", "http://a:1,http://b:2", "http://a:1,https://b:2"),
        ("ClientCN", "typha client", "line\nbreak"),
    ],
)
def test_patterns_of_texts(name: str, good: str, bad: str) -> None:
    row = BY_LOWER_NAME[name.lower()]
    assert row.parse(good) == good
    with pytest.raises(ValueError, match="expected"):
        row.parse(bad)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("elected", "elected"),
        (" Elected ", "elected"),
        ("typha-1, typha-2:1,,[fd00::1]:5", "typha-1,typha-2:1,[fd00::1]:5"),
        (",", ""),
    ],
)
def test_replicas(text: str, expected: str) -> None:
    assert value("Upstream", text) == expected


@pytest.mark.parametrize(
    "text", ["a:99999", "a:b", "elected,a:1", "a:1, ELECTED", "a b", "fd00::1", "[fd00::1", ":5473"]
)
def test_replicas_that_cannot_be_asked_end_the_start(text: str) -> None:
    with pytest.raises(settings.ConfigurationError, match="Upstream: expected"):
        load({"TYPHA_UPSTREAM": text})


def test_peers_are_not_elected() -> None:
    assert value("PeerAddresses", "elected") == "elected"  # a host of this name


def test_a_file_that_must_exist_but_does_not_leaves_the_default(tmp_path: pathlib.Path) -> None:
    loaded = load({"TYPHA_ETCDKEYFILE": str(tmp_path / "missing"), "TYPHA_ETCDCERTFILE": str(tmp_path)})
    assert loaded.settings.etcd_key_file == ""
    assert loaded.settings.etcd_cert_file == str(tmp_path)
    assert loaded.settings.config_invalid_values == 1


@given(st.text(max_size=40))
def test_any_text_is_parsed_or_rejected(text: str) -> None:
    for row in settings.SETTINGS:
        try:
            parsed = row.parse(text)
        except ValueError:
            continue
        assert isinstance(parsed, type(row.default)), row.name
        assert not (isinstance(parsed, float) and math.isnan(parsed))
