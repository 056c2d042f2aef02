"""Access to an API server from a kubeconfig file: address, trust, credentials.

It supports what kubernetes_asyncio does: tokens (also in files), client certificates, basic authentication, credential
plugins (`exec`). The service has its own reader, which the load test does not use, because it checks the service.
"""

import base64
import dataclasses
import json
import ssl
from pathlib import Path

import yaml
from kubernetes_asyncio import client, config


class KubeconfigError(Exception):
    """The file is not usable; the message says why."""


@dataclasses.dataclass(frozen=True)
class Access:
    """Address and credentials of an API server."""

    server: str
    """URL without a trailing slash."""
    headers: dict[str, str]
    tls: ssl.SSLContext | None
    context: str
    """Name of the context."""


async def load(path: Path) -> Access:
    """The access that the file's current context gives. Raises KubeconfigError."""
    found = client.Configuration()
    try:
        loader = await config.load_kube_config(str(path), client_configuration=found, persist_config=False)
    except (OSError, yaml.YAMLError, AssertionError, AttributeError, TypeError, config.ConfigException) as error:
        raise KubeconfigError(f"{path}: {type(error).__name__} {error}") from error
    server = (found.host or "").rstrip("/")
    authorization = (found.api_key or {}).get("BearerToken", "").strip()
    return Access(
        server=server,
        headers={"Authorization": authorization} if authorization else {},
        tls=_tls(found) if server.startswith("https:") else None,
        context=(loader.current_context or {})["name"],
    )


def write(path: Path, server: str, *, token: str = "", authority: bytes = b"") -> None:
    """Write a file for an API server, if need be with a token and the certificate of its authority (PEM)."""
    cluster = {"server": server}
    if authority:
        cluster["certificate-authority-data"] = base64.b64encode(authority).decode()
    config = {
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [{"name": "loadtest", "cluster": cluster}],
        "users": [{"name": "loadtest", "user": {"token": token} if token else {}}],
        "contexts": [{"name": "loadtest", "context": {"cluster": "loadtest", "user": "loadtest"}}],
        "current-context": "loadtest",
    }
    path.write_text(json.dumps(config, indent=1))  # JSON is YAML


def _tls(found: client.Configuration) -> ssl.SSLContext:
    context = ssl.create_default_context(cafile=found.ssl_ca_cert)
    context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN  # as in Go, an intermediate authority is enough
    if not found.verify_ssl:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    if found.cert_file and found.key_file:
        context.load_cert_chain(found.cert_file, found.key_file)
    return context
