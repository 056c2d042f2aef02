"""Reads kubeconfig files as client-go does: every field of a user and a cluster, and several files as one.

A short reader of our own (docs/decisions/kubernetes-access.md): no Python library follows client-go in order of
precedence, merging, paths and credential plugins, and this one opens no file for writing.
"""

import os
import posixpath
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import msgspec

from cache import yamljson
from cache.kube import files, pem

EXEC_EXTENSION = "client.authentication.k8s.io/exec"
_LISTS_OF_TEXT = frozenset({"args", "as-groups", "as-user-extra"})


class KubeconfigUnusable(Exception):
    """A kubeconfig cannot be read, or does not describe an access. The message names the file or entry."""


class Data(bytes):
    """Bytes that are written as base64."""


class ExecVariable(msgspec.Struct):
    """A variable of a plugin's environment."""

    name: str = ""
    value: str = ""


class Exec(msgspec.Struct):
    """A credential plugin: a program that prints credentials."""

    command: str = ""
    args: list[str] = []
    env: list[ExecVariable] = []
    api_version: str = msgspec.field(default="", name="apiVersion")
    install_hint: str = msgspec.field(default="", name="installHint")
    provide_cluster_info: bool = msgspec.field(default=False, name="provideClusterInfo")
    interactive_mode: str = msgspec.field(default="", name="interactiveMode")


class AuthProvider(msgspec.Struct):
    """What kubeconfigs had before plugins. Removed from client-go in Kubernetes 1.26."""

    name: str = ""


class User(msgspec.Struct, rename="kebab"):
    """Credentials."""

    client_certificate: str = ""
    client_certificate_data: Data = Data()
    client_key: str = ""
    client_key_data: Data = Data()
    token: str = ""
    token_file: str = msgspec.field(default="", name="tokenFile")
    impersonate: str = msgspec.field(default="", name="as")
    impersonate_uid: str = msgspec.field(default="", name="as-uid")
    impersonate_groups: list[str] = msgspec.field(default_factory=list, name="as-groups")
    impersonate_extra: dict[str, list[str]] = msgspec.field(default_factory=dict, name="as-user-extra")
    username: str = ""
    password: str = ""
    auth_provider: AuthProvider | None = None
    exec: Exec | None = None


class Extension(msgspec.Struct):
    """Data for a program other than client-go."""

    name: str = ""
    extension: Any = None


class Cluster(msgspec.Struct, rename="kebab"):
    """An API server."""

    server: str = ""
    tls_server_name: str = ""
    insecure_skip_tls_verify: bool = False
    certificate_authority: str = ""
    certificate_authority_data: Data = Data()
    proxy_url: str = ""
    disable_compression: bool = False
    extensions: list[Extension] = []

    def plugin_config(self) -> Any:
        """Return what credential plugins get from the cluster's entry."""
        return {one.name: one.extension for one in self.extensions}.get(EXEC_EXTENSION)


class Context(msgspec.Struct):
    """Which user of which cluster."""

    cluster: str = ""
    user: str = ""


class _Entry(msgspec.Struct):
    name: str = ""
    cluster: Cluster = msgspec.field(default_factory=Cluster)
    user: User = msgspec.field(default_factory=User)
    context: Context = msgspec.field(default_factory=Context)


class _File(msgspec.Struct, rename="kebab"):
    api_version: str = msgspec.field(default="", name="apiVersion")
    kind: str = ""
    clusters: list[_Entry] = []
    users: list[_Entry] = []
    contexts: list[_Entry] = []
    current_context: str = ""


class Kubeconfig(msgspec.Struct):
    """The entries of one or more files by name."""

    clusters: dict[str, Cluster] = {}
    users: dict[str, User] = {}
    contexts: dict[str, Context] = {}
    current_context: str = ""

    def choose(self, context: str) -> tuple[Cluster, User]:
        """Return copies of what a context names. Empty: the current context. Raises KubeconfigUnusable."""
        name = context or self.current_context
        if name and name not in self.contexts:
            raise KubeconfigUnusable(f"there is no context {files.shown(name)!r}")
        chosen = self.contexts.get(name) or Context()
        cluster, user = self.clusters.get(chosen.cluster), self.users.get(chosen.user)
        return msgspec.structs.replace(cluster or Cluster()), msgspec.structs.replace(user or User())


def load(paths: Sequence[str]) -> Kubeconfig:
    """Merge files: of entries with one name, the first one counts; missing files are skipped.

    Raises:
        KubeconfigUnusable: a file cannot be read, or none exists.
    """
    merged = Kubeconfig()
    found = False
    for path in dict.fromkeys(paths):
        if not path or _is_missing(path):
            continue
        found = True
        one = _load_file(path)
        merged = Kubeconfig(
            clusters=one.clusters | merged.clusters,
            users=one.users | merged.users,
            contexts=one.contexts | merged.contexts,
            current_context=merged.current_context or one.current_context,
        )
    if not found:
        raise KubeconfigUnusable(f"{files.shown(os.pathsep.join(paths))}: no such file")
    return merged


def _is_missing(path: str) -> bool:
    try:
        os.stat(path)
    except (FileNotFoundError, ValueError):
        return True
    except OSError:
        return False
    return False


def _load_file(path: str) -> Kubeconfig:
    try:
        content = files.read(path)
    except files.FileUnusable as error:
        raise KubeconfigUnusable(str(error)) from error
    try:
        document = _without_nulls(yamljson.decode(content)) if content else {}
        file = msgspec.convert(document, _File, dec_hook=_decode)
        if file.kind not in ("", "Config") or file.api_version not in ("", "v1"):
            raise ValueError(f"not a Config of v1: {file.kind!r} of {file.api_version!r}")
        folder = os.path.dirname(os.path.abspath(path))
        for entry in file.clusters:
            entry.cluster.certificate_authority = _resolved(folder, entry.cluster.certificate_authority)
        for entry in file.users:
            _resolve(folder, entry.user)
        return Kubeconfig(
            clusters=_by_name(file.clusters, lambda entry: entry.cluster),
            users=_by_name(file.users, lambda entry: entry.user),
            contexts=_by_name(file.contexts, lambda entry: entry.context),
            current_context=file.current_context,
        )
    except Exception as error:  # whatever the YAML reader raises: the file is not ours
        raise KubeconfigUnusable(f"{files.shown(path)}: {files.shown(str(error) or type(error).__name__)}") from error


def _without_nulls(value: Any, key: str = "") -> Any:
    """A null leaves a field as it is; in a list, it is an empty text or entry. Extensions are not ours."""
    if key == "extensions":
        return value or []
    if isinstance(value, dict):
        inner = key if key in _LISTS_OF_TEXT else ""
        return {name: _without_nulls(one, inner or str(name)) for name, one in value.items() if one is not None}
    if isinstance(value, list):
        return [("" if key in _LISTS_OF_TEXT else {}) if one is None else _without_nulls(one) for one in value]
    return value


def _decode(kind: type, value: Any) -> Any:
    if kind is Data and isinstance(value, str):
        return Data(pem.decode_base64(value.encode()))
    raise ValueError(f"expected base64, got {type(value).__name__}")


_T = TypeVar("_T")


def _by_name(entries: Sequence[_Entry], value: Callable[[_Entry], _T]) -> dict[str, _T]:
    found: dict[str, _T] = {}
    for entry in entries:
        if entry.name in found:
            raise ValueError(f"there are two entries with the name {entry.name!r}")
        found[entry.name] = value(entry)
    return found


def _resolve(folder: str, user: User) -> None:
    user.client_certificate = _resolved(folder, user.client_certificate)
    user.client_key = _resolved(folder, user.client_key)
    user.token_file = _resolved(folder, user.token_file)
    if user.exec is not None and "/" in user.exec.command:  # otherwise it is looked for in PATH
        user.exec.command = _resolved(folder, user.exec.command)


def _resolved(folder: str, path: str) -> str:
    return posixpath.normpath(posixpath.join(folder, path)) if path and not path.startswith("/") else path
