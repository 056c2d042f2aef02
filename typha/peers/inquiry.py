"""Asks a replica how fresh a feed is, and who feeds it: the handshake of the native protocol, with the features
`freshness` and `tiers`."""

import asyncio
import contextlib
import socket
import ssl
from collections.abc import Iterable, MutableMapping

from cache.kube import tls_contexts
from clients import addresses
from protocol import Connection, ProtocolError, Role, messages
from typha import clock, networks, settings
from typha.peers import freshness

_RESOLVE_SECONDS = 5.0
ANSWER_SECONDS = 3.0
"""For connection, TLS and answer together. A healthy replica needs some milliseconds, and a busy one a second."""
_READ_BYTES = 4096
_PROBLEM_CHARS_MAX = 200
_REFUSED = " (perhaps its ClientCN or ClientURISAN does not allow this replica's certificate)"
"""A server that refuses the name in a certificate can say so in its own log only."""
_AT_A_TIME = 10


def make_context(configured: settings.Settings) -> ssl.SSLContext | None:
    """TLS with the replica's own certificate; None if the port for clients has no TLS.

    The peer's certificate must come from the same authorities. Its name is not checked: peers are known by addresses.

    Raises:
        tls_contexts.TlsUnusable: a file cannot be used.
    """
    if not configured.server_key_file:
        return None
    authorities = tls_contexts.NamedFile("CAFile", configured.ca_file).read()
    context = tls_contexts.client_context(authorities=authorities, source="CAFile")
    context.check_hostname = False
    try:
        context.load_cert_chain(configured.server_cert_file, configured.server_key_file)
    except (OSError, ValueError) as error:  # ssl.SSLError is an OSError
        raise tls_contexts.TlsUnusable(f"ServerCertFile for peers: {error}") from error
    return context


async def resolved(candidates: Iterable[str], problems: MutableMapping[str, str]) -> list[str]:
    """The addresses of the candidates: of a name with several, each may be another replica.

    Args:
        problems: takes why a name has none.
    """
    loop = asyncio.get_running_loop()
    found: dict[str, None] = {}
    for one in candidates:
        try:
            host, port = addresses.parse(one)
            async with asyncio.timeout(_RESOLVE_SECONDS):
                entries = await loop.getaddrinfo(host, port, type=socket.SOCK_STREAM)
        except (OSError, ValueError) as error:  # UnicodeError and TimeoutError are among these
            problems[one] = f"cannot resolve the name: {str(error) or 'no answer in time'}"
            continue
        found |= dict.fromkeys(networks.with_port(str(entry[4][0]), port) for entry in entries)
    return list(found)


async def ask_all(
    peers: Iterable[str],
    feed: str,
    *,
    context: ssl.SSLContext | None,
    incarnation: bytes,
    problems: MutableMapping[str, str] | None = None,
) -> dict[str, freshness.Answer]:
    """What those of the peers say that answer; a replica does not ask itself, which its `incarnation` shows.

    Args:
        problems: takes why the others do not answer, by address.
    """
    places = asyncio.Semaphore(_AT_A_TIME)

    async def ask_one(peer: str) -> tuple[str, freshness.Answer | None]:
        async with places:
            return peer, await ask(peer, feed, context=context, incarnation=incarnation, problems=problems)

    answers = await asyncio.gather(*(ask_one(peer) for peer in dict.fromkeys(peers)))
    return {peer: answer for peer, answer in answers if answer is not None}


async def ask(
    peer: str,
    feed: str,
    *,
    context: ssl.SSLContext | None,
    incarnation: bytes,
    problems: MutableMapping[str, str] | None = None,
) -> freshness.Answer | None:
    """What the peer says; None if it does not answer, cannot tell, or is this replica.

    Args:
        problems: takes why the peer does not answer, by its address.
    """
    asked_at = clock.monotonic()
    try:
        async with asyncio.timeout(ANSWER_SECONDS):
            hello = await _hello_of(peer, feed, context)
    except (OSError, ValueError, ProtocolError, _NoHello) as error:
        if problems is not None:
            is_late = isinstance(error, TimeoutError) and not str(error)
            text = f"no answer within {ANSWER_SECONDS:g} s" if is_late else str(error) or type(error).__name__
            is_refused = context is not None and isinstance(error, _Closed | ConnectionResetError)
            problems[peer] = text[:_PROBLEM_CHARS_MAX] + (_REFUSED if is_refused else "")
        return None
    useless = _useless(hello, incarnation)
    if useless:
        if problems is not None:
            problems[peer] = useless
        return None
    milliseconds = hello.confirmed_milliseconds
    return freshness.Answer(
        asked_at,
        None if milliseconds is None else asked_at - milliseconds / 1000,
        hello.incarnation,
        hello.upstreams,
        messages.Feature.TIERS in hello.features,
    )


def _useless(hello: messages.ServerHello, incarnation: bytes) -> str:
    """Why an answer says nothing of another replica; empty if it does."""
    if hello.incarnation == incarnation:
        return "this is the replica itself"
    if messages.Feature.FRESHNESS not in hello.features:
        return "it cannot say how fresh its data is (an older release?)"
    return ""


class _NoHello(Exception):
    """The peer has answered something else."""


class _Closed(_NoHello):
    """The peer has answered nothing."""


async def _hello_of(peer: str, feed: str, context: ssl.SSLContext | None) -> messages.ServerHello:
    host, port = addresses.parse(peer)
    reader, writer = await asyncio.open_connection(
        host, port, ssl=context, server_hostname=host if context is not None else None, limit=_READ_BYTES
    )
    try:
        connection = Connection(Role.CLIENT)
        features = frozenset({messages.Feature.FRESHNESS, messages.Feature.TIERS})
        hello = messages.ClientHello(feed, "typha-replica", features=features)
        connection.send(hello)
        writer.write(connection.data_to_send())
        while (message := connection.next_event()) is None:
            data = await reader.read(_READ_BYTES)
            if not data:
                raise _Closed("it closed the connection without an answer")
            connection.receive_data(data)
        if isinstance(message, messages.Goodbye):
            raise _NoHello(f"{message.reason}: {message.text}")
        if not isinstance(message, messages.ServerHello):
            raise _NoHello("it does not begin with a hello")
        with contextlib.suppress(OSError):  # so that the peer's log has no surprise
            connection.send(messages.Goodbye("client-closed"))
            writer.write(connection.data_to_send())
        return message
    finally:
        writer.close()
