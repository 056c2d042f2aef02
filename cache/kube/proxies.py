"""Chooses the proxy for an API server from the environment, as Go's HTTP client does."""

import ipaddress
import re
import urllib.parse
from collections.abc import Mapping

from cache.kube import files

SUPPORTED_SCHEMES = frozenset({"http", "https"})
_DEFAULT_PORTS = {"http": "80", "https": "443"}
_HOST_AND_PORT = re.compile(r"(?:\[(?P<v6>[^\[\]]*)\]|(?P<name>[^:\[\]]*)):(?P<port>[^:\[\]]*)")

Address = ipaddress.IPv4Address | ipaddress.IPv6Address


class ProxyUnusable(Exception):
    """A proxy is configured that this service cannot use. The message names it."""


def from_environment(environment: Mapping[str, str], url: str) -> str:
    """Return the proxy for a URL. Empty: none. Raises ProxyUnusable."""
    parts = urllib.parse.urlsplit(url)
    variable = "HTTPS_PROXY" if parts.scheme == "https" else "HTTP_PROXY"
    configured = _variable(environment, variable)
    port = str(parts.port or _DEFAULT_PORTS[parts.scheme])
    if not configured or not _applies(parts.hostname or "", port, _variable(environment, "NO_PROXY")):
        return ""
    if parts.scheme == "http" and environment.get("REQUEST_METHOD"):
        raise ProxyUnusable("HTTP_PROXY: refused in a CGI environment, where clients can set it")
    try:
        proxy = urllib.parse.urlsplit(configured)
        is_complete = bool(proxy.scheme and proxy.netloc)
    except ValueError:
        is_complete = False
    return checked(configured if is_complete else f"http://{configured}", variable)


def checked(proxy: str, source: str) -> str:
    """Return the proxy's URL if it can be used. Raises ProxyUnusable. `source` names the setting."""
    try:
        parts = urllib.parse.urlsplit(proxy)
        host, port = parts.hostname, parts.port or _DEFAULT_PORTS.get(parts.scheme, "")
    except ValueError as error:
        raise ProxyUnusable(f"{source}: not the address of a proxy: {error}") from error
    if parts.scheme not in SUPPORTED_SCHEMES:
        supported = " and ".join(sorted(SUPPORTED_SCHEMES))
        raise ProxyUnusable(
            f"{source}: proxies of type {files.shown(parts.scheme)!r} are not supported, only {supported}"
        )
    if not host or not port or not proxy.isprintable() or " " in proxy:
        raise ProxyUnusable(f"{source}: not the address of a proxy")
    return proxy


def _variable(environment: Mapping[str, str], name: str) -> str:
    return environment.get(name) or environment.get(name.lower(), "")


def _applies(host: str, port: str, exceptions: str) -> bool:
    """Whether the host is none of the exceptions, nor this machine."""
    address = _address(host, with_zone=True)
    if host == "localhost" or (address is not None and address.is_loopback):
        return False
    host = _ascii(host).lower()
    return not any(_matches(one.strip().lower(), host, port, address) for one in exceptions.split(","))


def _matches(exception: str, host: str, port: str, address: Address | None) -> bool:
    if exception == "*":
        return True
    if "/" in exception:
        if not exception.rpartition("/")[2].isdecimal():
            return False  # Go knows no masks
        try:
            network = ipaddress.ip_network(exception, strict=False)
        except ValueError:
            return False
        return address is not None and address in network
    split = _HOST_AND_PORT.fullmatch(exception)
    excepted = exception if split is None else split["v6"] or split["name"] or ""
    if not excepted or (split is not None and split["port"] not in ("", port)):
        return False
    excepted_address = _address(excepted)
    if excepted_address is not None or address is not None:
        return excepted_address == address
    excepted = _ascii(excepted.removeprefix("*"))
    return host.endswith(excepted) if excepted.startswith(".") else f".{host}".endswith(f".{excepted}")


def _address(text: str, *, with_zone: bool = False) -> Address | None:
    if "%" in text and not with_zone:
        return None
    try:
        address = ipaddress.ip_address(text.partition("%")[0])
    except ValueError:
        return None
    return getattr(address, "ipv4_mapped", None) or address


def _ascii(name: str) -> str:
    try:
        return name if name.isascii() else name.encode("idna").decode()
    except UnicodeError:
        return name
