"""UIDs of objects that are derived from another one. They differ from the other's UID, so UIDs stay unique. Pure."""

import uuid

_KEPT_BYTES = (6, 8)
"""The bytes of a random UUID that contain its version and its variant."""
_REVERSED_BITS = bytes(int(f"{byte:08b}"[::-1], 2) for byte in range(256))


def reversed_uid(text: str) -> str:
    """Return the UUID with the bits of each byte reversed. Version and variant stay.

    Raises:
        ValueError: not a UUID.
    """
    original = uuid.UUID(text).bytes
    turned = bytearray(original.translate(_REVERSED_BITS))
    for index in _KEPT_BYTES:
        turned[index] = original[index]
    return str(uuid.UUID(bytes=bytes(turned)))
