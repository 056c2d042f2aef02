"""Access to an API server from a kubeconfig file: address, trust, credentials.

It supports tokens (also in files), client certificates, basic authentication and credential plugins (`exec`). The
service has its own reader, which the load test does not use, because it checks the service.
"""

import base64
import dataclasses
import json
import os
import ssl
import subprocess
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import yaml

PLUGIN_TIMEOUT_SECONDS: Final = 60.0


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


def load(path: Path) -> Access:
    """The access that the file's current context gives. Raises KubeconfigError."""
    try:
        config = yaml.safe_load(path.read_text())
        context_name = config["current-context"]
        context = _named(config, "contexts", context_name)["context"]
        cluster = _named(config, "clusters", context["cluster"])["cluster"]
        user = _named(config, "users", context["user"])["user"] if context.get("user") else {}
        server = str(cluster["server"]).rstrip("/")
    except (OSError, yaml.YAMLError, KeyError, TypeError) as error:
        raise KubeconfigError(f"{path}: {type(error).__name__} {error}") from error
    user = {**user, **_plugin(user["exec"], path)} if user.get("exec") else user
    tls = _tls(cluster, user, folder=path.parent) if server.startswith("https:") else None
    return Access(server=server, headers=_headers(user, folder=path.parent), tls=tls, context=str(context_name))


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


def _named(config: Mapping[str, Any], kind: str, name: str) -> dict[str, Any]:
    for entry in config.get(kind) or []:
        if entry.get("name") == name:
            return dict(entry)
    raise KeyError(f"no {kind} named {name!r}")


def _headers(user: Mapping[str, Any], *, folder: Path) -> dict[str, str]:
    token = user.get("token")
    if not token and user.get("tokenFile"):
        token = (folder / user["tokenFile"]).read_text().strip()
    if token:
        return {"Authorization": f"Bearer {token}"}
    if user.get("username"):
        pair = f"{user['username']}:{user.get('password', '')}".encode()
        return {"Authorization": f"Basic {base64.b64encode(pair).decode()}"}
    return {}


def _tls(cluster: Mapping[str, Any], user: Mapping[str, Any], *, folder: Path) -> ssl.SSLContext:
    authority = _content(cluster, "certificate-authority", folder)
    context = ssl.create_default_context(cadata=authority.decode() if authority else None)
    if cluster.get("insecure-skip-tls-verify"):
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    certificate = _content(user, "client-certificate", folder)
    key = _content(user, "client-key", folder)
    if certificate and key:
        # The ssl module reads certificate and key from files only.
        with tempfile.TemporaryDirectory() as temporary:
            chain = Path(temporary) / "client.pem"
            chain.touch(mode=0o600)
            chain.write_bytes(certificate + b"\n" + key)
            context.load_cert_chain(chain)
    return context


def _content(section: Mapping[str, Any], name: str, folder: Path) -> bytes:
    if section.get(f"{name}-data"):
        return base64.b64decode(section[f"{name}-data"])
    return (folder / section[name]).read_bytes() if section.get(name) else b""


def _plugin(plugin: Mapping[str, Any], path: Path) -> dict[str, Any]:
    """The credentials that a plugin gives, as members of a user."""
    command = [str(plugin["command"]), *(str(argument) for argument in plugin.get("args") or [])]
    asked = {"apiVersion": plugin["apiVersion"], "kind": "ExecCredential", "spec": {"interactive": False}}
    environment = {entry["name"]: entry["value"] for entry in plugin.get("env") or []}
    try:
        done = subprocess.run(
            command,
            env={**os.environ, **environment, "KUBERNETES_EXEC_INFO": json.dumps(asked)},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            timeout=PLUGIN_TIMEOUT_SECONDS,
            check=True,
        )
        status = json.loads(done.stdout)["status"]
    except (OSError, subprocess.SubprocessError, ValueError, KeyError) as error:
        raise KubeconfigError(f"{path}: credential plugin {command[0]}: {error}") from error
    given = {
        "token": status.get("token"),
        "client-certificate-data": _encoded(status.get("clientCertificateData")),
        "client-key-data": _encoded(status.get("clientKeyData")),
    }
    return {name: value for name, value in given.items() if value}


def _encoded(text: str | None) -> str | None:
    return base64.b64encode(text.encode()).decode() if text else None
