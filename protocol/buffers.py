"""Internal: the receive buffer that the readers of frames and chunks share."""


class ReceiveBuffer:
    """Received bytes. Bytes from `_start` on are unread; a reader advances `_start` past what it has consumed."""

    __slots__ = ("_buffer", "_start")

    def __init__(self) -> None:
        self._buffer = bytearray()
        self._start = 0

    @property
    def pending_bytes(self) -> int:
        """Number of bytes received and not yet consumed."""
        return len(self._buffer) - self._start

    def receive(self, data: bytes) -> None:
        """Appends bytes of the stream."""
        self.drop_consumed()
        self._buffer += data

    def drop_consumed(self) -> None:
        """Frees the memory of what has been consumed, so that an idle peer holds no more than `pending_bytes`."""
        if self._start:
            del self._buffer[: self._start]
            self._start = 0
