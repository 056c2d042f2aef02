"""The sources of address and credentials, and the errors if they cannot be loaded."""

import asyncio
import datetime
import json
import os
import pathlib
import re
from typing import Any

import pytest
import trustme
import yaml

from cache.kube import access, credentials, loader
from tests.cache.kube.test_processes import is_gone
from tests.harness import authorities, faults, kubeconfig_cases
from tests.harness.scripted_server import eventually


@pytest.fixture
def kubeconfig(tmp_path: pathlib.Path) -> pathlib.Path:
    authority = trustme.CA()
    authority.cert_pem.write_to_path(tmp_path / "ca.crt")
    (tmp_path / "token").write_text("file-token\n")
    return write(tmp_path, {"tokenFile": "token"})


def write(folder: pathlib.Path, user: dict[str, Any]) -> pathlib.Path:
    cluster = {"server": "https://one.example:6443/", "certificate-authority": "ca.crt", "tls-server-name": "kube"}
    config = {
        "apiVersion": "v1",
        "kind": "Config",
        "current-context": "one",
        "contexts": [
            {"name": "one", "context": {"cluster": "one", "user": "me"}},
            {"name": "two", "context": {"cluster": "two"}},
        ],
        "clusters": [
            {"name": "one", "cluster": cluster},
            {"name": "two", "cluster": {"server": "https://two.example", "insecure-skip-tls-verify": True}},
        ],
        "users": [{"name": "me", "user": user}],
    }
    path = folder / "config"
    path.write_text(yaml.safe_dump(config))
    return path


def load(tmp_path: pathlib.Path, **environment: str) -> access.Access:
    return credentials.load({"HOME": str(tmp_path / "home"), "PATH": os.environ["PATH"], **environment})


def test_a_kubeconfig_gives_file_contents_and_the_token_file(tmp_path: pathlib.Path, kubeconfig: pathlib.Path) -> None:
    loaded = load(tmp_path, KUBECONFIG=str(kubeconfig))
    assert loaded.host == "https://one.example:6443"
    assert loaded.authorization == "Bearer file-token"
    assert loaded.token_file == str(tmp_path / "token")
    assert loaded.certificate_authority == (tmp_path / "ca.crt").read_bytes()
    assert loaded.server_name == "kube"
    assert loaded.verify
    assert access.make_ssl_context(loaded)


def test_the_context_can_be_chosen_and_needs_no_user(tmp_path: pathlib.Path, kubeconfig: pathlib.Path) -> None:
    loaded = load(tmp_path, KUBECONFIG=str(kubeconfig), K8S_CURRENT_CONTEXT="two")
    assert (loaded.host, loaded.verify, loaded.authorization) == ("https://two.example", False, "")


def test_the_home_directorys_kubeconfig_is_the_default(tmp_path: pathlib.Path, kubeconfig: pathlib.Path) -> None:
    home = tmp_path / "home" / ".kube"
    home.mkdir(parents=True)
    (home / "config").write_text(kubeconfig.read_text().replace("ca.crt", str(tmp_path / "ca.crt")))
    (home / "token").write_text("home-token")
    assert (load(tmp_path)).authorization == "Bearer home-token"


def test_variables_override_and_prefixed_ones_take_precedence(tmp_path: pathlib.Path, kubeconfig: pathlib.Path) -> None:
    loaded = load(
        tmp_path,
        KUBECONFIG=str(kubeconfig),
        K8S_API_ENDPOINT="https://plain.example",
        CALICO_K8S_API_ENDPOINT="https://prefixed.example/",
        K8S_API_TOKEN="t",
        K8S_INSECURE_SKIP_TLS_VERIFY="true",
    )
    assert (loaded.host, loaded.authorization) == ("https://prefixed.example", "Bearer t")
    assert loaded.token_file == str(tmp_path / "token")  # as in client-go, a file takes precedence once it can be read
    assert not loaded.verify


def test_variables_alone_are_enough(tmp_path: pathlib.Path) -> None:
    authority = trustme.CA()
    certificate = authority.issue_cert("agent")
    certificate.private_key_pem.write_to_path(tmp_path / "key")
    certificate.cert_chain_pems[0].write_to_path(tmp_path / "cert")
    authority.cert_pem.write_to_path(tmp_path / "ca")
    loaded = load(
        tmp_path,
        K8S_API_ENDPOINT="https://api.example",
        K8S_KEY_FILE=str(tmp_path / "key"),
        K8S_CERT_FILE=str(tmp_path / "cert"),
        K8S_CA_FILE=str(tmp_path / "ca"),
        KUBERNETES_SERVICE_HOST="10.0.0.1",
    )
    assert loaded.client_key == (tmp_path / "key").read_bytes()
    assert loaded.authorization == ""
    assert access.make_ssl_context(loaded)


@pytest.mark.parametrize(
    ("environment", "message"),
    [
        ({}, "set KUBECONFIG or K8S_API_ENDPOINT"),
        ({"KUBECONFIG": "/nonexistent/config"}, "^kubeconfig /nonexistent/config: no such file$"),
        (
            {"K8S_API_ENDPOINT": "ftp://api.example:6443"},
            "not an http:// or https:// address: 'ftp://api.example:6443'",
        ),
        (
            {"K8S_API_ENDPOINT": "https://x", "K8S_CA_FILE": "/nonexistent"},
            "^certificate-authority of environment: /nonexistent: No such file",
        ),
        ({"K8S_API_ENDPOINT": "https://x", "K8S_INSECURE_SKIP_TLS_VERIFY": "maybe"}, "K8S_INSECURE_SKIP_TLS_VERIFY"),
        ({"K8S_API_ENDPOINT": "https://x", "K8S_CERT_FILE": __file__}, "a client certificate without client-key"),
        (
            {"KUBERNETES_SERVICE_HOST": "10.0.0.1", "KUBERNETES_SERVICE_PORT": "443"},
            "^token file .*serviceaccount/token: No such file",
        ),
    ],
)
def test_errors_name_the_missing_file_or_variable(
    tmp_path: pathlib.Path, environment: dict[str, str], message: str
) -> None:
    with pytest.raises(access.AccessError, match=message):
        load(tmp_path, **environment)


@pytest.mark.parametrize("text", ["", "[]", "{", "a: [", "clusters: 1\n", "current-context: nowhere\n"])
def test_errors_name_a_broken_kubeconfig(tmp_path: pathlib.Path, text: str) -> None:
    path = tmp_path / "broken"
    path.write_text(text)
    with pytest.raises(access.AccessError, match=f"kubeconfig {path}: ."):
        load(tmp_path, KUBECONFIG=str(path))


def test_an_exec_plugin_gives_a_token_and_its_expiry(tmp_path: pathlib.Path, kubeconfig: pathlib.Path) -> None:
    answer = {
        "apiVersion": "client.authentication.k8s.io/v1",
        "kind": "ExecCredential",
        "status": {"token": "exec-token", "expirationTimestamp": "2033-05-18T03:33:20Z"},
    }
    plugin = {
        "apiVersion": answer["apiVersion"],
        "command": "echo",
        "args": [json.dumps(answer)],
        "interactiveMode": "Never",
    }
    loaded = load(tmp_path, KUBECONFIG=str(write(tmp_path, {"exec": plugin})))
    assert loaded.authorization == "Bearer exec-token"
    assert loaded.expires_at == 2_000_000_000


@pytest.mark.slow
async def test_the_helper_process_gives_the_same_access_or_one_line_of_error(
    tmp_path: pathlib.Path, kubeconfig: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KUBECONFIG", str(kubeconfig))
    assert await loader.load_access() == load(tmp_path, KUBECONFIG=str(kubeconfig))
    monkeypatch.setenv("KUBECONFIG", "/nonexistent/config")
    with pytest.raises(access.AccessError, match=r"^kubeconfig /nonexistent/config: no such file$"):
        await loader.load_access()


@pytest.mark.slow
@pytest.mark.parametrize("is_cancelled_again", [False, True])
async def test_an_exec_plugin_that_never_ends_is_killed(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch, kubeconfig: pathlib.Path, is_cancelled_again: bool
) -> None:
    started = tmp_path / "started"
    script = f"echo $$ > {started}.new; mv {started}.new {started}; while :; do sleep 0.01; done"
    plugin = {
        "apiVersion": "client.authentication.k8s.io/v1",
        "command": "sh",
        "args": ["-c", script],
        "interactiveMode": "Never",
    }
    monkeypatch.setenv("KUBECONFIG", str(write(tmp_path, {"exec": plugin})))
    with pytest.raises(access.AccessError, match=r"loading the credentials took more than 0\.01 s"):
        await loader.load_access(timeout_seconds=0.01)
    loading = asyncio.create_task(loader.load_access())
    await eventually(started.exists)
    loading.cancel()
    while is_cancelled_again and not loading.done():  # the helper's end must be waited for all the same
        await asyncio.sleep(0)
        loading.cancel()
    with pytest.raises(asyncio.CancelledError):
        await loading
    plugin_process = int(started.read_text())
    await eventually(lambda: is_gone(plugin_process))


def test_a_plugin_is_never_taken_from_the_working_directory(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plugin = tmp_path / "bin" / "plugin"
    plugin.parent.mkdir()
    plugin.write_text("#!/bin/sh\n" + kubeconfig_cases.prints('{"token": "p"}'))
    plugin.chmod(0o755)
    path = tmp_path / "config"
    path.write_text(kubeconfig_cases.config(user=kubeconfig_cases.plugin("", command="plugin")))
    monkeypatch.chdir(tmp_path)
    for directory in ("", "bin", "."):
        with pytest.raises(access.AccessError, match="there is no program plugin"):
            load(tmp_path, KUBECONFIG=str(path), PATH=directory)
    assert load(tmp_path, KUBECONFIG=str(path), PATH=str(plugin.parent)).authorization == "Bearer p"


@pytest.fixture
def pod(tmp_path: pathlib.Path) -> pathlib.Path:
    """The folder of a service account."""
    trustme.CA().cert_pem.write_to_path(tmp_path / "ca.crt")
    (tmp_path / "token").write_text("pod-token\n")
    return tmp_path


def load_in(pod: pathlib.Path, **environment: str) -> access.Access:
    address = {"KUBERNETES_SERVICE_HOST": "10.96.0.1", "KUBERNETES_SERVICE_PORT": "443"}
    return credentials.load(address | environment, service_account=str(pod))


def test_a_pod_uses_its_service_account(pod: pathlib.Path) -> None:
    loaded = load_in(pod)
    assert (loaded.host, loaded.source) == ("https://10.96.0.1:443", "service account")
    assert (loaded.authorization, loaded.token_file) == ("Bearer pod-token", str(pod / "token"))
    assert loaded.certificate_authority == (pod / "ca.crt").read_bytes()
    assert loaded.warnings == ()
    assert load_in(pod, KUBERNETES_SERVICE_HOST="fd00::1").host == "https://[fd00::1]:443"
    assert load_in(pod, HTTPS_PROXY="http://p:1").proxy == "http://p:1"
    assert load_in(pod, HTTPS_PROXY="http://p:1", NO_PROXY="10.96.0.0/12").proxy == ""


def test_an_empty_kubeconfig_in_a_pod_means_the_service_account(pod: pathlib.Path) -> None:
    (pod / "config").write_text("")
    for path in (str(pod / "config"), "/dev/null"):
        assert load_in(pod, KUBECONFIG=path).source == "service account"


def test_variables_override_the_service_account(pod: pathlib.Path) -> None:
    trustme.CA().cert_pem.write_to_path(pod / "other")
    loaded = load_in(pod, K8S_API_TOKEN="t", K8S_CA_FILE=str(pod / "other"))
    assert (loaded.authorization, loaded.token_file) == ("Bearer t", "")
    assert loaded.certificate_authority == (pod / "other").read_bytes()
    insecure = load_in(pod, K8S_INSECURE_SKIP_TLS_VERIFY="true")
    assert (insecure.verify, insecure.certificate_authority, insecure.authorization) == (False, b"", "Bearer pod-token")


@pytest.mark.parametrize("fault", ["missing", "empty", "other text", "a directory", "a FIFO", "100 MB"])
def test_a_pod_without_authority_trusts_the_system_and_says_so(pod: pathlib.Path, fault: str) -> None:
    faults.cause(fault, pod / "ca.crt")
    loaded = load_in(pod)
    assert loaded.certificate_authority == b""
    [warning] = loaded.warnings
    assert warning.startswith("only the system's authorities are trusted: ")
    assert str(pod / "ca.crt") in warning


@pytest.mark.parametrize("fault", ["missing", "empty", "a directory", "a FIFO", "binary", "100 MB"])
def test_a_pod_without_token_is_refused(pod: pathlib.Path, fault: str) -> None:
    faults.cause(fault, pod / "token")
    with pytest.raises(access.AccessError, match=f"^token file {pod / 'token'}: "):
        load_in(pod)


@pytest.mark.parametrize(
    ("server", "user", "warning"),
    [
        ("http://h", "token: t", "plain http: no credentials are sent"),
        ("h:8080", "username: a, password: b", "plain http: no credentials are sent"),
        ("http://h", "{}", "is plain http$"),
        ("http://a:b@h", "{}", "user name and password are sent in clear"),
        ("https://h", "client-key-data: YQ==", "a client key without a client certificate is not used"),
    ],
)
def test_what_is_not_sent_is_said(tmp_path: pathlib.Path, server: str, user: str, warning: str) -> None:
    path = tmp_path / "config"
    path.write_text(kubeconfig_cases.config(f"server: '{server}'", user if user != "{}" else ""))
    [said] = load(tmp_path, KUBECONFIG=str(path)).warnings
    assert re.search(warning, said)


@pytest.mark.parametrize("field", ['token: "a\\nb"', 'as: "a\\r\\nX: y"', 'as: a, as-groups: ["b\\0"]'])
def test_no_header_has_a_line_end(tmp_path: pathlib.Path, field: str) -> None:
    path = tmp_path / "config"
    path.write_text(kubeconfig_cases.config(user=field))
    with pytest.raises(access.AccessError, match=r"a line end or control character in (Auth|Impersonate)"):
        load(tmp_path, KUBECONFIG=str(path))


@pytest.mark.parametrize(("expiry", "is_first"), [("2020-01-01T00:00:00Z", True), ("2100-01-01T00:00:00Z", False)])
def test_a_plugins_certificate_may_expire_first(tmp_path: pathlib.Path, expiry: str, is_first: bool) -> None:
    mine = authorities.issue("me", days=3)
    status = {
        "clientCertificateData": mine.pem.decode(),
        "clientKeyData": mine.key_pem.decode(),
        "expirationTimestamp": expiry,
    }
    (tmp_path / "printed").write_text(kubeconfig_cases.prints(json.dumps(status)).removeprefix("echo '")[:-1])
    path = tmp_path / "config"
    path.write_text(kubeconfig_cases.config(user=kubeconfig_cases.plugin(f"cat {tmp_path}/printed")))
    ends = datetime.datetime.fromisoformat(expiry) if is_first else mine.certificate.not_valid_after_utc
    assert load(tmp_path, KUBECONFIG=str(path)).expires_at == ends.timestamp()
