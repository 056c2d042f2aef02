"""Looks at this machine: whether the ports are free, and whether the certificates can be used.

The certificates are tried as agents try them, by a handshake in memory: the ssl module has no other public way to read
a certificate's dates, and no library for that is needed.
"""

import datetime
import errno
import socket
import ssl
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Final, NamedTuple

from cache.kube import tls_contexts
from typha import listening, settings
from typha.admin import local_socket
from typha.observability import webserver
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


class _Address(NamedTuple):
    family: int
    host: str
    port: int

    def overlaps(self, other: "_Address") -> bool:
        """Whether only one of them can be listened on. Port 0 is any free port."""
        is_same_host = self.host == other.host or not {self.host, other.host}.isdisjoint(("0.0.0.0", "::"))
        return (self.family, self.port) == (other.family, other.port) and self.port > 0 and is_same_host


def ports(configured: settings.Settings) -> Iterator[Finding]:
    """Whether the service could listen on its addresses. Each is bound for a moment, and nothing is accepted."""
    wanted = [_Port("ServerPort", configured.server_host, configured.server_port)]
    if configured.health_enabled:
        wanted.append(_Port("HealthPort", configured.health_host, configured.health_port))
    if configured.prometheus_metrics_enabled:
        metrics = configured.prometheus_metrics_host, configured.prometheus_metrics_port
        wanted.append(_Port("PrometheusMetricsPort", *metrics))
    seen: dict[_Address, str] = {}
    runs_here = _runs_here(configured)
    for one in wanted:
        yield _bound(one, seen, runs_here=runs_here)


def _runs_here(configured: settings.Settings) -> bool:
    """Whether a service with this port for clients answers in this container: `kubectl exec` comes to its pod."""
    path = configured.admin_socket
    try:
        if path == local_socket.AUTOMATIC:
            path = local_socket.automatic_path(configured.server_port)
        local_socket.connect(path).close()
    except local_socket.Unusable:
        return False
    return True


def _bound(wanted: _Port, seen: dict[_Address, str], *, runs_here: bool) -> Finding:
    """Try to bind. `seen` has the addresses of the ports before it, with their settings."""
    shown = f"{wanted.setting} {wanted.host or '*'}:{wanted.port}"
    try:
        found = listening.addresses(wanted.host, max(0, wanted.port))
    except OSError as error:
        return Finding(
            Status.FAILED, "ports", f"{shown}: {error.strerror}", "set the host to an address of this machine"
        )
    problems = []
    for family, address, _ in found:
        own = _Address(family, str(address[0]), int(address[1]))
        if (other := next((seen[one] for one in seen if one.overlaps(own)), wanted.setting)) != wanted.setting:
            return Finding(Status.FAILED, "ports", f"{shown}: {other} has the same", "set another port")
        seen[own] = wanted.setting
        try:
            with socket.socket(family, socket.SOCK_STREAM) as probe:
                probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                if family == socket.AF_INET6:
                    probe.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
                probe.bind(address)
        except OSError as error:
            problems.append(error)
    taken = [error for error in problems if error.errno == errno.EADDRINUSE]
    if taken and runs_here:
        advice = "to check the ports before another service starts, end this one"
        return Finding(Status.WARNING, "ports", f"{shown}: the service that runs here has it", advice)
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
        yield from _server(client_tls.make_context, f"ServerCertFile {client_tls.cert_file}", "CAFile", now)
    metrics_tls = webserver.metrics_tls(configured)
    if configured.prometheus_metrics_enabled and metrics_tls is not None:
        names = f"PrometheusMetricsCertFile {metrics_tls.cert_file}", "PrometheusMetricsCAFile"
        yield from _server(metrics_tls.load, *names, now)


def _server(make: Callable[[], ssl.SSLContext], shown: str, authorities: str, now: float) -> Iterator[Finding]:
    """The certificate and the authorities of a server."""
    try:
        context = make()
    except (tls_contexts.TlsUnusable, OSError, ValueError) as error:
        yield Finding(Status.FAILED, "certificates", str(error), "mend the file or variable")
        return
    yield from _authorities(authorities, context.get_ca_certs(), now)
    known = context.get_ca_certs(binary_form=True)
    context.verify_mode = ssl.CERT_NONE  # the agent of this test has no certificate
    _, leaf = _handshake(context, b"")
    problem, _ = _handshake(context, leaf)
    if problem:
        advice = "issue one for servers (extended key usage serverAuth)"
        yield Finding(Status.FAILED, "certificates", f"{shown}: {problem}", advice)
        return
    yield _validity(shown, _contents(context, leaf), now)
    problem, _ = _handshake(context, b"".join(known)) if known else ("", b"")
    if problem:
        advice = f"let clients trust the authority that issued it, which is not in {authorities}; add intermediates"
        yield Finding(Status.WARNING, "certificates", f"{shown}, {authorities}: {problem}", advice)


def _authorities(setting: str, found: list[dict[str, Any]], now: float) -> Iterator[Finding]:
    expired = [_common_name(one) for one in found if _not_after(one) < now]
    text = f"{setting}: expired: {', '.join(expired)}"
    if expired and len(expired) == len(found):
        yield Finding(Status.FAILED, "certificates", f"{text}: every client is refused", "renew the authority")
    elif expired:
        yield Finding(Status.WARNING, "certificates", text, "remove it")


def _validity(shown: str, certificate: Mapping[str, Any], now: float) -> Finding:
    begin, end = ssl.cert_time_to_seconds(str(certificate["notBefore"])), _not_after(certificate)
    others = [f"{kind} {name}" for kind, name in certificate.get("subjectAltName", ())]
    shown = f"{shown}: {', '.join([f'CN {_common_name(certificate)}', *others])}; valid until {_date(end)}"
    if now < begin:
        return Finding(Status.FAILED, "certificates", f"{shown}, and only from {_date(begin)} on", "check the clock")
    if now >= end:
        return Finding(Status.FAILED, "certificates", f"{shown}: it has expired", "renew it")
    if now >= end - EXPIRY_WARNING_DAYS * _DAY_SECONDS:
        return Finding(Status.WARNING, "certificates", f"{shown}: it expires soon", "check that it is being renewed")
    return Finding(Status.OK, "certificates", shown)


def _handshake(server: ssl.SSLContext, trusted: bytes) -> tuple[str, bytes]:
    """What an agent that trusts some certificates says of the server's: the problem, or the certificate. All are DER.

    The dates do not matter. Without trusted certificates every server is accepted.
    """
    problem, agent = _agent(server, trusted)
    return problem, b"" if problem else agent.getpeercert(binary_form=True) or b""


def _contents(server: ssl.SSLContext, leaf: bytes) -> dict[str, Any]:
    _, agent = _agent(server, leaf)
    return dict(agent.getpeercert() or {})


def _agent(server: ssl.SSLContext, trusted: bytes) -> tuple[str, ssl.SSLObject]:
    context = tls_contexts.client_context(verify=bool(trusted))
    context.check_hostname = False
    context.verify_flags |= _IGNORE_TIME
    if trusted:
        context.load_verify_locations(cadata=trusted)
    to_server, to_agent = ssl.MemoryBIO(), ssl.MemoryBIO()
    agent = context.wrap_bio(to_agent, to_server)
    waiting = [agent, server.wrap_bio(to_server, to_agent, server_side=True)]
    while waiting:
        for end in list(waiting):
            try:
                end.do_handshake()
                waiting.remove(end)
            except ssl.SSLWantReadError:
                continue
            except ssl.SSLError as error:
                return getattr(error, "verify_message", "") or tls_contexts.reason(error), agent
    return "", agent


def _not_after(certificate: Mapping[str, Any]) -> float:
    return ssl.cert_time_to_seconds(str(certificate["notAfter"]))


def _common_name(certificate: Mapping[str, Any]) -> str:
    names = [value for part in certificate.get("subject", ()) for name, value in part if name == "commonName"]
    return names[-1] if names else "none"


def _date(seconds: float) -> str:
    return datetime.datetime.fromtimestamp(seconds, datetime.UTC).strftime("%Y-%m-%d")
