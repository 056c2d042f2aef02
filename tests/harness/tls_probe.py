"""Which versions, suites and groups of TLS a server speaks: a first message for each, and no cryptography.

`python -m tests.harness.tls_probe HOST:PORT` prints it for any server.
"""

import socket
import struct
import sys
from collections.abc import Collection, Sequence
from typing import NamedTuple

TIMEOUT_SECONDS = 180.0

SSL_3, TLS_1_0, TLS_1_1, TLS_1_2, TLS_1_3 = 0x0300, 0x0301, 0x0302, 0x0303, 0x0304
VERSIONS = {SSL_3: "SSL 3", TLS_1_0: "TLS 1.0", TLS_1_1: "TLS 1.1", TLS_1_2: "TLS 1.2", TLS_1_3: "TLS 1.3"}
NEW_SUITES = {
    0x1301: "TLS_AES_128_GCM_SHA256",
    0x1302: "TLS_AES_256_GCM_SHA384",
    0x1303: "TLS_CHACHA20_POLY1305_SHA256",
    0x1304: "TLS_AES_128_CCM_SHA256",
    0x1305: "TLS_AES_128_CCM_8_SHA256",
}
OLD_SUITES = {
    0x0001: "TLS_RSA_WITH_NULL_MD5",
    0x0005: "TLS_RSA_WITH_RC4_128_SHA",
    0x000A: "TLS_RSA_WITH_3DES_EDE_CBC_SHA",
    0x0016: "TLS_DHE_RSA_WITH_3DES_EDE_CBC_SHA",
    0x002F: "TLS_RSA_WITH_AES_128_CBC_SHA",
    0x0033: "TLS_DHE_RSA_WITH_AES_128_CBC_SHA",
    0x0034: "TLS_DH_anon_WITH_AES_128_CBC_SHA",
    0x0035: "TLS_RSA_WITH_AES_256_CBC_SHA",
    0x003C: "TLS_RSA_WITH_AES_128_CBC_SHA256",
    0x003D: "TLS_RSA_WITH_AES_256_CBC_SHA256",
    0x009C: "TLS_RSA_WITH_AES_128_GCM_SHA256",
    0x009D: "TLS_RSA_WITH_AES_256_GCM_SHA384",
    0x009E: "TLS_DHE_RSA_WITH_AES_128_GCM_SHA256",
    0x009F: "TLS_DHE_RSA_WITH_AES_256_GCM_SHA384",
    0x00AE: "TLS_PSK_WITH_AES_128_CBC_SHA256",
    0xC007: "TLS_ECDHE_ECDSA_WITH_RC4_128_SHA",
    0xC008: "TLS_ECDHE_ECDSA_WITH_3DES_EDE_CBC_SHA",
    0xC009: "TLS_ECDHE_ECDSA_WITH_AES_128_CBC_SHA",
    0xC00A: "TLS_ECDHE_ECDSA_WITH_AES_256_CBC_SHA",
    0xC011: "TLS_ECDHE_RSA_WITH_RC4_128_SHA",
    0xC012: "TLS_ECDHE_RSA_WITH_3DES_EDE_CBC_SHA",
    0xC013: "TLS_ECDHE_RSA_WITH_AES_128_CBC_SHA",
    0xC014: "TLS_ECDHE_RSA_WITH_AES_256_CBC_SHA",
    0xC018: "TLS_ECDH_anon_WITH_AES_128_CBC_SHA",
    0xC023: "TLS_ECDHE_ECDSA_WITH_AES_128_CBC_SHA256",
    0xC024: "TLS_ECDHE_ECDSA_WITH_AES_256_CBC_SHA384",
    0xC027: "TLS_ECDHE_RSA_WITH_AES_128_CBC_SHA256",
    0xC028: "TLS_ECDHE_RSA_WITH_AES_256_CBC_SHA384",
    0xC02B: "TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256",
    0xC02C: "TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384",
    0xC02F: "TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256",
    0xC030: "TLS_ECDHE_RSA_WITH_AES_256_GCM_SHA384",
    0xC0AC: "TLS_ECDHE_ECDSA_WITH_AES_128_CCM",
    0xC0AE: "TLS_ECDHE_ECDSA_WITH_AES_128_CCM_8",
    0xCCA8: "TLS_ECDHE_RSA_WITH_CHACHA20_POLY1305_SHA256",
    0xCCA9: "TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305_SHA256",
    0xCCAA: "TLS_DHE_RSA_WITH_CHACHA20_POLY1305_SHA256",
}
"""Of TLS 1.2 and earlier: what any server of this age might speak, and some that none may."""
GROUPS = {
    19: "P-192",
    21: "P-224",
    22: "secp256k1",
    23: "P-256",
    24: "P-384",
    25: "P-521",
    26: "brainpoolP256r1",
    29: "X25519",
    30: "X448",
    256: "ffdhe2048",
    257: "ffdhe3072",
    4587: "P-256 with ML-KEM-768",
    4588: "X25519 with ML-KEM-768",
    4589: "P-384 with ML-KEM-1024",
}
ALERTS = {0: "close_notify", 10: "unexpected_message", 22: "record_overflow", 40: "handshake_failure"} | {
    47: "illegal_parameter",
    50: "decode_error",
    51: "decrypt_error",
    70: "protocol_version",
    80: "internal_error",
    86: "inappropriate_fallback",
    100: "no_renegotiation",
    109: "missing_extension",
    112: "unrecognized_name",
    120: "no_application_protocol",
}
ALERT, HANDSHAKE = 21, 22
SERVER_HELLO, CERTIFICATE, SERVER_KEY_EXCHANGE, SERVER_HELLO_DONE = 2, 11, 12, 14
_RETRY = bytes.fromhex("cf21ad74e59a6111be1d8c021e65b891c2a211167abb8c5e079e09e2c8a8339c")
"""The random number of a HelloRetryRequest."""
_CERTIFICATES_GROUP = 23
_SIGNATURES = (0x0403, 0x0503, 0x0603, 0x0804, 0x0805, 0x0806, 0x0401, 0x0501, 0x0601, 0x0203, 0x0201, 0x0807)


class Hello(NamedTuple):
    """What a ClientHello says."""

    version: int = TLS_1_3
    """The newest one."""
    suites: Sequence[int] = (*NEW_SUITES, *OLD_SUITES)
    groups: Sequence[int] = tuple(GROUPS)
    name: bytes | None = b"localhost"
    more: Sequence[tuple[int, bytes]] = ()
    """Other extensions, at the end."""
    compressions: bytes = b"\0"
    random: bytes = bytes(range(32))
    key_share: bytes = b"\0\0"
    """The default is none: the server chooses the group, and asks for one."""

    def message(self) -> bytes:
        """The handshake message."""
        extensions = [(23, b"")]
        if self.name is not None:
            entry = b"\0" + _counted(self.name, 2)
            extensions.append((0, _counted(entry, 2)))
        if self.version >= TLS_1_0:
            extensions += [(10, _counted(_words(self.groups), 2)), (11, b"\1\0"), (0xFF01, b"\0")]
            extensions.append((13, _counted(_words(_SIGNATURES), 2)))
        if self.version == TLS_1_3:
            extensions += [(43, _counted(_words([TLS_1_3]), 1)), (51, self.key_share), (45, b"\1\1")]
        extensions += self.more
        body = struct.pack(">H", min(self.version, TLS_1_2)) + self.random + _counted(b"", 1)
        body += _counted(_words(self.suites), 2) + _counted(self.compressions, 1)
        body += _counted(b"".join(struct.pack(">H", kind) + _counted(data, 2) for kind, data in extensions), 2)
        return b"\1" + _counted(body, 3)

    def records(self) -> bytes:
        """The message in one record."""
        return record(HANDSHAKE, self.message(), version=min(self.version, TLS_1_0))


class Answer(NamedTuple):
    """What a server has said to a first message."""

    alert: int | None = None
    version: int = 0
    """0 if it has chosen nothing."""
    suite: int = 0
    group: int = 0
    is_retry: bool = False
    compression: int = 0
    random: bytes = b""
    extensions: tuple[int, ...] = ()
    """Of the ServerHello."""

    def text(self) -> str:
        """In words."""
        if self.alert is not None:
            return ALERTS.get(self.alert, f"alert {self.alert}")
        if not self.version:
            return "closed"
        return (
            f"{VERSIONS[self.version]}, {(NEW_SUITES | OLD_SUITES)[self.suite]}, {GROUPS.get(self.group, 'no group')}"
        )


def record(kind: int, content: bytes, *, version: int = TLS_1_2) -> bytes:
    """One record."""
    return struct.pack(">BH", kind, version) + _counted(content, 2)


def _words(numbers: Collection[int]) -> bytes:
    return struct.pack(f">{len(numbers)}H", *numbers)


def _counted(data: bytes, size_bytes: int) -> bytes:
    return len(data).to_bytes(size_bytes) + data


def read_answer(data: bytes) -> Answer | None:
    """What a server's first bytes say; None if there may be more of it."""
    messages, alert = b"", None
    while len(data) >= 5 and len(data) >= 5 + (size := int.from_bytes(data[3:5])):
        kind, content, data = data[0], data[5 : 5 + size], data[5 + size :]
        if kind == ALERT and len(content) == 2:
            alert = content[1]
        elif kind == HANDSHAKE:
            messages += content
    answer = Answer(alert=alert) if alert is not None else None
    while len(messages) >= 4 and len(messages) >= 4 + (size := int.from_bytes(messages[1:4])):
        kind, body, messages = messages[0], messages[4 : 4 + size], messages[4 + size :]
        if kind == SERVER_HELLO:
            answer = _server_hello(body)
            if answer.version >= TLS_1_3 or alert is not None:
                return answer
            if not OLD_SUITES[answer.suite].startswith(("TLS_ECDHE", "TLS_DHE", "TLS_DH_", "TLS_ECDH_")):
                return answer  # there is no key exchange to wait for
            hello, answer = answer, None
        elif kind == SERVER_KEY_EXCHANGE:
            return hello._replace(group=int.from_bytes(body[1:3]) if body[0] == 3 else 0)
    return answer


def _server_hello(body: bytes) -> Answer:
    version, random = int.from_bytes(body[:2]), body[2:34]
    body = body[35 + body[34] :]
    suite, compression, rest = int.from_bytes(body[:2]), body[2], body[5:]
    group, kinds = 0, []
    while rest:
        kind, size = struct.unpack(">HH", rest[:4])
        content, rest = rest[4 : 4 + size], rest[4 + size :]
        kinds.append(kind)
        if kind == 43:
            version = int.from_bytes(content)
        elif kind == 51:
            group = int.from_bytes(content[:2])
    return Answer(None, version, suite, group, random == _RETRY, compression, random, tuple(kinds))


def say(address: tuple[str, int], *pieces: bytes) -> Answer:
    """Sends these bytes, and reads until the server has answered, or has closed."""
    heard = b""
    with socket.create_connection(address, timeout=TIMEOUT_SECONDS) as connection:
        try:
            for piece in pieces:
                connection.sendall(piece)
            while (answer := read_answer(heard)) is None:
                received = connection.recv(1 << 16)
                if not received:
                    return Answer()
                heard += received
        except ConnectionError:
            return read_answer(heard) or Answer()
    return answer


class Spoken(NamedTuple):
    """What a server speaks."""

    versions: list[int]
    suites: dict[int, list[int]]
    """By version."""
    groups: dict[int, list[int]]
    """By version: those that each suite takes."""


def ask(address: tuple[str, int]) -> Spoken:
    """Every version with every suite and group. AssertionError if not all suites take the same groups."""
    versions = [version for version in VERSIONS if _speaks(address, Hello(version))]
    suites: dict[int, list[int]] = {}
    groups: dict[int, list[int]] = {}
    for version in versions:
        offered = NEW_SUITES if version == TLS_1_3 else OLD_SUITES
        suites[version] = [suite for suite in offered if _speaks(address, Hello(version, [suite]))]
        taken = {
            suite: [group for group in GROUPS if _takes(address, Hello(version, [suite]), group)]
            for suite in suites[version]
            if not (NEW_SUITES | OLD_SUITES)[suite].startswith("TLS_RSA")
        }
        groups[version] = next(iter(taken.values()), [])
        assert all(groups[version] == others for others in taken.values()), taken
    return Spoken(versions, suites, groups)


def _speaks(address: tuple[str, int], hello: Hello, *, group: int | None = None) -> bool:
    answer = say(address, hello.records())
    return answer.version == hello.version and answer.suite in hello.suites and group in (None, answer.group)


def _takes(address: tuple[str, int], hello: Hello, group: int) -> bool:
    """In TLS 1.2, OpenSSL wants to see the group of its certificate's key, too, and may prefer that."""
    offers = [[group]] if hello.version == TLS_1_3 else [[group], [group, _CERTIFICATES_GROUP]]
    return any(_speaks(address, hello._replace(groups=offer), group=group) for offer in offers)


def _print(spoken: Spoken) -> None:
    for version in spoken.versions:
        names = [(NEW_SUITES | OLD_SUITES)[suite] for suite in spoken.suites[version]]
        groups = [GROUPS[group] for group in spoken.groups[version]]
        sys.stdout.write(f"{VERSIONS[version]}\n  {', '.join(names)}\n  {', '.join(groups)}\n")


if __name__ == "__main__":
    host, _, port = sys.argv[1].rpartition(":")
    _print(ask((host, int(port))))
