"""The file of a mirror: what is written is read, and nothing else is taken for it."""

import hashlib
import os
import pathlib
import tempfile

import msgpack
import pytest
from hypothesis import given
from hypothesis import strategies as st

from clients import statefile

STATE = statefile.State(
    "pods",
    statefile.Position(bytes(16), (1 << 64) - 1),
    4,
    [statefile.Entry("/a", b"", "1", "", 0), statefile.Entry("/\N{SNOWMAN}", bytes(range(256)), "", "7", 10**9)],
)


@pytest.fixture
def path(tmp_path: pathlib.Path) -> pathlib.Path:
    return tmp_path / "map"


def test_what_is_written_is_read(path: pathlib.Path) -> None:
    assert statefile.read(path, "pods") is None
    for state in (STATE, statefile.State("pods", None, 1, [])):
        statefile.write(path, state)
        assert statefile.read(path, "pods") == state
        assert path.stat().st_mode & 0o777 == 0o600
        assert [one.name for one in path.parent.iterdir()] == ["map"]
    with pytest.raises(ValueError, match="has feed 'pods' instead of 'nodes'"):
        statefile.read(path, "nodes")


def test_half_a_file_beside_it_harms_nothing(path: pathlib.Path) -> None:
    statefile.write(path, STATE)
    path.with_name("map.new").write_bytes(b"half a fi")
    assert statefile.read(path, "pods") == STATE
    statefile.write(path, STATE)
    assert [one.name for one in path.parent.iterdir()] == ["map"]


def test_a_link_is_not_followed_when_writing(path: pathlib.Path) -> None:
    victim = path.with_name("victim")
    victim.write_bytes(b"precious")
    path.with_name("map.new").symlink_to(victim)
    with pytest.raises(OSError, match="symbolic links"):
        statefile.write(path, STATE)
    assert victim.read_bytes() == b"precious"


def test_every_damage_is_found(path: pathlib.Path) -> None:
    statefile.write(path, STATE)
    whole = path.read_bytes()
    for position in range(len(whole)):
        damaged = bytearray(whole)
        damaged[position] ^= 1
        for data in (bytes(damaged), whole[:position], whole + whole[: position + 1]):
            path.write_bytes(data)
            with pytest.raises(ValueError, match=r"digest|version"):
                statefile.read(path, "pods")


@given(st.recursive(st.none() | st.integers(0, 5) | st.text(max_size=3) | st.binary(max_size=3), st.lists))
def test_content_of_other_kinds_is_refused(content: object) -> None:
    packed = msgpack.packb(["pods", content, 4, content])
    with tempfile.TemporaryDirectory() as folder:
        path = pathlib.Path(folder, "map")
        path.write_bytes(b"typha mirror 1\r\n" + hashlib.sha256(packed).digest() + packed)
        try:
            state = statefile.read(path, "pods")
        except ValueError:
            return
        assert state is not None
        assert state.entries == []


def test_sizes_are_limited(path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    statefile.write(path, STATE)
    size = path.stat().st_size
    monkeypatch.setattr(statefile, "MAX_FILE_BYTES", size)
    statefile.write(path, STATE)
    assert statefile.read(path, "pods") == STATE
    monkeypatch.setattr(statefile, "MAX_FILE_BYTES", size - 1)
    with pytest.raises(ValueError, match="would have"):
        statefile.write(path, STATE)
    with pytest.raises(ValueError, match="more than"):
        statefile.read(path, "pods")


def test_a_pipe_is_not_waited_for(path: pathlib.Path) -> None:
    os.mkfifo(path)
    with pytest.raises(ValueError, match="no file of a mirror"):
        statefile.read(path, "pods")
