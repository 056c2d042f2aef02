"""What `typha check` says of ports and certificates."""

import datetime
import pathlib
import socket
from typing import Any

import pytest
import trustme
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509 import oid

from typha import settings
from typha.admin import local_socket
from typha.preflight import host
from typha.preflight.findings import Finding, Status

NOW = datetime.datetime(2026, 6, 1, tzinfo=datetime.UTC)


def on(day: int) -> datetime.datetime:
    """A day counted from now."""
    return NOW + datetime.timedelta(days=day)


class Files:
    """Certificate, key and authorities for a service in a folder."""

    def __init__(self, folder: pathlib.Path) -> None:
        self._folder = folder
        self.authority = trustme.CA()
        self.write("ca", self.authority.cert_pem.bytes())
        self.issue(on(365))

    def write(self, name: str, text: bytes) -> None:
        (self._folder / name).write_bytes(text)

    def issue(
        self, end: datetime.datetime, begin: datetime.datetime = NOW, authority: trustme.CA | None = None
    ) -> None:
        issuer = authority or self.authority
        pair = issuer.issue_cert("typha.example", common_name="typha-server", not_before=begin, not_after=end)
        self.write("cert", b"".join(pem.bytes() for pem in pair.cert_chain_pems))
        self.write("key", pair.private_key_pem.bytes())

    def settings(self, **more: Any) -> settings.Settings:
        paths = {name: str(self._folder / name) for name in ("cert", "key", "ca")}
        return settings.Settings(
            server_cert_file=paths["cert"], server_key_file=paths["key"], ca_file=paths["ca"], client_cn="agent", **more
        )

    def look(self, **more: Any) -> list[Finding]:
        return list(host.certificates(self.settings(**more), {}, NOW.timestamp()))


@pytest.fixture(name="files")
def make_files(tmp_path: pathlib.Path) -> Files:
    return Files(tmp_path)


def test_good_certificates(files: Files, tmp_path: pathlib.Path) -> None:
    [finding] = files.look()
    assert finding.status is Status.OK
    assert finding.found == (
        f"ServerCertFile {tmp_path}/cert: CN typha-server, DNS typha.example; valid until {on(365):%Y-%m-%d}"
    )


@pytest.mark.parametrize(
    ("begin", "end", "status", "words"),
    [
        (on(-400), on(-1), Status.FAILED, "it has expired"),
        (on(1), on(400), Status.FAILED, f"only from {on(1):%Y-%m-%d} on"),
        (on(-60), on(29), Status.WARNING, "it expires soon"),
        (on(-60), on(31), Status.OK, "valid until"),
    ],
)
def test_validity(begin: datetime.datetime, end: datetime.datetime, status: Status, words: str, files: Files) -> None:
    files.issue(end, begin)
    [finding] = files.look()
    assert finding.status is status
    assert words in finding.found


def test_a_certificate_of_another_authority_is_a_warning(files: Files) -> None:
    files.issue(on(365), authority=trustme.CA())
    statuses = [finding.status for finding in files.look()]
    assert statuses == [Status.OK, Status.WARNING]
    assert "not in CAFile" in files.look()[1].advice


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("cert", b"", "ServerCertFile"),
        ("cert", b"junk", "ServerCertFile"),
        ("key", trustme.CA().issue_cert("x").private_key_pem.bytes(), "mismatch"),
        ("ca", b"junk", "CAFile"),
    ],
)
def test_files_that_cannot_be_used(name: str, content: bytes, words: str, files: Files) -> None:
    files.write(name, content)
    [finding] = files.look()
    assert finding.status is Status.FAILED
    assert words in finding.found


def test_a_missing_file(files: Files, tmp_path: pathlib.Path) -> None:
    (tmp_path / "key").unlink()
    [finding] = files.look()
    assert finding.status is Status.FAILED
    assert "No such file" in finding.found


def old_authority() -> bytes:
    """An authority that has expired, as PEM."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "old")])
    builder = x509.CertificateBuilder(name, name, key.public_key(), 1, on(-9), on(-8))
    builder = builder.add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
    return builder.sign(key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM)


def test_expired_authorities(files: Files) -> None:
    files.write("ca", old_authority() + files.authority.cert_pem.bytes())
    assert [finding.status for finding in files.look()] == [Status.WARNING, Status.OK]
    files.write("ca", old_authority())
    first, *_ = files.look()
    assert first.status is Status.FAILED
    assert "expired: old: every client is refused" in first.found


def test_no_tls_is_a_warning() -> None:
    [finding] = host.certificates(settings.Settings(), {}, NOW.timestamp())
    assert finding.status is Status.WARNING


def test_a_certificate_for_clients_only(files: Files, tmp_path: pathlib.Path) -> None:
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "client")])
    usage = x509.ExtendedKeyUsage([oid.ExtendedKeyUsageOID.CLIENT_AUTH])
    builder = x509.CertificateBuilder(name, name, key.public_key(), 1, on(-9), on(99)).add_extension(
        usage, critical=True
    )
    files.write("cert", builder.sign(key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM))
    pkcs8 = serialization.PrivateFormat.PKCS8
    files.write("key", key.private_bytes(serialization.Encoding.PEM, pkcs8, serialization.NoEncryption()))
    [finding] = files.look()
    assert finding.status is Status.FAILED
    assert "purpose" in finding.found


def test_a_file_of_authorities_with_other_text(files: Files) -> None:
    files.write("ca", "# é\n".encode("latin-1") + files.authority.cert_pem.bytes() + b"\nrest")
    assert [finding.status for finding in files.look()] == [Status.OK]


def test_the_certificate_of_metrics(files: Files, tmp_path: pathlib.Path) -> None:
    paths = {name: str(tmp_path / name) for name in ("cert", "key", "ca")}
    good = files.look(
        prometheus_metrics_enabled=True,
        prometheus_metrics_cert_file=paths["cert"],
        prometheus_metrics_key_file=paths["key"],
        prometheus_metrics_ca_file=paths["ca"],
    )
    assert [finding.found.partition(" ")[0] for finding in good] == ["ServerCertFile", "PrometheusMetricsCertFile"]
    assert {finding.status for finding in good} == {Status.OK}
    bad = files.look(prometheus_metrics_enabled=True, prometheus_metrics_cert_file=paths["cert"])
    assert [finding.status for finding in bad] == [Status.OK, Status.FAILED]


def test_ports() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken, socket.create_server(("127.0.0.1", 0)) as other:
        ports = taken.getsockname()[1], other.getsockname()[1]
        other.close()
        configured = settings.Settings(
            server_host="127.0.0.1",
            server_port=ports[0],
            health_enabled=True,
            health_host="127.0.0.1",
            health_port=ports[1],
            prometheus_metrics_enabled=True,
            prometheus_metrics_host="192.0.2.1",
            prometheus_metrics_port=9093,
        )
        server, health, metrics = host.ports(configured)
    assert (server.status, server.found) == (
        Status.FAILED,
        f"ServerPort 127.0.0.1:{ports[0]}: another process listens there",
    )
    assert (health.status, health.found) == (Status.OK, f"HealthPort 127.0.0.1:{ports[1]} is free")
    assert metrics.status is Status.FAILED
    assert metrics.found.startswith("PrometheusMetricsPort 192.0.2.1:9093: ")


def test_the_service_that_runs_here_has_its_ports(tmp_path: pathlib.Path) -> None:
    """As `kubectl exec` in a pod of the service finds them."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port, path = taken.getsockname()[1], str(tmp_path / "admin.sock")
        configured = settings.Settings(server_host="127.0.0.1", server_port=port, admin_socket=path)
        [before] = host.ports(configured)
        listener = local_socket.Listener(path)
        [found] = host.ports(configured)
        listener.close()
    assert before.status is Status.FAILED
    assert (found.status, found.found) == (
        Status.WARNING,
        f"ServerPort 127.0.0.1:{port}: the service that runs here has it",
    )


def test_a_port_that_is_taken_on_one_address_is_not_free_on_all() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        [finding] = host.ports(settings.Settings(server_port=taken.getsockname()[1]))
    assert finding.status is Status.FAILED


@pytest.mark.parametrize(
    ("health_host", "metrics_host", "is_taken"),
    [("127.0.0.1", "", True), ("127.0.0.1", "127.0.0.1", True), ("127.0.0.1", "127.0.0.2", False)],
)
def test_two_ports_of_our_own_that_are_one(health_host: str, metrics_host: str, is_taken: bool) -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    configured = settings.Settings(
        server_port=-1,
        health_enabled=True,
        health_host=health_host,
        health_port=port,
        prometheus_metrics_enabled=True,
        prometheus_metrics_host=metrics_host,
        prometheus_metrics_port=port,
    )
    server, health, metrics = host.ports(configured)
    assert (server.status, health.status) == (Status.OK, Status.OK)
    shown = f"PrometheusMetricsPort {metrics_host or '*'}:{port}"
    if is_taken:
        assert (metrics.status, metrics.found) == (Status.FAILED, f"{shown}: HealthPort has the same")
    else:
        assert (metrics.status, metrics.found) == (Status.OK, f"{shown} is free")


@pytest.mark.parametrize("name", ["no-such-host.invalid", "a..b", "x" * 64])
def test_a_host_without_address(name: str) -> None:
    [finding] = host.ports(settings.Settings(server_host=name, server_port=1))
    assert finding.status is Status.FAILED


def test_an_address_in_brackets() -> None:
    [finding] = host.ports(settings.Settings(server_host="[::ffff:127.0.0.1]", server_port=-1))
    assert finding.status is Status.OK
