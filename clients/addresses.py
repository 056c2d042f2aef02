"""Where to connect next, and when: pure, the time and the dice come in as arguments."""

import random
from collections.abc import Sequence

DEFAULT_PORT = 5473
BACKOFF_MIN_SECONDS = 0.1
BACKOFF_MAX_SECONDS = 30.0
HEALTHY_SECONDS = 10.0
"""A connection that lived this long with data ends an outage: back-off begins anew."""
MAX_RETRY_AFTER_SECONDS = 300.0
"""A server may ask for a longer pause, and does not get it: it might have meant milliseconds."""


def parse(address: str) -> tuple[str, int]:
    """Host and port of `host:port`, `host`, `[v6]:port` or `[v6]`; the port is 5473 if there is none.

    Raises:
        ValueError: no host, or a port outside 1..65535.
    """
    if address.startswith("["):
        host, bracket, rest = address[1:].partition("]")
        if not bracket or (rest and not rest.startswith(":")):
            raise ValueError(f"address {address!r} is not [HOST]:PORT")
        port_text = rest[1:] if rest else str(DEFAULT_PORT)
    elif address.count(":") > 1:
        raise ValueError(f"address {address!r}: an IPv6 address goes in brackets")
    else:
        host, colon, port_text = address.partition(":")
        port_text = port_text if colon else str(DEFAULT_PORT)
    if not host:
        raise ValueError(f"address {address!r} has no host")
    if not (port_text.isascii() and port_text.isdigit() and 0 < int(port_text) < 65536):
        raise ValueError(f"address {address!r} has a bad port")
    return host, int(port_text)


class Rotation:
    """Chooses among several addresses: another one after each failure, and none before the time it asked for.

    Pauses grow from 0.1 s to 30 s, doubled with each failure in a row; each is drawn evenly from 0 up to that
    ("full jitter"), so that a fleet does not come back in one lump.
    """

    def __init__(self, addresses: Sequence[str], *, dice: random.Random | None = None) -> None:
        if not addresses:
            raise ValueError("no addresses")
        for address in addresses:
            parse(address)
        self._dice = dice or random.Random()
        self._addresses = list(dict.fromkeys(addresses))
        self._dice.shuffle(self._addresses)
        self._not_before: dict[str, float] = {}
        self._failures = 0

    def current(self) -> str:
        """The address to connect to."""
        return self._addresses[0]

    def failed(self, now: float, *, lived_seconds: float = 0.0, retry_after_seconds: float = 0.0) -> float:
        """The current address failed, or its connection ended; another becomes the current one.

        Gives the seconds to wait before connecting to it. `retry_after_seconds` is what the server asked for, and
        holds for its address alone.
        """
        if lived_seconds >= HEALTHY_SECONDS:
            self._failures = 0
        ceiling = min(BACKOFF_MAX_SECONDS, BACKOFF_MIN_SECONDS * 2.0 ** min(self._failures, 30))
        self._failures += 1
        failed = self._addresses.pop(0)
        self._addresses.append(failed)
        self._not_before[failed] = now + min(retry_after_seconds, MAX_RETRY_AFTER_SECONDS)
        # min is stable: of those that may be tried now, the one not tried for longest.
        chosen = min(self._addresses, key=lambda address: max(self._not_before.get(address, now), now))
        self._addresses.remove(chosen)
        self._addresses.insert(0, chosen)
        return max(self._not_before.get(chosen, now) - now, 0.0) + self._dice.uniform(0.0, ceiling)
