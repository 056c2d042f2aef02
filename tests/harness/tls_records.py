"""TLS records that Python's `ssl` does not send: made with the keys that a client's context logs."""

import hashlib
import hmac
import pathlib
import struct

from cryptography.hazmat.primitives.ciphers import aead

_LABEL = "CLIENT_TRAFFIC_SECRET_0"
_APPLICATION_DATA = 23
CHANGE_CIPHER_SPEC = 20
ALERT = 21
HANDSHAKE = 22
DATA = 23
HEARTBEAT = 24


class RecordMaker:
    """The client's sending end, for TLS_AES_256_GCM_SHA384. The client has sent nothing since its handshake."""

    def __init__(self, key_log: pathlib.Path) -> None:
        lines = [line.split() for line in key_log.read_text().splitlines()]
        [self._secret] = [bytes.fromhex(line[2]) for line in lines if line[0] == _LABEL]
        assert len(self._secret) == hashlib.sha384().digest_size, "another cipher suite"
        self._use_secret()

    def _use_secret(self) -> None:
        self._cipher = aead.AESGCM(_expand(self._secret, b"key", 32))
        self._iv = int.from_bytes(_expand(self._secret, b"iv", 12))
        self._number = 0

    def record(self, kind: int, content: bytes, *, padding: int = 0) -> bytes:
        """The next record."""
        inner = content + bytes([kind]) + bytes(padding)
        header = struct.pack(">BHH", _APPLICATION_DATA, 0x0303, len(inner) + 16)
        nonce = (self._iv ^ self._number).to_bytes(12)
        self._number += 1
        return header + self._cipher.encrypt(nonce, inner, header)

    def key_update(self, *, wants_answer: bool = False) -> bytes:
        """The next record, after which the keys are others."""
        made = self.record(HANDSHAKE, bytes([24, 0, 0, 1, wants_answer]))
        self._secret = _expand(self._secret, b"traffic upd", len(self._secret))
        self._use_secret()
        return made


class OldRecordMaker:
    """The same for TLS 1.2 with AES-256-GCM. `server_hello`: the server's first bytes."""

    def __init__(self, key_log: pathlib.Path, server_hello: bytes) -> None:
        [line] = [line.split() for line in key_log.read_text().splitlines() if line.startswith("CLIENT_RANDOM")]
        client_random, master_secret = bytes.fromhex(line[1]), bytes.fromhex(line[2])
        seed = b"key expansion" + server_hello[11:43] + client_random
        block, chained = b"", seed
        while len(block) < 72:
            chained = hmac.digest(master_secret, chained, "sha384")
            block += hmac.digest(master_secret, chained + seed, "sha384")
        self._cipher = aead.AESGCM(block[:32])
        self._salt = block[64:68]
        self._number = 1  # after the client's Finished

    def record(self, kind: int, content: bytes) -> bytes:
        """The next record."""
        number = self._number.to_bytes(8)
        self._number += 1
        sealed = self._cipher.encrypt(
            self._salt + number, content, number + struct.pack(">BHH", kind, 0x0303, len(content))
        )
        return struct.pack(">BHH", kind, 0x0303, len(number) + len(sealed)) + number + sealed


def _expand(secret: bytes, label: bytes, length: int) -> bytes:
    """HKDF-Expand-Label of RFC 8446 with an empty context, for lengths of one block."""
    named = b"tls13 " + label
    info = struct.pack(">HB", length, len(named)) + named + b"\x00"
    return hmac.digest(secret, info + b"\x01", "sha384")[:length]
