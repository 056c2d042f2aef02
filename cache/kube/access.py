"""Address and credentials of the API server, and the TLS context that they make."""

import ssl

import msgspec

from cache.kube import files, tls_contexts

_MAX_TOKEN_BYTES = 65_536


class AccessError(Exception):
    """The API server's address or credentials cannot be loaded. The message names the file or setting."""


class Access(msgspec.Struct, frozen=True, kw_only=True):
    """Everything that a session to the API server needs: file contents instead of file names, except for the token."""

    host: str
    """Scheme, host, port and an optional path, without a slash at the end."""
    source: str = ""
    """Where the access was loaded from, for logs."""
    warnings: tuple[str, ...] = ()
    """What the log must say about it."""
    authorization: str = ""
    """The value of the Authorization header, or empty."""
    token_file: str = ""
    """The file that rotated tokens appear in, or empty. The token is read from it again periodically. While it cannot
    be read, `authorization` is used."""
    headers: tuple[tuple[str, str], ...] = ()
    """Other headers of every request: those of impersonation."""
    client_certificate: bytes = b""
    """PEM, with the certificate chain."""
    client_key: bytes = b""
    certificate_authority: bytes = b""
    """PEM. Empty: use the system's authorities."""
    authority_source: str = "certificate authority"
    """What the certificate authority comes from, for messages."""
    certificate_source: str = "client certificate and key"
    verify: bool = True
    server_name: str = ""
    """The name in the server's certificate, if it differs from the host."""
    proxy: str = ""
    expires_at: float | None = None
    """Wall-clock time (seconds since the epoch) at which the credentials expire."""
    from_files: dict[str, files.Identity] = {}
    """The files that this comes from, as they were before they were read; not the token's."""

    def has_changed(self) -> bool:
        """Whether one of the files has changed."""
        return any(files.identity(path) != before for path, before in self.from_files.items())


def read_token(path: str) -> str:
    """Read a token file. Raises AccessError."""
    try:
        data = files.read(path, limit_bytes=_MAX_TOKEN_BYTES)
    except files.FileUnusable as error:
        raise AccessError(f"token file {error}") from error
    token = data.decode("ascii", "replace").strip()
    if not token or not token.isprintable() or "\ufffd" in token:
        raise AccessError(f"token file {files.shown(path)}: contains no token")
    return token


def make_ssl_context(access: Access) -> ssl.SSLContext | bool:
    """Make the TLS context for the session. False means plain HTTP. Raises AccessError."""
    if not access.host.startswith("https"):
        return False
    try:
        context = tls_contexts.client_context(
            authorities=access.certificate_authority,
            source=f"{access.authority_source} of {access.source}",
            verify=access.verify,
        )
        if access.client_certificate:
            what = f"{access.certificate_source} of {access.source}"
            tls_contexts.identify(context, access.client_certificate, access.client_key, what)
    except tls_contexts.TlsUnusable as error:
        raise AccessError(str(error)) from error
    try:
        if access.server_name:  # a name that OpenSSL refuses would leave a socket open with every try
            context.wrap_bio(ssl.MemoryBIO(), ssl.MemoryBIO(), server_hostname=access.server_name)
    except (ValueError, TypeError) as error:
        raise AccessError(
            f"tls-server-name of {access.source}: not a name: {files.shown(access.server_name)!r}"
        ) from error
    return context
