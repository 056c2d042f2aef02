"""Address and credentials of the API server, loaded by a short-lived process.

The libraries that read kubeconfig files cost 38 MB and 0.2 s of CPU once imported. A separate process
(cache.kube.credentials) frees both when it ends. It runs again when the credentials have expired.
"""

import asyncio
import contextlib
import os
import pathlib
import signal
import ssl
import sys

import msgspec

from cache.kube import processes

_HELPER = "cache.kube.credentials"
_HELPER_TIMEOUT_SECONDS = 60.0
"""An exec plugin may call an identity provider over the network."""
_MAX_OUTPUT_BYTES = 1024 * 1024
"""The CA bundle of an operating system has 250 kB."""
_READ_BYTES = 65_536
_MAX_ERROR_LENGTH = 600
_MAX_TOKEN_BYTES = 65_536


class AccessError(Exception):
    """The API server's address or credentials cannot be loaded. The message names the file or setting."""


class Access(msgspec.Struct, frozen=True, kw_only=True):
    """Everything that a session to the API server needs: file contents instead of file names, except for the token."""

    host: str
    """Scheme, host, port and an optional path, without a slash at the end."""
    source: str = ""
    """Where the access was loaded from, for logs."""
    authorization: str = ""
    """The value of the Authorization header, or empty."""
    token_file: str = ""
    """The file that rotated tokens appear in, or empty. The token is read from it again periodically."""
    client_certificate: str = ""
    """PEM, with the certificate chain."""
    client_key: str = ""
    certificate_authority: str = ""
    """PEM. Empty: use the system's authorities."""
    verify: bool = True
    server_name: str = ""
    """The name in the server's certificate, if it differs from the host."""
    proxy: str = ""
    expires_at: float | None = None
    """Wall-clock time (seconds since the epoch) at which the credentials expire."""


async def _read(stream: asyncio.StreamReader) -> bytes:
    """Read to the end. Drop what is above the limit, but read it, so that the process does not wait."""
    output = bytearray()
    while chunk := await stream.read(_READ_BYTES):
        output += chunk[: max(0, _MAX_OUTPUT_BYTES + 1 - len(output))]
    return bytes(output)


async def load_access(*, timeout_seconds: float = _HELPER_TIMEOUT_SECONDS) -> Access:
    """Load from the environment and files (see cache.kube.credentials). Raises AccessError."""
    environment = dict(os.environ)
    root = str(pathlib.Path(__file__).parents[2])
    environment["PYTHONPATH"] = os.pathsep.join(filter(None, (root, environment.get("PYTHONPATH", ""))))
    process = await processes.start(
        sys.executable,
        "-m",
        _HELPER,
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        env=environment,
        start_new_session=True,
    )
    assert process.stdout is not None
    assert process.stderr is not None
    is_complete = False
    try:
        async with asyncio.timeout(timeout_seconds):
            output, errors = await asyncio.gather(_read(process.stdout), _read(process.stderr))
            await process.wait()
        is_complete = True
    except TimeoutError:
        raise AccessError(f"loading the credentials took more than {timeout_seconds:g} s") from None
    finally:
        if not is_complete:
            # The whole session: an exec plugin must not outlive its helper.
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            await processes.wait_for_end(process)
    if process.returncode != 0:
        lines = errors.decode("utf-8", "replace").strip().splitlines() or [f"exit status {process.returncode}"]
        raise AccessError(lines[-1][:_MAX_ERROR_LENGTH])
    if len(output) > _MAX_OUTPUT_BYTES:
        raise AccessError(f"the credentials are larger than {_MAX_OUTPUT_BYTES} bytes")
    try:
        return msgspec.json.decode(output, type=Access)
    except msgspec.DecodeError as error:
        raise AccessError(f"the credentials cannot be read: {error}") from error


def read_token(path: str) -> str:
    """Read a token file. Raises AccessError."""
    try:
        with open(path, "rb") as file:
            data = file.read(_MAX_TOKEN_BYTES + 1)
    except OSError as error:
        raise AccessError(f"token file {path}: {error.strerror}") from error
    token = data.decode("ascii", "replace").strip()
    if not token or len(data) > _MAX_TOKEN_BYTES or not token.isprintable() or "\ufffd" in token:
        raise AccessError(f"token file {path}: contains no token")
    return token


def make_ssl_context(access: Access) -> ssl.SSLContext | bool:
    """Make the TLS context for the session. False means plain HTTP. Raises AccessError."""
    if not access.host.startswith("https"):
        return False
    try:
        if access.certificate_authority:
            # Trust only this authority, not the system's: it issues this cluster's certificates.
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
            context.load_verify_locations(cadata=access.certificate_authority)
        else:
            context = ssl.create_default_context()
    except (ssl.SSLError, ValueError) as error:
        raise AccessError(f"certificate authority of {access.source}: {error}") from error
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    if not access.verify:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    if access.client_certificate:
        _load_client_certificate(context, access)
    return context


def _load_client_certificate(context: ssl.SSLContext, access: Access) -> None:
    # The ssl module accepts file names only. A file in memory leaves nothing on disk.
    descriptor = os.memfd_create("client-certificate", os.MFD_CLOEXEC)
    try:
        os.write(descriptor, f"{access.client_certificate}\n{access.client_key}\n".encode())
        context.load_cert_chain(f"/proc/self/fd/{descriptor}")
    except (ssl.SSLError, ValueError) as error:
        raise AccessError(f"client certificate and key of {access.source}: {error}") from error
    finally:
        os.close(descriptor)
