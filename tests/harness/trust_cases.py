"""Files of authorities and certificates of servers, with what Go says about them."""

import base64
import functools
import ipaddress
import ssl
from typing import NamedTuple

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.x509.oid import ExtendedKeyUsageOID

from cache.kube import tls_contexts
from tests.harness.authorities import SERVER_AUTH, Issued, issue

LOOPBACK = "127.0.0.1"


class Case(NamedTuple):
    """A client trusts a file, and meets a server."""

    name: str
    is_accepted: bool
    authorities: bytes
    chain: tuple[Issued, ...]
    server_name: str = LOOPBACK
    differs: str = ""
    """Why Go accepts what is refused here."""

    def is_accepted_here(self) -> bool:
        """Whether our client shakes hands with the server. In memory."""
        try:
            client = tls_contexts.client_context(authorities=self.authorities, source="test")
            incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
            ends = (
                client.wrap_bio(incoming, outgoing, server_hostname=self.server_name),
                server_context(self.chain).wrap_bio(outgoing, incoming, server_side=True),
            )
            for end in ends * 3:
                try:
                    end.do_handshake()
                except ssl.SSLWantReadError:
                    continue
        except (ssl.SSLError, tls_contexts.TlsUnusable):
            return False
        return True


def server_context(chain: tuple[Issued, ...]) -> ssl.SSLContext:
    """The context of a server with any certificate."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.set_ciphers("DEFAULT:@SECLEVEL=0")
    tls_contexts.identify(context, b"".join(one.pem for one in chain), chain[0].key_pem, "test")
    return context


def _usage(**used: bool) -> x509.KeyUsage:
    names = "digital_signature content_commitment key_encipherment data_encipherment key_agreement key_cert_sign"
    unused = dict.fromkeys([*names.split(), "crl_sign", "encipher_only", "decipher_only"], False)
    return x509.KeyUsage(**(unused | used))


@functools.cache
def all_cases() -> tuple[Case, ...]:
    """All of them."""
    return (*_chains(), *_names(), *_files())


@functools.cache
def _known() -> tuple[Issued, Issued, Issued, Issued]:
    root = issue("root")
    intermediate = issue("intermediate", root)
    return (
        root,
        intermediate,
        issue("leaf", intermediate, is_authority=None, names=here(), usages=[SERVER_AUTH]),
        issue("x"),
    )


def here() -> list[x509.GeneralName]:
    """The names of this machine."""
    return [x509.DNSName("localhost"), x509.IPAddress(ipaddress.ip_address(LOOPBACK))]


def _chains() -> list[Case]:
    root, intermediate, leaf, other = _known()
    self_signed = issue("self", is_authority=None, names=here())
    weak = issue("weak", key=rsa.generate_private_key(65537, 1024))
    cases = [
        Case("root, chain sent", True, root.pem, (leaf, intermediate)),
        Case("root, no chain sent", False, root.pem, (leaf,)),
        Case("intermediate only", True, intermediate.pem, (leaf,)),
        Case("intermediate only, chain sent", True, intermediate.pem, (leaf, intermediate)),
        Case("intermediate only, root sent too", True, intermediate.pem, (leaf, intermediate, root)),
        Case("the certificate itself", True, leaf.pem, (leaf,)),
        Case("self-signed", True, self_signed.pem, (self_signed,)),
        Case("another authority", False, other.pem, (leaf, intermediate)),
        Case("authority twice", True, root.pem + root.pem, (leaf, intermediate)),
        Case("two of one name", True, root.pem + issue("root").pem, (leaf, intermediate)),
    ]
    key_usage = _usage(key_cert_sign=True, crl_sign=True)
    self_ca = issue("self-ca", names=here(), key_usage=key_usage)
    differs = "OpenSSL checks the key usage of servers"
    cases.append(Case("self-signed authority as server", False, self_ca.pem, (self_ca,), differs=differs))
    issuers = {
        "no basic constraints": (issue("a", is_authority=None), False),
        "not an authority": (issue("a", is_authority=False), False),
        "no key usage to sign": (issue("a", key_usage=_usage(digital_signature=True)), False),
        "expired": (issue("a", days=-1), False),
        "intermediate that has expired": (issue("a", root, days=-1), False),
        "1,024 bits": (weak, True),
        "2,048 bits": (issue("a", key=rsa.generate_private_key(65537, 2048)), True),
        "for clients only": (issue("a", usages=[ExtendedKeyUsageOID.CLIENT_AUTH]), False),
        "for other names": (issue("a", extensions=[x509.NameConstraints([x509.DNSName("other")], None)]), False),
    }
    for name, (issuer, is_accepted) in issuers.items():
        server = issue("leaf", issuer, is_authority=None, names=here())
        cases.append(Case(f"authority: {name}", is_accepted, issuer.pem, (server,)))
    any_usage, data = ExtendedKeyUsageOID.ANY_EXTENDED_KEY_USAGE, _usage(data_encipherment=True)
    leaves = {
        "expired": (issue("l", root, is_authority=None, names=here(), days=-1), False, ""),
        "for clients": (
            issue("l", root, is_authority=None, usages=[ExtendedKeyUsageOID.CLIENT_AUTH], names=here()),
            False,
            "",
        ),
        "for anything": (
            issue("l", root, is_authority=None, names=here(), usages=[any_usage]),
            False,
            "OpenSSL wants serverAuth by name",
        ),
        "for data": (issue("l", root, is_authority=None, names=here(), key_usage=data), False, differs),
        "key agreement": (
            issue("l", root, is_authority=None, names=here(), key_usage=_usage(key_agreement=True)),
            True,
            "",
        ),
        "1,024 bits": (
            issue("l", root, is_authority=None, names=here(), key=rsa.generate_private_key(65537, 1024)),
            True,
            "",
        ),
    }
    return cases + [
        Case(f"server: {name}", is_accepted, root.pem, (one,), differs=differs)
        for name, (one, is_accepted, differs) in leaves.items()
    ]


def _names() -> list[Case]:
    root = _known()[0]
    dns = x509.DNSName
    cases: list[tuple[str, list[x509.GeneralName], str, bool, str]] = [
        ("common name only", [], "localhost", False, ""),
        ("common name and address", [], LOOPBACK, False, ""),
        ("address as a name", [dns(LOOPBACK)], LOOPBACK, False, ""),
        ("address", [x509.IPAddress(ipaddress.ip_address("10.0.0.1"))], "10.0.0.1", True, ""),
        ("other name", [dns("localhost")], LOOPBACK, False, ""),
        ("other case", [dns("KUBE.Example.com")], "kube.EXAMPLE.com", True, ""),
        ("star", [dns("*.example.com")], "a.example.com", True, ""),
        ("star for two", [dns("*.example.com")], "a.b.example.com", False, ""),
        ("star for none", [dns("*.example.com")], "example.com", False, ""),
        ("part of a label", [dns("k*.example.com")], "kube.example.com", False, ""),
        ("star alone", [dns("*")], "localhost", False, ""),
        ("star and one label", [dns("*.local")], "kube.local", False, "OpenSSL wants two labels after a star"),
        ("underscore", [dns("my_host.local")], "my_host.local", True, ""),
    ]
    return [
        Case(
            f"name: {name}",
            is_accepted,
            root.pem,
            (issue(asked[:60], root, is_authority=None, names=names),),
            asked,
            differs,
        )
        for name, names, asked, is_accepted, differs in cases
    ]


def _files() -> list[Case]:
    root, intermediate, leaf, other = _known()
    begin, end = b"-----BEGIN CERTIFICATE-----\n", b"\n-----END CERTIFICATE-----\n"
    umlauts = "# Größe\n"
    texts = {
        "comment in UTF-8": (umlauts.encode() + root.pem, True),
        "comment in Latin-1": (umlauts.encode("latin-1") + root.pem, True),
        "BOM": (b"\xef\xbb\xbf" + root.pem, False),
        "BOM before another": (b"\xef\xbb\xbf" + other.pem + root.pem, True),
        "CRLF": (root.pem.replace(b"\n", b"\r\n"), True),
        "CR only": (root.pem.replace(b"\n", b"\r"), False),
        "trailing blanks": (root.pem.replace(b"\n", b" \t\n"), True),
        "indented": (root.pem.replace(b"\n", b"\n  "), False),
        "one long line": (begin + base64.b64encode(root.der) + end, True),
        "no line end at the end": (root.pem.rstrip(), True),
        "TRUSTED CERTIFICATE": (root.pem.replace(b"CERTIFICATE", b"TRUSTED CERTIFICATE"), False),
        "X509 CERTIFICATE": (root.pem.replace(b"CERTIFICATE", b"X509 CERTIFICATE"), False),
        "headers": (begin + b"a: b\n\n" + base64.encodebytes(root.der).rstrip() + end, False),
        "key among them": (root.key_pem + root.pem, True),
        "broken one among them": (other.pem[:90] + b"!!" + other.pem[90:] + root.pem + b"-----BEGIN", True),
        "not a certificate among them": (begin + b"aGVsbG8=" + end + root.pem, True),
        "DER of something else among them": (begin + b"MAMCAQE=" + end + root.pem, True),
        "data after the certificate": (begin + base64.encodebytes(root.der + b"\0").rstrip() + end, False),
        "text before BEGIN": (b"x" + root.pem, False),
        "text after END": (root.pem.rstrip() + b" x\n", False),
        "zero bytes": (b"\0\0\n" + root.pem, True),
        "DER": (root.der, False),
        "text": (b"hello", False),
    }
    return [Case(f"file: {name}", good, text, (leaf, intermediate)) for name, (text, good) in texts.items()]
