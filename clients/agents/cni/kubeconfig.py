"""The part of a kubeconfig that Calico's installer writes for the plugin: one cluster, and a token or a certificate."""

import base64
import http.client
import json
import urllib.parse
from pathlib import Path
from typing import Any, Final, NamedTuple

from clients.agents.cni.records import JsonObject

MAX_FILE_BYTES: Final = 1 << 20


class BadKubeconfig(Exception):
    """The file cannot be used."""


class Access(NamedTuple):
    """Where the API server is, and how to log in."""

    server: str
    headers: dict[str, str]
    authority: str = ""
    """Certificates in PEM that the server's certificate is checked by; nothing means the system's."""
    certificate_file: str = ""
    key_file: str = ""
    server_name: str = ""
    is_checked: bool = True

    def connect(self, *, timeout_seconds: float) -> http.client.HTTPConnection:
        """A connection, which is established with the first request. Raises OSError for unusable certificates."""
        parts = urllib.parse.urlsplit(self.server)
        host = parts.hostname or ""
        if parts.scheme == "http":
            return http.client.HTTPConnection(host, parts.port or 80, timeout=timeout_seconds)
        import ssl  # 15 ms that a connection without TLS need not spend

        context = ssl.create_default_context(cadata=self.authority or None)
        if self.certificate_file:
            context.load_cert_chain(self.certificate_file, self.key_file or None)
        if not self.is_checked:
            context.check_hostname = False
            context.verify_mode = ssl.CERT_NONE
        return http.client.HTTPSConnection(host, parts.port or 443, timeout=timeout_seconds, context=context)


def load(path: str) -> Access:
    """Read a kubeconfig, in JSON or YAML. Raises BadKubeconfig."""
    try:
        with open(path, "rb") as file:
            text = file.read(MAX_FILE_BYTES + 1)
        if len(text) > MAX_FILE_BYTES:
            raise BadKubeconfig(f"{path} has more than {MAX_FILE_BYTES} bytes")
        return _access(_parse(text), Path(path).parent)
    except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
        raise BadKubeconfig(f"{path}: {error!r}"[:300]) from error


def _parse(text: bytes) -> JsonObject:
    try:
        found = json.loads(text)
    except ValueError:
        import yaml  # 20 ms that a kubeconfig in JSON need not spend

        try:
            found = yaml.load(text, Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))
        except yaml.YAMLError as error:
            raise ValueError(f"neither JSON nor YAML: {error}") from error
    if not isinstance(found, dict):
        raise ValueError("no object")
    return found


def _access(found: JsonObject, folder: Path) -> Access:
    context = _named(found["contexts"], found["current-context"], "context")
    cluster = _named(found["clusters"], context["cluster"], "cluster")
    user = _named(found["users"], context["user"], "user") if context.get("user") else {}
    if urllib.parse.urlsplit(cluster["server"]).scheme not in ("http", "https"):
        raise ValueError("cluster.server is neither http nor https")
    if user.keys() & {"exec", "auth-provider", "client-certificate-data", "client-key-data"}:
        raise ValueError("only a token, a token file or certificate files are supported")
    authority = ""
    if cluster.get("certificate-authority-data"):
        authority = base64.b64decode(cluster["certificate-authority-data"]).decode()
    elif cluster.get("certificate-authority"):
        authority = (folder / cluster["certificate-authority"]).read_text()
    token = user.get("token") or ""
    if user.get("tokenFile"):
        token = (folder / user["tokenFile"]).read_text().strip()
    if "\n" in token or "\r" in token:
        raise ValueError("the token has several lines")
    certificate, key = user.get("client-certificate"), user.get("client-key")
    return Access(
        server=cluster["server"].rstrip("/"),
        headers={"Authorization": f"Bearer {token}"} if token else {},
        authority=authority,
        certificate_file=str(folder / certificate) if certificate else "",
        key_file=str(folder / key) if key else "",
        is_checked=not cluster.get("insecure-skip-tls-verify"),
    )


def _named(entries: list[JsonObject], name: str, member: str) -> Any:
    for entry in entries:
        if entry["name"] == name:
            return entry[member]
    raise LookupError(f"no {member} is called {name!r}")
