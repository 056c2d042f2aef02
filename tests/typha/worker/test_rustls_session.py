"""What both engines of TLS do alike, and where they differ: chains, names, versions, suites, groups, alerts."""

import collections
import concurrent.futures
import contextlib
import datetime
import pathlib
import random
import shutil
import socket
import ssl
import subprocess
import time
from collections.abc import Callable, Iterator
from typing import NamedTuple, TypeAlias

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from tests.harness import certificates, worker_stand
from tests.harness.certificates import AGENT, AGENT_URI, NOW, PEM, Files
from typha import clock
from typha.worker import rustls_session, tls, tls_session

Key: TypeAlias = ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey
DAY = datetime.timedelta(days=1)


class Issued(NamedTuple):
    """A certificate and its key."""

    certificate: x509.Certificate
    key: Key

    def pem(self) -> bytes:
        """The certificate."""
        return self.certificate.public_bytes(PEM)

    def key_pem(self) -> bytes:
        """The key."""
        return self.key.private_bytes(PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())


def issue(
    *names: str,
    by: Issued | None = None,
    key: Key | None = None,
    authority: bool | None = False,
    path_length: int | None = None,
    usages: tuple[x509.ObjectIdentifier, ...] = (),
    signs: bool | None = None,
    uris: tuple[str, ...] = (),
    begins: int = -9,
    ends: float = 9,
    more: tuple[x509.ExtensionType, ...] = (),
) -> Issued:
    """A certificate with these common names; by itself if no issuer is given.

    Args:
        by: the issuer.
        key: an EC key if None.
        authority: what its basic constraints say; None for a certificate without them.
        path_length: authorities that may follow below it.
        usages: extended usages.
        signs: key usage: keyCertSign or only keyAgreement; None for a certificate without it.
        uris: alternative names.
        begins, ends: its validity in days from now.
        more: other extensions.
    """
    key = key or ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name) for name in names])
    builder = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject if by is None else by.certificate.subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(NOW + begins * DAY)
        .not_valid_after(NOW + ends * DAY)
    )
    if authority is not None:
        builder = builder.add_extension(x509.BasicConstraints(authority, path_length), critical=True)
    if usages:
        builder = builder.add_extension(x509.ExtendedKeyUsage(usages), critical=False)
    if signs is not None:
        off = dict.fromkeys(("digital_signature", "content_commitment", "key_encipherment", "data_encipherment"), False)
        off |= dict.fromkeys(("crl_sign", "encipher_only", "decipher_only"), False)
        usage = x509.KeyUsage(key_agreement=not signs, key_cert_sign=signs, **off)
        builder = builder.add_extension(usage, critical=True)
    if uris:
        alternatives = x509.SubjectAlternativeName([x509.UniformResourceIdentifier(uri) for uri in uris])
        builder = builder.add_extension(alternatives, critical=False)
    for extension in more:
        builder = builder.add_extension(extension, critical=True)
    return Issued(builder.sign(key if by is None else by.key, hashes.SHA256()), key)


def leaf(*names: str, by: Issued | None, usage: x509.ObjectIdentifier = ExtendedKeyUsageOID.CLIENT_AUTH) -> Issued:
    """A usual certificate of an agent."""
    return issue(*names or (AGENT,), by=by, usages=(usage,))


ROOT = issue("root", authority=True)
OTHER = issue("other", authority=True)
MIDDLE = issue("middle", by=ROOT, authority=True, signs=True)
OLD = issue("old", authority=True, ends=-1)
FUTURE = issue("future", authority=True, begins=1)
SHORT = issue("short", authority=True, path_length=0)
SERVER_USAGE = ExtendedKeyUsageOID.SERVER_AUTH


class Connected(NamedTuple):
    """Both ends, and how the handshake has ended on the server's."""

    client: ssl.SSLObject
    session: tls_session.NewSession
    error: ssl.SSLError | None
    last_answer: bytes
    refusal: str
    """What the client heard."""
    incoming: ssl.MemoryBIO

    def resumable(self) -> ssl.SSLSession:
        """The client's session, once it has read the server's last words and a record."""
        self.incoming.write(self.session.seal(b"data"))
        assert self.client.read() == b"data"
        assert self.client.session is not None
        return self.client.session


def connect(
    settings: tls.ClientTls,
    context: ssl.SSLContext,
    *,
    contexts: tls.Contexts | None = None,
    resumed: ssl.SSLSession | None = None,
) -> Connected:
    """A handshake in memory, by `contexts` if they are given."""
    session = (contexts or tls.Contexts(settings)).make_session()
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    client = context.wrap_bio(incoming, outgoing, server_hostname="localhost", session=resumed)
    shaken = tls_session.Shaken(0, b"")
    is_done, refusal = False, ""
    while not (is_done and shaken.done) and shaken.error is None and not refusal:
        try:
            client.do_handshake()
            is_done = True
        except ssl.SSLWantReadError:
            pass
        except ssl.SSLError as error:
            refusal = error.reason or "refused"
        if said := outgoing.read():
            shaken = session.shake(said)
            assert shaken.error is not None or shaken.used_bytes == len(said)
            incoming.write(shaken.answer)
    if shaken.error is not None:
        try:
            client.do_handshake()
            client.read()
        except ssl.SSLError as error:
            refusal = error.reason or ""
    return Connected(client, session, shaken.error, shaken.answer, refusal, incoming)


def context_of(*chain: Issued, trusted: Files, version: ssl.TLSVersion = ssl.TLSVersion.TLSv1_3) -> ssl.SSLContext:
    """A client with this chain; without a certificate if there is none."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    trusted.authority.configure_trust(context)
    context.maximum_version = version
    if chain:
        context.set_ciphers("DEFAULT:@SECLEVEL=0")  # small keys
        path = trusted.folder / "client.pem"
        path.write_bytes(chain[0].key_pem() + b"".join(one.pem() for one in chain))
        context.load_cert_chain(path)
    return context


def trust(files: Files, *trusted: Issued) -> None:
    """Write the CA file."""
    files.renew("ca.pem", b"".join(one.pem() for one in trusted))


Chain: TypeAlias = Callable[[], tuple[Issued, ...]]

ACCEPTED: dict[str, tuple[tuple[Issued, ...], Chain]] = {
    "by the root": ((ROOT,), lambda: (leaf(by=ROOT),)),
    "by the second of the file": ((OTHER, ROOT), lambda: (leaf(by=ROOT),)),
    "RSA": ((ROOT,), lambda: (issue(AGENT, by=ROOT, key=rsa.generate_private_key(65537, 2048)),)),
    "P-384": ((ROOT,), lambda: (issue(AGENT, by=ROOT, key=ec.generate_private_key(ec.SECP384R1())),)),
    "without usages or constraints": ((ROOT,), lambda: (issue(AGENT, by=ROOT, authority=None),)),
    "an intermediate that the client sends": ((ROOT,), lambda: (leaf(by=MIDDLE), MIDDLE)),
    "the root in the chain as well": ((ROOT,), lambda: (leaf(by=ROOT), ROOT)),
    "four that have nothing to do with it": ((ROOT,), lambda: (leaf(by=ROOT), *[OTHER] * 4)),
    "an intermediate in the file, without its root": ((MIDDLE,), lambda: (leaf(by=MIDDLE),)),
    "an expired one in the file that is not needed": ((OLD, ROOT), lambda: (leaf(by=ROOT),)),
    "none below a path of length 0": ((SHORT,), lambda: (leaf(by=SHORT),)),
    "the last of two common names": ((ROOT,), lambda: (leaf("first", AGENT, by=ROOT),)),
    "one of two URIs": ((ROOT,), lambda: (issue("x", by=ROOT, uris=("spiffe://a", AGENT_URI)),)),
}


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
@pytest.mark.parametrize("case", ACCEPTED)
def test_certificates_that_both_accept(files: Files, case: str, version: ssl.TLSVersion) -> None:
    trusted, chain = ACCEPTED[case]
    trust(files, *trusted)
    settings = files.settings(uri_san=AGENT_URI)
    connected = connect(settings, context_of(*chain(), trusted=files, version=version))
    assert connected.error is None
    settings.check_peer(connected.session.certificate())
    assert connected.session.open(b"") == tls_session.Opened(b"", 0, b"")
    connected.client.write(b"hello")


REFUSED: dict[str, tuple[tuple[Issued, ...], Chain, str]] = {
    "none": ((ROOT,), tuple, "CERTIFICATE_REQUIRED"),
    "of another authority": ((ROOT,), lambda: (leaf(by=OTHER),), "UNKNOWN_CA"),
    "of another authority with the same name": (
        (ROOT,),
        lambda: (leaf(by=issue("root", authority=True)),),
        "UNKNOWN_CA|DECRYPT_ERROR|BAD_CERTIFICATE",
    ),
    "by itself": ((ROOT,), lambda: (leaf(by=None),), "UNKNOWN_CA"),
    "expired": ((ROOT,), lambda: (issue(AGENT, by=ROOT, ends=-1),), "CERTIFICATE_EXPIRED"),
    "not valid yet": ((ROOT,), lambda: (issue(AGENT, by=ROOT, begins=1),), "BAD_CERTIFICATE|CERTIFICATE_EXPIRED"),
    "for servers": ((ROOT,), lambda: (leaf(by=ROOT, usage=SERVER_USAGE),), "CERTIFICATE"),
    "by an authority that has expired": ((OLD,), lambda: (leaf(by=OLD),), "CERTIFICATE_EXPIRED"),
    "by an authority that is not valid yet": ((FUTURE,), lambda: (leaf(by=FUTURE),), "CERTIFICATE"),
    "too long a path": (
        (SHORT,),
        lambda: (leaf(by=(middle := issue("m", by=SHORT, authority=True))), middle),
        "UNKNOWN_CA|CERTIFICATE",
    ),
    "an intermediate without its issuer": (
        (ROOT,),
        lambda: (leaf(by=(m := issue("m", by=OTHER, authority=True))), m),
        "CA",
    ),
    "an intermediate that is not sent": ((ROOT,), lambda: (leaf(by=MIDDLE),), "UNKNOWN_CA"),
    "below a leaf": ((ROOT,), lambda: (leaf(by=(middle := issue("m", by=ROOT))), middle), "CA|CERTIFICATE"),
    "below one without constraints": (
        (ROOT,),
        lambda: (leaf(by=(middle := issue("m", by=ROOT, authority=None))), middle),
        "CA|CERTIFICATE",
    ),
    "below one that may not sign": (
        (ROOT,),
        lambda: (leaf(by=(middle := issue("m", by=ROOT, authority=True, signs=False))), middle),
        "CA|CERTIFICATE",
    ),
    "below one that has expired": (
        (ROOT,),
        lambda: (leaf(by=(middle := issue("m", by=ROOT, authority=True, ends=-1))), middle),
        "CERTIFICATE_EXPIRED",
    ),
    "below one for servers": (
        (ROOT,),
        lambda: (leaf(by=(m := issue("m", by=ROOT, authority=True, usages=(SERVER_USAGE,)))), m),
        "CERTIFICATE",
    ),
}


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
@pytest.mark.parametrize("case", REFUSED)
def test_certificates_that_both_refuse(files: Files, case: str, version: ssl.TLSVersion) -> None:
    trusted, chain, alert = REFUSED[case]
    trust(files, *trusted)
    connected = connect(files.settings(), context_of(*chain(), trusted=files, version=version))
    assert connected.error is not None
    assert any(part in connected.refusal for part in (*alert.split("|"), "HANDSHAKE_FAILURE")), connected.refusal


DIFFERENT: dict[str, tuple[Chain, str]] = {
    "a key only for other things, which Go accepts": (lambda: (issue(AGENT, by=ROOT, signs=True),), tls.RUSTLS),
    "a small key, which Go accepts": (
        lambda: (issue(AGENT, by=ROOT, key=rsa.generate_private_key(65537, 1024)),),
        tls.OPENSSL,
    ),
    "any usage, which Go accepts": (lambda: (leaf(by=ROOT, usage=ExtendedKeyUsageOID.ANY_EXTENDED_KEY_USAGE),), ""),
    "more than four certificates beside its own": (lambda: (leaf(by=ROOT), *[OTHER] * 5), tls.OPENSSL),
    "an authority as an agent, which Go accepts": (lambda: (issue(AGENT, by=ROOT, authority=True),), tls.OPENSSL),
}


@pytest.mark.parametrize("case", DIFFERENT)
def test_differences(files: Files, case: str) -> None:
    """Those of docs/operations.md, TLS for clients."""
    chain, accepting = DIFFERENT[case]
    trust(files, ROOT)
    connected = connect(files.settings(), context_of(*chain(), trusted=files))
    assert (connected.error is None) == (accepting == files.engine)


NOT_FOR_RUSTLS = {
    "is none of an authority": lambda: leaf(by=ROOT),
    "has no usage keyCertSign": lambda: issue("x", authority=True, signs=False),
    "has name constraints": lambda: issue(
        "x", authority=True, more=(x509.NameConstraints([x509.UniformResourceIdentifier("a")], None),)
    ),
}


@certificates.needs_rustls
@pytest.mark.parametrize("problem", NOT_FOR_RUSTLS)
def test_files_that_mean_something_else_to_rustls_are_for_openssl(tmp_path: pathlib.Path, problem: str) -> None:
    files = certificates.make(tmp_path, tls.AUTO)
    trust(files, ROOT, NOT_FOR_RUSTLS[problem]())
    reason = f"certificate 2 of the CA file {problem}"
    assert tls.make_engine(files.settings()).described()["not_rustls"] == reason
    with pytest.raises(tls.TlsUnusable, match=f"^TlsEngine rustls: {reason}$"):
        tls.make_engine(files._replace(engine=tls.RUSTLS).settings())
    assert connect(files.settings(), context_of(leaf(by=ROOT), trusted=files)).error is None


def test_without_the_module_it_is_openssl(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "typha_rustls", None)
    files = certificates.make(tmp_path, tls.AUTO)
    described = tls.make_engine(files.settings()).described()
    assert described["engine"] == tls.OPENSSL
    assert described["not_rustls"] == "the module typha_rustls is not installed"
    with pytest.raises(tls.TlsUnusable, match="is not installed"):
        tls.make_engine(files._replace(engine=tls.RUSTLS).settings())


OLD_AND_OWN = [name for name, known in tls.DEFAULT_CIPHER_SUITES.items() if known.endswith("SHA")]
AUTHENTICATED = [name for name in tls.DEFAULT_CIPHER_SUITES if name not in OLD_AND_OWN]


def server_with(files: Files, key: Key) -> None:
    """Replace the server's certificate by one of such a key."""
    signing = serialization.load_pem_private_key(files.authority.private_key_pem.bytes(), None)
    assert isinstance(signing, ec.EllipticCurvePrivateKey)
    authority = Issued(x509.load_pem_x509_certificate(files.authority.cert_pem.bytes()), signing)
    made = issue("s", by=authority, key=key, more=(x509.SubjectAlternativeName([x509.DNSName("localhost")]),))
    files.renew("server.pem", made.pem())
    files.renew("server.key", made.key_pem())


@pytest.mark.parametrize("name", tls.DEFAULT_CIPHER_SUITES)
def test_suites_of_the_default_list(files: Files, name: str) -> None:
    """rustls lacks the three with CBC."""
    if "RSA" in name.split("_WITH", maxsplit=1)[0]:
        server_with(files, rsa.generate_private_key(65537, 2048))
    context = certificates.client_context(files.authority)
    context.maximum_version = ssl.TLSVersion.TLSv1_2
    context.set_ciphers(tls.DEFAULT_CIPHER_SUITES[name])
    connected = connect(files.settings(), context)
    if name in OLD_AND_OWN and files.engine == tls.RUSTLS:
        assert connected.error is not None
        assert "HANDSHAKE_FAILURE" in connected.refusal
    else:
        assert connected.error is None
        [used, *_] = connected.client.cipher() or ("",)
        assert used == tls.DEFAULT_CIPHER_SUITES[name]


@certificates.needs_rustls
@pytest.mark.parametrize("name", [*OLD_AND_OWN, "TLS_RSA_WITH_AES_128_GCM_SHA256"])
def test_named_suites_that_rustls_lacks_are_for_openssl(tmp_path: pathlib.Path, name: str) -> None:
    files = certificates.make(tmp_path, tls.AUTO)
    named = tls.make_engine(files.settings(cipher_suites=f"{AUTHENTICATED[0]},{name}"))
    assert named.described()["not_rustls"] == f"TLS_CIPHER_SUITES: rustls does not have {name}"
    named = tls.make_engine(files.settings(cipher_suites=AUTHENTICATED[0]))
    newest = tls.make_engine(files.settings(cipher_suites=name, minimum_version="1.3"))
    for engine in (named, newest):
        assert engine.described() == {"engine": tls.RUSTLS, "differences": "docs/operations.md, TLS for clients"}
    assert tls.make_engine(files.settings()).described()["suites_not_offered"] == ",".join(OLD_AND_OWN)


def test_named_suites_are_the_only_ones(files: Files) -> None:
    settings = files.settings(cipher_suites="TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256")
    context = certificates.client_context(files.authority)
    context.maximum_version = ssl.TLSVersion.TLSv1_2
    assert (connect(settings, context).client.cipher() or "")[0] == "ECDHE-ECDSA-AES128-GCM-SHA256"
    context.set_ciphers("ECDHE-ECDSA-AES256-GCM-SHA384")
    assert connect(settings, context).error is not None


@pytest.mark.parametrize(("minimum", "version", "works"), [("1.2", 2, True), ("1.3", 2, False), ("1.3", 3, True)])
def test_versions(files: Files, minimum: str, version: int, works: bool) -> None:
    context = certificates.client_context(files.authority)
    context.maximum_version = ssl.TLSVersion.TLSv1_3 if version == 3 else ssl.TLSVersion.TLSv1_2
    connected = connect(files.settings(minimum_version=minimum), context)
    assert (connected.error is None) == works
    assert works or connected.refusal == "TLSV1_ALERT_PROTOCOL_VERSION"


@pytest.mark.filterwarnings("ignore:ssl.TLSVersion.TLSv1_1:DeprecationWarning")
def test_older_versions_are_refused(files: Files) -> None:
    context = certificates.client_context(files.authority)
    context.set_ciphers("DEFAULT:@SECLEVEL=0")
    context.minimum_version = context.maximum_version = ssl.TLSVersion.TLSv1_1
    assert connect(files.settings(), context).error is not None


@pytest.mark.parametrize("curve", ["X25519", "prime256v1", "secp384r1", "secp521r1"])
def test_groups(files: Files, curve: str) -> None:
    """rustls lacks P-521."""
    context = certificates.client_context(files.authority)
    context.set_ecdh_curve(curve)
    connected = connect(files.settings(), context)
    assert (connected.error is None) == (curve != "secp521r1" or files.engine == tls.OPENSSL)


VERSIONS = [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3]


def test_only_rustls_gives_a_ticket_and_one_is_enough(files: Files) -> None:
    """Agents get none, because they do not say that they could use it: tests/integration/test_gobpeer_tls.py."""
    connected = connect(files.settings(), certificates.client_context(files.authority))
    assert connected.client.version() == "TLSv1.3"
    assert (connected.last_answer != b"") == (files.engine == tls.RUSTLS)
    assert len(connected.last_answer) < 1_500  # two would be larger
    assert connected.resumable().has_ticket == (files.engine == tls.RUSTLS)


def resumes(files: Files, version: ssl.TLSVersion) -> bool:
    """OpenSSL resumes in TLS 1.2: Python's ssl cannot forbid that."""
    return files.engine == tls.RUSTLS or version is ssl.TLSVersion.TLSv1_2


@pytest.mark.parametrize("version", VERSIONS)
def test_a_session_that_is_resumed_keeps_its_names_and_ends_with_the_files(
    files: Files, version: ssl.TLSVersion
) -> None:
    settings = files.settings()
    contexts = tls.Contexts(settings)
    context = certificates.client_context(files.authority)
    context.maximum_version = version
    connected = connect(settings, context, contexts=contexts)
    for _ in range(3):  # each is made of the one before
        connected = connect(settings, context, contexts=contexts, resumed=connected.resumable())
        assert connected.error is None
        assert connected.client.session_reused == resumes(files, version)
        settings.check_peer(connected.session.certificate())
        with pytest.raises(tls.PeerRefused):
            files.settings(cn="another").check_peer(connected.session.certificate())
    files.write()
    contexts.refresh(10.0)
    renewed = connect(settings, context, contexts=contexts, resumed=connected.resumable())
    assert renewed.error is None
    assert not renewed.client.session_reused


def test_a_session_of_openssl_is_not_resumed_once_the_certificate_has_expired(files: Files) -> None:
    settings = files._replace(engine=tls.OPENSSL).settings()
    contexts = tls.Contexts(settings)
    context = certificates.client_context(files.authority)
    context.maximum_version = ssl.TLSVersion.TLSv1_2
    before = connect(settings, context, contexts=contexts).client.session
    in_ten_days = time.time_ns() + 10 * 86_400 * 10**9
    with clock.replaced(monotonic=time.monotonic, time_ns=lambda: in_ten_days):
        expired = connect(settings, context, contexts=contexts, resumed=before)
    assert "has expired" in str(expired.error)


def connect_briefly(
    settings: tls.ClientTls, contexts: Callable[[], tls.Contexts], make: Callable[[float], ssl.SSLContext]
) -> tuple[tls.Contexts, ssl.SSLContext, ssl.SSLSession]:
    """A session that begins before something expires. Returns after that: rustls knows no time but the machine's."""
    seconds = 1
    while True:
        ends = int(time.time()) + 1 + seconds
        context = make((ends - NOW.timestamp()) / DAY.total_seconds())
        made = contexts()
        connected = connect(settings, context, contexts=made)
        if connected.error is None:
            break
        seconds *= 2  # a busy machine
    resumable = connected.resumable()
    while time.time() < ends + 1.001:
        time.sleep(0.05)
    return made, context, resumable


@certificates.needs_rustls
@pytest.mark.parametrize("version", VERSIONS)
def test_a_ticket_of_rustls_is_as_none_once_the_agents_certificate_has_expired(
    tmp_path: pathlib.Path, version: ssl.TLSVersion
) -> None:
    files = certificates.make(tmp_path, tls.RUSTLS)
    trust(files, ROOT)
    settings = files.settings()

    def make(ends: float) -> ssl.SSLContext:
        return context_of(issue(AGENT, by=ROOT, ends=ends), trusted=files, version=version)

    contexts, context, before = connect_briefly(settings, lambda: tls.Contexts(settings), make)
    assert "expired" in str(connect(settings, context, contexts=contexts, resumed=before).error)
    renewed = leaf(by=ROOT)
    path = tmp_path / "client.pem"
    path.write_bytes(renewed.key_pem() + renewed.pem())
    context.load_cert_chain(path)
    connected = connect(settings, context, contexts=contexts, resumed=before)
    assert connected.error is None
    assert not connected.client.session_reused


@certificates.needs_rustls
def test_a_ticket_of_rustls_is_as_none_once_an_authority_has_expired(tmp_path: pathlib.Path) -> None:
    files = certificates.make(tmp_path, tls.RUSTLS)
    settings = files.settings()
    chain: list[Issued] = []

    def make(ends: float) -> ssl.SSLContext:
        brief = issue("brief", authority=True, ends=ends)
        trust(files, ROOT, brief)
        chain[:] = [leaf(by=brief)]
        return context_of(*chain, trusted=files)

    contexts, context, before = connect_briefly(settings, lambda: tls.Contexts(settings), make)
    assert "expired" in str(connect(settings, context, contexts=contexts, resumed=before).error)


def test_a_chain_that_was_valid_is_refused_when_its_time_is_over(files: Files) -> None:
    """rustls remembers which chains were valid."""
    trust(files, ROOT)
    contexts = tls.Contexts(files.settings())
    left_seconds, is_accepted = 2.0, False
    while not is_accepted:  # on a slow machine the time may be over before the first handshake
        ends_at = datetime.datetime.now(datetime.UTC) + datetime.timedelta(seconds=left_seconds)
        context = context_of(issue(AGENT, by=ROOT, ends=(ends_at - NOW) / DAY), trusted=files)
        is_accepted = connect(files.settings(), context, contexts=contexts).error is None
        left_seconds *= 2
    while datetime.datetime.now(datetime.UTC) < ends_at + datetime.timedelta(seconds=1):
        time.sleep(0.05)
    connected = connect(files.settings(), context, contexts=contexts)
    assert connected.error is not None
    assert "EXPIRED" in connected.refusal


def test_a_chain_that_was_valid_vouches_for_no_other_one(files: Files) -> None:
    """Neither for the same names and key signed by another, nor for a part of itself, nor with other files."""
    trust(files, ROOT)
    settings = files.settings()
    contexts = tls.Contexts(settings)
    key = ec.generate_private_key(ec.SECP256R1())
    good, forged = (issue(AGENT, by=authority, key=key) for authority in (ROOT, issue("root", authority=True)))
    below_leaf = leaf(by=good)
    for _ in range(2):
        assert connect(settings, context_of(good, trusted=files), contexts=contexts).error is None
        for chain in ((forged,), (below_leaf, good), (below_leaf,)):
            assert connect(settings, context_of(*chain, trusted=files), contexts=contexts).error is not None
    below = leaf(by=MIDDLE)
    assert connect(settings, context_of(below, MIDDLE, trusted=files), contexts=contexts).error is None
    assert connect(settings, context_of(below, trusted=files), contexts=contexts).error is not None
    trust(files, OTHER)
    contexts.refresh(clock.monotonic() + 10.0)
    assert connect(settings, context_of(good, trusted=files), contexts=contexts).error is not None


def test_names_that_are_no_agents(files: Files) -> None:
    trust(files, ROOT)
    for chain in ((leaf("calico", by=ROOT),), (leaf(AGENT, "last", by=ROOT),), (issue("x", by=ROOT, uris=("a",)),)):
        connected = connect(files.settings(uri_san=AGENT_URI), context_of(*chain, trusted=files))
        assert connected.error is None
        with pytest.raises(tls.PeerRefused):
            files.settings(uri_san=AGENT_URI).check_peer(connected.session.certificate())


@pytest.mark.parametrize("encoding", [x509.name._ASN1Type.UTF8String, x509.name._ASN1Type.BMPString])
def test_a_common_name_in_an_old_encoding(files: Files, encoding: x509.name._ASN1Type) -> None:
    """rustls reads text of one byte a character only. That is no defect: the connection ends as with a wrong name."""
    trust(files, ROOT)
    usual = leaf(by=ROOT)
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, AGENT, encoding)])
    builder = x509.CertificateBuilder(ROOT.certificate.subject, name, usual.key.public_key(), 7)
    builder = builder.not_valid_before(NOW - DAY).not_valid_after(NOW + DAY)
    chain = Issued(builder.sign(ROOT.key, hashes.SHA256()), usual.key)
    connected = connect(files.settings(), context_of(chain, trusted=files))
    assert connected.error is None
    if files.engine == tls.RUSTLS and encoding is x509.name._ASN1Type.BMPString:
        with pytest.raises(ssl.SSLError, match=r"^the peer's certificate cannot be read"):
            connected.session.certificate()
    else:
        files.settings().check_peer(connected.session.certificate())


@pytest.mark.skipif(
    shutil.which("openssl") is None, reason="openssl, which makes certificates of version 1, is missing"
)
def test_certificates_of_version_1(files: Files) -> None:
    """Of an authority both accept them; of an agent rustls does not, other than Go."""
    made = {}
    for name in ("root", AGENT):
        base = files.folder / name
        command = ["openssl", "req", "-new", "-nodes", "-newkey", "rsa:2048", "-subj", f"/CN={name}"]
        subprocess.run([*command, "-keyout", f"{base}.key", "-out", f"{base}.csr"], check=True, capture_output=True)
        signing = ["-signkey", f"{base}.key"]
        if name == AGENT:
            signing = [
                "-CA",
                str(files.folder / "root.pem"),
                "-CAkey",
                str(files.folder / "root.key"),
                "-set_serial",
                "7",
            ]
        command = ["openssl", "x509", "-req", "-in", f"{base}.csr", "-days", "2", *signing, "-out", f"{base}.pem"]
        subprocess.run(command, check=True, capture_output=True)
        key = serialization.load_pem_private_key((files.folder / f"{name}.key").read_bytes(), None)
        assert isinstance(key, rsa.RSAPrivateKey)
        made[name] = Issued(x509.load_pem_x509_certificate((files.folder / f"{name}.pem").read_bytes()), key)
        assert made[name].certificate.version is x509.Version.v1
    trust(files, made["root"])
    assert connect(files.settings(), context_of(leaf(by=made["root"]), trusted=files)).error is None
    old = connect(files.settings(), context_of(made[AGENT], trusted=files))
    assert (old.error is None) == (files.engine == tls.OPENSSL)


def pieces(source: random.Random, data: bytes) -> Iterator[bytes]:
    """The same bytes in pieces of any size."""
    while data:
        count = source.choice([1, 2, 5, 6, 60, len(data)])
        yield data[:count]
        data = data[count:]


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
@pytest.mark.parametrize("seed", range(5))
def test_pieces_of_any_size_and_data_right_after_the_handshake(
    files: Files, seed: int, version: ssl.TLSVersion
) -> None:
    """What follows the handshake is not used, so that it stays in the socket."""
    source = random.Random(seed)
    context = certificates.client_context(files.authority)
    context.maximum_version = version
    session = tls.Contexts(files.settings()).make_session()
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    client = context.wrap_bio(incoming, outgoing, server_hostname="localhost")
    shaken, told = tls_session.Shaken(0, b""), b"x" * 20_000
    is_told = False
    while not shaken.done:
        with contextlib.suppress(ssl.SSLWantReadError):
            client.do_handshake()
            if version is ssl.TLSVersion.TLSv1_3:  # with 1.2 the server has the last word
                client.write(told)
                is_told = True
        said = outgoing.read()
        while said and not shaken.done:
            count = source.choice([1, 2, 5, 6, 60, len(said)])
            shaken = session.shake(said[:count])
            assert shaken.error is None
            incoming.write(shaken.answer)
            said = said[shaken.used_bytes :]
    client.do_handshake()
    if not is_told:
        client.write(told)
    said += outgoing.read()
    heard = [session.open(piece) for piece in pieces(source, said)]
    assert b"".join(one.data for one in heard) == told
    assert [one.error for one in heard] == [None] * len(heard)
    answer = source.randbytes(40_000)
    for part in pieces(source, answer):
        incoming.write(session.seal(memoryview(part)))
    got = b""
    while len(got) < len(answer):
        got += client.read(1 << 16)
    assert got == answer
    incoming.write(session.end())
    assert client.read() == b""  # it would want more without the last record


def spoil(source: random.Random, data: bytes) -> bytes:
    """Some bytes changed, left out, repeated or added."""
    changed = bytearray(data)
    place = source.randrange(len(changed) + 1)
    match source.randrange(5):
        case 0 if place < len(changed):
            changed[place] ^= 1 << source.randrange(8)
        case 1:
            del changed[place : place + source.choice([1, 5, 100])]
        case 2:
            changed[place:place] = changed[place : place + source.choice([5, 50, 500])]
        case 3:
            changed[place:place] = source.choice(
                [b"\x14\x03\x03\x00\x01\x01", b"\x15\x03\x03\x00\x02\x01\x00", bytes(9)]
            )
        case _:
            changed[3:5] = source.choice([b"\x00\x00", b"\xff\xff", b"\x40\x01"])
    return bytes(changed)


@certificates.needs_rustls
@pytest.mark.parametrize(("descriptor", "piece_bytes"), [(-1, 100), (0, 0)])
def test_a_panic_of_rust_is_an_error_of_that_connection(
    tmp_path: pathlib.Path, descriptor: int, piece_bytes: int
) -> None:
    """Provoked by arguments that no code of ours passes: a closed socket, or data in pieces of no bytes."""
    files = certificates.make(tmp_path, tls.RUSTLS)
    contexts = tls.Contexts(files.settings())
    context = certificates.client_context(files.authority)
    broken, other = (connect(files.settings(), context, contexts=contexts) for _ in range(2))
    assert broken.session.send is not None
    with pytest.raises(RuntimeError, match=r"^a defect in rustls or in its binding$"):
        broken.session.send(descriptor, b"data", piece_bytes, 100)
    with pytest.raises(ssl.SSLError):
        broken.session.seal(b"data")
    assert broken.session.open(b"").error is not None
    assert broken.session.end() == b""
    assert other.resumable().has_ticket


@certificates.needs_rustls
def test_threads_that_use_one_session_at_once_get_errors(tmp_path: pathlib.Path) -> None:
    """The worker never does that: its loop leaves a connection alone whose handshake takes a step."""
    files = certificates.make(tmp_path, tls.RUSTLS)
    contexts = tls.Contexts(files.settings())
    context = certificates.client_context(files.authority)
    undeclared: list[BaseException] = []
    hello = worker_stand.client_hello(context)

    def use(sessions: list[rustls_session.Session], seed: int, descriptor: int) -> None:
        source = random.Random(seed)
        for _ in range(2_000):
            one = source.choice(sessions)
            try:
                match source.randrange(7):
                    case 0:
                        one.shake(hello)
                    case 1:
                        one.open(bytes(9))
                    case 2:
                        one.seal(b"data")
                    case 3:
                        one.certificate()
                    case 4:
                        one.send(descriptor, b"data", 2, 3)
                    case 5:
                        rustls_session.take_steps([(each, descriptor, hello) for each in sessions], step_bytes=99)
                    case _:
                        one.end()
            except ssl.SSLError:
                pass
            except BaseException as error:
                if "borrowed" not in str(error):
                    undeclared.append(error)

    near, far = socket.socketpair()
    with near, far, concurrent.futures.ThreadPoolExecutor(4) as pool:
        near.setblocking(False)
        for _ in range(10):
            made = [contexts.make_session() for _ in range(3)]
            sessions = [one for one in made if isinstance(one, rustls_session.Session)]
            assert len(sessions) == 3
            for used in [pool.submit(use, sessions, seed, near.fileno()) for seed in range(4)]:
                used.result()
    assert undeclared == []


@pytest.mark.slow
@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
@pytest.mark.parametrize("seed", range(4))
def test_changed_handshakes_and_records_are_errors_and_nothing_else(
    files: Files, seed: int, version: ssl.TLSVersion
) -> None:
    """No other exception, no data that was not sent, and nothing is sealed after an error."""
    source = random.Random(seed)
    context = certificates.client_context(files.authority)
    context.maximum_version = version
    contexts = tls.Contexts(files.settings())
    ended: collections.Counter[str] = collections.Counter()
    for _ in range(60):
        session = contexts.make_session()
        incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        client = context.wrap_bio(incoming, outgoing, server_hostname="localhost")
        spoilt = source.randrange(3)
        shaken = tls_session.Shaken(0, b"")
        for step in range(4):
            with contextlib.suppress(ssl.SSLError):
                client.do_handshake()
            said = outgoing.read()
            shaken = session.shake(spoil(source, said) if step == spoilt else said)
            incoming.write(shaken.answer)
            if shaken.done or shaken.error:
                break
        opened = tls_session.Opened(b"", 0, b"")
        if shaken.done:
            with contextlib.suppress(ssl.SSLError):
                client.do_handshake()
                for _ in range(3):
                    client.write(b"data")
                opened = session.open(spoil(source, outgoing.read()))
                assert opened.data in (b"", b"data", b"data" * 2, b"data" * 3)
        elif shaken.error is not None:
            with pytest.raises(ssl.SSLError):
                session.seal(b"x")
        ended["open" if shaken.done else "error" if shaken.error else "waiting"] += 1
        ended["broken"] += opened.error is not None
    assert min(ended["open"], ended["error"], ended["broken"]) > 0, ended
