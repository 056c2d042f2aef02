"""`python -m loadtest.bench.bare`: a bare loop as a process; prints one line of JSON when it listens.

With --watch its updates come from a simulated API server. Without it they come from its own schedule, which each line
`RATE SECONDS` on standard input starts. It ends when its standard input ends.
"""

import json
import socket
import ssl
import sys
from pathlib import Path

import click

from loadtest.bench.bare import greeting, loop, sources
from loadtest.swarm import control, worker

_FILE = click.Path(exists=True, dir_okay=False, path_type=Path)


def _context(certificate: Path, key: Path, authority: Path) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.num_tickets = 0  # agents never resume sessions, and this makes the handshake a third cheaper
    context.load_cert_chain(certificate, key)
    context.load_verify_locations(authority)
    context.verify_mode = ssl.CERT_REQUIRED
    return context


@click.command(context_settings={"show_default": True})
@click.option("--host", default="127.0.0.1")
@click.option("--port", default=0, type=click.IntRange(0, 65535), help="0 takes a free one.")
@click.option("--recording", required=True, type=_FILE, help="What each new client is sent.")
@click.option("--watch", "url", help="Address of a simulated API server.")
@click.option("--version", default=0, help="Version from which it is watched.")
@click.option("--objects", default=1000, type=click.IntRange(1), help="Number of objects without --watch.")
@click.option("--tls", nargs=3, type=_FILE, help="Certificate, key, and the authority of the clients' certificates.")
def main(
    host: str,
    port: int,
    recording: Path,
    url: str | None,
    version: int,
    objects: int,
    tls: tuple[Path, Path, Path] | None,
) -> None:
    """Serve agents with a recorded snapshot, then with updates."""
    worker.raise_file_limit()
    recorded = greeting.load(recording)
    convert = sources.felix_updates() if recorded.protocol is control.Protocol.TYPHA else sources.raw_updates
    with socket.create_server((host, port), backlog=loop.BACKLOG) as listener:
        bare = loop.BareLoop(
            listener,
            recording=recorded,
            encoder=greeting.make_encoder(recorded.protocol),
            watch=None if url is None else sources.Watch(url, version=version, convert=convert),
            schedule=sources.Schedule(objects=objects) if url is None else None,
            context=None if tls is None else _context(*tls),
        )
        click.echo(json.dumps({"port": listener.getsockname()[1]}))
        sys.stdout.flush()
        bare.run(sys.stdin.fileno())


if __name__ == "__main__":
    main()
