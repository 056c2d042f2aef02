"""One end of a connection, for scripts: frames as plain values, limited in size and time."""

import asyncio
import contextlib
import time
from typing import Any

import msgpack
import zstandard

from clients.conformance import wire
from clients.conformance.report import Broken

READ_BYTES = 64 * 1024
MAX_PAYLOAD_BYTES = wire.MAX_FRAME_BYTES
"""Of one frame. A peer that sends more is broken, and the kit must survive it."""
PIECES_SECONDS_MAX = 3.0
"""For a message in pieces: its reader waits for a hello for 10 s."""
_LENGTH_BYTES = 4


class Ended(Exception):
    """The peer has ended the connection."""


class Link:
    """Reads frames of a peer and sends it bytes. Every wait has an end."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, *, patience_seconds: float) -> None:
        self._reader = reader
        self._writer = writer
        self.patience_seconds = patience_seconds
        self.largest_frame_bytes = 0
        """The largest length or content size so far."""
        self.is_compressed = False
        """Whether a frame was compressed."""

    def send(self, *parts: bytes) -> None:
        """Sends bytes; a peer that has gone is noticed when the link is read."""
        if not self._writer.is_closing():  # otherwise asyncio writes a warning
            with contextlib.suppress(OSError):
                self._writer.write(b"".join(parts))

    async def send_in_pieces(self, data: bytes, count: int) -> None:
        """Sends bytes in pieces that most likely arrive one by one; on a machine that is too busy, the rest at once."""
        begun = time.monotonic()
        for start in range(0, len(data), count):
            if time.monotonic() - begun > PIECES_SECONDS_MAX:
                self.send(data[start:])
                return
            self.send(data[start : start + count])
            await asyncio.sleep(0.001)

    def end_sending(self) -> None:
        """Ends this direction of the stream."""
        if self._writer.can_write_eof():
            self._writer.write_eof()

    def close(self) -> None:
        """Closes at once."""
        self._writer.transport.abort()

    async def _exactly(self, count: int, seconds: float | None) -> bytes:
        try:
            async with asyncio.timeout(self.patience_seconds if seconds is None else seconds):
                return await self._reader.readexactly(count)
        except (asyncio.IncompleteReadError, ConnectionError) as error:
            raise Ended from error

    async def preface(self, *, seconds: float | None = None) -> None:
        """Reads the peer's preface.

        Raises:
            Broken, Ended, TimeoutError.
        """
        found = await self._exactly(len(wire.PREFACE), seconds)
        if found != wire.PREFACE:
            raise Broken("H3", f"the preface is {found.hex(' ')}")

    async def message(self, *, limit: int = MAX_PAYLOAD_BYTES, seconds: float | None = None) -> list[Any]:
        """Reads the next message.

        Raises:
            Broken, Ended, TimeoutError.
        """
        length = int.from_bytes(await self._exactly(_LENGTH_BYTES, seconds))
        if not 1 <= length <= limit:
            raise Broken("L2", f"a frame has length {length}, and the limit is {limit}")
        content = await self._exactly(length, seconds)
        self.largest_frame_bytes = max(self.largest_frame_bytes, length)
        flags, payload = content[0], content[1:]
        if flags not in (0, 1):
            raise Broken("F3", f"a frame has flags 0x{flags:02x}")
        if flags:
            payload = self._decompressed(payload, limit)
        try:
            found = msgpack.unpackb(payload, strict_map_key=True)
        except (ValueError, msgpack.UnpackException, RecursionError) as error:
            raise Broken("F4", f"a payload is not one msgpack value ({payload[:20].hex()})") from error
        if not isinstance(found, list) or not found or not _is_count(found[0]):
            raise Broken("M2", f"a payload is not a message ({payload[:20].hex()})")
        return found

    def _decompressed(self, payload: bytes, limit: int) -> bytes:
        self.is_compressed = True
        try:
            size = zstandard.frame_content_size(payload)
            if size < 0 or size > limit:
                raise Broken("F7", f"a compressed frame states {size} bytes of content")
            self.largest_frame_bytes = max(self.largest_frame_bytes, size)
            return zstandard.ZstdDecompressor().decompress(payload, allow_extra_data=False)
        except zstandard.ZstdError as error:
            raise Broken("F7", f"a compressed frame is broken: {error}") from error

    async def closed(self, seconds: float | None = None) -> bool:
        """Reads and drops until the peer ends the connection; False if it does not within the time."""
        try:
            async with asyncio.timeout(self.patience_seconds if seconds is None else seconds):
                while await self._reader.read(READ_BYTES):
                    pass
        except TimeoutError:
            return False
        except ConnectionError:
            pass
        return True

    async def rest(self, seconds: float) -> tuple[bytes, bool]:
        """Reads until the peer ends the connection, or for a time: the first bytes, and whether it has ended."""
        found = b""
        try:
            async with asyncio.timeout(seconds):
                while data := await self._reader.read(READ_BYTES):
                    found = (found + data)[:READ_BYTES]
        except TimeoutError:
            return found, False
        except ConnectionError:
            pass
        return found, True

    async def silent(self, seconds: float) -> bool:
        """Whether nothing arrives for a time; what arrives is lost. False also at the end."""
        try:
            async with asyncio.timeout(seconds):
                await self._reader.read(1)
        except TimeoutError:
            return True
        except ConnectionError:
            pass
        return False


def _is_count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 1 << 64


def check_count(value: object, what: str) -> int:
    """The value, if it is a count.

    Raises:
        Broken: it is not.
    """
    if not isinstance(value, int) or not _is_count(value):
        raise Broken("M2", f"{what} is no count: {value!r:.60}")
    return value


def check_text(value: object, what: str, limit: int = 1024) -> str:
    """The value, if it is a text within the limit.

    Raises:
        Broken: it is not.
    """
    if not isinstance(value, str):
        raise Broken("M2", f"{what} is no text: {value!r:.60}")
    if len(value) > limit:
        raise Broken("L1", f"{what} has {len(value)} characters")
    return value


def check_fields(message: list[Any], count: int, what: str) -> list[Any]:
    """The message's fields, if there are enough.

    Raises:
        Broken: there are not.
    """
    if len(message) <= count:
        raise Broken("M2", f"{what} has {len(message) - 1} fields instead of {count}")
    return message[1 : count + 1]
