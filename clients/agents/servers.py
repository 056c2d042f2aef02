"""What the agents' commands have in common: the options that say where the service is, and reading a feed once."""

import asyncio
import functools
import ssl
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final, TypeVar

import click

import clients

DEFAULT_TIMEOUT_SECONDS: Final = 60.0
PATIENCE_SECONDS: Final = 2.0
"""After this time a person is told what the command waits for."""

Result = TypeVar("Result")
_FILE: Final = click.Path(exists=True, dir_okay=False)


@dataclass(frozen=True)
class Servers:
    """Where the service is."""

    addresses: tuple[str, ...]
    tls: ssl.SSLContext | None = None
    server_name: str | None = None


class NotInSync(Exception):
    """No server had a complete feed in time; the text says what was missing."""


def options(*, required: bool = True) -> Callable[[Callable[..., Result]], Callable[..., Result]]:
    """Adds the options to a command, which gets them as the argument `servers`."""
    added = (
        click.option(
            "--server", "addresses", multiple=True, required=required, metavar="HOST:PORT", help="May be repeated."
        ),
        click.option("--ca-file", type=_FILE, help="Connect by TLS; trust this CA (PEM)."),
        click.option("--cert-file", type=_FILE, help="Client certificate (PEM)."),
        click.option("--key-file", type=_FILE, help="Private key of the certificate (PEM)."),
        click.option("--server-name", help="Name in the server's certificate, if it differs from HOST."),
    )

    def decorate(command: Callable[..., Result]) -> Callable[..., Result]:
        @functools.wraps(command)
        def run(
            *,
            addresses: tuple[str, ...],
            ca_file: str | None,
            cert_file: str | None,
            key_file: str | None,
            server_name: str | None,
            **rest: Any,
        ) -> Result:
            return command(servers=Servers(addresses, _tls(ca_file, cert_file, key_file), server_name), **rest)

        return functools.reduce(lambda function, option: option(function), reversed(added), run)

    return decorate


def _tls(ca_file: str | None, cert_file: str | None, key_file: str | None) -> ssl.SSLContext | None:
    for name, value, needed, other in (
        ("--cert-file", cert_file, "--ca-file", ca_file),
        ("--key-file", key_file, "--cert-file", cert_file),
    ):
        if value is not None and other is None:
            raise click.UsageError(f"{name} needs {needed}")
    if ca_file is None:
        return None
    try:
        context = ssl.create_default_context(cafile=ca_file)
        if cert_file is not None:
            context.load_cert_chain(cert_file, key_file)
    except (OSError, ValueError) as error:
        raise click.UsageError(f"the files for TLS cannot be used: {error}") from error
    return context


async def fetch(
    servers: Servers,
    *,
    feed: str,
    agent: str,
    node: str = "",
    timeout_seconds: float = DEFAULT_TIMEOUT_SECONDS,
    tell: Callable[[str], None],
) -> dict[str, bytes]:
    """The content of a feed, once a server has it complete. `tell` gets a line whenever something else is missing.

    Raises:
        NotInSync: `timeout_seconds` have passed.
    """
    waiting = _Waiting(tell)
    async with clients.Mirror(
        servers.addresses,
        feed=feed,
        agent=agent,
        node=node,
        tls=servers.tls,
        server_name=servers.server_name,
        on_event=waiting.received,
    ) as mirror:
        timer = asyncio.get_running_loop().call_later(PATIENCE_SECONDS, waiting.tell_from_now_on)
        try:
            await mirror.wait_in_sync(timeout_seconds=timeout_seconds)
        except TimeoutError:
            raise NotInSync(f"not in sync after {timeout_seconds:g} s: {waiting.missing}") from None
        finally:
            timer.cancel()
        return {key: entry.value for key, entry in mirror.items()}


class _Waiting:
    """What is missing, in words; told when the patience is over, and then whenever it changes."""

    def __init__(self, tell: Callable[[str], None]) -> None:
        self._tell = tell
        self._is_told = False
        self.missing = "no server has answered yet"

    def received(self, event: clients.Event) -> None:
        before = self.missing
        match event:
            case clients.Connected():
                self.missing = f"{event.address} is connected, and has sent no data yet"
            case clients.Disconnected():
                self.missing = str(event.error)
            case clients.StatusChanged() if event.status is not clients.SyncStatus.IN_SYNC:
                self.missing = f"the server's data is not complete or not current (status {event.status.label})"
        if self._is_told and self.missing != before:
            self._tell(f"Waiting: {self.missing}")

    def tell_from_now_on(self) -> None:
        self._is_told = True
        self._tell(f"Waiting: {self.missing}")
