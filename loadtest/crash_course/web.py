"""`python -m loadtest.crash_course.web NAME PORT...`: what runs in a pod. Answers every connection with its name."""

import socketserver
import sys
import threading
from collections.abc import Sequence


def serve(name: str, ports: Sequence[int]) -> None:
    """Serve until the process is ended."""
    body = f"{name}\n".encode()
    answer = b"HTTP/1.0 200 OK\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body)

    class Handler(socketserver.BaseRequestHandler):
        def handle(self) -> None:
            self.request.settimeout(5.0)
            self.request.recv(4096)
            self.request.sendall(answer)

    servers = [socketserver.TCPServer(("", port), Handler) for port in ports]
    threads = [threading.Thread(target=server.serve_forever) for server in servers]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


if __name__ == "__main__":
    serve(sys.argv[1], [int(port) for port in sys.argv[2:]])
