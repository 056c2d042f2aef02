"""Which clients may connect, with which ciphers and versions, and files that cannot be used."""

import asyncio
import os
import ssl

import pytest
import trustme
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

from cache.kube import tls_contexts
from tests.harness import certificates, tls_probe, worker_stand
from typha import settings
from typha.worker import tls

CERTIFICATE = {
    "subject": ((("countryName", "NL"),), (("commonName", "first"),), (("commonName", "calico-node"),)),
    "subjectAltName": (("DNS", "node"), ("URI", "spiffe://a/b"), ("URI", "spiffe://c")),
}


@pytest.mark.parametrize(
    ("cn", "uri_san"),
    [("calico-node", ""), ("calico-node", "spiffe://x"), ("other", "spiffe://c"), ("", "spiffe://a/b")],
)
def test_one_of_the_names_is_enough(files: certificates.Files, cn: str, uri_san: str) -> None:
    files.settings(cn=cn, uri_san=uri_san).check_peer(CERTIFICATE)


@pytest.mark.parametrize(
    ("cn", "uri_san", "required"),
    [
        ("calico", "", "CN"),
        ("first", "", "CN"),
        ("CALICO-NODE", "", "CN"),
        ("", "spiffe://a/b/", "URI SAN"),
        ("", "node", "URI SAN"),
        ("spiffe://c", "calico-node", "CN or URI SAN"),
    ],
)
def test_names_are_compared_whole(files: certificates.Files, cn: str, uri_san: str, required: str) -> None:
    with pytest.raises(tls.PeerRefused) as caught:
        files.settings(cn=cn, uri_san=uri_san).check_peer(CERTIFICATE)
    assert str(caught.value) == (
        f"peer certificate does not have the required {required}, but 'calico-node, spiffe://a/b, spiffe://c'"
    )


def test_a_certificate_without_names_is_refused(files: certificates.Files) -> None:
    with pytest.raises(tls.PeerRefused):
        files.settings().check_peer({})


def test_the_context_is_mutual_and_modern(files: certificates.Files) -> None:
    context = files.settings().make_context()
    assert context.verify_mode is ssl.CERT_REQUIRED
    assert context.minimum_version is ssl.TLSVersion.TLSv1_2
    assert context.num_tickets == 0
    assert context.options & ssl.OP_NO_RENEGOTIATION
    older = {cipher["name"] for cipher in context.get_ciphers() if cipher["protocol"] != "TLSv1.3"}
    assert older == set(tls.DEFAULT_CIPHER_SUITES.values())


@pytest.mark.parametrize(
    ("text", "version"),
    [("", ssl.TLSVersion.TLSv1_2), ("1.2", ssl.TLSVersion.TLSv1_2), ("1.3", ssl.TLSVersion.TLSv1_3)],
)
def test_the_minimum_version(files: certificates.Files, text: str, version: ssl.TLSVersion) -> None:
    assert files.settings(minimum_version=text).make_context().minimum_version is version


def test_chosen_suites() -> None:
    names = "TLS_RSA_WITH_AES_128_GCM_SHA256, TLS_ECDHE_RSA_WITH_AES_256_GCM_SHA384,"
    assert tls.cipher_list(names) == "AES128-GCM-SHA256:ECDHE-RSA-AES256-GCM-SHA384"
    assert tls.cipher_list(" ,") == tls.cipher_list("")
    with pytest.raises(tls_contexts.TlsUnusable, match=r"^TLS_CIPHER_SUITES: unknown cipher suite 'AES128-SHA'$"):
        tls.cipher_list("TLS_RSA_WITH_AES_128_GCM_SHA256,AES128-SHA")


def configured(files: certificates.Files) -> settings.Settings:
    """Settings of a service with TLS."""
    return settings.Settings(
        server_key_file=str(files.folder / "server.key"),
        server_cert_file=str(files.folder / "server.pem"),
        ca_file=str(files.folder / "ca.pem"),
        client_cn="a",
        client_urisan="b",
        tls_engine=files.engine,
    )


def test_settings_and_environment_say_what_is_used(files: certificates.Files) -> None:
    environment = {"TLS_MIN_VERSION": "1.3", "TLS_CIPHER_SUITES": "x"}
    assert tls.from_settings(settings.Settings(), environment) is None
    assert tls.check(settings.Settings(), environment) == ()
    asked = files.settings(cn="a", uri_san="b", minimum_version="1.3", cipher_suites="x")
    assert tls.from_settings(configured(files), environment) == asked


def test_an_unknown_version_is_reported_and_replaced(files: certificates.Files) -> None:
    used, notice = tls.check(configured(files), {"TLS_MIN_VERSION": "1.1"})
    assert used.fields["engine"] == files.engine
    assert (notice.level, notice.fields["value"], notice.fields["used"]) == ("warning", "1.1", "1.2")
    assert tls.check(configured(files), {}) == (used,)


@pytest.mark.parametrize(
    ("name", "content", "culprit"),
    [
        ("server.key", b"", "ServerCertFile"),
        ("server.pem", b"nonsense", "ServerCertFile"),
        ("server.pem", None, "ServerCertFile"),
        ("ca.pem", b"nonsense", "CAFile"),
        ("ca.pem", None, "CAFile"),
    ],
)
def test_files_that_cannot_be_used_are_named(
    files: certificates.Files, name: str, content: bytes | None, culprit: str
) -> None:
    path = files.folder / name
    path.unlink() if content is None else path.write_bytes(content)
    with pytest.raises(settings.ConfigurationError, match=f"^{culprit} {files.folder}") as caught:
        tls.check(configured(files), {})
    assert "\n" not in str(caught.value)


def test_a_key_of_another_certificate_and_an_encrypted_one(files: certificates.Files) -> None:
    trustme.CA().issue_cert("other").private_key_pem.write_to_path(files.folder / "server.key")
    with pytest.raises(tls_contexts.TlsUnusable, match=r"(?i)key"):
        files.settings().make_context()
    key = ec.generate_private_key(ec.SECP256R1())
    encryption = serialization.BestAvailableEncryption(b"secret")
    (files.folder / "server.key").write_bytes(
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, encryption)
    )
    with pytest.raises(tls_contexts.TlsUnusable, match=r"^ServerCertFile"):
        files.settings().make_context()


def test_an_unknown_suite_ends_the_start(files: certificates.Files) -> None:
    with pytest.raises(settings.ConfigurationError, match=r"^TLS_CIPHER_SUITES: unknown cipher suite 'RC4'$"):
        tls.check(configured(files), {"TLS_CIPHER_SUITES": "RC4"})


def test_changed_files_are_read_again_and_broken_ones_are_not_used(files: certificates.Files) -> None:
    contexts = tls.Contexts(files.settings())
    first = contexts.current
    contexts.refresh(10.0)
    assert contexts.current is first
    files.write()
    contexts.refresh(11.0)
    assert contexts.current is first  # the last check was too recent
    contexts.refresh(13.0)
    second = contexts.current
    assert second is not first
    (files.folder / "server.pem").write_text("half a certif")
    for now in (16.0, 19.0, 22.0):
        contexts.refresh(now)
    assert (contexts.current, contexts.failures) == (
        second,
        1,
    )  # one failure, however often it is checked
    os.unlink(files.folder / "ca.pem")
    contexts.refresh(25.0)
    assert (contexts.current, contexts.failures) == (second, 2)
    files.write()
    contexts.refresh(28.0)
    assert contexts.current not in (first, second)
    assert contexts.failures == 2


@pytest.mark.slow
@pytest.mark.parametrize(
    ("environment", "version", "suites"),
    [
        ({"minimum_version": "1.3"}, tls_probe.TLS_1_3, [0x1301, 0x1302, 0x1303]),
        ({"cipher_suites": "TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256"}, tls_probe.TLS_1_2, [0xC02B]),
    ],
)
async def test_variables_leave_less(
    files: certificates.Files, environment: dict[str, str], version: int, suites: list[int]
) -> None:
    settings = files.settings(**environment)
    async with worker_stand.WorkerStand(worker_stand.FAST, client_tls=settings).running() as stage:
        spoken = await asyncio.to_thread(tls_probe.ask, stage.address)
    assert spoken.versions[0] == version
    assert spoken.suites[version] == suites
    assert spoken.suites[tls_probe.TLS_1_3] == [0x1301, 0x1302, 0x1303]  # the variable is about TLS 1.2 only, as in Go
