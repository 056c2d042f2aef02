"""Runs the credential plugin of a kubeconfig: a program that prints a token or a certificate.

It gets what client-go gives it, and has no terminal. It runs in the helper process, which is killed with its session if
it takes too long.
"""

import datetime
import os
import re
import shutil
import subprocess
import sys
import threading
from collections.abc import Mapping
from typing import Any

import msgspec

from cache import yamljson
from cache.kube import files, kubeconfig, pem

_GROUP = "client.authentication.k8s.io"
_VERSIONS = frozenset({f"{_GROUP}/v1", f"{_GROUP}/v1beta1"})
_MODES = frozenset({"Never", "IfAvailable", "Always"})
_INFO_VARIABLE = "KUBERNETES_EXEC_INFO"
_OUTPUT_BYTES_MAX = files.MAX_FILE_BYTES
_READ_BYTES = 65_536
_LAST_WORDS_SECONDS = 1.0
"""For what a plugin that has failed wrote before; more than the pipe holds has been copied already."""
_RFC3339 = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(?:[.,]\d+)?(?:Z|[+-]\d\d:\d\d)")


class PluginFailed(Exception):
    """The plugin cannot be run, or prints no credentials. The message names it."""


class Credentials(msgspec.Struct, frozen=True):
    """What a plugin has printed."""

    token: str
    client_certificate: bytes
    client_key: bytes
    expires_at: float | None
    """Seconds since the epoch; None: unknown."""


class _Status(msgspec.Struct, rename="camel"):
    token: str | None = None
    client_certificate_data: str | None = None
    client_key_data: str | None = None
    expiration_timestamp: str | None = None


class _Printed(msgspec.Struct, rename="camel"):
    kind: str = ""
    api_version: str = ""
    status: _Status | None = None


def check(plugin: kubeconfig.Exec) -> None:
    """Check a plugin's entry. Raises PluginFailed."""
    command = files.shown(plugin.command)
    if not plugin.command:
        raise PluginFailed("exec: command is missing")
    if not plugin.api_version:
        raise PluginFailed(f"exec: apiVersion of {command} is missing")
    if plugin.api_version not in _VERSIONS:
        supported = " and ".join(sorted(_VERSIONS))
        raise PluginFailed(
            f"exec: apiVersion {files.shown(plugin.api_version)!r} of {command} is not one of {supported}"
        )
    mode = plugin.interactive_mode or ("IfAvailable" if plugin.api_version.endswith("/v1beta1") else "")
    if mode not in _MODES:
        problem = f"invalid: {files.shown(mode)!r}" if mode else f"missing, but {plugin.api_version} requires it"
        raise PluginFailed(f"exec: interactiveMode of {command} is {problem}")
    if any(not variable.name for variable in plugin.env):
        raise PluginFailed(f"exec: a variable of {command} has no name")


def run(plugin: kubeconfig.Exec, cluster: Mapping[str, Any], environment: Mapping[str, str]) -> Credentials:
    """Run a plugin. `cluster` is for plugins that ask for it. Raises PluginFailed."""
    command = files.shown(plugin.command)
    if plugin.interactive_mode == "Always":
        raise PluginFailed(f"exec: {command} has interactiveMode Always, and there is no terminal")
    program = _find(plugin, environment)
    spec: dict[str, Any] = {"interactive": False}
    if plugin.provide_cluster_info:
        spec["cluster"] = cluster
    info = {"kind": "ExecCredential", "apiVersion": plugin.api_version, "spec": spec}
    variables = dict(environment) | {variable.name: variable.value for variable in plugin.env}
    variables[_INFO_VARIABLE] = msgspec.json.encode(info).decode()
    try:
        said = _Said()
        with subprocess.Popen(
            [program, *plugin.args],
            executable=program,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=said.writer,
            env=variables,
        ) as process:
            said.begin()
            assert process.stdout is not None
            output = process.stdout.read(_OUTPUT_BYTES_MAX + 1)
            if len(output) > _OUTPUT_BYTES_MAX:
                process.kill()
                raise PluginFailed(f"exec: {command} prints more than {_OUTPUT_BYTES_MAX} bytes")
            status = process.wait()
    except (OSError, ValueError) as error:
        raise PluginFailed(f"exec: {command} cannot be started: {getattr(error, 'strerror', None) or error}") from error
    if status != 0:
        said.wait()
        how = f"exit status {status}" if status > 0 else f"signal {-status}"
        raise PluginFailed(f"exec: {command} failed with {how}")
    return _credentials(output, plugin)


class _Said:
    """Copies what a plugin says on standard error to ours, and so into the message of a failure.

    It does not get ours itself: a process that the plugin leaves behind (an agent, a cache) would keep it open.
    """

    def __init__(self) -> None:
        self._reader, self.writer = os.pipe()
        self._thread = threading.Thread(target=self._copy, daemon=True)

    def begin(self) -> None:
        """Copy. The plugin has the writing end now."""
        os.close(self.writer)
        self._thread.start()

    def wait(self) -> None:
        """Wait until all is copied, but not for what a process that was left behind may still say."""
        self._thread.join(_LAST_WORDS_SECONDS)

    def _copy(self) -> None:
        while part := os.read(self._reader, _READ_BYTES):
            sys.stderr.buffer.write(part)
            sys.stderr.buffer.flush()


def _find(plugin: kubeconfig.Exec, environment: Mapping[str, str]) -> str:
    found = shutil.which(plugin.command, path=environment.get("PATH", ""))
    if found is not None and os.path.isabs(found):  # never from the working directory
        return found
    hint = f"; {files.shown(plugin.install_hint)}" if plugin.install_hint else ""
    raise PluginFailed(f"exec: there is no program {files.shown(plugin.command)}{hint}")


def _credentials(output: bytes, plugin: kubeconfig.Exec) -> Credentials:
    command = files.shown(plugin.command)
    try:
        printed = msgspec.convert(yamljson.decode(output), _Printed)
        if (printed.kind, printed.api_version) != ("ExecCredential", plugin.api_version):
            raise ValueError(
                f"{printed.kind!r} of {printed.api_version!r}, not ExecCredential of {plugin.api_version!r}"
            )
        status = printed.status
        if status is None:
            raise ValueError("no status")
        certificate = (status.client_certificate_data or "").encode()
        key = (status.client_key_data or "").encode()
        if bool(certificate) != bool(key):
            raise ValueError("only one of certificate and key")
        if not (status.token or certificate):
            raise ValueError("neither a token nor a certificate")
        ends = [] if status.expiration_timestamp is None else [_time(status.expiration_timestamp)]
        if certificate:
            ends += [pem.not_after(one) for one in pem.certificates(certificate, with_headers=True)[:1]]
    except Exception as error:  # whatever a plugin prints
        what = files.shown(str(error) or type(error).__name__)
        raise PluginFailed(f"exec: {command} printed no credentials that can be used: {what}") from error
    return Credentials(status.token or "", certificate, key, min(ends, default=None))


def _time(text: str) -> float:
    if _RFC3339.fullmatch(text) is None:
        raise ValueError(f"expirationTimestamp is not a time: {text!r}")
    return datetime.datetime.fromisoformat(text).timestamp()
