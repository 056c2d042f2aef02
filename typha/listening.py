"""Listening sockets for a host and a port. A host is a name or an address; empty means all addresses.

The rules are Go's where it has some: IPv4 is preferred among the addresses of a name, and `::` includes IPv4. A name
may have addresses that this machine does not have: `localhost` has an IPv6 address in many images, and IPv6 may be off.
They are left out, and named once.
"""

import contextlib
import errno
import socket
from typing import Any, NamedTuple

import structlog

_log = structlog.get_logger("typha.listening")

_ALL = ""
_MAPPED = bytes(10) + b"\xff\xff"


class Address(NamedTuple):
    """An address to listen on."""

    family: int
    sockaddr: tuple[Any, ...]
    takes_both: bool = False
    """Whether an IPv6 socket takes connections by IPv4, too."""


def open_one(host: str, port: int, *, backlog: int, receive_buffer_bytes: int) -> socket.socket:
    """One listening socket: for both families if the host means all addresses, else for the first address that works.

    Raises:
        OSError: no address can be used, or the first one is taken.
    """
    if _plain(host) == _ALL:
        found = [Address(socket.AF_INET6, ("::", port), takes_both=True), Address(socket.AF_INET, ("0.0.0.0", port))]
    else:
        found = addresses(host, port)
    return _open(host, found, most=1, backlog=backlog, receive_buffer_bytes=receive_buffer_bytes)[0]


def open_all(host: str, port: int, *, backlog: int, found: list[Address] | None = None) -> list[socket.socket]:
    """Listening sockets with one port for all addresses of the host that this machine has.

    `found` are the addresses, if they are known.

    Raises:
        OSError: no address can be used, or one is taken.
    """
    found = addresses(host, port) if found is None else found
    return _open(host, found, most=len(found), backlog=backlog)


def _plain(host: str) -> str:
    """A host without the brackets of an IPv6 address. An IPv4 address within an IPv6 address is one of IPv4."""
    plain = host[1:-1] if host.startswith("[") and host.endswith("]") else host
    try:
        packed = socket.inet_pton(socket.AF_INET6, plain)
    except OSError:
        return plain
    if packed.startswith(_MAPPED):
        return socket.inet_ntop(socket.AF_INET, packed[len(_MAPPED) :])
    return plain if any(packed) else _ALL


def addresses(host: str, port: int) -> list[Address]:
    """The addresses of a host. A name server may take seconds to answer. Raises OSError."""
    try:
        found = socket.getaddrinfo(_plain(host) or None, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except UnicodeError as error:  # a part of the name is empty or too long
        raise socket.gaierror(socket.EAI_NONAME, f"no host name: {error}") from error
    once = dict.fromkeys(Address(family, sockaddr) for family, _, _, _, sockaddr in found)
    return sorted(once, key=lambda address: address.family != socket.AF_INET)


def _open(
    host: str, found: list[Address], *, most: int, backlog: int, receive_buffer_bytes: int = 0
) -> list[socket.socket]:
    listeners: list[socket.socket] = []
    unusable: dict[str, OSError] = {}
    with contextlib.ExitStack() as on_failure:
        for address in found:
            if len(listeners) == most:
                break
            if listeners and not address.sockaddr[1]:
                name, _, *rest = address.sockaddr
                address = address._replace(sockaddr=(name, listeners[0].getsockname()[1], *rest))
            try:
                listeners.append(on_failure.enter_context(_listener(address, backlog, receive_buffer_bytes)))
            except OSError as error:
                if error.errno == errno.EADDRINUSE:
                    raise
                unusable[address.sockaddr[0]] = error
        if not listeners:
            raise next(iter(unusable.values()))
        on_failure.pop_all()
    if unusable and _plain(host) != _ALL:
        _log.warning(
            "Cannot listen on some addresses of the host, using the others",
            host=host,
            used=", ".join(listener.getsockname()[0] for listener in listeners),
            unusable=", ".join(f"{name} ({error.strerror})" for name, error in unusable.items()),
        )
    return listeners


def _listener(address: Address, backlog: int, receive_buffer_bytes: int) -> socket.socket:
    with contextlib.ExitStack() as on_failure:
        listener = on_failure.enter_context(socket.socket(address.family, socket.SOCK_STREAM))
        if address.family == socket.AF_INET6:
            listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, not address.takes_both)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if receive_buffer_bytes:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer_bytes)
        listener.bind(address.sockaddr)
        listener.listen(backlog)
        listener.setblocking(False)
        on_failure.pop_all()
    return listener
