"""The command: `python -m clients.conformance --client COMMAND` or `--server HOST:PORT`."""

import argparse
import asyncio
import ssl
import sys
from collections.abc import Coroutine, Sequence
from typing import Any

from clients.conformance import against_client, against_server, report

EXIT_BROKEN_RULE = 1
EXIT_CANNOT_TEST = 2


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m clients.conformance", description="See docs/conformance.md.")
    target = parser.add_mutually_exclusive_group(required=True)
    target.add_argument("--client", metavar="COMMAND", help="a client program; {address} and {feed} are replaced")
    target.add_argument("--server", metavar="HOST:PORT", help="a server that runs")
    parser.add_argument("--feed", default="workloads", help="the feed to ask for (default: %(default)s)")
    parser.add_argument("--level", choices=("minimal", "verifying"), default="verifying", help="of the client")
    parser.add_argument("--subscribing", default="", metavar="COMMAND", help="the same client, with a subscription")
    parser.add_argument("--no-state", action="store_true", help="the client does not print its state")
    parser.add_argument("--patience", type=float, default=5.0, metavar="SECONDS", help="time to react (%(default)s)")
    parser.add_argument("--jobs", type=int, default=4, metavar="N", help="checks at a time (%(default)s)")
    parser.add_argument("--only", default="", metavar="RULE", help="only the checks of this rule, such as O6")
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.add_argument("--ca-file", help="connect to the server by TLS, and trust these authorities")
    parser.add_argument("--cert-file", help="certificate for the server, if it wants one")
    parser.add_argument("--key-file", help="key of the certificate")
    parser.add_argument("--server-name", default="", help="name in the server's certificate, if not the host")
    return parser


def _tls(arguments: argparse.Namespace) -> ssl.SSLContext | None:
    if not arguments.ca_file:
        return None
    try:
        context = ssl.create_default_context(cafile=arguments.ca_file)
        if arguments.cert_file:
            context.load_cert_chain(arguments.cert_file, arguments.key_file)
    except OSError as error:  # which names no file
        files = [arguments.ca_file, *filter(None, (arguments.cert_file, arguments.key_file))]
        raise ValueError(f"one of the files {', '.join(files)} cannot be used: {error}") from error
    return context


def _checks(arguments: argparse.Namespace) -> Coroutine[Any, Any, list[report.Result]]:
    if arguments.client:
        client = against_client.Options(
            arguments.client,
            arguments.feed,
            is_verifying=arguments.level == "verifying",
            is_observed=not arguments.no_state,
            patience_seconds=arguments.patience,
            subscribing=arguments.subscribing,
        )
        return against_client.run_checks(client, jobs=max(1, arguments.jobs), only=arguments.only)
    server = against_server.Options(
        arguments.server, arguments.feed, arguments.patience, _tls(arguments), arguments.server_name
    )
    return against_server.run_checks(server, jobs=max(1, arguments.jobs), only=arguments.only)


def main(words: Sequence[str] | None = None) -> int:
    """Runs the checks, prints what they have found, and returns the exit code."""
    arguments = _parser().parse_args(words)
    try:
        results = asyncio.run(_checks(arguments))
    except (report.Broken, OSError, ValueError) as error:
        sys.stderr.write(f"cannot test: {error}\n")
        return EXIT_CANNOT_TEST
    if not results:
        sys.stderr.write(f"cannot test: no check is about rule {arguments.only!r}\n")
        return EXIT_CANNOT_TEST
    sys.stdout.write((report.as_json(results) if arguments.json else "\n".join(report.as_lines(results))) + "\n")
    return EXIT_BROKEN_RULE if report.has_failed(results) else 0


if __name__ == "__main__":
    sys.exit(main())
