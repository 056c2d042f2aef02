"""Makes every TLS context of the service and its commands, by Go's rules of trust (docs/decisions/tls.md).

Agents, the API server and its other clients use Go. What one of them accepts must not be refused here, and the other
way round: a certificate in a file of authorities is trusted as such, self-signed or not, and whatever else the file
contains is skipped.
"""

import os
import ssl
from typing import NamedTuple

from cache.kube import files, pem

_SECURITY_LEVEL = "@SECLEVEL=1"
"""As Go: RSA keys from 1,024 bits on, no SHA-1. Level 2, Python's default, refuses keys below 2,048 bits."""
GO_CIPHER_SUITES = "ECDHE+AESGCM:ECDHE+CHACHA20:ECDHE-ECDSA-AES256-SHA:ECDHE-RSA-AES256-SHA:ECDHE-RSA-AES128-SHA"
"""For TLS 1.2. All suites of TLS 1.3 are on."""


class TlsUnusable(Exception):
    """A certificate, a key or a list of authorities cannot be used. The message names it."""


def client_context(*, authorities: bytes = b"", source: str = "", verify: bool = True) -> ssl.SSLContext:
    """Make the context of a client.

    Args:
        authorities: PEM of the only trusted certificates. Empty: those of the system.
        source: where they come from, for messages.
        verify: False accepts every server.

    Raises:
        TlsUnusable: there is no certificate among the authorities.
    """
    context = _context(ssl.PROTOCOL_TLS_CLIENT)
    context.hostname_checks_common_name = False
    if not verify:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    elif authorities:
        trust(context, authorities, source)
    else:
        context.set_default_verify_paths()
    return context


class NamedFile(NamedTuple):
    """A file, and the setting that names it."""

    setting: str
    path: str

    def __str__(self) -> str:
        return f"{self.setting} {files.shown(self.path)}"

    def read(self) -> bytes:
        """Read it. Raises TlsUnusable."""
        try:
            return files.read(self.path)
        except files.FileUnusable as error:
            raise TlsUnusable(f"{self.setting} {error}") from error


def server_context(
    *, certificate: NamedFile, key: NamedFile, authorities: NamedFile, client_certificates: ssl.VerifyMode
) -> ssl.SSLContext:
    """Make the context of a server. Raises TlsUnusable."""
    context = _context(ssl.PROTOCOL_TLS_SERVER)
    context.verify_mode = client_certificates
    context.options |= ssl.OP_NO_RENEGOTIATION  # a few bytes of a peer would cost a handshake
    context.num_tickets = 0  # agents and scrapers never resume, and tickets are a third of the handshake
    identify(context, certificate.read(), key.read(), f"{certificate}, {key}")
    trust(context, authorities.read(), str(authorities))
    return context


def _context(protocol: int) -> ssl.SSLContext:
    context = ssl.SSLContext(protocol)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    set_cipher_suites(context, GO_CIPHER_SUITES)
    # Without the first flag, OpenSSL trusts self-signed certificates only. The second one refuses more than Go does,
    # and some versions of Python and OpenSSL set it.
    context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
    context.verify_flags &= ~ssl.VERIFY_X509_STRICT
    return context


def set_cipher_suites(context: ssl.SSLContext, names: str) -> None:
    """Set the suites of TLS 1.2, in OpenSSL's names."""
    context.set_ciphers(f"{_SECURITY_LEVEL}:{names}")


def trust(context: ssl.SSLContext, authorities: bytes, source: str) -> None:
    """Trust the certificates in some PEM. Skip those that cannot be read. Raises TlsUnusable if none is left."""
    count = 0
    for certificate in pem.certificates(authorities, with_headers=False):
        if not pem.is_whole(certificate):  # OpenSSL would ignore what follows
            continue
        try:
            context.load_verify_locations(cadata=certificate)
        except (ssl.SSLError, ValueError):
            continue
        count += 1
    if not count:
        raise TlsUnusable(f"{source}: contains no certificate that can be read")


def identify(context: ssl.SSLContext, certificates: bytes, key: bytes, source: str) -> None:
    """Use a certificate, with its chain, and its key. Raises TlsUnusable."""
    chain = pem.certificates(certificates, with_headers=True)
    private = pem.private_key(key)
    if not chain:
        raise TlsUnusable(f"{source}: contains no certificate")
    if private is None:
        raise TlsUnusable(f"{source}: contains no private key")
    if not private.type:
        raise TlsUnusable(f"{source}: the private key is encrypted, or is none")
    text = pem.encode(private.type, private.content) + b"".join(pem.encode(b"CERTIFICATE", one) for one in chain)
    # The ssl module accepts file names only. A file in memory leaves nothing on disk, which may be read-only.
    try:
        descriptor = os.memfd_create("certificate", os.MFD_CLOEXEC)
        with open(descriptor, "wb", buffering=0) as file:
            file.write(text)
            context.load_cert_chain(f"/proc/self/fd/{descriptor}", password=_no_password)
    except (OSError, ValueError) as error:  # ssl.SSLError is an OSError
        raise TlsUnusable(f"{source}: {reason(error)}") from error


def _no_password() -> str:
    """Otherwise OpenSSL would ask on the terminal for the password of an encrypted key."""
    raise ValueError("the key is encrypted")


def reason(error: Exception) -> str:
    """Return an error of OpenSSL or the system in words."""
    if isinstance(error, ssl.SSLError) and error.reason:
        return error.reason.lower().replace("_", " ")
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return str(error) or type(error).__name__
