"""When an object was last written, as far as it says so itself. Pure.

The API server notes the time of a write in `metadata.managedFields`, and that of the first in
`metadata.creationTimestamp`, to the second. It does not note when an object is deleted: `deletionTimestamp` is the end
of the grace period, and an object that has one may have changed in nothing else.
"""

import datetime

import msgspec

from cache import objects

_OBJECT_BYTES_MAX = 64 * 1024
"""Of a larger object the time is not looked for: 64 KiB take some 0.1 ms to look through."""
_MANAGERS_MAX = 64
"""Objects have one to ten."""


class _Manager(msgspec.Struct, gc=False):
    time: str = ""


class _Metadata(msgspec.Struct, gc=False, rename="camel"):
    creation_timestamp: str = ""
    deletion_timestamp: str | None = None
    managed_fields: list[_Manager] = []


class _Object(msgspec.Struct, gc=False):
    metadata: _Metadata


_decode = msgspec.json.Decoder(_Object).decode


def written_at(event: objects.ObjectEvent) -> float:
    """Unix seconds, rounded down, of the write that an event reports; 0.0 if the object does not tell."""
    raw = event.raw
    if raw is None or event.origin is not objects.Origin.EVENT or len(raw) > _OBJECT_BYTES_MAX:
        return 0.0
    try:
        metadata = _decode(raw).metadata
        if metadata.deletion_timestamp is not None or len(metadata.managed_fields) > _MANAGERS_MAX:
            return 0.0
        # All have one form, in which the later time is the greater text.
        newest = max([metadata.creation_timestamp, *(manager.time for manager in metadata.managed_fields)])
        return datetime.datetime.fromisoformat(newest).timestamp()
    except (msgspec.DecodeError, ValueError, RecursionError, OverflowError):
        return 0.0
