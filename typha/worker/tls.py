"""Mutual TLS for clients, with the original's rules for peers (docs/reference/typha-behaviour.md, section 7).

The files are read when a worker starts, and again when one of them changes, for the handshakes from then on. A change
that cannot be used is logged and counted, and the old files stay in use.
"""

import ssl
from collections.abc import Mapping

import msgspec

from cache.kube import tls_contexts, tls_reload
from typha import settings
from typha.worker import tls_session

MINIMUM_VERSION_VARIABLE = "TLS_MIN_VERSION"
CIPHER_SUITES_VARIABLE = "TLS_CIPHER_SUITES"
_MINIMUM_VERSIONS = {"": ssl.TLSVersion.TLSv1_2, "1.2": ssl.TLSVersion.TLSv1_2, "1.3": ssl.TLSVersion.TLSv1_3}
_LOOK_SECONDS = 2.0
"""Between two checks of the files."""
_SHOWN_LIMIT = 100

TlsUnusable = tls_contexts.TlsUnusable
"""A file or variable cannot be used. The message names it."""

DEFAULT_CIPHER_SUITES = {
    "TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384": "ECDHE-ECDSA-AES256-GCM-SHA384",
    "TLS_ECDHE_RSA_WITH_AES_256_GCM_SHA384": "ECDHE-RSA-AES256-GCM-SHA384",
    "TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305_SHA256": "ECDHE-ECDSA-CHACHA20-POLY1305",
    "TLS_ECDHE_RSA_WITH_CHACHA20_POLY1305_SHA256": "ECDHE-RSA-CHACHA20-POLY1305",
    "TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256": "ECDHE-ECDSA-AES128-GCM-SHA256",
    "TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256": "ECDHE-RSA-AES128-GCM-SHA256",
    "TLS_ECDHE_ECDSA_WITH_AES_256_CBC_SHA": "ECDHE-ECDSA-AES256-SHA",
    "TLS_ECDHE_RSA_WITH_AES_256_CBC_SHA": "ECDHE-RSA-AES256-SHA",
    "TLS_ECDHE_RSA_WITH_AES_128_CBC_SHA": "ECDHE-RSA-AES128-SHA",
}
"""OpenSSL's names of the TLS 1.2 suites by Go's, which the variable uses. All suites of TLS 1.3 are on, as in Go."""
_ONLY_IF_NAMED = {
    "TLS_RSA_WITH_AES_256_GCM_SHA384": "AES256-GCM-SHA384",
    "TLS_RSA_WITH_AES_128_GCM_SHA256": "AES128-GCM-SHA256",
}


class PeerRefused(Exception):
    """The peer's certificate is valid, but not one that may connect."""


class ClientTls(msgspec.Struct, frozen=True, kw_only=True):
    """Paths of PEM files, the names of which a client's certificate must have one, and the environment's variables."""

    key_file: str
    cert_file: str
    ca_file: str
    client_cn: str
    client_uri_san: str
    minimum_version: str = ""
    cipher_suites: str = ""

    def make_context(self) -> ssl.SSLContext:
        """A server context that demands a client certificate signed by the CA file.

        Raises:
            TlsUnusable: a file or variable cannot be used.
        """
        context = tls_contexts.server_context(
            certificate=tls_contexts.NamedFile("ServerCertFile", self.cert_file),
            key=tls_contexts.NamedFile("ServerKeyFile", self.key_file),
            authorities=tls_contexts.NamedFile("CAFile", self.ca_file),
            client_certificates=ssl.CERT_REQUIRED,
        )
        context.minimum_version = _MINIMUM_VERSIONS.get(self.minimum_version, ssl.TLSVersion.TLSv1_2)
        tls_contexts.set_cipher_suites(context, cipher_list(self.cipher_suites))
        return context

    def check_peer(self, certificate: Mapping[str, object]) -> None:
        """Whether a verified certificate may connect: its CN or one of its URI SANs is exactly the configured one.

        Args:
            certificate: what `ssl.SSLObject.getpeercert` gives.

        Raises:
            PeerRefused: it may not.
        """
        if self.client_cn and self.client_cn in _common_names(certificate):
            return
        if self.client_uri_san and self.client_uri_san in _uri_names(certificate):
            return
        required = [name for name, value in (("CN", self.client_cn), ("URI SAN", self.client_uri_san)) if value]
        names = ", ".join([*_common_names(certificate), *_uri_names(certificate)])[:_SHOWN_LIMIT]
        raise PeerRefused(f"peer certificate does not have the required {' or '.join(required)}, but {names!r}")


def cipher_list(names: str) -> str:
    """OpenSSL's cipher list for TLS 1.2 from a comma list of Go's names; empty for the default.

    Raises:
        TlsUnusable: a name is unknown.
    """
    known = DEFAULT_CIPHER_SUITES | _ONLY_IF_NAMED
    chosen = [name.strip() for name in names.split(",") if name.strip()]
    for name in chosen:
        if name not in known:
            raise tls_contexts.TlsUnusable(f"{CIPHER_SUITES_VARIABLE}: unknown cipher suite {name[:_SHOWN_LIMIT]!r}")
    return ":".join(known[name] for name in chosen or DEFAULT_CIPHER_SUITES)


def _common_names(certificate: Mapping[str, object]) -> list[str]:
    subject = certificate.get("subject", ())
    names = [pair for part in subject for pair in part] if isinstance(subject, tuple) else []
    return [value for name, value in names if name == "commonName"][-1:]  # Go takes the last one


def _uri_names(certificate: Mapping[str, object]) -> list[str]:
    alternatives = certificate.get("subjectAltName", ())
    return [value for kind, value in alternatives if kind == "URI"] if isinstance(alternatives, tuple) else []


def from_settings(configured: settings.Settings, environment: Mapping[str, str]) -> ClientTls | None:
    """The TLS that settings and environment ask for; None for plain text."""
    if not configured.server_key_file:
        return None
    return ClientTls(
        key_file=configured.server_key_file,
        cert_file=configured.server_cert_file,
        ca_file=configured.ca_file,
        client_cn=configured.client_cn,
        client_uri_san=configured.client_urisan,
        minimum_version=environment.get(MINIMUM_VERSION_VARIABLE, ""),
        cipher_suites=environment.get(CIPHER_SUITES_VARIABLE, ""),
    )


def check(configured: settings.Settings, environment: Mapping[str, str]) -> tuple[settings.Notice, ...]:
    """Checks that clients can be served as the settings ask; returns what is to be logged about it.

    Raises:
        ConfigurationError: a file or variable cannot be used.
    """
    client_tls = from_settings(configured, environment)
    if client_tls is None:
        return ()
    try:
        client_tls.make_context()
    except tls_contexts.TlsUnusable as error:
        culprit, _, problem = str(error).partition(": ")
        raise settings.ConfigurationError(culprit, problem) from error
    if client_tls.minimum_version in _MINIMUM_VERSIONS:
        return ()
    fields = {"variable": MINIMUM_VERSION_VARIABLE, "value": client_tls.minimum_version[:_SHOWN_LIMIT], "used": "1.2"}
    return (settings.Notice("warning", "Unknown TLS version, using the default", fields),)


class Contexts:
    """The context for the next handshake. Raises TlsUnusable if the files cannot be used at the start."""

    def __init__(self, client_tls: ClientTls, *, look_seconds: float = _LOOK_SECONDS) -> None:
        self.client_tls = client_tls
        self._look_seconds = look_seconds
        self._looked_at = 0.0
        paths = (client_tls.key_file, client_tls.cert_file, client_tls.ca_file)
        self._reloaded = tls_reload.Reloaded(client_tls.make_context, paths, server="clients")
        self._sessions = tls_session.Sessions()

    @property
    def current(self) -> ssl.SSLContext:
        """The context."""
        return self._reloaded.current

    @property
    def failures(self) -> int:
        """Changes of the files that could not be used."""
        return self._reloaded.failures

    def make_session(self) -> tls_session.Session:
        """The server's end of a new connection. To be called in one thread."""
        return self._sessions.make(self.current)

    def refresh(self, now: float) -> None:
        """Reads the files again if they have changed since the last check, some seconds ago."""
        if now - self._looked_at >= self._look_seconds:
            self._looked_at = now
            self._reloaded.refresh()
