"""The veth pair of a pod, its address and its routes, by `ip` in the namespaces concerned.

`ip -batch` makes all changes of one namespace in one process, which costs 3 ms. The pod has a /32 address, and its
default route leads to 169.254.1.1. The node's end of the pair answers every ARP request itself, with the same MAC on
every node.
"""

import hashlib
import json
import os
import subprocess
from typing import Any, Final

GATEWAY: Final = "169.254.1.1"
HOST_MAC: Final = "ee:ee:ee:ee:ee:ee"
"""All host ends have it, as with Calico: a pod keeps its ARP entry when its node's end is made again."""
COMMAND_TIMEOUT_SECONDS: Final = 10.0
_MAX_TEXT: Final = 500
_HOST_SETTINGS: Final = (
    ("ipv4/neigh/{0}/proxy_delay", "0"),  # the default waits up to 0.8 s before it answers for another
    ("ipv4/conf/{0}/proxy_arp", "1"),
    ("ipv4/conf/{0}/forwarding", "1"),
    ("ipv4/conf/{0}/rp_filter", "1"),
)


class NetworkError(Exception):
    """The kernel refuses a change, or has not what it should."""


class NamespaceGone(NetworkError):
    """The container's network namespace does not exist."""


def host_interface(namespace: str, pod: str) -> str:
    """The name of the node's end of the pair, as Calico forms it."""
    return "cali" + hashlib.sha1(f"{namespace}.{pod}".encode(), usedforsecurity=False).hexdigest()[:11]


def attach(path: str, interface: str, *, host: str, address: str, mtu: int) -> str:
    """Make the pair, replacing what an earlier sandbox of the pod has left; returns the MAC of the pod's end.

    Raises NetworkError, NamespaceGone.
    """
    _check(path)
    if _ip(path, "-j", "link", "show", "dev", interface, is_checked=False):
        raise NetworkError(f"{interface} exists in the container already")
    _ip("", "link", "delete", "dev", host, is_checked=False)
    _batch("", f"link add {host} address {HOST_MAC} mtu {mtu} type veth peer name {interface} mtu {mtu} netns {path}")
    for name, value in _HOST_SETTINGS:
        with open(f"/proc/sys/net/{name.format(host)}", "w") as file:
            file.write(value)
    _batch(
        path,
        "link set dev lo up",
        f"link set dev {interface} up",
        f"address add {address}/32 dev {interface}",
        f"route add {GATEWAY} dev {interface} scope link",
        f"route add default via {GATEWAY} dev {interface}",
    )
    _batch("", f"link set dev {host} up", f"route replace {address}/32 dev {host} scope link")
    return mac(path, interface)


def detach(path: str, interface: str) -> None:
    """Delete the pod's end, and with it the node's. What is gone already is no error. Raises NetworkError."""
    try:
        _check(path)
    except NamespaceGone:
        return
    if _ip(path, "-j", "link", "show", "dev", interface, is_checked=False):
        _ip(path, "link", "delete", "dev", interface)


def mac(path: str, interface: str) -> str:
    """The MAC of an interface. Raises NetworkError."""
    return str(_json(_ip(path, "-j", "link", "show", "dev", interface))[0]["address"])


def check(path: str, interface: str, *, host: str, address: str) -> None:
    """Raise NetworkError unless the pair, the address and both routes are there."""
    _check(path)
    if "UP" not in _json(_ip("", "-j", "link", "show", "dev", host))[0]["flags"]:
        raise NetworkError(f"{host} is down")
    inside = _json(_ip(path, "-j", "address", "show", "dev", interface))[0]
    if "UP" not in inside["flags"]:
        raise NetworkError(f"{interface} is down")
    if not any((one.get("local"), one.get("prefixlen")) == (address, 32) for one in inside["addr_info"]):
        raise NetworkError(f"{interface} does not have the address {address}")
    if not any(
        (one.get("dst"), one.get("gateway"), one.get("dev")) == ("default", GATEWAY, interface)
        for one in _json(_ip(path, "-j", "route", "show"))
    ):
        raise NetworkError(f"the container has no default route through {GATEWAY}")
    if not any(one.get("dev") == host for one in _json(_ip("", "-j", "route", "show", address))):
        raise NetworkError(f"the node has no route to {address} through {host}")


def _check(path: str) -> None:
    if not os.path.exists(path):
        raise NamespaceGone(f"{path} does not exist")


def _batch(path: str, *commands: str) -> None:
    _ip(path, "-batch", "-", text="".join(command + "\n" for command in commands))


def _ip(path: str, *arguments: str, text: str = "", is_checked: bool = True) -> str:
    """Run `ip` in a namespace (default: this one); returns what it prints, nothing if it fails and is not checked."""
    inside = ["nsenter", f"--net={path}"] if path else []
    try:
        done = subprocess.run(
            [*inside, "ip", *arguments],
            check=False,
            input=text,
            capture_output=True,
            text=True,
            timeout=COMMAND_TIMEOUT_SECONDS,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise NetworkError(f"ip: {error!r}"[:_MAX_TEXT]) from error
    if done.returncode and is_checked:
        raise NetworkError(f"ip {' '.join(arguments)} {text}: {done.stderr.strip()}"[:_MAX_TEXT])
    return "" if done.returncode else done.stdout


def _json(text: str) -> Any:
    try:
        return json.loads(text or "[]")
    except ValueError as error:
        raise NetworkError(f"ip prints no JSON: {text[:_MAX_TEXT]}") from error
