"""What can happen to a file that others write."""

import os
import pathlib
import shutil
from collections.abc import Callable

HUGE_BYTES = 100 * 1024 * 1024


def _missing(path: pathlib.Path, _: bytes) -> None:
    del path


def _unreadable(path: pathlib.Path, _: bytes) -> None:
    path.symlink_to("/proc/self/mem")  # a regular file; even root cannot read its beginning


def _directory(path: pathlib.Path, _: bytes) -> None:
    path.mkdir()


def _fifo(path: pathlib.Path, _: bytes) -> None:
    os.mkfifo(path)


def _device(path: pathlib.Path, _: bytes) -> None:
    path.symlink_to("/dev/zero")


def _loop(path: pathlib.Path, _: bytes) -> None:
    path.symlink_to(path.name)


def _empty(path: pathlib.Path, _: bytes) -> None:
    path.write_bytes(b"")


def _text(path: pathlib.Path, _: bytes) -> None:
    path.write_bytes(b"this is\nno such file: [\n")


def _binary(path: pathlib.Path, _: bytes) -> None:
    path.write_bytes(bytes(range(256)) * 64)


def _huge(path: pathlib.Path, _: bytes) -> None:
    with path.open("wb") as file:
        file.truncate(HUGE_BYTES)


def _half(path: pathlib.Path, good: bytes) -> None:
    path.write_bytes(good[: len(good) // 2])


FAULTS: dict[str, Callable[[pathlib.Path, bytes], None]] = {
    "missing": _missing,
    "unreadable": _unreadable,
    "a directory": _directory,
    "a FIFO": _fifo,
    "a device": _device,
    "a symbolic link to itself": _loop,
    "empty": _empty,
    "other text": _text,
    "binary": _binary,
    "100 MB": _huge,
    "half written": _half,
}


def cause(fault: str, path: pathlib.Path) -> bytes:
    """Replace a good file. Returns what was in it."""
    good = path.read_bytes()
    remove(path)
    FAULTS[fault](path, good)
    return good


def repair(path: pathlib.Path, good: bytes) -> None:
    """Put a good file in the place of what is there, as tools that renew files do."""
    fresh = path.with_name(f"{path.name}.new")
    fresh.write_bytes(good)
    fresh.chmod(0o755)
    if path.is_dir() and not path.is_symlink():
        remove(path)
    fresh.replace(path)


def remove(path: pathlib.Path) -> None:
    """Remove whatever is there."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
