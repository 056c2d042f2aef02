"""Internal: the wire formats by name, with their encoders and differences."""

from typing import Final

from protocol import encoding
from protocol.native import encoder as native_encoder
from protocol.native import frames
from protocol.typha import encoder as typha_encoder

NAMES: Final = (*native_encoder.NAMES, typha_encoder.PLAIN, typha_encoder.SNAPPY)


def make_encoder(name: str, *, max_frame_bytes: int = frames.MAX_FRAME_BYTES) -> encoding.Encoder:
    """The encoder of a wire format. The limit of a frame's bytes is that of the native protocol.

    Raises:
        KeyError: there is no such format.
    """
    made: encoding.Encoder
    if name in native_encoder.NAMES:
        made = native_encoder.NativeEncoder(
            zstd=name != native_encoder.PLAIN,
            takes_dictionary=name == native_encoder.ZSTD_DICTIONARY,
            max_frame_bytes=max_frame_bytes,
        )
    elif name in (typha_encoder.PLAIN, typha_encoder.SNAPPY):
        made = typha_encoder.TyphaEncoder(compress=name == typha_encoder.SNAPPY)
    else:
        raise KeyError(name)
    return made


def replaces_by_snapshot(name: str) -> bool:
    """Whether a second snapshot on a connection replaces the first. A Typha client keeps keys that are not in it."""
    return name in native_encoder.NAMES
