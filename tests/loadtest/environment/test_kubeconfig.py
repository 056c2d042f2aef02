"""Tests of loadtest.environment.kubeconfig."""

import base64
import json
import ssl
from pathlib import Path
from typing import Any

import pytest
import trustme

from loadtest.environment import kubeconfig


def write(folder: Path, *, user: dict[str, Any], cluster: dict[str, Any] | None = None) -> Path:
    path = folder / "config"
    config = {
        "current-context": "there",
        "contexts": [{"name": "there", "context": {"cluster": "c", "user": "u"}}],
        "clusters": [{"name": "c", "cluster": {"server": "https://example.com:6443/", **(cluster or {})}}],
        "users": [{"name": "u", "user": user}],
    }
    path.write_text(json.dumps(config))
    return path


async def test_tokens_and_basic_authentication(tmp_path: Path) -> None:
    access = await kubeconfig.load(write(tmp_path, user={"token": "secret"}))
    assert (access.server, access.context) == ("https://example.com:6443", "there")
    assert access.headers == {"Authorization": "Bearer secret"}
    (tmp_path / "token").write_text("from a file\n")
    assert (await kubeconfig.load(write(tmp_path, user={"tokenFile": "token"}))).headers == {
        "Authorization": "Bearer from a file"
    }
    headers = (await kubeconfig.load(write(tmp_path, user={"username": "me", "password": "pw"}))).headers
    assert headers == {"Authorization": f"Basic {base64.b64encode(b'me:pw').decode()}"}


async def test_client_certificates_and_authorities(tmp_path: Path) -> None:
    authority = trustme.CA()
    certificate = authority.issue_cert("agent")
    key = certificate.private_key_pem.bytes()
    chain = certificate.cert_chain_pems[0].bytes()
    (tmp_path / "ca.crt").write_bytes(authority.cert_pem.bytes())
    user = {
        "client-certificate-data": base64.b64encode(chain).decode(),
        "client-key-data": base64.b64encode(key).decode(),
    }
    access = await kubeconfig.load(write(tmp_path, user=user, cluster={"certificate-authority": "ca.crt"}))
    assert access.tls is not None
    assert access.tls.verify_mode == ssl.CERT_REQUIRED
    assert len(access.tls.get_ca_certs()) == 1
    assert access.headers == {}
    insecure = (await kubeconfig.load(write(tmp_path, user={}, cluster={"insecure-skip-tls-verify": True}))).tls
    assert insecure is not None
    assert insecure.verify_mode == ssl.CERT_NONE


async def test_credential_plugins(tmp_path: Path) -> None:
    plugin = tmp_path / "plugin"
    about = '{"apiVersion": "client.authentication.k8s.io/v1", "kind": "ExecCredential", "status": {"token": "%s"}}'
    plugin.write_text(
        '#!/bin/sh\ncase "$KUBERNETES_EXEC_INFO" in *ExecCredential*) ;; *) exit 1 ;; esac\n'
        f"printf '{about}' \"$WHO-$1\"\n"
    )
    plugin.chmod(0o755)
    given = {
        "apiVersion": "client.authentication.k8s.io/v1",
        "command": str(plugin),
        "args": ["x"],
        "env": [{"name": "WHO", "value": "me"}],
    }
    assert (await kubeconfig.load(write(tmp_path, user={"exec": given}))).headers == {"Authorization": "Bearer me-x"}
    plugin.write_text("#!/bin/sh\nexit 3\n")
    with pytest.raises(kubeconfig.KubeconfigError, match="exec: process returned 3"):
        await kubeconfig.load(write(tmp_path, user={"exec": given}))


@pytest.mark.parametrize("content", ["", "[]", "{", '{"current-context": "x", "contexts": []}'])
async def test_a_broken_file_is_named(tmp_path: Path, content: str) -> None:
    path = tmp_path / "config"
    path.write_text(content)
    with pytest.raises(kubeconfig.KubeconfigError, match=str(path)):
        await kubeconfig.load(path)
    with pytest.raises(kubeconfig.KubeconfigError):
        await kubeconfig.load(tmp_path / "missing")


async def test_what_is_written_can_be_loaded(tmp_path: Path) -> None:
    kubeconfig.write(tmp_path / "config", "http://127.0.0.1:1234")
    access = await kubeconfig.load(tmp_path / "config")
    assert (access.server, access.headers, access.tls) == ("http://127.0.0.1:1234", {}, None)
