"""What has been received of a stream and is not used up yet; the readers of frames and chunks build on it."""


class ReceiveBuffer:
    """Bytes from `_start` on are pending; a reader moves `_start` over what it has used."""

    __slots__ = ("_buffer", "_start")

    def __init__(self) -> None:
        self._buffer = bytearray()
        self._start = 0

    @property
    def pending_bytes(self) -> int:
        """Bytes received and not yet used up."""
        return len(self._buffer) - self._start

    def receive(self, data: bytes) -> None:
        """Takes more bytes of the stream."""
        if self._start:
            del self._buffer[: self._start]
            self._start = 0
        self._buffer += data
