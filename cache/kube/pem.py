"""Reads PEM as Go does, and the few facts of a certificate or key that its DER encoding shows.

OpenSSL reads a PEM file as a whole: it stops at the first block that it cannot use, and Python wants text. Go looks for
blocks in bytes, skips whatever stands between them, and skips blocks that it cannot use.
"""

import base64
import datetime
import re
from collections.abc import Iterator
from typing import NamedTuple

_BEGIN = b"-----BEGIN "
_END = b"\n-----END "
_DASHES = b"-----"
_BASE64 = re.compile(rb"(?:[A-Za-z0-9+/]{4})*(?:[A-Za-z0-9+/]{2}==|[A-Za-z0-9+/]{3}=)?")
_SEQUENCE, _INTEGER, _UTC_TIME, _GENERALIZED_TIME, _VERSION = 0x30, 0x02, 0x17, 0x18, 0xA0
_HALF_A_CENTURY = 50
"""Years of two digits below it belong to this century (RFC 5280)."""


class Block(NamedTuple):
    """A block: its type (such as b"CERTIFICATE"), whether it has headers, and its content."""

    type: bytes
    has_headers: bool
    content: bytes


class Malformed(Exception):
    """Bytes are not the DER encoding that was expected."""


def blocks(data: bytes) -> Iterator[Block]:
    """Find the blocks. An END line closes the last BEGIN line before it. What does not fit together is skipped."""
    position = 0
    while (end := data.find(_END, position)) >= 0:
        after = end + len(_END)
        # At the beginning of the input or after a block, BEGIN needs no new line before it.
        begin = data.rfind(_BEGIN, position, end)
        if begin < 0 or (begin > position and data[begin - 1 : begin] != b"\n"):
            position = after
            continue
        found, position = _block(data, begin + len(_BEGIN), end)
        if found is not None:
            yield found
        else:
            position = max(position, after)


def _block(data: bytes, start: int, end: int) -> tuple[Block | None, int]:
    """Read one block between the two places. Return it, or None, and the place to look on."""
    line, start = _line(data, start)
    if not line.endswith(_DASHES):
        return None, start
    kind = line[: -len(_DASHES)]
    headers = 0
    while True:
        if start >= len(data):
            return None, len(data)
        line, following = _line(data, start)
        if b":" not in line:
            break
        headers, start = headers + 1, following
    trailer = end + len(_END)
    if headers and end < start:
        return None, trailer if start <= trailer else len(data)  # Go gives up where headers go on after the END line
    closing = kind + _DASHES
    if not data.startswith(closing, trailer) or _line(data, trailer + len(closing))[0]:
        return None, trailer
    content = b""
    if end > start:
        try:
            content = decode_base64(data[start:end].translate(None, b" \t"))
        except ValueError:
            return None, trailer
    return Block(kind, bool(headers), content), _line(data, end + len(_END) - 1)[1]


def _line(data: bytes, start: int) -> tuple[bytes, int]:
    """Return the line without its end and trailing blanks, and the place of the next one."""
    end = data.find(b"\n", start)
    if end < 0:
        return data[start:].rstrip(b" \t"), len(data)
    return data[start:end].removesuffix(b"\r").rstrip(b" \t"), end + 1


def decode_base64(text: bytes) -> bytes:
    """Decode as Go's standard encoding: line ends are skipped, everything else must fit. Raises ValueError."""
    joined = text.translate(None, b"\r\n")
    if _BASE64.fullmatch(joined) is None:  # Python's own strict mode accepts too much padding
        raise ValueError("not base64")
    return base64.b64decode(joined)


def certificates(data: bytes, *, with_headers: bool) -> list[bytes]:
    """Return the content of the certificates' blocks. Those of a trust store must have no headers."""
    return [
        block.content
        for block in blocks(data)
        if block.type == b"CERTIFICATE" and (with_headers or not block.has_headers)
    ]


def private_key(data: bytes) -> Block | None:
    """Return the first private key, with the type that its content has: empty if it has none, or is encrypted."""
    for block in blocks(data):
        if block.type == b"PRIVATE KEY" or block.type.endswith(b" PRIVATE KEY"):
            return block._replace(type=_key_type(block.content))
    return None


def encode(block_type: bytes, content: bytes) -> bytes:
    """Return the block as PEM that every reader understands."""
    return b"-----BEGIN %b-----\n%b-----END %b-----\n" % (block_type, base64.encodebytes(content), block_type)


def is_whole(content: bytes) -> bool:
    """Whether the bytes are one DER sequence, and nothing after it."""
    try:
        return _element(content, 0).end == len(content)
    except Malformed:
        return False


def not_after(certificate: bytes) -> float:
    """Return the end of a certificate's validity, in seconds since the epoch. Raises Malformed."""
    body = _elements(certificate, _sequence(_element(certificate, 0)))
    fields = _elements(certificate, _sequence(body[0])) if body else []
    if fields and fields[0].tag == _VERSION:
        del fields[0]
    if len(fields) < 4:
        raise Malformed("not a certificate")
    validity = _elements(certificate, _sequence(fields[3]))  # after serial number, algorithm and issuer
    if len(validity) != 2:
        raise Malformed("no validity")
    return _time(validity[1].tag, certificate[validity[1].start : validity[1].end])


class _Element(NamedTuple):
    tag: int
    start: int
    end: int


def _element(data: bytes, start: int) -> _Element:
    if start + 2 > len(data):
        raise Malformed("ends too early")
    tag, length = data[start], data[start + 1]
    content = start + 2
    if length >= 0x80:
        size = length - 0x80
        if not 1 <= size <= 4 or content + size > len(data):
            raise Malformed("a length that cannot be")
        length = int.from_bytes(data[content : content + size], "big")
        content += size
    if content + length > len(data):
        raise Malformed("ends too early")
    return _Element(tag, content, content + length)


def _sequence(element: _Element) -> _Element:
    if element.tag != _SEQUENCE:
        raise Malformed("not a sequence")
    return element


def _elements(data: bytes, outer: _Element) -> list[_Element]:
    found, start = [], outer.start
    while start < outer.end:
        found.append(_element(data, start))
        start = found[-1].end
    return found


def _time(tag: int, content: bytes) -> float:
    try:
        text = content.decode("ascii")
        if tag == _UTC_TIME:
            century = "20" if int(text[:2]) < _HALF_A_CENTURY else "19"
            text = century + text
        elif tag != _GENERALIZED_TIME:
            raise Malformed("not a time")
        return datetime.datetime.strptime(text, "%Y%m%d%H%M%SZ").replace(tzinfo=datetime.UTC).timestamp()
    except ValueError as error:
        raise Malformed("not a time") from error


def _key_type(content: bytes) -> bytes:
    """PKCS #8, PKCS #1 or SEC 1, by the second element: a sequence, an integer, an octet string."""
    try:
        elements = _elements(content, _sequence(_element(content, 0)))
    except Malformed:
        return b""
    if len(elements) < 2 or elements[0].tag != _INTEGER:
        return b""
    return {_SEQUENCE: b"PRIVATE KEY", _INTEGER: b"RSA PRIVATE KEY", 0x04: b"EC PRIVATE KEY"}.get(elements[1].tag, b"")
