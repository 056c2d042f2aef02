"""Which versions, suites and groups each engine speaks: docs/operations.md says it, and so does the running worker."""

import asyncio
import pathlib
import re
import ssl
from typing import Final

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa

from tests.harness import certificates, tls_probe, worker_stand
from tests.harness.repository import ROOT
from tests.harness.tls_probe import TLS_1_2, TLS_1_3, Spoken
from typha.worker import tls

PAGE: Final = ROOT / "docs" / "operations.md"
BEGIN, END = "<!-- begin versions, suites and groups -->\n", "<!-- end versions, suites and groups -->\n"
MEASURED_OPENSSL: Final = (3, 0)
"""Others have other groups."""
ORIGINAL: Final = Spoken(
    [TLS_1_2, TLS_1_3],
    {
        TLS_1_2: [0xC00A, 0xC013, 0xC014, 0xC02B, 0xC02C, 0xC02F, 0xC030, 0xCCA8, 0xCCA9],
        TLS_1_3: [0x1301, 0x1302, 0x1303],
    },
    {TLS_1_2: [23, 24, 25, 29], TLS_1_3: [23, 24, 25, 29, 4587, 4588, 4589]},
)
"""What `tests.harness.tls_probe` said of the original, with a server's key of each kind."""


def use_rsa(files: certificates.Files) -> None:
    """The server gets a key of that kind."""
    key = rsa.generate_private_key(65537, 2048)
    issued = files.authority.issue_cert("localhost", common_name="typha-server")
    before = x509.load_pem_x509_certificate(issued.cert_chain_pems[0].bytes())
    signing = serialization.load_pem_private_key(files.authority.private_key_pem.bytes(), None)
    assert isinstance(signing, ec.EllipticCurvePrivateKey)
    builder = x509.CertificateBuilder(
        issuer_name=before.issuer,
        subject_name=before.subject,
        public_key=key.public_key(),
        serial_number=7,
        not_valid_before=before.not_valid_before_utc,
        not_valid_after=before.not_valid_after_utc,
        extensions=[one for one in before.extensions if isinstance(one.value, x509.SubjectAlternativeName)],
    )
    files.renew("server.pem", builder.sign(signing, hashes.SHA256()).public_bytes(certificates.PEM))
    form, plain = serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    files.renew("server.key", key.private_bytes(certificates.PEM, form, plain))


def merged(first: Spoken, second: Spoken) -> Spoken:
    """What is spoken with a key of either kind."""
    assert first.versions == second.versions
    suites, groups = (
        {version: sorted({*one[version], *other[version]}) for version in first.versions}
        for one, other in ((first.suites, second.suites), (first.groups, second.groups))
    )
    return Spoken(first.versions, suites, groups)


async def spoken_by(folder: pathlib.Path, engine: str) -> Spoken:
    """Ask a worker with a server's key of each kind."""
    found = []
    for kind in ("ec", "rsa"):
        (folder / kind).mkdir(parents=True)
        files = certificates.make(folder / kind, engine)
        if kind == "rsa":
            use_rsa(files)
        async with worker_stand.WorkerStand(worker_stand.FAST, client_tls=files.settings()).running() as stage:
            found.append(await asyncio.to_thread(tls_probe.ask, stage.address))
            assert set(stage.disconnects) <= {"tls-failed", "client-closed"}
    return merged(*found)


def table(columns: dict[str, Spoken]) -> str:
    """As on the page."""

    def row(name: str, cells: list[str]) -> str:
        return f"| {' | '.join([name, *[cell or '-' for cell in cells]])} |\n"

    def versions(taken: dict[int, list[int]], one: int) -> str:
        return ", ".join(tls_probe.VERSIONS[version] for version in (TLS_1_2, TLS_1_3) if one in taken.get(version, []))

    lines = row("", list(columns)) + "|---" * (1 + len(columns)) + "|\n"
    kinds = [
        (tls_probe.NEW_SUITES | tls_probe.OLD_SUITES, [spoken.suites for spoken in columns.values()]),
        (tls_probe.GROUPS, [spoken.groups for spoken in columns.values()]),
    ]
    for known, taken in kinds:
        for number, name in known.items():
            if any(cells := [versions(one, number) for one in taken]):
                lines += row(f"`{name}`" if name.startswith("TLS_") else name, cells)
    return lines


def page_table() -> str:
    """What the page says."""
    [found] = re.findall(re.escape(BEGIN) + "(.*)" + re.escape(END), PAGE.read_text(), re.DOTALL)
    return str(found)


@pytest.mark.slow
@pytest.mark.skipif(ssl.OPENSSL_VERSION_INFO[:2] != MEASURED_OPENSSL, reason="the page has the groups of OpenSSL 3.0")
@certificates.needs_rustls
async def test_the_page_says_what_is_spoken(tmp_path: pathlib.Path) -> None:
    """Every version that there is, with every suite and group. If it fails: the text that is expected is the table."""
    by_openssl = await spoken_by(tmp_path / "ssl", tls.OPENSSL)
    by_rustls = await spoken_by(tmp_path / "rustls", tls.RUSTLS)
    assert by_openssl.versions == by_rustls.versions == ORIGINAL.versions
    assert by_openssl.suites == ORIGINAL.suites
    columns = {"OpenSSL 3.0": by_openssl, "rustls": by_rustls, "the original": ORIGINAL}
    assert page_table() == table(columns)
