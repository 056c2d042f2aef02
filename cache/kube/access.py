"""How the API server is reached: address, credentials, trust; loaded by a short-lived process.

The libraries that read kubeconfig files cost 38 MB and 0.2 s of CPU once imported; a process of its own
(cache.kube.credentials) gives both back, and runs again when credentials have expired.
"""

import asyncio
import os
import pathlib
import ssl
import sys

import msgspec

from cache.kube import processes

_HELPER = "cache.kube.credentials"
_HELPER_TIMEOUT_SECONDS = 60.0
"""An exec plugin may ask an identity provider over the network."""
_MAX_OUTPUT_BYTES = 1024 * 1024
"""A CA bundle of a whole operating system is 250 kB."""
_MAX_ERROR_LENGTH = 600
_MAX_TOKEN_BYTES = 65_536


class AccessError(Exception):
    """The API server's address or credentials cannot be had; the message names the file or setting."""


class Access(msgspec.Struct, frozen=True, kw_only=True):
    """Everything a session to the API server needs; all contents, no file names but the token's."""

    host: str
    """Scheme, host, port and perhaps a path, without a slash at the end."""
    source: str = ""
    """Where it comes from, for logs."""
    authorization: str = ""
    """The value of the Authorization header, or empty."""
    token_file: str = ""
    """Where the token is read from again, or empty: rotated tokens appear there."""
    client_certificate: str = ""
    """PEM, with its chain."""
    client_key: str = ""
    certificate_authority: str = ""
    """PEM; empty = the system's."""
    verify: bool = True
    server_name: str = ""
    """The name in the server's certificate where it is not the host."""
    proxy: str = ""
    expires_at: float | None = None
    """Wall-clock time (seconds since the epoch) at which the credentials expire."""


async def load_access() -> Access:
    """Loads from environment and files (see cache.kube.credentials); raises AccessError."""
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
    )
    try:
        async with asyncio.timeout(_HELPER_TIMEOUT_SECONDS):
            output, errors = await process.communicate()
    except TimeoutError:
        raise AccessError(f"loading the credentials took more than {_HELPER_TIMEOUT_SECONDS:.0f} s") from None
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
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
    """Reads a token file; raises AccessError."""
    try:
        with open(path, "rb") as file:
            data = file.read(_MAX_TOKEN_BYTES + 1)
    except OSError as error:
        raise AccessError(f"token file {path}: {error.strerror}") from error
    token = data.decode("ascii", "replace").strip()
    if not token or len(data) > _MAX_TOKEN_BYTES or not token.isprintable() or "\ufffd" in token:
        raise AccessError(f"token file {path}: holds no token")
    return token


def make_ssl_context(access: Access) -> ssl.SSLContext | bool:
    """What to verify the server with, and show it; False for plain HTTP. Raises AccessError."""
    if not access.host.startswith("https"):
        return False
    context = ssl.create_default_context()
    try:
        if access.certificate_authority:
            # The system's authorities stay out: this cluster's certificates come from its own.
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
            context.load_verify_locations(cadata=access.certificate_authority)
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
    # The ssl module takes file names only; an anonymous file in memory leaves nothing behind on disk.
    descriptor = os.memfd_create("client-certificate", os.MFD_CLOEXEC)
    try:
        os.write(descriptor, f"{access.client_certificate}\n{access.client_key}\n".encode())
        context.load_cert_chain(f"/proc/self/fd/{descriptor}")
    except (ssl.SSLError, ValueError) as error:
        raise AccessError(f"client certificate and key of {access.source}: {error}") from error
    finally:
        os.close(descriptor)
