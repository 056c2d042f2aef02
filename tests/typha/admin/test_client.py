"""Asking a service: by its socket or by HTTP; what is no service gives an error, and never a hang."""

import contextlib
import http.server
import pathlib
import threading
import time
from collections.abc import Iterator

import pytest

from typha.admin import client, local_socket


class Handler(http.server.BaseHTTPRequestHandler):
    """Answers by path."""

    def do_GET(self) -> None:
        """Answer."""
        body = {"/json": b'{"a": 1}', "/text": b"no JSON", "/deep": b"[" * 100_000 + b"]" * 100_000}.get(
            self.path.partition("?")[0], b"x" * 5000
        )
        self.send_response(404 if self.path == "/none" else 200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_request(self, code: int | str = "-", size: int | str = "-") -> None:
        """Nothing."""


@pytest.fixture
def url() -> Iterator[str]:
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


def test_by_http(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    service = client.Service(url)
    assert service.get("/json", x=1) == {"a": 1}
    for path in ("/text", "/deep"):
        with pytest.raises(client.Unanswered, match="no JSON"):
            service.get(path)
    with pytest.raises(client.Unanswered, match="status 404"):
        service.get("/none")
    monkeypatch.setattr(client, "ANSWER_BYTES_MAX", 4000)
    with pytest.raises(client.Unanswered, match="more than 4000 bytes"):
        service.get("/long")


@pytest.mark.parametrize("server", ["http://127.0.0.1:1", "http://127.0.0.1:99999", "http://[", "/none", "http://"])
def test_what_is_no_service(server: str) -> None:
    with pytest.raises(client.Unanswered):
        client.Service(server).get("/v1/status")


def test_a_peer_that_drips_is_given_up(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client, "ANSWER_SECONDS", 1.0)
    listener = local_socket.Listener(str(tmp_path / "a.sock"))
    listener.socket.setblocking(True)
    done = threading.Event()

    def drip() -> None:
        accepted, _ = listener.socket.accept()
        accepted.recv(1000)
        accepted.send(b"HTTP/1.1 200 OK\r\n\r\n")
        while not done.wait(0.005):
            try:
                accepted.send(b" ")
            except OSError:
                break
        accepted.close()

    thread = threading.Thread(target=drip)
    thread.start()
    with pytest.raises(client.Unanswered, match=r"no whole answer within|timed out"):
        client.Service(listener.path).get("/v1/status")
    done.set()
    thread.join()
    listener.close()


def test_without_a_name_it_is_the_service_here(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TYPHA_ADMINSOCKET", raising=False)
    monkeypatch.setattr(local_socket, "candidates", lambda: [str(tmp_path / "a.sock")])
    with pytest.raises(client.Unanswered, match="No such file"):
        client.Service()
    listener = local_socket.Listener(str(tmp_path / "a.sock"))
    assert client.Service().name == listener.path
    listener.close()
    monkeypatch.setenv("TYPHA_ADMINSOCKET", "/elsewhere.sock")
    assert client.Service().name == "/elsewhere.sock"


def test_a_head_that_drips_is_given_up(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client, "ANSWER_SECONDS", 1.0)
    listener = local_socket.Listener(str(tmp_path / "a.sock"))
    listener.socket.setblocking(True)
    sent = 0

    def drip() -> None:
        nonlocal sent
        connected, _ = listener.socket.accept()
        with connected, contextlib.suppress(OSError):
            connected.recv(1000)
            connected.sendall(b"HTTP/1.1 200 OK\r\nX-A: ")
            while sent < 600:  # a minute
                connected.sendall(b"x")
                sent += 1
                time.sleep(0.1)

    thread = threading.Thread(target=drip)
    thread.start()
    with pytest.raises(client.Unanswered):
        client.Service(listener.path).get("/v1/status")
    thread.join()
    listener.close()
    assert sent < 600
