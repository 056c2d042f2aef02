"""Expiry of certificates: real files, renewed and broken ones."""

import datetime
import pathlib

import trustme

from typha.observability import certificates

SOON = datetime.datetime(2031, 5, 6, 7, 8, 9, tzinfo=datetime.UTC)
LATER = SOON + datetime.timedelta(days=90)


def pem(*ends: datetime.datetime) -> bytes:
    made = trustme.CA()
    return b"".join(made.issue_cert("a.example", not_after=end).cert_chain_pems[0].bytes() for end in ends)


def test_the_first_certificate_that_expires_counts(tmp_path: pathlib.Path) -> None:
    path = tmp_path / "chain.pem"
    path.write_bytes(pem(LATER, SOON))
    times = certificates.ExpiryTimes({"ServerCertFile": str(path), "CAFile": ""})
    assert times.read() == {("ServerCertFile",): SOON.timestamp()}


def test_a_renewed_file_shows_at_the_next_look(tmp_path: pathlib.Path) -> None:
    path = tmp_path / "cert.pem"
    path.write_bytes(pem(SOON))
    times = certificates.ExpiryTimes({"ServerCertFile": str(path)})
    assert times.read() == {("ServerCertFile",): SOON.timestamp()}
    (tmp_path / "new.pem").write_bytes(pem(LATER))
    (tmp_path / "new.pem").replace(path)
    assert times.read() == {("ServerCertFile",): LATER.timestamp()}


def test_files_without_a_usable_certificate_are_left_out(tmp_path: pathlib.Path) -> None:
    broken, empty = tmp_path / "broken.pem", tmp_path / "empty.pem"
    broken.write_text("-----BEGIN CERTIFICATE-----\naGVsbG8=\n-----END CERTIFICATE-----\n")
    empty.write_text("")
    paths = {"a": str(broken), "b": str(empty), "c": str(tmp_path / "none.pem"), "d": str(tmp_path)}
    assert certificates.ExpiryTimes(paths).read() == {}
