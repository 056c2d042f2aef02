"""Trust by Go's rules, and the certificates and keys that can be used."""

import os
import pathlib
import ssl

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa

from cache.kube import tls_contexts
from tests.harness import authorities, trust_cases


@pytest.mark.parametrize("case", [pytest.param(case, id=case.name) for case in trust_cases.all_cases()])
def test_what_stands_in_the_file_is_trusted(case: trust_cases.Case) -> None:
    assert case.is_accepted_here() == case.is_accepted


def test_the_system_is_trusted_if_there_is_no_file_and_nobody_is_asked_if_not_verifying() -> None:
    context = tls_contexts.client_context()
    assert (context.verify_mode, context.check_hostname) == (ssl.CERT_REQUIRED, True)
    assert not context.verify_flags & ssl.VERIFY_X509_STRICT
    insecure = tls_contexts.client_context(verify=False)
    assert (insecure.verify_mode, insecure.check_hostname) == (ssl.CERT_NONE, False)


FORMS = {
    "PKCS #8": serialization.PrivateFormat.PKCS8,
    "traditional": serialization.PrivateFormat.TraditionalOpenSSL,
}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("kind", ["EC", "RSA"])
@pytest.mark.parametrize("label", ["", "PRIVATE KEY", "ANY PRIVATE KEY"])
def test_a_key_is_known_by_its_content(form: str, kind: str, label: str) -> None:
    key = rsa.generate_private_key(65537, 2048) if kind == "RSA" else ec.generate_private_key(ec.SECP256R1())
    mine = authorities.issue("me", key=key)
    text = mine.private(FORMS[form])
    if label:
        own = text.split(b"BEGIN ")[1].split(b"-----")[0]
        text = text.replace(own, label.encode())
    parameters = b"-----BEGIN EC PARAMETERS-----\nBggqhkjOPQMBBw==\n-----END EC PARAMETERS-----\n"
    comment = "# Schlüssel\n".encode("latin-1")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    tls_contexts.identify(context, comment + mine.pem, comment + parameters + text, "test")


@pytest.mark.parametrize("form", FORMS)
def test_an_encrypted_key_is_refused_and_nobody_is_asked_for_a_password(form: str) -> None:
    mine = authorities.issue("me")
    text = mine.private(FORMS[form], serialization.BestAvailableEncryption(b"secret"))
    with pytest.raises(tls_contexts.TlsUnusable, match=r"^test: the private key is encrypted, or is none$"):
        tls_contexts.identify(ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER), mine.pem, text, "test")


def test_nothing_is_written_and_no_descriptor_left(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TMPDIR", "/nonexistent")
    monkeypatch.chdir(tmp_path)
    mine = authorities.issue("me")
    before = os.listdir("/proc/self/fd")
    tls_contexts.identify(ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER), mine.pem, mine.key_pem, "test")
    with pytest.raises(tls_contexts.TlsUnusable):
        tls_contexts.identify(ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER), mine.pem, b"", "test")
    assert os.listdir("/proc/self/fd") == before
    assert not list(tmp_path.iterdir())
