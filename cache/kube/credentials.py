"""Loads address and credentials of the API server and prints them as JSON: `python -m cache.kube.credentials`.

Runs as a separate process (see cache.kube.loader). The rules are client-go's (docs/decisions/kubernetes-access.md).

The sources are the original's. The base is the first of these that exists: the kubeconfig files in KUBECONFIG, then
~/.kube/config, then K8S_API_ENDPOINT, then the pod's service account. K8S_CURRENT_CONTEXT chooses the context. The
other K8S_ variables override parts of the base: K8S_API_ENDPOINT, K8S_KEY_FILE, K8S_CERT_FILE, K8S_CA_FILE,
K8S_API_TOKEN, K8S_INSECURE_SKIP_TLS_VERIFY. Each variable may have the prefix CALICO_, which takes precedence. On
failure, one line on stderr names the file or variable, and the exit status is 1.
"""

import base64
import os
import posixpath
import re
import sys
import urllib.parse
from collections.abc import Iterator, Mapping
from typing import NamedTuple

import msgspec

from cache.kube import access, exec_plugin, files, kubeconfig, pem, proxies

SERVICE_ACCOUNT = "/var/run/secrets/kubernetes.io/serviceaccount"
_TRUE = frozenset({"1", "t", "true"})
_FALSE = frozenset({"0", "f", "false", ""})
_HEADER_TOKEN = re.compile(r"[!#$&'*+.^_`|~0-9A-Za-z-]")
"""The characters of a header's name; % is one as well, but escapes the others here."""
_NOT_IN_HEADERS = re.compile(r"[\x00-\x08\x0a-\x1f\x7f]")
_NOT_IN_URLS = re.compile(r"[\x00-\x1f\x7f]|^ ")


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


class _Server(NamedTuple):
    """An address as client-go reads it."""

    url: str
    """Scheme, host and path, without a slash at the end."""
    user_info: str
    """The value of an Authorization header, or empty."""


class _Loader:
    """Collects what an access needs, and the identities of the files that it comes from."""

    def __init__(self, environment: Mapping[str, str], source: str) -> None:
        self.environment = environment
        self.source = source
        self.files: dict[str, files.Identity] = {}
        self.warnings: list[str] = []

    def read(self, path: str, what: str) -> bytes:
        """Read a file. Raises AccessError."""
        self.files[path] = files.identity(path)  # before reading: a change in between must show
        try:
            return files.read(path)
        except files.FileUnusable as error:
            raise access.AccessError(f"{what} of {self.source}: {error}") from error

    def from_entries(self, cluster: kubeconfig.Cluster, user: kubeconfig.User) -> access.Access:
        """Make the access to a cluster. Raises AccessError."""
        server = _server(cluster.server, self.source)
        is_secure = server.url.startswith("https:")
        authority = self._authority(cluster)
        certificate, key = self._certificate(user)
        self._check(user)
        result = access.Access(
            host=server.url,
            source=self.source,
            headers=tuple(_impersonation(user)),
            certificate_authority=authority if is_secure else b"",
            authority_source=_named("certificate-authority", cluster.certificate_authority),
            certificate_source=(
                f"{_named('client-certificate', user.client_certificate)} and {_named('client-key', user.client_key)}"
            ),
            verify=not cluster.insecure_skip_tls_verify,
            server_name=cluster.tls_server_name.removesuffix("."),
            proxy=self._proxy(cluster, server),
        )
        if cluster.insecure_skip_tls_verify and authority and is_secure:
            raise access.AccessError(
                f"{self.source}: a certificate authority and insecure-skip-tls-verify exclude each other"
            )
        authorization, token_file = self._authorization(user)
        if not is_secure:
            self._warn_of_plain_http(server, bool(authorization or user.exec or certificate))
            authorization, token_file, certificate, key = "", "", b"", b""
        if server.user_info:
            authorization, token_file = server.user_info, ""
        result = msgspec.structs.replace(
            result, authorization=authorization, token_file=token_file, client_certificate=certificate, client_key=key
        )
        if is_secure and user.exec is not None and not (authorization or certificate):
            result = self._with_plugin(result, cluster, user.exec)
        return self.finished(result)

    def finished(self, result: access.Access) -> access.Access:
        """Check what becomes headers, and add what was collected. Raises AccessError."""
        for name, value in (("Authorization", result.authorization), *result.headers):
            if _NOT_IN_HEADERS.search(value):
                raise access.AccessError(f"{self.source}: a line end or control character in {name}")
        return msgspec.structs.replace(result, from_files=self.files, warnings=tuple(self.warnings))

    def _authority(self, cluster: kubeconfig.Cluster) -> bytes:
        if cluster.certificate_authority and cluster.certificate_authority_data:
            raise access.AccessError(f"{self.source}: both certificate-authority and certificate-authority-data")
        if not cluster.certificate_authority:
            return bytes(cluster.certificate_authority_data)
        content = self.read(cluster.certificate_authority, "certificate-authority")
        if not content:
            # Newer client-go trusts nobody then, older ones everybody whom the system trusts.
            raise access.AccessError(
                f"certificate-authority of {self.source}: {cluster.certificate_authority} is empty"
            )
        return content

    def _certificate(self, user: kubeconfig.User) -> tuple[bytes, bytes]:
        if not (user.client_certificate or user.client_certificate_data):
            if user.client_key or user.client_key_data:
                self.warnings.append("a client key without a client certificate is not used")
            return b"", b""
        for name, file, data in (
            ("client-certificate", user.client_certificate, user.client_certificate_data),
            ("client-key", user.client_key, user.client_key_data),
        ):
            if file and data:
                raise access.AccessError(f"{self.source}: both {name} and {name}-data")
        if not (user.client_key or user.client_key_data):
            raise access.AccessError(f"{self.source}: a client certificate without client-key or client-key-data")
        certificate = bytes(user.client_certificate_data) or self.read(user.client_certificate, "client-certificate")
        if not certificate:
            raise access.AccessError(f"client-certificate of {self.source}: {user.client_certificate}: is empty")
        return certificate, bytes(user.client_key_data) or self.read(user.client_key, "client-key")

    def _check(self, user: kubeconfig.User) -> None:
        has_name = bool(user.username or user.password)
        if has_name and (user.token or user.token_file):
            raise access.AccessError(f"{self.source}: both a token and a username or password")
        if user.auth_provider is not None:
            provider = files.shown(user.auth_provider.name)
            raise access.AccessError(f"{self.source}: auth-provider {provider!r} was removed from Kubernetes; use exec")
        if not user.impersonate and (user.impersonate_uid or user.impersonate_groups or user.impersonate_extra):
            raise access.AccessError(f"{self.source}: as-uid, as-groups or as-user-extra without as")
        if user.exec is not None:
            try:
                exec_plugin.check(user.exec)
            except exec_plugin.PluginFailed as error:
                raise access.AccessError(f"{self.source}: {error}") from error

    def _authorization(self, user: kubeconfig.User) -> tuple[str, str]:
        """Return the Authorization header and the file from which its token is read again."""
        if user.username:
            return _basic(user.username, user.password), ""
        token = user.token.strip()
        if user.token_file and not token:
            token = access.read_token(user.token_file)
        return (f"Bearer {token}" if token else ""), user.token_file

    def _proxy(self, cluster: kubeconfig.Cluster, server: _Server) -> str:
        try:
            if cluster.proxy_url:
                return proxies.checked(cluster.proxy_url, f"{self.source}: proxy-url")
            return proxies.from_environment(self.environment, server.url)
        except proxies.ProxyUnusable as error:
            raise access.AccessError(str(error)) from error

    def _warn_of_plain_http(self, server: _Server, has_credentials: bool) -> None:
        if server.user_info:
            self.warnings.append("the API server's address is plain http: its user name and password are sent in clear")
        elif has_credentials:
            self.warnings.append("the API server's address is plain http: no credentials are sent, as in client-go")
        else:
            self.warnings.append("the API server's address is plain http")

    def _with_plugin(
        self, result: access.Access, cluster: kubeconfig.Cluster, plugin: kubeconfig.Exec
    ) -> access.Access:
        described = {
            "server": cluster.server,
            "tls-server-name": cluster.tls_server_name,
            "insecure-skip-tls-verify": cluster.insecure_skip_tls_verify,
            "certificate-authority-data": result.certificate_authority,
            "proxy-url": cluster.proxy_url,
            "disable-compression": cluster.disable_compression,
        }
        described = {name: value for name, value in described.items() if value}
        if (config := cluster.plugin_config()) is not None:
            described["config"] = config
        try:
            printed = exec_plugin.run(plugin, described, self.environment)
        except exec_plugin.PluginFailed as error:
            raise access.AccessError(f"{self.source}: {error}") from error
        return msgspec.structs.replace(
            result,
            authorization=f"Bearer {printed.token}" if printed.token else "",
            client_certificate=printed.client_certificate,
            client_key=printed.client_key,
            certificate_source=f"certificate and key from {files.shown(plugin.command)}",
            expires_at=printed.expires_at,
        )


def load(environment: Mapping[str, str], *, service_account: str = SERVICE_ACCOUNT) -> access.Access:
    """Load from the first source that exists, and apply the K8S_ variables. Raises AccessError."""
    settings = Settings(environment)
    paths, source = _kubeconfigs(settings, environment)
    loader = _Loader(environment, source)
    loader.files = {path: files.identity(path) for path in paths}
    try:
        entries = kubeconfig.load(paths) if paths else kubeconfig.Kubeconfig()
    except kubeconfig.KubeconfigUnusable as error:
        raise access.AccessError(f"kubeconfig {error}") from error
    try:
        cluster, user = entries.choose(settings.get("K8S_CURRENT_CONTEXT"))
    except kubeconfig.KubeconfigUnusable as error:
        raise access.AccessError(f"{source}: {error}") from error
    is_empty = cluster == kubeconfig.Cluster()
    _override(cluster, user, settings)
    if not cluster.server:
        if not is_empty:
            raise access.AccessError(f"{source}: the cluster has no server")
        return _from_service_account(loader, settings, service_account)
    return loader.from_entries(cluster, user)


def _kubeconfigs(settings: Settings, environment: Mapping[str, str]) -> tuple[list[str], str]:
    """Return the files, and the source of the access for messages."""
    named = settings.get("KUBECONFIG")
    if named:
        return named.split(os.pathsep), f"kubeconfig {files.shown(named)}"
    # As client-go: only HOME counts. The user may have no entry in passwd, and no home.
    default = os.path.join(environment.get("HOME", ""), ".kube", "config")
    if os.path.isabs(default) and os.path.exists(default):
        return [default], f"kubeconfig {files.shown(default)}"
    return [], "environment"


def _override(cluster: kubeconfig.Cluster, user: kubeconfig.User, settings: Settings) -> None:
    """Apply the variables as client-go applies its overrides."""
    if endpoint := settings.get("K8S_API_ENDPOINT"):
        cluster.server, cluster.tls_server_name = endpoint, ""
    authority, is_insecure = settings.get("K8S_CA_FILE"), settings.flag("K8S_INSECURE_SKIP_TLS_VERIFY")
    if authority or is_insecure:
        cluster.certificate_authority, cluster.certificate_authority_data = authority, kubeconfig.Data()
        cluster.insecure_skip_tls_verify = is_insecure
    if certificate := settings.get("K8S_CERT_FILE"):
        user.client_certificate, user.client_certificate_data = certificate, kubeconfig.Data()
    if key := settings.get("K8S_KEY_FILE"):
        user.client_key, user.client_key_data = key, kubeconfig.Data()
    if token := settings.get("K8S_API_TOKEN"):
        user.token = token


def _from_service_account(loader: _Loader, settings: Settings, folder: str) -> access.Access:
    host = loader.environment.get("KUBERNETES_SERVICE_HOST", "")
    port = loader.environment.get("KUBERNETES_SERVICE_PORT", "")
    if not host or not port:
        if loader.source != "environment":
            raise access.AccessError(f"{loader.source}: describes no API server")
        raise access.AccessError(
            "no API server configured: set KUBECONFIG or K8S_API_ENDPOINT, provide ~/.kube/config, or run in a pod"
        )
    loader.source = "service account"
    token_file = posixpath.join(folder, "token")
    token = access.read_token(token_file)
    cluster = kubeconfig.Cluster(server=f"https://[{host}]:{port}" if ":" in host else f"https://{host}:{port}")
    authority_file = posixpath.join(folder, "ca.crt")
    try:
        if not pem.certificates(loader.read(authority_file, "certificate authority"), with_headers=False):
            raise access.AccessError(f"{authority_file} contains no certificate")
        cluster.certificate_authority = authority_file
    except access.AccessError as error:
        loader.warnings.append(f"only the system's authorities are trusted: {error}")
    user = kubeconfig.User(token=token, token_file=token_file)
    _override(cluster, user, settings)
    if user.token != token:
        user.token_file = ""
    return loader.from_entries(cluster, user)


def _server(text: str, source: str) -> _Server:
    """Read an address: a URL, or host and port for plain http. Raises AccessError."""
    parts = _split(text)
    if parts is None or not parts.scheme or not parts.netloc:
        parts = _split(f"http://{text}")
        if parts is None or parts.path not in ("", "/"):
            raise access.AccessError(f"{source}: server is not a URL or host:port: {files.shown(text)!r}")
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise access.AccessError(f"{source}: server is not an http:// or https:// address: {files.shown(text)!r}")
    user_info, _, address = parts.netloc.rpartition("@")
    path = posixpath.normpath("/" + urllib.parse.unquote(parts.path).lstrip("/")).rstrip("/")
    name, _, password = user_info.partition(":")
    return _Server(
        url=f"{parts.scheme}://{address}{urllib.parse.quote(path)}",
        user_info=_basic(urllib.parse.unquote(name), urllib.parse.unquote(password)) if user_info else "",
    )


def _split(text: str) -> urllib.parse.SplitResult | None:
    if _NOT_IN_URLS.search(text):
        return None
    try:
        parts = urllib.parse.urlsplit(text)
        parts.port  # noqa: B018  it raises if it is not a number
    except ValueError:
        return None
    return None if " " in parts.netloc else parts


def _named(field: str, path: str) -> str:
    return f"{field} {files.shown(path)}" if path else f"{field}-data"


def _basic(name: str, password: str) -> str:
    return "Basic " + base64.b64encode(f"{name}:{password}".encode()).decode()


def _impersonation(user: kubeconfig.User) -> Iterator[tuple[str, str]]:
    if not user.impersonate:
        return
    yield "Impersonate-User", user.impersonate
    if user.impersonate_uid:
        yield "Impersonate-Uid", user.impersonate_uid
    for group in user.impersonate_groups:
        yield "Impersonate-Group", group
    for key, values in user.impersonate_extra.items():
        escaped = "".join(chr(byte) if _HEADER_TOKEN.fullmatch(chr(byte)) else f"%{byte:02X}" for byte in key.encode())
        for value in values:
            yield f"Impersonate-Extra-{escaped}", value


def main() -> int:
    """Print the JSON. Return the exit status."""
    try:
        output = msgspec.json.encode(load(os.environ))
    except access.AccessError as error:
        sys.stderr.write(f"{error}\n")
        return 1
    except Exception as error:  # nothing that others wrote may end in a traceback
        sys.stderr.write(f"the credentials cannot be loaded: {type(error).__name__}: {files.shown(str(error))}\n")
        return 1
    sys.stdout.buffer.write(output)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
