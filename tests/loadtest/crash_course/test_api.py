"""What the crash course says when the API server refuses."""

import contextlib
import http.server
import json
import threading
from collections.abc import Iterator

import pytest

from loadtest.crash_course import api


@contextlib.contextmanager
def answering(body: bytes) -> Iterator[api.Api]:
    """An API server that refuses everything with this body."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(409)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_request(self, *_: object) -> None:
            """Nothing."""

    with http.server.HTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
        thread.start()
        try:
            yield api.Api("127.0.0.1", server.server_port, within=lambda connect: connect())
        finally:
            server.shutdown()
            thread.join()


@pytest.mark.parametrize(
    ("body", "said"),
    [
        (json.dumps({"kind": "Status", "message": 'pods "a" already exists'}).encode(), 'pods "a" already exists'),
        (b"not JSON", "not JSON"),
        (b"[]", "[]"),
        (b'{"message": 5}', '{"message": 5}'),
        (b"x" * 900, "x" * 500),
    ],
)
def test_a_refusal_is_told_by_its_message(body: bytes, said: str) -> None:
    with answering(body) as server, pytest.raises(api.ApiFailed) as refused:
        server.request("GET", "/api/v1/pods")
    assert str(refused.value) == f"409: {said}"
    assert refused.value.status == 409
