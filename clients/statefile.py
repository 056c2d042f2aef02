"""Internal: the file in which a mirror keeps its map, so that the next process begins with it.

    magic    16 bytes: what this is, and the version of the format
    digest   32 bytes: SHA-256 of the rest
    content  msgpack: [feed, [incarnation, sequence] or nil, chunks, [[key, value, revision, v3 resource version, ttl]]]

A file is written beside the old one and then takes its place, so that there is always a whole one. Whatever is wrong
with a file, it is not used: the mirror then begins with nothing, as without a file.
"""

import hashlib
import os
import pathlib
from typing import Annotated

import msgspec

from protocol.native import codec

MAX_FILE_BYTES = 1 << 30
"""A larger file is neither read nor written. 100,000 pods take some 50 MB."""
_MAGIC = b"typha mirror 1\r\n"
_DIGEST_BYTES = hashlib.sha256().digest_size
_Count = Annotated[int, msgspec.Meta(ge=0)]


class Entry(msgspec.Struct, array_like=True, gc=False, forbid_unknown_fields=True):
    """A key."""

    key: Annotated[str, msgspec.Meta(max_length=codec.MAX_KEY_CHARS)]
    value: bytes
    revision: str
    v3_resource_version: str
    ttl: int


class Position(msgspec.Struct, array_like=True, frozen=True, forbid_unknown_fields=True):
    """Of the map in the history of a server."""

    incarnation: Annotated[bytes, msgspec.Meta(min_length=16, max_length=16)]
    sequence: _Count


class State(msgspec.Struct, array_like=True, forbid_unknown_fields=True):
    """A map, and what its next connection says of it."""

    feed: str
    position: Position | None
    chunks: Annotated[int, msgspec.Meta(ge=1, le=codec.MAX_CHUNKS)]
    entries: list[Entry]


decode = msgspec.msgpack.Decoder(State).decode
encode = msgspec.msgpack.Encoder().encode


def write(path: pathlib.Path, state: State) -> None:
    """Replaces the file.

    Raises:
        OSError: it cannot be written.
        ValueError: it would be too large.
    """
    content = encode(state)
    if len(content) > MAX_FILE_BYTES - len(_MAGIC) - _DIGEST_BYTES:
        raise ValueError(f"{path} would have {len(content):,} bytes")
    beside = path.with_name(path.name + ".new")
    descriptor = os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    with open(descriptor, "wb") as file:
        for part in (_MAGIC, hashlib.sha256(content).digest(), content):
            file.write(part)
        file.flush()
        os.fsync(descriptor)
    os.replace(beside, path)
    folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def read(path: pathlib.Path, feed: str) -> State | None:
    """The map in the file; None if there is no file.

    Raises:
        OSError: it cannot be read.
        ValueError: it is not whole, not of this version, or of another feed.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except FileNotFoundError:
        return None
    with open(descriptor, "rb") as file:
        data = file.read(MAX_FILE_BYTES + 1)
    if len(data) > MAX_FILE_BYTES:
        raise ValueError(f"{path} has more than {MAX_FILE_BYTES:,} bytes")
    if not data.startswith(_MAGIC):
        raise ValueError(f"{path} is no file of a mirror, or of another version")
    begin = len(_MAGIC) + _DIGEST_BYTES
    content = memoryview(data)[begin:]
    if hashlib.sha256(content).digest() != data[len(_MAGIC) : begin]:
        raise ValueError(f"{path} does not have its digest")
    state = decode(content)  # whose errors are ValueErrors
    if state.feed != feed:
        raise ValueError(f"{path} has feed {state.feed!r} instead of {feed!r}")
    return state
