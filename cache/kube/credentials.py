"""Loads address and credentials of the API server and prints them as JSON: `python -m cache.kube.credentials`.

Runs as a separate process, and is the only module that imports kubernetes_asyncio (see cache.kube.access).

The sources are the original's. The base is the first of these that exists: the kubeconfig file in KUBECONFIG, then
~/.kube/config, then K8S_API_ENDPOINT, then the pod's service account. K8S_CURRENT_CONTEXT chooses the context. The
other K8S_ variables override parts of the base: K8S_API_ENDPOINT, K8S_KEY_FILE, K8S_CERT_FILE, K8S_CA_FILE,
K8S_API_TOKEN, K8S_INSECURE_SKIP_TLS_VERIFY. Each variable may have the prefix CALICO_, which takes precedence. On
failure, one line on stderr names the file or variable, and the exit status is 1.
"""

import asyncio
import os
import pathlib
import sys
from collections.abc import Mapping
from typing import Any

import msgspec
import yaml
from kubernetes_asyncio.client import Configuration
from kubernetes_asyncio.config import ConfigException, incluster_config, kube_config

from cache.kube import access

_TRUE = frozenset({"1", "t", "true"})
_FALSE = frozenset({"0", "f", "false", ""})


class Settings:
    """The environment variables, with and without the prefix."""

    def __init__(self, environment: Mapping[str, str]) -> None:
        self._environment = environment

    def get(self, name: str) -> str:
        """Return the variable's value. Empty if it is not set."""
        return self._environment.get(f"CALICO_{name}") or self._environment.get(name, "")

    def flag(self, name: str) -> bool:
        """Return the variable as a boolean. Raises AccessError."""
        text = self.get(name).strip().lower()
        if text not in _TRUE | _FALSE:
            raise access.AccessError(f"{name}: not true or false: {text[:40]!r}")
        return text in _TRUE

    def content(self, name: str) -> str:
        """Return the content of the file that the variable names. Empty if it is not set. Raises AccessError."""
        path = self.get(name)
        return _content(path, f"{name} ({path})") if path else ""


async def load(environment: Mapping[str, str], home: pathlib.Path) -> access.Access:
    """Load from the first source that exists, and apply the K8S_ variables. Raises AccessError."""
    settings = Settings(environment)
    kubeconfig = settings.get("KUBECONFIG")
    default = home / ".kube" / "config"
    if kubeconfig:
        base = await _from_kubeconfig(kubeconfig, settings.get("K8S_CURRENT_CONTEXT"))
    elif default.is_file():
        base = await _from_kubeconfig(str(default), settings.get("K8S_CURRENT_CONTEXT"))
    elif settings.get("K8S_API_ENDPOINT"):
        base = access.Access(host="", source="environment")
    elif environment.get(incluster_config.SERVICE_HOST_ENV_NAME):
        base = _from_service_account(environment)
    else:
        raise access.AccessError(
            "no API server configured: set KUBECONFIG or K8S_API_ENDPOINT, provide ~/.kube/config, or run in a pod"
        )
    return _with_overrides(base, settings)


async def _from_kubeconfig(paths: str, context: str) -> access.Access:
    _require_any_file(paths)
    configuration = Configuration()
    try:
        merged = kube_config.KubeConfigMerger(paths).config
        loader = kube_config.KubeConfigLoader(config_dict=merged, active_context=context or None, config_base_path=None)
        if loader._user is None:  # the library fails if a context has no user
            loader._user = kube_config.ConfigNode("user", {})
        await loader.load_and_set(configuration)
    except (ConfigException, OSError, yaml.YAMLError, AssertionError, AttributeError, TypeError, ValueError) as error:
        what = " ".join(str(error).split()) or type(error).__name__
        raise access.AccessError(f"kubeconfig {paths}: {what}") from error
    expiry = getattr(loader, "exec_plugin_expiry", None)
    return _from_configuration(
        configuration,
        source=f"kubeconfig {paths}",
        token_file=_token_file(loader),
        expires_at=expiry.timestamp() if expiry is not None else None,
    )


def _require_any_file(paths: str) -> None:
    if not any(pathlib.Path(path).expanduser().is_file() for path in paths.split(os.pathsep) if path):
        raise access.AccessError(f"KUBECONFIG: no such file: {paths}")


def _token_file(loader: Any) -> str:
    """Return the file of the user's token, so that it can be read again. Empty if the token has another source."""
    user = loader._user
    if "tokenFile" not in user or "token" in user or "exec" in user:
        return ""
    base = os.path.dirname(os.path.abspath(user.path)) if user.path else ""
    return os.path.normpath(os.path.join(base, user["tokenFile"]))


def _from_service_account(environment: Mapping[str, str]) -> access.Access:
    token_file, ca_file = incluster_config.SERVICE_TOKEN_FILENAME, incluster_config.SERVICE_CERT_FILENAME
    configuration = Configuration()
    try:
        incluster_config.InClusterConfigLoader(
            token_file, ca_file, try_refresh_token=False, environ=dict(environment)
        ).load_and_set(configuration)
    except (ConfigException, OSError) as error:
        raise access.AccessError(f"service account ({token_file}, {ca_file}): {error}") from error
    return _from_configuration(configuration, source="service account", token_file=token_file, expires_at=None)


def _from_configuration(
    configuration: Configuration, *, source: str, token_file: str, expires_at: float | None
) -> access.Access:
    def content(attribute: str) -> str:
        path = getattr(configuration, attribute)
        return _content(path, f"{source}: {attribute} {path}") if path else ""

    return access.Access(
        host=configuration.host or "",
        source=source,
        authorization=(configuration.api_key or {}).get("BearerToken", "").strip(),
        token_file=token_file,
        client_certificate=content("cert_file"),
        client_key=content("key_file"),
        certificate_authority=content("ssl_ca_cert"),
        verify=bool(configuration.verify_ssl),
        server_name=configuration.tls_server_name or "",
        proxy=configuration.proxy or "",
        expires_at=expires_at,
    )


def _with_overrides(base: access.Access, settings: Settings) -> access.Access:
    overrides: dict[str, str | bool] = {}
    if endpoint := settings.get("K8S_API_ENDPOINT"):
        overrides["host"] = endpoint.rstrip("/")
    if token := settings.get("K8S_API_TOKEN"):
        overrides |= {"authorization": f"Bearer {token}", "token_file": ""}
    if certificate := settings.content("K8S_CERT_FILE"):
        overrides["client_certificate"] = certificate
    if key := settings.content("K8S_KEY_FILE"):
        overrides["client_key"] = key
    if authority := settings.content("K8S_CA_FILE"):
        overrides["certificate_authority"] = authority
    if settings.flag("K8S_INSECURE_SKIP_TLS_VERIFY"):
        overrides["verify"] = False
    result: access.Access = msgspec.structs.replace(base, **overrides)
    if not result.host.startswith(("http://", "https://")):
        raise access.AccessError(f"API server of {base.source}: not an http:// or https:// address: {result.host!r}")
    if bool(result.client_certificate) != bool(result.client_key):
        missing = "K8S_KEY_FILE" if result.client_certificate else "K8S_CERT_FILE"
        raise access.AccessError(f"client certificate and key must both be given: {missing} is missing")
    return result


def _content(path: str, culprit: str) -> str:
    try:
        return pathlib.Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not text"
        raise access.AccessError(f"{culprit}: {reason}") from error


def main() -> int:
    """Print the JSON. Return the exit status."""
    try:
        loaded = asyncio.run(load(os.environ, pathlib.Path.home()))
    except access.AccessError as error:
        sys.stderr.write(f"{error}\n")
        return 1
    sys.stdout.buffer.write(msgspec.json.encode(loaded))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
