"""UIDs of what is derived from another object: never that object's own, so that no two objects share one. Pure."""

import uuid

_KEPT_BYTES = (6, 8)
"""Where a random UUID has its version and its variant."""
_REVERSED_BITS = bytes(int(f"{byte:08b}"[::-1], 2) for byte in range(256))


def reversed_uid(text: str) -> str:
    """The UUID with the bits of each byte in reverse order, version and variant kept.

    Raises:
        ValueError: not a UUID.
    """
    original = uuid.UUID(text).bytes
    turned = bytearray(original.translate(_REVERSED_BITS))
    for index in _KEPT_BYTES:
        turned[index] = original[index]
    return str(uuid.UUID(bytes=bytes(turned)))
