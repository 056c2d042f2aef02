"""Mutual TLS for clients, with the original's rules for peers (docs/reference/typha-behaviour.md, section 7).

The files are read when a worker starts, and again when one of them changes, for the handshakes from then on. A change
that cannot be used is logged and counted, and the old files stay in use.
"""

import ssl
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import msgspec
import structlog

from cache.kube import pem, tls_contexts, tls_reload
from typha import settings
from typha.worker import rustls_session, tls_session

_log = structlog.get_logger("typha.tls")

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
_WITHOUT_RUSTLS = frozenset(
    {
        "TLS_ECDHE_ECDSA_WITH_AES_256_CBC_SHA",
        "TLS_ECDHE_RSA_WITH_AES_256_CBC_SHA",
        "TLS_ECDHE_RSA_WITH_AES_128_CBC_SHA",
        *_ONLY_IF_NAMED,
    }
)
"""Suites that rustls does not have."""
AUTO, OPENSSL, RUSTLS = ENGINES = ("auto", "ssl", "rustls")
"""What does the work of TLS: rustls if it can, Python's ssl module, or rustls and nothing else."""


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
    engine: str = OPENSSL
    """One of `ENGINES`."""

    def make_context(self) -> ssl.SSLContext:
        """A server context that demands a client certificate signed by the CA file.

        Raises:
            TlsUnusable: a file or variable cannot be used.
        """
        certificate, key, authorities = self._files()
        context = tls_contexts.server_context(
            certificate=certificate,
            key=key,
            authorities=authorities,
            client_certificates=ssl.CERT_REQUIRED,
        )
        context.minimum_version = _MINIMUM_VERSIONS.get(self.minimum_version, ssl.TLSVersion.TLSv1_2)
        tls_contexts.set_cipher_suites(context, cipher_list(self.cipher_suites))
        return context

    def _files(self) -> tuple[tls_contexts.NamedFile, tls_contexts.NamedFile, tls_contexts.NamedFile]:
        """Certificate, key, and the clients' authorities."""
        return (
            tls_contexts.NamedFile("ServerCertFile", self.cert_file),
            tls_contexts.NamedFile("ServerKeyFile", self.key_file),
            tls_contexts.NamedFile("CAFile", self.ca_file),
        )

    def _old_suites(self) -> list[str]:
        """Go's names of the suites of TLS 1.2; none if only TLS 1.3 is spoken."""
        if _MINIMUM_VERSIONS.get(self.minimum_version) is ssl.TLSVersion.TLSv1_3:
            return []
        return chosen_suites(self.cipher_suites)

    def missing_suites(self) -> list[str]:
        """Those that rustls does not have."""
        return [name for name in self._old_suites() if name in _WITHOUT_RUSTLS]

    def make_rustls(self) -> rustls_session.Sessions:
        """The same by rustls. Only for files that `make_context` can use.

        Raises:
            rustls_session.Unavailable: rustls is not there, or cannot do the same.
            TlsUnusable: a file cannot be read any more.
        """
        missing = self.missing_suites()
        if missing and self.cipher_suites.strip(" ,"):
            raise rustls_session.Unavailable(f"{CIPHER_SUITES_VARIABLE}: rustls does not have {', '.join(missing)}")
        old_suites = [name for name in self._old_suites() if name not in missing]
        certificate, key, authorities = (file.read() for file in self._files())
        private = pem.private_key(key)
        trusted = pem.certificates(authorities, with_headers=False)
        return rustls_session.Sessions(
            chain=pem.certificates(certificate, with_headers=True),
            key=private.content if private is not None else b"",
            trusted=[one for one in trusted if pem.is_whole(one)],
            old_suites=old_suites,
        )

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
    return ":".join(known[name] for name in chosen_suites(names))


def chosen_suites(names: str) -> list[str]:
    """Go's names of the suites of TLS 1.2 from a comma list; empty for the default.

    Raises:
        TlsUnusable: a name is unknown.
    """
    chosen = [name.strip() for name in names.split(",") if name.strip()]
    for name in chosen:
        if name not in DEFAULT_CIPHER_SUITES and name not in _ONLY_IF_NAMED:
            raise tls_contexts.TlsUnusable(f"{CIPHER_SUITES_VARIABLE}: unknown cipher suite {name[:_SHOWN_LIMIT]!r}")
    return chosen or list(DEFAULT_CIPHER_SUITES)


def peer_name(certificate: Mapping[str, object]) -> str:
    """The certificate's common name, or else its first URI; empty for neither."""
    return next(iter([*_common_names(certificate), *_uri_names(certificate)]), "")


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
        engine=configured.tls_engine,
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
        engine = make_engine(client_tls)
    except tls_contexts.TlsUnusable as error:
        culprit, _, problem = str(error).partition(": ")
        raise settings.ConfigurationError(culprit, problem) from error
    notices = [settings.Notice("info", "TLS for clients", engine.described())]
    if client_tls.minimum_version not in _MINIMUM_VERSIONS:
        shown = client_tls.minimum_version[:_SHOWN_LIMIT]
        fields = {"variable": MINIMUM_VERSION_VARIABLE, "value": shown, "used": "1.2"}
        notices.append(settings.Notice("warning", "Unknown TLS version, using the default", fields))
    return tuple(notices)


class Engine(NamedTuple):
    """What makes the sessions of new connections."""

    context: ssl.SSLContext
    rustls: rustls_session.Sessions | None
    """In place of the context."""
    reason: str = ""
    """Why it is not rustls, though that was wanted."""
    missing_suites: Sequence[str] = ()
    """Suites that rustls does not offer, though OpenSSL would."""

    def described(self) -> dict[str, str]:
        """For the log."""
        if self.rustls is not None:
            described = {"engine": RUSTLS, "differences": "docs/operations.md, TLS for clients"}
            more = {"suites_not_offered": ",".join(self.missing_suites)} if self.missing_suites else {}
        else:
            described = {"engine": OPENSSL, "library": ssl.OPENSSL_VERSION}
            more = {"not_rustls": self.reason} if self.reason else {}
        return described | more


def make_engine(client_tls: ClientTls) -> Engine:
    """Reads the files. OpenSSL reads them in any case, so that the same files are unusable for both.

    Raises:
        TlsUnusable: a file or variable cannot be used, or rustls cannot be, and nothing else may.
    """
    context = client_tls.make_context()
    if client_tls.engine == OPENSSL:
        return Engine(context, None)
    try:
        return Engine(context, client_tls.make_rustls(), missing_suites=client_tls.missing_suites())
    except rustls_session.Unavailable as error:
        if client_tls.engine == RUSTLS:
            raise tls_contexts.TlsUnusable(f"TlsEngine {RUSTLS}: {error}") from error
        return Engine(context, None, str(error))


class Contexts:
    """What makes the next session. Raises TlsUnusable if the files cannot be used at the start."""

    def __init__(self, client_tls: ClientTls, *, look_seconds: float = _LOOK_SECONDS) -> None:
        self.client_tls = client_tls
        self._look_seconds = look_seconds
        self._looked_at = 0.0
        paths = (client_tls.key_file, client_tls.cert_file, client_tls.ca_file)
        self._reloaded = tls_reload.Reloaded(lambda: make_engine(client_tls), paths, server="clients")
        self._sessions = tls_session.Sessions()

    @property
    def current(self) -> Engine:
        """What makes the next session."""
        return self._reloaded.current

    @property
    def failures(self) -> int:
        """Changes of the files that could not be used."""
        return self._reloaded.failures

    def make_session(self) -> tls_session.NewSession:
        """The server's end of a new connection. To be called in one thread."""
        engine = self.current
        return self._sessions.make(engine.context) if engine.rustls is None else engine.rustls.make()

    def refresh(self, now: float) -> None:
        """Reads the files again if they have changed since the last check, some seconds ago."""
        if now - self._looked_at < self._look_seconds:
            return
        self._looked_at = now
        before = self.current.described()
        self._reloaded.refresh()
        if (described := self.current.described()) != before:
            _log.info("TLS for clients", **described)
