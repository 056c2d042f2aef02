"""The kubeconfigs that the plugin reads, and those that it refuses."""

import base64
import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from clients.agents.cni import kubeconfig


def document(cluster: dict[str, Any] | None = None, user: dict[str, Any] | None = None) -> dict[str, Any]:
    return {
        "clusters": [{"name": "c", "cluster": {"server": "https://10.0.0.1:6443/", **(cluster or {})}}],
        "contexts": [{"name": "x", "context": {"cluster": "c", "user": "u"}}],
        "users": [{"name": "u", "user": user or {}}],
        "current-context": "x",
    }


@pytest.mark.parametrize("write", [json.dumps, yaml.safe_dump])
def test_json_and_yaml(tmp_path: Path, write: Any) -> None:
    path = tmp_path / "kubeconfig"
    path.write_text(write(document({"certificate-authority-data": base64.b64encode(b"PEM").decode()}, {"token": "t"})))
    access = kubeconfig.load(str(path))
    assert (access.server, access.authority, access.is_checked) == ("https://10.0.0.1:6443", "PEM", True)
    assert access.headers == {"Authorization": "Bearer t"}


def test_files_are_relative_to_the_kubeconfig(tmp_path: Path) -> None:
    (tmp_path / "ca.pem").write_text("PEM")
    (tmp_path / "token").write_text("t\n")
    user = {"tokenFile": "token", "client-certificate": "c.pem", "client-key": "k.pem"}
    (tmp_path / "kubeconfig").write_text(json.dumps(document({"certificate-authority": "ca.pem"}, user)))
    access = kubeconfig.load(str(tmp_path / "kubeconfig"))
    assert (access.authority, access.headers["Authorization"]) == ("PEM", "Bearer t")
    assert (access.certificate_file, access.key_file) == (str(tmp_path / "c.pem"), str(tmp_path / "k.pem"))


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        "a: [",
        json.dumps({**document(), "current-context": "none"}),
        json.dumps(document({"server": "ftp://x"})),
        json.dumps(document({"certificate-authority": "missing.pem"})),
        json.dumps(document(user={"exec": {"command": "x"}})),
        json.dumps(document(user={"client-key-data": "x"})),
        json.dumps(document(user={"token": "a\r\nHost: b"})),
        " " * (kubeconfig.MAX_FILE_BYTES + 1),
    ],
)
def test_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / "kubeconfig"
    path.write_text(text)
    with pytest.raises(kubeconfig.BadKubeconfig):
        kubeconfig.load(str(path))


def test_a_missing_file(tmp_path: Path) -> None:
    with pytest.raises(kubeconfig.BadKubeconfig):
        kubeconfig.load(str(tmp_path / "none"))
