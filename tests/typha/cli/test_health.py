"""`calico health`: the original's flags and exit codes, whatever answers."""

import contextlib
import itertools
import socket
import subprocess
import threading
from collections.abc import Iterator

import pytest

from tests.typha.cli.test_main import script, typha

pytestmark = pytest.mark.slow

CALICO = script("calico")


@contextlib.contextmanager
def answering(*parts: bytes, host: str = "127.0.0.1") -> Iterator[tuple[int, list[bytes]]]:
    """A server that answers each request with these parts, the last of them for ever; its port, and what it heard."""
    heard: list[bytes] = []
    ended = threading.Event()
    family = socket.AF_INET6 if ":" in host else socket.AF_INET

    def serve() -> None:
        with contextlib.suppress(OSError):
            while True:
                peer, _ = listener.accept()
                with peer, contextlib.suppress(OSError):
                    heard.append(peer.recv(4096))
                    for part in parts[:-1]:
                        peer.sendall(part)
                    for part in itertools.repeat(parts[-1]) if len(parts) > 1 else parts:
                        peer.sendall(part)
                        if len(parts) > 1 and ended.wait(0.05):
                            break

    with socket.create_server((host, 0), family=family) as listener:
        thread = threading.Thread(target=serve)
        thread.start()
        try:
            yield listener.getsockname()[1], heard
        finally:
            ended.set()
            listener.shutdown(socket.SHUT_RDWR)
            thread.join()


@pytest.mark.parametrize(
    ("status", "code"), [(200, 0), (204, 0), (301, 0), (399, 0), (400, 1), (404, 1), (500, 1), (503, 1)]
)
def test_the_status_decides(status: int, code: int) -> None:
    with answering(b"HTTP/1.1 %d x\r\nContent-Length: 0\r\n\r\n" % status) as (port, heard):
        result = typha("health", f"--port={port}", "--host=127.0.0.1", command=CALICO)
    assert result.returncode == code
    assert result.stdout == ""
    assert result.stderr == ("" if code == 0 else f"Health check failed with status code: {status}\n")
    assert heard[0].startswith(b"GET /readiness HTTP/1.1\r\n")


def test_liveness_and_the_default_host() -> None:
    with answering(b"HTTP/1.1 200 OK\r\n\r\n") as (port, heard):
        assert typha("health", "--port", str(port), "--type", "liveness", command=CALICO).returncode == 0
    assert heard[0].startswith(f"GET /liveness HTTP/1.1\r\nHost: localhost:{port}\r\n".encode())


@pytest.mark.parametrize("host", ["::1", "[::1]"])
def test_an_address_of_ipv6(host: str) -> None:
    with answering(b"HTTP/1.1 200 OK\r\n\r\n", host="::1") as (port, _):
        assert typha("health", f"--port={port}", f"--host={host}", command=CALICO).returncode == 0


@pytest.mark.parametrize("parts", [(b"",), (b"\0\xff\r\n\r\n",), (b"HTTP/1.1 200 OK\r\n" + b"a: b\r\n" * 200,)])
def test_no_answer_of_http_is_a_failure(parts: tuple[bytes, ...]) -> None:
    with answering(*parts) as (port, _):
        failed(typha("health", f"--port={port}", "--host=127.0.0.1", command=CALICO))


@pytest.mark.parametrize("timeout", ["300ms", "0.3s", "1ns", "0m0.1s"])
def test_an_answer_that_drips_for_ever_ends_at_the_timeout(timeout: str) -> None:
    with answering(b"HTTP/1.1 200 OK\r\n", b"a: b\r\n") as (port, _):
        line = failed(typha("health", f"--port={port}", "--host=127.0.0.1", f"--timeout={timeout}", command=CALICO))
    assert "timed out" in line


@pytest.mark.parametrize(
    "arguments",
    [
        (),
        ("--port=x",),
        ("--port=0",),
        ("--port=70000",),
        ("--port=1",),
        ("--port=1", "--type=startup"),
        ("--port=1", "--timeout=5"),
        ("--port=1", "--timeout=soon"),
        ("--port=1", "--host=no host"),
        ("--port=1", "--host=name.invalid"),
        ("--port=1", "--host=a..b"),
        ("--port=1", "--no-such-flag"),
    ],
)
def test_everything_else_is_1_and_one_line(arguments: tuple[str, ...]) -> None:
    failed(typha("health", *arguments, command=CALICO))


def failed(result: subprocess.CompletedProcess[str]) -> str:
    """The one line of a failure."""
    assert result.returncode == 1
    assert result.stdout == ""
    [line] = result.stderr.splitlines()
    return line
