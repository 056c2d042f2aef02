"""Tests of loadtest.swarm.tls: the peer is OpenSSL's server side."""

import contextlib
import os
import ssl
import subprocess
import sys
from pathlib import Path

import pytest

from loadtest.environment import certificates
from loadtest.swarm import tls


class TlsPeer:
    """A server that asks for a certificate."""

    def __init__(self, made: certificates.Certificates) -> None:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(made.environment["TYPHA_SERVERCERTFILE"], made.environment["TYPHA_SERVERKEYFILE"])
        context.load_verify_locations(made.environment["TYPHA_CAFILE"])
        context.verify_mode = ssl.CERT_REQUIRED
        self.incoming, self.outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self.end = context.wrap_bio(self.incoming, self.outgoing, server_side=True)

    def shake_hands(self, data: bytes) -> bytes:
        self.incoming.write(data)
        with contextlib.suppress(ssl.SSLWantReadError):
            self.end.do_handshake()
        return self.outgoing.read()

    def seal(self, *records: bytes) -> bytes:
        for record in records:
            self.end.write(record)
        return self.outgoing.read()


def connected(folder: Path) -> tuple[TlsPeer, tls.Channel]:
    made = certificates.make(folder, host="127.0.0.1")
    peer = TlsPeer(made)
    channel = tls.Channel(tls.context_of(made.agents), "127.0.0.1")
    said = channel.begin()
    for _ in range(3):
        records, said = channel.receive(peer.shake_hands(said))
        assert records == []
        if not said:
            break
    assert channel.established
    return peer, channel


@pytest.mark.parametrize("step", [1, 100, 100_000])
def test_records_come_out_whole_whatever_the_reads(tmp_path: Path, step: int) -> None:
    peer, channel = connected(tmp_path)
    records = [b"first", b"x" * 16_000, b"last"]
    stream = peer.seal(*records)
    received = []
    for start in range(0, len(stream), step):
        got, answer = channel.receive(stream[start : start + step])
        assert answer == b""
        received += got
    assert received == records


def test_the_server_sees_the_agents_name_and_what_it_sends(tmp_path: Path) -> None:
    peer, channel = connected(tmp_path)
    peer.incoming.write(channel.send(b"hello"))
    assert peer.end.read(100) == b"hello"
    certificate = peer.end.getpeercert()
    assert certificate is not None
    assert ((("commonName", certificates.CLIENT_NAME),),)[0] in certificate["subject"]


def test_a_server_with_another_authority_is_refused(tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    peer = TlsPeer(certificates.make(tmp_path / "other", host="127.0.0.1"))
    mine = certificates.make(tmp_path, host="127.0.0.1")
    channel = tls.Channel(tls.context_of(mine.agents), "127.0.0.1")
    with pytest.raises(ssl.SSLError, match="certificate verify failed"):
        channel.receive(peer.shake_hands(channel.begin()))


def test_agents_offer_the_suite_first_that_go_offers_first() -> None:
    show = "import ssl; print(ssl.create_default_context().get_ciphers()[0]['name'])"
    found = subprocess.run(
        [sys.executable, "-c", show], env={**os.environ, **tls.ENVIRONMENT}, capture_output=True, text=True, check=True
    )
    assert found.stdout == "TLS_AES_128_GCM_SHA256\n"
