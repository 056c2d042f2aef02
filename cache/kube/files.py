"""Reads files that others write: configuration, certificates, tokens. Never blocks, never reads without limit."""

import os
import stat
from typing import NamedTuple

MAX_FILE_BYTES = 1024 * 1024
"""Four times the CA bundle of an operating system. Larger files are taken for a mistake."""
_READ_BYTES = 65_536


class FileUnusable(Exception):
    """The file cannot be read. The message names it."""


class Identity(NamedTuple):
    """Changes whenever a file changes, is replaced or gets other permissions. All zero: there is no such file."""

    device: int
    inode: int
    size_bytes: int
    modified_ns: int
    changed_ns: int


def read(path: str, *, limit_bytes: int = MAX_FILE_BYTES) -> bytes:
    """Read a whole file. Raises FileUnusable if it is not regular (nor /dev/null), or larger than `limit_bytes`."""
    try:
        # A FIFO without a writer would block; a terminal would become ours.
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY)
        try:
            mode = os.fstat(descriptor).st_mode
            if not stat.S_ISREG(mode) and path != os.devnull:
                kind = "is a directory" if stat.S_ISDIR(mode) else "is not a regular file"
                raise FileUnusable(f"{shown(path)}: {kind}")
            content = bytearray()
            while part := os.read(descriptor, _READ_BYTES):
                content += part
                if len(content) > limit_bytes:
                    raise FileUnusable(f"{shown(path)}: is larger than {limit_bytes} bytes")
        finally:
            os.close(descriptor)
    except OSError as error:
        raise FileUnusable(f"{shown(path)}: {error.strerror}") from error
    except ValueError as error:
        raise FileUnusable(f"{shown(path)}: {error}") from error
    return bytes(content)


def identity(path: str) -> Identity:
    """Return what tells whether a file has changed. A file that cannot be looked at counts as missing."""
    try:
        status = os.stat(path)
    except (OSError, ValueError):
        return Identity(0, 0, 0, 0, 0)
    return Identity(status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns)


def shown(text: str) -> str:
    """Return a path or another text from outside for messages: on one line, printable, not long."""
    line = " ".join(text.split())
    printable = line if line.isprintable() else ascii(line)[1:-1]
    return printable if len(printable) <= 200 else f"{printable[:200]}..."
