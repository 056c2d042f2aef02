"""Nothing that happens to a certificate, key or CA file ends a server: the old context stays in use."""

import contextlib
import errno
import os
import pathlib
import ssl
from collections.abc import Callable

import pytest
import structlog.testing

from cache.kube import tls_contexts, tls_reload
from tests.harness import authorities, certificates, faults
from typha.observability import webserver

SERVERS = ("clients", "metrics")
NAMES = ("server.pem", "server.key", "ca.pem")
CASES = [(server, name, fault) for server in SERVERS for name in NAMES for fault in faults.FAULTS]


def maker(server: str, folder: pathlib.Path) -> Callable[[], ssl.SSLContext]:
    """What makes the contexts of a server, from new files."""
    files = certificates.make(folder)
    if server == "clients":
        return files.settings().make_context
    certificate, key, authorities = (str(folder / name) for name in NAMES)
    return webserver.TlsFiles(certificate, key, authorities, "RequireAndVerifyClientCert").load


def reloaded(server: str, folder: pathlib.Path) -> tls_reload.Reloaded[ssl.SSLContext]:
    paths = [str(folder / name) for name in NAMES]
    return tls_reload.Reloaded(maker(server, folder), paths, server=server)


@pytest.mark.parametrize(("server", "name", "fault"), CASES)
def test_at_the_start_one_line_names_the_file(tmp_path: pathlib.Path, server: str, name: str, fault: str) -> None:
    make = maker(server, tmp_path)
    faults.cause(fault, tmp_path / name)
    with pytest.raises(tls_contexts.TlsUnusable) as caught:
        make()
    assert str(tmp_path / name) in str(caught.value)
    assert str(caught.value).isprintable()


@pytest.mark.parametrize(("server", "name", "fault"), CASES)
def test_while_running_the_old_stays_in_use(tmp_path: pathlib.Path, server: str, name: str, fault: str) -> None:
    subject = reloaded(server, tmp_path)
    first = subject.current
    with structlog.testing.capture_logs() as lines:
        good = faults.cause(fault, tmp_path / name)
        for _ in range(3):
            subject.refresh()
        assert subject.current is first
        assert [(line["log_level"], line["server"]) for line in lines] == [("error", server)]
        assert str(tmp_path / name) in lines[0]["error"]
        faults.repair(tmp_path / name, good)
        subject.refresh()
        assert subject.current is not first
        assert [line["log_level"] for line in lines] == ["error", "info"]
        subject.refresh()
    assert (len(lines), subject.failures) == (2, 1)


@pytest.mark.parametrize("server", SERVERS)
@pytest.mark.parametrize("comment", ["", "# Größe\n"])
def test_an_intermediate_authority_is_enough_for_the_peers(tmp_path: pathlib.Path, server: str, comment: str) -> None:
    make = maker(server, tmp_path)
    authority = authorities.issue("intermediate", authorities.issue("root"))
    (tmp_path / "ca.pem").write_bytes(comment.encode("latin-1") + authority.pem)
    for issuer, is_accepted in ((authority, True), (authorities.issue("intermediate"), False)):
        client = tls_contexts.client_context(verify=False)
        peer = authorities.issue("calico-node", issuer, is_authority=None)
        tls_contexts.identify(client, peer.pem, peer.key_pem, "test")
        client.maximum_version = ssl.TLSVersion.TLSv1_2  # the client learns of a refusal in the handshake
        incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        ends = client.wrap_bio(incoming, outgoing), make().wrap_bio(outgoing, incoming, server_side=True)
        with contextlib.nullcontext() if is_accepted else pytest.raises(ssl.SSLError):
            for end in ends * 3:
                with contextlib.suppress(ssl.SSLWantReadError):
                    end.do_handshake()


def test_a_pair_that_changes_one_after_the_other(tmp_path: pathlib.Path) -> None:
    subject = reloaded("clients", tmp_path)
    first = subject.current
    other = tmp_path / "other"
    other.mkdir()
    certificates.make(other)
    for name, is_used in (("server.pem", False), ("server.key", True)):
        faults.repair(tmp_path / name, (other / name).read_bytes())
        subject.refresh()
        assert (subject.current is not first) is is_used
    assert subject.failures == 1


def test_a_lack_of_descriptors_is_not_the_end_of_a_change(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    subject = reloaded("clients", tmp_path)
    first = subject.current

    def lacking(*_: object) -> int:
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    faults.repair(tmp_path / "ca.pem", (tmp_path / "ca.pem").read_bytes())
    with monkeypatch.context() as patched:
        patched.setattr(os, "open", lacking)
        subject.refresh()
        assert subject.current is first
    subject.refresh()
    assert subject.current is not first


def test_any_exception_keeps_the_old_context() -> None:
    made = [ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)]
    subject = tls_reload.Reloaded(made.pop, ["/proc/self/stat"], server="test")
    first = subject.current
    subject._paths = ("/proc/self/status", "/nonexistent")
    subject.refresh()  # nothing is left to pop
    assert (subject.current, subject.failures) == (first, 1)
