"""The feed's keys and values as the objects that they mean. Pure.

A value that is malformed is left out, and named in `State.problems`: one bad object stops nothing else.
"""

import contextlib
import ipaddress
import json
import math
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, Final

Network = ipaddress.IPv4Network
Address = ipaddress.IPv4Address
JsonObject = dict[str, Any]

DEFAULT_AS_NUMBER: Final = 64512
MAX_AS_NUMBER: Final = 2**32 - 1
MAX_SECONDS: Final = 4095
"""Longest restart time: BGP has 12 bits for it."""
_DURATION = re.compile(r"(?:(\d+)h)?(?:(\d+)m)?(?:(\d+(?:\.\d+)?)s)?")
_INTERFACE = re.compile(r"[A-Za-z0-9_.\-*?]{1,15}")
_RESOURCE = re.compile(r"/calico/resources/v3/projectcalico\.org/([a-z]+)/(.+)")
_POOL = re.compile(r"/calico/v1/ipam/v4/pool/(.+)")
_AFFINITY = re.compile(r"/calico/ipam/v2/host/(.+)/ipv4/block/(.+)")
_STANDARD_COMMUNITY = re.compile(r"(\d{1,5}):(\d{1,5})")
_LARGE_COMMUNITY = re.compile(r"(\d{1,10}):(\d{1,10}):(\d{1,10})")


@dataclass(frozen=True)
class Node:
    """A node that talks BGP."""

    name: str
    address: Address
    subnet: Network
    as_number: int | None
    cluster_id: Address | None
    """Set for route reflectors."""
    labels: dict[str, str]


@dataclass(frozen=True)
class Pool:
    """An IPPool."""

    network: Network
    vxlan_mode: str
    ipip_mode: str
    is_exported: bool


@dataclass(frozen=True)
class Community:
    """A standard community (two numbers) or a large one (three)."""

    numbers: tuple[int, ...]


@dataclass(frozen=True)
class Configuration:
    """A BGPConfiguration; None means that it does not say."""

    as_number: int | None = None
    is_mesh: bool = True
    has_mesh_password: bool = False
    mesh_restart_seconds: int = 0
    listen_port: int | None = None
    log_level: str | None = None
    is_strict: bool = False
    """Whether BIRD listens on the node's BGP address only."""
    ignored_interfaces: tuple[str, ...] = ()
    advertised_services: tuple[str, ...] = ()
    """Members that ask for addresses of services, which are not supported."""
    communities: tuple[JsonObject, ...] = ()
    prefix_advertisements: tuple[JsonObject, ...] = ()


@dataclass
class State:
    """All objects of the feed, by name."""

    nodes: dict[str, Node] = field(default_factory=dict)
    pools: dict[str, Pool] = field(default_factory=dict)
    blocks: dict[str, set[Network]] = field(default_factory=dict)
    """The confirmed blocks of each node."""
    configurations: dict[str, Configuration] = field(default_factory=dict)
    peers: dict[str, JsonObject] = field(default_factory=dict)
    filters: dict[str, JsonObject] = field(default_factory=dict)
    problems: dict[str, str] = field(default_factory=dict)
    """Why a key is left out, or something of it."""

    def apply(self, key: str, value: bytes | None) -> None:
        """Set or delete one key of the feed."""
        self.problems.pop(key, None)
        try:
            self._apply(key, None if value is None else json.loads(value))
        except (ValueError, TypeError, LookupError, AttributeError, RecursionError) as error:
            self.problems[key] = f"malformed: {error!r}"[:200]
            with contextlib.suppress(ValueError):  # a key that itself is malformed has set nothing before
                self._apply(key, None)

    def _apply(self, key: str, value: JsonObject | None) -> None:
        if found := _RESOURCE.fullmatch(key):
            self._apply_resource(found[1], found[2], value)
        elif found := _POOL.fullmatch(key):
            _set(self.pools, key, None if value is None else _pool(value))
        elif (found := _AFFINITY.fullmatch(key)) and ":" not in found[2]:
            block = Network(found[2].replace("-", "/"))
            blocks = self.blocks.setdefault(found[1], set())
            blocks.discard(block)
            if value is not None and value.get("state", "confirmed") == "confirmed" and not value.get("deleted"):
                blocks.add(block)

    def _apply_resource(self, kind: str, name: str, value: JsonObject | None) -> None:
        spec = None if value is None else dict(value.get("spec") or {})
        if kind == "nodes":
            _set(self.nodes, name, None if value is None else _node(name, value))
        elif kind == "bgpconfigurations":
            _set(self.configurations, name, None if spec is None else self._configuration(name, spec))
        elif kind in ("bgppeers", "bgpfilters"):
            _set(self.peers if kind == "bgppeers" else self.filters, name, spec)

    def _configuration(self, name: str, spec: JsonObject) -> Configuration:
        """What a BGPConfiguration says. A malformed member is left out alone."""
        found: dict[str, Any] = {}
        for member, (attribute, parse) in _MEMBERS.items():
            subject = f"BGPConfiguration {name} {member}"
            self.problems.pop(subject, None)
            if spec.get(member) in (None, ""):
                continue
            try:
                found[attribute] = parse(spec[member])
            except (ValueError, TypeError, LookupError, AttributeError) as error:
                self.problems[subject] = f"malformed: {error!r}"[:200]
        services = tuple(member for member in _SERVICES if spec.get(member))
        return Configuration(**found, advertised_services=services)


def as_number(value: Any) -> int | None:
    """An AS number as a number, as text or as `a.b`; None if there is none. Raises ValueError."""
    if value is None or value == "":
        return None
    if isinstance(value, str) and "." in value:
        high, low = map(int, value.split("."))
        if not (0 <= high <= 0xFFFF and 0 <= low <= 0xFFFF):
            raise ValueError(f"AS number {value[:20]!r}")
        number = (high << 16) + low
    else:
        number = int(value)
    if not 0 < number <= MAX_AS_NUMBER:
        raise ValueError(f"AS number {number}")
    return number


def seconds(duration: Any) -> int:
    """A duration as Go writes it, in whole seconds; 0 for none. Raises ValueError."""
    if duration in (None, ""):
        return 0
    found = _DURATION.fullmatch(str(duration)[:40])
    if found is None:
        raise ValueError(f"duration {str(duration)[:20]!r}")
    hours, minutes, rest = (float(part or 0) for part in found.groups())
    return min(MAX_SECONDS, math.ceil(hours * 3600 + minutes * 60 + rest))


def port(value: Any) -> int:
    """A port. Raises ValueError."""
    number = int(value)
    if not 0 < number < 65_536:
        raise ValueError(f"port {number}")
    return number


def community(text: str) -> Community:
    """A community of a rule, such as 64512:120. Raises ValueError."""
    found = _STANDARD_COMMUNITY.fullmatch(text)
    limit = 0xFFFF
    if found is None:
        found, limit = _LARGE_COMMUNITY.fullmatch(text), 0xFFFFFFFF
    if found is None or any(int(number) > limit for number in found.groups()):
        raise ValueError(f"community {text[:40]!r}")
    return Community(tuple(map(int, found.groups())))


def configured(state: State, node: str) -> Iterator[Configuration]:
    """The BGPConfigurations that count for a node, the closer one first."""
    for name in (f"node.{node}", "default"):
        if name in state.configurations:
            yield state.configurations[name]


def _interfaces(patterns: Any) -> tuple[str, ...]:
    if not all(isinstance(pattern, str) and _INTERFACE.fullmatch(pattern) for pattern in patterns):
        raise ValueError(f"patterns of interfaces {str(patterns)[:60]}")
    return tuple(patterns)


def _objects(values: Any) -> tuple[JsonObject, ...]:
    if not isinstance(values, list) or not all(isinstance(value, dict) for value in values):
        raise ValueError("no list of objects")
    return tuple(values)


_SERVICES: Final = ("serviceClusterIPs", "serviceExternalIPs", "serviceLoadBalancerIPs")
_MEMBERS: Final[dict[str, tuple[str, Callable[[Any], Any]]]] = {
    "asNumber": ("as_number", as_number),
    "nodeToNodeMeshEnabled": ("is_mesh", bool),
    "nodeMeshPassword": ("has_mesh_password", lambda value: bool((value.get("secretKeyRef") or {}).get("name"))),
    "nodeMeshMaxRestartTime": ("mesh_restart_seconds", seconds),
    "listenPort": ("listen_port", port),
    "logSeverityScreen": ("log_level", lambda value: str(value).lower()),
    "bindMode": ("is_strict", lambda value: value == "NodeIP"),
    "ignoredInterfaces": ("ignored_interfaces", _interfaces),
    "communities": ("communities", _objects),
    "prefixAdvertisements": ("prefix_advertisements", _objects),
}
"""Members of a BGPConfiguration, the attribute that each becomes, and how."""


def _set(table: dict[str, Any], name: str, value: Any) -> None:
    if value is None:
        table.pop(name, None)
    else:
        table[name] = value


def network(value: object) -> Network:
    """A network, which must be text: numbers and booleans would be addresses, too. Raises TypeError, ValueError."""
    if not isinstance(value, str):
        raise TypeError(f"not text: {value!r:.60}")
    return Network(value)


def _node(name: str, value: JsonObject) -> Node | None:
    bgp = (value.get("spec") or {}).get("bgp") or {}
    if not bgp.get("ipv4Address"):
        return None
    interface = ipaddress.IPv4Interface(str(bgp["ipv4Address"]))
    return Node(
        name=name,
        address=interface.ip,
        subnet=interface.network,
        as_number=as_number(bgp.get("asNumber")),
        cluster_id=Address(str(bgp["routeReflectorClusterID"])) if bgp.get("routeReflectorClusterID") else None,
        labels={str(key): str(text) for key, text in (value["metadata"].get("labels") or {}).items()},
    )


def _pool(value: JsonObject) -> Pool:
    return Pool(
        network=network(value["cidr"]),
        vxlan_mode=str(value.get("vxlan_mode") or "never").lower(),
        ipip_mode=str(value.get("ipip_mode") or "never").lower(),
        is_exported=not value.get("disableBGPExport"),
    )
