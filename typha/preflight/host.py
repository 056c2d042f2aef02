"""Looks at this machine: whether the ports are free, and whether the certificates can be used.

The certificates are tried as agents try them, by a handshake in memory: the ssl module has no other public way to read
a certificate's dates, and no library for that is needed.
"""

import datetime
import errno
import pathlib
import socket
import ssl
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Final, NamedTuple

from typha import settings
from typha.preflight.findings import Finding, Status
from typha.worker import tls

EXPIRY_WARNING_DAYS: Final = 30
"""The operator renews certificates 30 days before they expire: one with less is not being renewed."""

_DAY_SECONDS: Final = 86_400
_IGNORE_TIME: Final = 0x200000
"""OpenSSL's X509_V_FLAG_NO_CHECK_TIME, which the ssl module does not name."""


class _Port(NamedTuple):
    setting: str
    host: str
    port: int


def ports(configured: settings.Settings) -> Iterator[Finding]:
    """Whether the service could listen on its addresses. Each is bound for a moment, and nothing is accepted."""
    wanted = [_Port("ServerPort", configured.server_host, configured.server_port)]
    if configured.health_enabled:
        wanted.append(_Port("HealthPort", configured.health_host, configured.health_port))
    if configured.prometheus_metrics_enabled:
        metrics = configured.prometheus_metrics_host, configured.prometheus_metrics_port
        wanted.append(_Port("PrometheusMetricsPort", *metrics))
    for one in wanted:
        yield _bound(one)


def _bound(wanted: _Port) -> Finding:
    shown = f"{wanted.setting} {wanted.host or '*'}:{wanted.port}"
    try:
        found = socket.getaddrinfo(
            wanted.host or None, max(0, wanted.port), type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )
    except OSError as error:
        return Finding(
            Status.FAILED, "ports", f"{shown}: {error.strerror}", "set the host to an address of this machine"
        )
    problems = []
    for family, kind, protocol, _, address in found:
        try:
            with socket.socket(family, kind, protocol) as probe:
                probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                if family == socket.AF_INET6:
                    probe.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
                probe.bind(address)
        except OSError as error:
            problems.append(error)
    taken = [error for error in problems if error.errno == errno.EADDRINUSE]
    if taken:
        advice = "end what listens there (on a host network: the Typha that is replaced), or set another port"
        return Finding(Status.FAILED, "ports", f"{shown}: another process listens there", advice)
    if len(problems) == len(found):
        return Finding(
            Status.FAILED, "ports", f"{shown}: {problems[0].strerror}", "set the host to an address of this machine"
        )
    return Finding(Status.OK, "ports", f"{shown} is free")


def certificates(configured: settings.Settings, environment: Mapping[str, str], now: float) -> Iterator[Finding]:
    """Whether clients and Prometheus can be served by TLS. `now` is in seconds since the epoch."""
    client_tls = tls.from_settings(configured, environment)
    if client_tls is None:
        advice = "set ServerKeyFile, ServerCertFile and CAFile, unless agents connect without TLS, too"
        yield Finding(Status.WARNING, "certificates", "clients are served without TLS", advice)
    else:
        try:
            client_tls.make_context()
        except tls.TlsUnusable as error:
            yield Finding(Status.FAILED, "certificates", str(error), "mend the file or variable")
        else:
            yield from _authorities(client_tls.ca_file, now)
            files = client_tls.cert_file, client_tls.key_file
            yield from _pair("ServerCertFile", *files, client_tls.ca_file, now)
    if configured.prometheus_metrics_enabled and configured.prometheus_metrics_cert_file:
        files = configured.prometheus_metrics_cert_file, configured.prometheus_metrics_key_file
        yield from _pair("PrometheusMetricsCertFile", *files, "", now)


def _authorities(path: str, now: float) -> Iterator[Finding]:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.load_verify_locations(path)
    found = context.get_ca_certs()
    expired = [_common_name(one) for one in found if _not_after(one) < now]
    if expired and len(expired) == len(found):
        text = f"CAFile {path}: expired: {', '.join(expired)}: every client is refused"
        yield Finding(Status.FAILED, "certificates", text, "renew the authority")
    elif expired:
        yield Finding(Status.WARNING, "certificates", f"CAFile {path}: expired: {', '.join(expired)}", "remove it")


def _pair(setting: str, cert_file: str, key_file: str, ca_file: str, now: float) -> Iterator[Finding]:
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    try:
        server.load_cert_chain(cert_file, key_file, password=_no_password)
        leaf = _first_certificate(pathlib.Path(cert_file).read_text("latin-1"))
    except (OSError, ValueError) as error:
        advice = "mend the files: PEM, readable, and the key that belongs to the certificate"
        yield Finding(Status.FAILED, "certificates", f"{setting} {cert_file}: {error}", advice)
        return
    problem, certificate = _handshake(server, lambda context: context.load_verify_locations(cadata=leaf), _IGNORE_TIME)
    if problem:
        advice = "issue one for servers (extended key usage serverAuth)"
        yield Finding(Status.FAILED, "certificates", f"{setting} {cert_file}: {problem}", advice)
        return
    yield _validity(setting, cert_file, certificate, now)
    if not ca_file:
        return
    problem, _ = _handshake(server, lambda context: context.load_verify_locations(ca_file), _IGNORE_TIME)
    if problem:
        advice = "let the agents trust the authority that issued it, which is not in CAFile; add missing intermediates"
        yield Finding(Status.WARNING, "certificates", f"{setting} {cert_file} and CAFile {ca_file}: {problem}", advice)


def _validity(setting: str, path: str, certificate: Mapping[str, Any], now: float) -> Finding:
    begin, end = ssl.cert_time_to_seconds(str(certificate["notBefore"])), _not_after(certificate)
    names = [f"CN {_common_name(certificate)}"] + [
        f"{kind} {name}" for kind, name in certificate.get("subjectAltName", ())
    ]
    shown = f"{setting} {path}: {', '.join(names)}; valid until {_date(end)}"
    if now < begin:
        return Finding(Status.FAILED, "certificates", f"{shown}, and only from {_date(begin)} on", "check the clock")
    if now >= end:
        return Finding(Status.FAILED, "certificates", f"{shown}: it has expired", "renew it")
    if now >= end - EXPIRY_WARNING_DAYS * _DAY_SECONDS:
        return Finding(Status.WARNING, "certificates", f"{shown}: it expires soon", "check that it is being renewed")
    return Finding(Status.OK, "certificates", shown)


def _handshake(
    server: ssl.SSLContext, trust: Callable[[ssl.SSLContext], None], flags: int
) -> tuple[str, dict[str, Any]]:
    """What an agent with this trust says of the server's certificate: the problem, or its contents."""
    client = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    client.check_hostname = False
    client.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN | flags
    trust(client)
    to_server, to_client = ssl.MemoryBIO(), ssl.MemoryBIO()
    ends = [
        server.wrap_bio(to_server, to_client, server_side=True),
        client.wrap_bio(to_client, to_server),
    ]
    waiting = list(ends)
    while waiting:
        for end in list(waiting):
            try:
                end.do_handshake()
                waiting.remove(end)
            except ssl.SSLWantReadError:
                continue
            except ssl.SSLCertVerificationError as error:
                return error.verify_message, {}
            except ssl.SSLError as error:
                return str(error), {}
    return "", dict(ends[1].getpeercert() or {})


def _no_password() -> str:
    """Otherwise OpenSSL would ask on the terminal for the password of an encrypted key."""
    raise ValueError("the key is encrypted")


def _first_certificate(text: str) -> bytes:
    """The first certificate of a file. Raises ValueError."""
    begin, end = "-----BEGIN CERTIFICATE-----", "-----END CERTIFICATE-----"
    start = text.index(begin)
    return ssl.PEM_cert_to_DER_cert(text[start : text.index(end, start) + len(end)])


def _not_after(certificate: Mapping[str, Any]) -> float:
    return ssl.cert_time_to_seconds(str(certificate["notAfter"]))


def _common_name(certificate: Mapping[str, Any]) -> str:
    names = [value for part in certificate.get("subject", ()) for name, value in part if name == "commonName"]
    return names[-1] if names else "none"


def _date(seconds: float) -> str:
    return datetime.datetime.fromtimestamp(seconds, datetime.UTC).strftime("%Y-%m-%d")
