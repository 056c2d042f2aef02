"""Files that others write: bounded reading that never blocks."""

import pathlib

import pytest

from cache.kube import files
from tests.harness import faults


@pytest.mark.parametrize(
    ("fault", "problem"),
    [
        ("missing", "No such file or directory"),
        ("unreadable", "Input/output error"),
        ("a directory", "is a directory"),
        ("a FIFO", "is not a regular file"),
        ("a device", "is not a regular file"),
        ("a symbolic link to itself", "Too many levels of symbolic links"),
        ("100 MB", "is larger than 1048576 bytes"),
    ],
)
def test_what_is_no_file_is_refused(tmp_path: pathlib.Path, fault: str, problem: str) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"good")
    faults.cause(fault, path)
    with pytest.raises(files.FileUnusable) as caught:
        files.read(str(path))
    assert str(caught.value) == f"{path}: {problem}"


def test_a_file_of_the_largest_size_is_read_and_one_byte_more_is_not(tmp_path: pathlib.Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"x" * 100)
    assert files.read(str(path), limit_bytes=100) == b"x" * 100
    with pytest.raises(files.FileUnusable, match=r"is larger than 99 bytes$"):
        files.read(str(path), limit_bytes=99)


def test_nothing_is_a_file() -> None:
    assert files.read("/dev/null") == b""
    with pytest.raises(files.FileUnusable, match="embedded null"):
        files.read("a\0b")
    assert not any(files.identity("a\0b"))


def test_every_change_shows(tmp_path: pathlib.Path) -> None:
    path, seen = tmp_path / "file", []
    for change in (
        lambda: path.write_bytes(b"a"),
        lambda: path.write_bytes(b"ab"),
        lambda: path.chmod(0o600),
        lambda: faults.repair(path, b"ab"),
        path.unlink,
    ):
        change()
        seen.append(files.identity(str(path)))
    assert len(set(seen)) == len(seen)
    assert not any(seen[-1])


@pytest.mark.parametrize(
    ("text", "expected"), [("a\n b", "a b"), ("\x1b[1mx", r"\x1b[1mx"), ("ä", "ä"), ("x" * 300, f"{'x' * 200}...")]
)
def test_texts_from_outside_are_shown_on_one_line(text: str, expected: str) -> None:
    assert files.shown(text) == expected
