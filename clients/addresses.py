"""Internal: which server to connect to next, and when. Pure: the time and the random numbers are arguments."""

import random
from collections.abc import Sequence

DEFAULT_PORT = 5473
"""The port of an address without one."""
BACKOFF_MIN_SECONDS = 0.1
BACKOFF_MAX_SECONDS = 30.0
HEALTHY_SECONDS = 10.0
"""A connection that lasted this long ends an outage: the back-off starts over."""
MAX_RETRY_AFTER_SECONDS = 300.0
"""Longest pause that a server can ask for: a larger value may be milliseconds by mistake."""


def parse(address: str) -> tuple[str, int]:
    """Splits `host:port`, `host`, `[v6]:port` or `[v6]` into host and port. The default port is 5473.

    Raises:
        ValueError: the host is missing or has white space, or the port is not in 1..65535.
    """
    if address.startswith("["):
        host, bracket, rest = address[1:].partition("]")
        if not bracket or (rest and not rest.startswith(":")):
            raise ValueError(f"address {address!r} is not [HOST]:PORT")
        port_text = rest[1:] if rest else str(DEFAULT_PORT)
    elif address.count(":") > 1:
        raise ValueError(f"address {address!r}: an IPv6 address needs brackets")
    else:
        host, colon, port_text = address.partition(":")
        port_text = port_text if colon else str(DEFAULT_PORT)
    if not host:
        raise ValueError(f"address {address!r} has no host")
    if any(one.isspace() for one in host):
        raise ValueError(f"address {address!r} has a bad host")
    if not (port_text.isascii() and port_text.isdigit() and 0 < int(port_text) < 65536):
        raise ValueError(f"address {address!r} has a bad port")
    return host, int(port_text)


class Rotation:
    """Picks one of several addresses: a different one after each failure, and none before the time it asked for.

    The back-off grows from 0.1 s to 30 s and doubles with each consecutive failure. Each pause is a random time from 0
    up to the back-off ("full jitter"), so that clients do not reconnect all at once.
    """

    def __init__(self, addresses: Sequence[str], *, rng: random.Random | None = None) -> None:
        if not addresses:
            raise ValueError("no addresses")
        for address in addresses:
            parse(address)
        self._rng = rng or random.Random()
        self._addresses = list(dict.fromkeys(addresses))
        self._rng.shuffle(self._addresses)
        self._not_before: dict[str, float] = {}
        self._failures = 0
        self._redirect = ""
        """The server that another one has named for the next attempt."""
        self._trusted_host = parse(self._addresses[0])[0]

    def current(self) -> str:
        """The address to connect to."""
        return self._redirect or self._addresses[0]

    @property
    def trusted_host(self) -> str:
        """The host whose name a certificate must have: of an own address, wherever that has sent the client."""
        return self._trusted_host

    def failed(
        self,
        now: float,
        *,
        lived_seconds: float = 0.0,
        retry_after_seconds: float = 0.0,
        servers: Sequence[str] = (),
    ) -> float:
        """Records that the current address failed or its connection ended, and switches to another one.

        Returns the seconds to wait before connecting to the new address. `retry_after_seconds` is the pause that the
        server asked for; it applies to its own address only. Of the `servers` that it has named, the next attempt takes
        one.
        """
        if lived_seconds >= HEALTHY_SECONDS:
            self._failures = 0
        backoff_seconds = min(BACKOFF_MAX_SECONDS, BACKOFF_MIN_SECONDS * 2.0 ** min(self._failures, 30))
        self._failures += 1
        failed, self._redirect = self.current(), ""
        if failed in self._addresses:
            self._addresses.remove(failed)
            self._addresses.append(failed)
            self._not_before[failed] = now + min(retry_after_seconds, MAX_RETRY_AFTER_SECONDS)
        named = [one for one in servers if one != failed and _is_address(one)]
        if named:
            self._redirect = self._rng.choice(named)
            return self._rng.uniform(0.0, backoff_seconds)
        # `min` is stable: among the addresses that may be tried now, it returns the least recently tried.
        chosen = min(self._addresses, key=lambda address: max(self._not_before.get(address, now), now))
        self._addresses.remove(chosen)
        self._addresses.insert(0, chosen)
        self._trusted_host = parse(chosen)[0]
        return max(self._not_before.get(chosen, now) - now, 0.0) + self._rng.uniform(0.0, backoff_seconds)


def _is_address(text: str) -> bool:
    try:
        parse(text)
    except ValueError:
        return False
    return True
