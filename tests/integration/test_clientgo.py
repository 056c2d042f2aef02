"""Our reader of kubeconfigs, our PEM and our rules of trust beside client-go's own (tools/clientgo)."""

import base64
import json
import pathlib
import random
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from cache.kube import pem
from tests.harness import authorities, client_go, kubeconfig_cases, trust_cases

pytestmark = pytest.mark.go

SEED = 18
TEXTS = 2000
_ANSWER = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nConnection: close\r\n\r\n{}"


@pytest.mark.parametrize("case", [pytest.param(case, id=case.name) for case in kubeconfig_cases.all_cases()])
def test_client_go_agrees(case: kubeconfig_cases.Case, clientgo: str, tmp_path: pathlib.Path) -> None:
    environment = case.write(tmp_path)
    ours, theirs = client_go.ours(environment), client_go.theirs(clientgo, environment)
    if case.differs:
        assert bool(ours.error) != bool(theirs.error)
    elif theirs.error:
        assert ours.error, theirs
    else:
        assert ours == theirs


@pytest.mark.parametrize("provides", ["true", "false"])
@pytest.mark.parametrize("version", ["v1", "v1beta1"])
def test_plugins_get_the_same_description(clientgo: str, tmp_path: pathlib.Path, provides: str, version: str) -> None:
    group = f"client.authentication.k8s.io/{version}"
    script = kubeconfig_cases.prints_text('$(printf %s "$KUBERNETES_EXEC_INFO" | base64 -w 0)').replace(
        "/v1", f"/{version}"
    )
    cluster = (
        "server: 'https://h:6443/path/', tls-server-name: kube, certificate-authority: ca.crt, "
        "proxy-url: 'http://p:1', disable-compression: true, "
        "extensions: [{name: client.authentication.k8s.io/exec, extension: {a: [1, null]}}]"
    )
    user = kubeconfig_cases.plugin(script, version=group, more=f", provideClusterInfo: {provides}")
    environment = kubeconfig_cases.Case("", {}, {"config": kubeconfig_cases.config(cluster, user)}, {}).write(tmp_path)
    described = []
    for result in (client_go.ours(environment), client_go.theirs(clientgo, environment)):
        assert result.error == ""
        described.append(json.loads(base64.b64decode(dict(result.headers)["authorization"].removeprefix("Bearer "))))
    assert described[0] == described[1]
    assert ("cluster" in described[0]["spec"]) == (provides == "true")


def test_pem_is_read_as_go_reads_it(clientgo: str) -> None:
    source = random.Random(SEED)
    issued = authorities.issue("a")
    texts = [_mangled(source, [issued.pem, issued.key_pem]) for _ in range(TEXTS)]
    found = 0
    for text, answer in zip(texts, client_go.read_pem(clientgo, texts), strict=True):
        ours = [
            [base64.b64encode(b.type).decode(), b.has_headers, client_go.fingerprint(b.content)]
            for b in pem.blocks(text)
        ]
        assert ours == [[kind, headers != "0", content] for kind, headers, content in answer["blocks"]], text
        found += len(ours)
    assert found > TEXTS / 2


_PIECES = (
    *(
        b"-----BEGIN ",
        b"-----END ",
        b"-----",
        b"CERTIFICATE",
        b"\n",
        b"\r\n",
        b" ",
        b"\t",
        b":",
        b"a: b\n",
        b"=",
        b"AAAA",
    ),
    *(b"\xff", b"TRUSTED ", b"-----BEGIN X-----\n-----END X-----\n", b"-----BEGIN Y-----\na: b\n-----END Y-----\n"),
    *(b"-----BEGIN CERTIFICATE-----\n", b"\n-----END CERTIFICATE-----\n"),
)


def _mangled(source: random.Random, whole: list[bytes]) -> bytes:
    text = bytearray()
    for _ in range(source.randint(1, 6)):
        text += source.choice(whole if source.random() < 0.4 else _PIECES)
    for _ in range(source.choice([0, 0, 0, 1, 2, 4])):
        place = source.randrange(len(text) + 1)
        text[place : place + source.choice([0, 1, 1, 40])] = source.choice([*_PIECES, b"", b""])
    return bytes(text)


@pytest.mark.parametrize("case", [pytest.param(case, id=case.name) for case in trust_cases.all_cases()])
def test_client_go_trusts_the_same(case: trust_cases.Case, clientgo: str, tmp_path: pathlib.Path) -> None:
    (tmp_path / "ca.crt").write_bytes(case.authorities)
    name = "" if case.server_name == trust_cases.LOOPBACK else case.server_name
    with _serving(case) as port:
        cluster = (
            f"server: 'https://{trust_cases.LOOPBACK}:{port}', certificate-authority: ca.crt, tls-server-name: '{name}'"
        )
        (tmp_path / "config").write_text(kubeconfig_cases.config(cluster))
        [answer] = client_go.run(clientgo, "get", {"KUBECONFIG": str(tmp_path / "config")})
    assert ("status" in answer) == (case.is_accepted or bool(case.differs)), answer


@contextmanager
def _serving(case: trust_cases.Case) -> Iterator[int]:
    """A server that answers one request."""
    context = trust_cases.server_context(case.chain)

    def answer() -> None:
        try:
            with listener.accept()[0] as accepted, context.wrap_socket(accepted, server_side=True) as secured:
                secured.recv(4096)
                secured.sendall(_ANSWER)
        except OSError:  # the client has refused the certificate, or never came
            return

    with socket.create_server((trust_cases.LOOPBACK, 0)) as listener:
        thread = threading.Thread(target=answer)
        thread.start()
        try:
            yield listener.getsockname()[1]
        finally:
            listener.shutdown(socket.SHUT_RDWR)
            thread.join()
