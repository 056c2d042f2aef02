"""Sources of settings: the format of the configuration file."""

import contextlib
import os
import pathlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from typha import settings
from typha.settings import sources


def load(file: pathlib.Path) -> settings.Loaded:
    return settings.load(flags={}, environment={}, config_file=str(file))


def test_syntax_of_the_file() -> None:
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


def test_a_pipe_without_a_writer_does_not_block(tmp_path: pathlib.Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(settings.ConfigurationError, match=r"pipe: is a pipe, not a file$"):
        load(tmp_path / "pipe")


def test_the_last_of_two_equal_keys_is_used(tmp_path: pathlib.Path) -> None:
    path = tmp_path / "typha.cfg"
    path.write_text("[a]\nServerPort=1\n[b]\nserverport=2\n")
    loaded = load(path)
    assert loaded.settings.server_port == 2
    assert [notice.level for notice in loaded.notices] == ["warning"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"ServerPort\n", "line 1: expected name = value"),
        (b"\n= 1\n", "line 2: expected name = value"),
        (b"[open\n", "line 1: section without a closing ]"),
        (b"a = \xff\n", "not UTF-8 at byte 4"),
        (b"#" * (1024 * 1024 + 1), "larger than 1048576 bytes"),
    ],
)
def test_an_error_names_the_file_and_the_line(tmp_path: pathlib.Path, content: bytes, message: str) -> None:
    path = tmp_path / "broken.cfg"
    path.write_bytes(content)
    with pytest.raises(settings.ConfigurationError, match=f"broken.cfg: {message}"):
        load(path)


@given(st.text())
def test_any_text_is_parsed_or_rejected(text: str) -> None:
    with contextlib.suppress(settings.ConfigurationError):
        assert all(key for key, _ in sources.parse_ini("file", text))
