"""Listening sockets: names and addresses of all kinds, and addresses that do not work."""

import contextlib
import errno
import os
import socket
from collections.abc import Iterator
from typing import Any

import pytest
import structlog

from loadtest.environment import control_plane
from typha import listening
from typha.settings import types


def has_v6() -> bool:
    with contextlib.suppress(OSError), socket.create_server(("::1", 0), family=socket.AF_INET6):
        return True
    return False


@contextlib.contextmanager
def opened(host: str) -> Iterator[tuple[list[socket.socket], list[socket.socket]]]:
    """The sockets of open_one and of open_all."""
    with contextlib.ExitStack() as stack:
        port = control_plane.free_port()  # another process may have the one that the kernel chooses, at another address
        one = stack.enter_context(listening.open_one(host, port, backlog=9, receive_buffer_bytes=20_000))
        port = control_plane.free_port()
        many = [stack.enter_context(listener) for listener in listening.open_all(host, port, backlog=9)]
        yield [one], many


def accepts(listeners: list[socket.socket], address: str) -> bool:
    port = listeners[0].getsockname()[1]
    try:
        with socket.create_connection((address, port), timeout=180):
            return True
    except ConnectionRefusedError:
        return False


@pytest.mark.parametrize(
    ("host", "v4", "v6"),
    [
        ("", True, True),
        ("::", True, True),
        ("[::]", True, True),
        ("0:0:0:0:0:0:0:0", True, True),
        ("0.0.0.0", True, False),
        ("127.0.0.1", True, False),
        ("::1", False, True),
        ("[::1]", False, True),
        ("::ffff:127.0.0.1", True, False),
    ],
)
def test_hosts_of_all_spellings(host: str, v4: bool, v6: bool) -> None:
    if not has_v6() and not v4:
        return  # nothing could connect
    with opened(host) as both:
        for listeners in both:
            assert accepts(listeners, "127.0.0.1") is v4
            assert not has_v6() or accepts(listeners, "::1") is v6
            assert not any(listener.getblocking() for listener in listeners)
            assert len({listener.getsockname()[1] for listener in listeners}) == 1


@pytest.fixture
def name(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The addresses that the name "typha.example" has."""
    addresses: list[str] = []
    real = socket.getaddrinfo

    def getaddrinfo(host: str | None, *args: Any, **options: Any) -> list[Any]:
        if host != "typha.example":
            return real(host, *args, **options)
        return [found for address in addresses for found in real(address, *args, **options)]

    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)
    return addresses


def names(listeners: list[socket.socket]) -> list[str]:
    return [listener.getsockname()[0] for listener in listeners]


def test_of_several_addresses_those_that_work_are_used(name: list[str]) -> None:
    name += ["2001:db8::1", "fe80::1", "192.0.2.1", "127.0.0.2", "127.0.0.1"]
    with structlog.testing.capture_logs() as logs, opened("typha.example") as (one, many):
        assert names(one) == ["127.0.0.2"]
        assert names(many) == ["127.0.0.2", "127.0.0.1"]
    assert [entry["log_level"] for entry in logs] == ["warning"] * 2
    assert logs[1]["used"] == "127.0.0.2, 127.0.0.1"
    assert [part.partition(" ")[0] for part in logs[1]["unusable"].split(", ")] == [
        "192.0.2.1",
        "2001:db8::1",
        "fe80::1",
    ]


def test_ipv4_is_preferred(name: list[str]) -> None:
    name += ["::1", "127.0.0.1", "127.0.0.1"]
    with opened("typha.example") as (one, many):
        assert names(one) == ["127.0.0.1"]
        assert names(many) == ["127.0.0.1", "::1"][: 1 + has_v6()]


def test_a_name_without_an_address_that_works_is_an_error(name: list[str]) -> None:
    name += ["192.0.2.1", "2001:db8::1"]
    for way in (listening.open_all, lambda *args, **rest: listening.open_one(*args, **rest, receive_buffer_bytes=0)):
        with pytest.raises(OSError, match=os.strerror(errno.EADDRNOTAVAIL)):
            way("typha.example", 0, backlog=9)
    with pytest.raises(OSError, match="ame"):
        listening.open_all("nonesuch.invalid", 0, backlog=9)


@pytest.mark.parametrize("taken_address", ["127.0.0.1", "127.0.0.2", "0.0.0.0"])
@pytest.mark.parametrize("host", ["typha.example", "", "::", "0.0.0.0"])
def test_an_address_that_is_taken_is_an_error(name: list[str], host: str, taken_address: str) -> None:
    name += ["127.0.0.1", "127.0.0.2"]
    in_use = pytest.raises(OSError, match=os.strerror(errno.EADDRINUSE))
    with socket.create_server((taken_address, 0)) as taken, in_use:
        listening.open_all(host, taken.getsockname()[1], backlog=9)


@pytest.mark.parametrize(
    "text",
    [
        *("localhost", "typha.calico-system.svc", "a" * 63 + ".example", "10.0.0.1", "::", "::1", "[::1]"),
        *("fe80::1%eth0.100", "[fe80::1%eth0]", "::ffff:10.0.0.1", "2001:db8:1:2:3:4:5:6"),
    ],
)
def test_settings_take_every_host(text: str) -> None:
    assert types.host_address().parse(text) == text


@pytest.mark.parametrize("text", ["a b", "host:80:", "[host]", "http://x", "[::1]:80", "a" * 254])
def test_settings_refuse_what_is_no_host(text: str) -> None:
    with pytest.raises(ValueError, match="expected a host name"):
        types.host_address().parse(text)


@pytest.mark.parametrize("host", ["a..b", ".", "x" * 64, "x" * 64 + ".example"])
def test_a_host_that_is_no_name_is_an_error_of_the_host(host: str) -> None:
    assert types.host_address().parse(host) == host  # the original's pattern allows it
    with pytest.raises(OSError, match="no host name"):
        listening.open_one(host, 0, backlog=9, receive_buffer_bytes=20_000)
    with pytest.raises(OSError, match="no host name"):
        listening.open_all(host, 0, backlog=9)
