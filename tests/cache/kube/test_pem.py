"""PEM blocks, and what the DER encoding of certificates and keys shows. Go's own reading: test_clientgo.py."""

import datetime
import random

import pytest

from cache.kube import pem
from tests.harness import authorities

SEED = 18
MUTATIONS = 3000


def block(kind: bytes = b"X", body: bytes = b"QUJD\n") -> bytes:
    return b"-----BEGIN %b-----\n%b-----END %b-----\n" % (kind, body, kind)


@pytest.mark.parametrize(
    ("text", "found"),
    [
        (b"", []),
        (block(), [(b"X", False, b"ABC")]),
        (b"text\n" + block() + b"\xff\xfe" + block(b"Y")[:-1], [(b"X", False, b"ABC")]),
        (b"text\n" + block() + b"\xff\xfe\n" + block(b"Y")[:-1], [(b"X", False, b"ABC"), (b"Y", False, b"ABC")]),
        (block(body=b"a: b\n\nQUJD\n"), [(b"X", True, b"ABC")]),
        (block(body=b""), [(b"X", False, b"")]),
        (block(body=b"QUJ\n"), []),
        (block(body=b"QUJD====\n"), []),
        (block(body=b"Q U\tJD\r\n"), [(b"X", False, b"ABC")]),
        (block()[:-6], []),
        (b"-----BEGIN Y-----\n" + block(), [(b"X", False, b"ABC")]),
        (block().replace(b"END X", b"END Y") + block(), [(b"X", False, b"ABC")]),
    ],
)
def test_blocks(text: bytes, found: list[tuple[bytes, bool, bytes]]) -> None:
    assert list(pem.blocks(text)) == found


@pytest.mark.parametrize("days", [1, 365, 36500])
def test_the_end_of_a_certificate(days: int) -> None:
    issued = authorities.issue("a", days=days)  # from 2050 on, the time has another form
    assert pem.not_after(issued.der) == issued.certificate.not_valid_after_utc.timestamp()


@pytest.mark.parametrize(("year", "text"), [(1950, b"500101000000Z"), (2049, b"490101000000Z")])
def test_years_of_two_digits(year: int, text: bytes) -> None:
    when = datetime.datetime(year, 1, 1, tzinfo=datetime.UTC)
    assert pem._time(pem._UTC_TIME, text) == when.timestamp()


def test_mutated_certificates_raise_nothing_else() -> None:
    source, good, refused = random.Random(SEED), authorities.issue("a").der, 0
    for _ in range(MUTATIONS):
        text = bytearray(good)
        for _ in range(source.randint(1, 4)):
            text[source.randrange(len(text))] = source.randrange(256)
        del text[source.choice([len(text), source.randrange(len(text))]) :]
        try:
            pem.not_after(bytes(text))
        except pem.Malformed:
            refused += 1
        pem.is_whole(bytes(text))
        pem.private_key(pem.encode(b"PRIVATE KEY", bytes(text)))
    assert 0 < refused < MUTATIONS


def test_what_follows_a_certificate_shows() -> None:
    good = authorities.issue("a").der
    assert pem.is_whole(good)
    assert not pem.is_whole(good + b"\0")
    assert not pem.is_whole(good[:-1])


def test_what_is_encoded_is_read_again() -> None:
    content = bytes(range(256))
    assert list(pem.blocks(pem.encode(b"A B", content))) == [(b"A B", False, content)]
