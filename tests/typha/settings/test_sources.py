"""Sources of settings: which one counts, what is unknown, and the format of the file."""

import contextlib
import pathlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from typha import settings
from typha.settings import sources


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


def test_flags_beat_environment_beats_file_beats_default(tmp_path: pathlib.Path) -> None:
    file = config(tmp_path, "serverport = 1\nHealthPort = 2\nPrometheusMetricsPort = 3\n")
    environment = {"TYPHA_SERVERPORT": "11", "TYPHA_HEALTHPORT": "12"}
    found = load(environment, file=file, flags={"ServerPort": "21"}).settings
    assert (found.server_port, found.health_port, found.prometheus_metrics_port) == (21, 12, 3)
    assert found.k8s_namespace == "kube-system"


def test_an_invalid_value_hides_a_lower_source(tmp_path: pathlib.Path) -> None:
    loaded = load({"TYPHA_SERVERPORT": "x"}, file=config(tmp_path, "ServerPort = 1\n"))
    assert loaded.settings.server_port == 5473
    assert "ServerPort" not in loaded.given


def test_an_invalid_value_is_reported_even_if_overridden(tmp_path: pathlib.Path) -> None:
    loaded = load({"TYPHA_SERVERPORT": "1"}, file=config(tmp_path, "ServerPort = x\n"))
    assert loaded.settings.server_port == 1
    assert loaded.settings.config_invalid_values == 1
    assert "ServerPort" in loaded.given


def test_variables_in_any_case_and_the_later_counts() -> None:
    loaded = load({"TYPHA_SERVERPORT": "1", "typha_serverport": "2"})
    assert loaded.settings.server_port == 2
    assert loaded.notices[0].fields["name"] == "typha_serverport"


def test_unknown_variables_are_named_once_and_ignored() -> None:
    environment = {"TYPHA_PORT": "tcp://10.0.0.1:5473", "TYPHA_SERVICE_HOST": "10.0.0.1", "HOME": "/", "TYPHA_": "x"}
    [notice] = load(environment).notices
    assert notice.level == "info"
    assert notice.fields["names"] == "TYPHA_, TYPHA_PORT, TYPHA_SERVICE_HOST"
    assert "10.0.0.1" not in str(notice)


def test_unknown_keys_of_the_file_are_ignored_like_in_the_original(tmp_path: pathlib.Path) -> None:
    [notice] = load(file=config(tmp_path, "[global]\nFelixHostname = x\n")).notices
    assert (notice.level, notice.fields["names"]) == ("info", "FelixHostname")


@pytest.mark.parametrize(
    ("environment", "message"),
    [
        ({"TYPHA_PORT": "tcp://x"}, r"^TYPHA_PORT: unknown setting"),
        ({"TYPHA_SERVERPORT": "x"}, r"^ServerPort: expected an integer, not 'x'"),
    ],
)
def test_strict_makes_errors_of_unknown_and_invalid(environment: dict[str, str], message: str) -> None:
    with pytest.raises(settings.ConfigurationError, match=message):
        load(environment, strict=True)


def test_strict_takes_what_is_right() -> None:
    assert load({"TYPHA_SERVERPORT": "7", "PATH": "/bin"}, strict=True).settings.server_port == 7


@pytest.mark.parametrize("name", ["Workers", "SegmentBytes", "NoProgressTimeoutSecs", "LogFormat", "FeedsFile"])
def test_an_invalid_value_of_a_setting_of_ours_ends_the_start(name: str) -> None:
    with pytest.raises(settings.ConfigurationError, match=f"^{name}: expected .*, not '-7x' "):
        load({f"TYPHA_{name.upper()}": "-7x"})


def test_messages_are_one_printable_line() -> None:
    with pytest.raises(settings.ConfigurationError) as caught:
        load({"TYPHA_WORKERS": "1\n\x1b[31m" + "x" * 1000})
    assert str(caught.value).isprintable()
    assert len(str(caught.value)) < 250


def test_missing_files(tmp_path: pathlib.Path) -> None:
    with pytest.raises(settings.ConfigurationError, match="no such file"):
        load(file=str(tmp_path / "missing"))
    with pytest.raises(settings.ConfigurationError, match="cannot be read: Is a directory"):
        load(file=str(tmp_path))
    assert load(default_file=str(tmp_path / "missing")).settings.server_port == 5473
    assert load(default_file=config(tmp_path, "ServerPort = 99")).settings.server_port == 99


# The file's format


def test_ini_forms() -> None:
    text = """
    ; comment
    Before = 1
    [section one] # comment
    Colon: 2
    Comment = 3 ; comment
    Hash = a#b
    Quoted = "with space"
    Single='x'
    Backquoted = `a#b;c`
    Continued = one,\\
        two
    Empty =
    Equals = a=b:c
    """
    assert dict(sources.parse_ini("file", text)) == {
        "Before": "1",
        "Colon": "2",
        "Comment": "3",
        "Hash": "a",
        "Quoted": "with space",
        "Single": "x",
        "Backquoted": "a#b;c",
        "Continued": "one,two",
        "Empty": "",
        "Equals": "a=b:c",
    }


def test_the_later_of_two_keys_counts(tmp_path: pathlib.Path) -> None:
    loaded = load(file=config(tmp_path, "[a]\nServerPort=1\n[b]\nserverport=2\n"))
    assert loaded.settings.server_port == 2
    assert [notice.level for notice in loaded.notices] == ["warning"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"ServerPort\n", "line 1: expected name = value"),
        (b"\n= 1\n", "line 2: expected name = value"),
        (b"[open\n", "line 1: section without ]"),
        (b"a = \xff\n", "not UTF-8 at byte 4"),
        (b"#" * (1024 * 1024 + 1), "larger than 1048576 bytes"),
    ],
)
def test_broken_files_name_the_place(tmp_path: pathlib.Path, content: bytes, message: str) -> None:
    path = tmp_path / "broken.cfg"
    path.write_bytes(content)
    with pytest.raises(settings.ConfigurationError, match=f"broken.cfg: {message}"):
        load(file=str(path))


@given(st.text())
def test_any_file_is_read_or_refused(text: str) -> None:
    with contextlib.suppress(settings.ConfigurationError):
        assert all(key for key, _ in sources.parse_ini("file", text))
