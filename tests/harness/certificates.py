"""Certificates of a CA that exists for one test run, and TLS handshakes with them."""

import asyncio
import contextlib
import datetime
import pathlib
import socket
import ssl
from importlib import util
from typing import NamedTuple, Self

import pytest
import trustme
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from clients import connection
from typha.worker import tls

AGENT = "calico-node"
SERVER = "typha-server"
"""The common name of a server's certificate: replicas are each other's clients with it."""
AGENT_URI = "spiffe://cluster.local/ns/calico-system/sa/calico-node"
SHAKE_SECONDS = 180.0
NOW = datetime.datetime.now(datetime.UTC)
PEM = serialization.Encoding.PEM
needs_rustls = pytest.mark.skipif(
    util.find_spec("typha_rustls") is None, reason="typha_rustls is not installed: make native"
)
ENGINES = (tls.OPENSSL, pytest.param(tls.RUSTLS, marks=needs_rustls))
"""Parameters of tests that each engine must pass."""


class Files(NamedTuple):
    """PEM files of a server. Client certificates are made when they are needed."""

    authority: trustme.CA
    folder: pathlib.Path
    engine: str = tls.OPENSSL
    """Of the worker's TLS, see `ENGINES`."""

    def settings(self, *, cn: str = AGENT, uri_san: str = "", **environment: str) -> tls.ClientTls:
        """The TLS settings of a worker."""
        return tls.ClientTls(
            key_file=str(self.folder / "server.key"),
            cert_file=str(self.folder / "server.pem"),
            ca_file=str(self.folder / "ca.pem"),
            client_cn=cn,
            client_uri_san=uri_san,
            engine=self.engine,
            **environment,
        )

    def write(self, authority: trustme.CA | None = None) -> None:
        """Write a new server certificate and key, and the CA's certificate."""
        issued = (authority or self.authority).issue_cert("localhost", "127.0.0.1", common_name=SERVER)
        self.renew("server.key", issued.private_key_pem.bytes())
        self.renew("server.pem", issued.cert_chain_pems[0].bytes())
        self.renew("ca.pem", self.authority.cert_pem.bytes())

    def renew(self, name: str, content: bytes) -> None:
        """Replace a file, as tools that renew certificates do."""
        fresh = self.folder / f"{name}.new"
        fresh.write_bytes(content)
        fresh.replace(self.folder / name)


def make(folder: pathlib.Path, engine: str = tls.OPENSSL) -> Files:
    """Create a CA, and the files of a server in the folder."""
    files = Files(trustme.CA(), folder, engine)
    files.write()
    return files


def client_context(
    trusted: trustme.CA,
    *,
    issuer: trustme.CA | None = None,
    cn: str = AGENT,
    uris: tuple[str, ...] = (),
    hosts: tuple[str, ...] = (),
    usage: x509.ObjectIdentifier = ExtendedKeyUsageOID.CLIENT_AUTH,
    expired: bool = False,
    anonymous: bool = False,
) -> ssl.SSLContext:
    """The TLS context of a client.

    Args:
        trusted: the CA of the server's certificate.
        issuer: the CA of the client's certificate; `trusted` if None.
        cn: common name of the client's certificate; empty for none.
        uris: URIs among the subject alternative names.
        hosts: host names among the subject alternative names.
        usage: extended key usage of the certificate.
        expired: the certificate expired yesterday.
        anonymous: the client has no certificate.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)  # the default context would read the system's authorities, 30 ms
    trusted.configure_trust(context)
    if anonymous:
        return context
    key = ec.generate_private_key(ec.SECP256R1())
    names = [*map(x509.UniformResourceIdentifier, uris), *map(x509.DNSName, hosts)]
    signing = issuer or trusted
    builder = (
        x509.CertificateBuilder()
        .subject_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, cn)] if cn else []))
        .issuer_name(x509.load_pem_x509_certificate(signing.cert_pem.bytes()).subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(NOW - datetime.timedelta(days=9))
        .not_valid_after(NOW + datetime.timedelta(days=-1 if expired else 1))
        .add_extension(x509.ExtendedKeyUsage([usage]), critical=False)
    )
    if names:
        builder = builder.add_extension(x509.SubjectAlternativeName(names), critical=not cn)
    signing_key = serialization.load_pem_private_key(signing.private_key_pem.bytes(), None)
    assert isinstance(signing_key, ec.EllipticCurvePrivateKey)
    certificate = builder.sign(signing_key, hashes.SHA256())
    written = key.private_bytes(PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    with trustme.Blob(written + certificate.public_bytes(PEM)).tempfile() as path:
        context.load_cert_chain(path)
    return context


class WatchedSessions(connection.TlsSessions):
    """A client's sessions; notes which of its connections have resumed one."""

    resumed: list[bool]

    def __new__(cls, context: ssl.SSLContext) -> Self:
        """With the context of a client."""
        made = super().__new__(cls, context)
        made.resumed = []
        return made

    def keep(self, ended: ssl.SSLObject) -> None:
        """A connection is about to be closed."""
        self.resumed.append(bool(ended.session_reused))
        super().keep(ended)


async def shake(end: socket.socket, context: ssl.SSLContext, *, seconds: float = SHAKE_SECONDS) -> ssl.SSLSocket:
    """Do the TLS handshake as a client. Returns the secured socket."""
    secured = context.wrap_socket(
        end, server_hostname="localhost", do_handshake_on_connect=False, suppress_ragged_eofs=False
    )
    with contextlib.ExitStack() as on_failure:
        on_failure.callback(secured.close)
        async with asyncio.timeout(seconds):
            while not _has_shaken(secured):
                await _readable(secured)
        on_failure.pop_all()
    return secured


def _has_shaken(end: ssl.SSLSocket) -> bool:
    try:
        end.do_handshake()
    except ssl.SSLWantReadError:
        return False
    return True


async def _readable(end: socket.socket) -> None:
    loop = asyncio.get_running_loop()
    readable = asyncio.Event()
    loop.add_reader(end, readable.set)
    try:
        await readable.wait()
    finally:
        loop.remove_reader(end)
