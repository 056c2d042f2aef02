"""Policies of Kubernetes with the connections that they must leave open: tables, and a judge that needs no table.

The clusters are those of Kubernetes' own tests of network policies: namespaces x, y and z with pods a, b and c, which
serve ports 80 and 81. What each case must do is what the documentation of the API says; the cases of `NETPOL` are the
situations of the end-to-end tests, those of `CLUSTER_POLICIES` the ones of the conformance tests of the
network-policy-api, and `combinations` goes through all kinds of peers and ports as Cyclonus does.
"""

import ipaddress
import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from tests.harness import felix_feeds, packet_lab

Json = Mapping[str, Any]

SPACES, NAMES = "xyz", "abc"
PORTS = {"tcp": (80, 81), "udp": (80, 81), "sctp": (80, 81)}
PODS = tuple(f"{space}/{name}" for space in SPACES for name in NAMES)
OUTSIDE = "outside"
OUTSIDE_ADDRESS = "203.0.113.7"


def address(peer: str) -> str:
    """The address of a pod, or of the outside."""
    if peer == OUTSIDE:
        return OUTSIDE_ADDRESS
    space, _, name = peer.partition("/")
    return f"10.65.{SPACES.index(space)}.{NAMES.index(name) + 1}"


class Connection(NamedTuple):
    """A connection between two pods."""

    source: str
    destination: str
    protocol: str
    port: int

    @property
    def flow(self) -> packet_lab.Flow:
        """The packet that opens it."""
        return packet_lab.flow(f"{self.protocol}/{self.port}")


ALL = tuple(
    Connection(source, destination, protocol, port)
    for source, destination in itertools.product((*PODS, OUTSIDE), repeat=2)
    if source != destination
    for protocol, ports in PORTS.items()
    for port in ports
)
"""All connections that are asked about."""


class Except(NamedTuple):
    """Changes what is expected of some connections. Parts are `*`, a namespace `x/*`, a pod, or `OUTSIDE`."""

    open: bool
    source: str = "*"
    destination: str = "*"
    protocol: str = "*"
    port: int = 0

    def concerns(self, connection: Connection) -> bool:
        """Whether a connection is one of them."""
        return (
            _fits(self.source, connection.source)
            and _fits(self.destination, connection.destination)
            and self.protocol in ("*", connection.protocol)
            and self.port in (0, connection.port)
        )


def _fits(pattern: str, peer: str) -> bool:
    return pattern in ("*", peer) or (pattern.endswith("/*") and peer.startswith(pattern[:-1]))


@dataclass(frozen=True)
class Case:
    """Policies, and what they leave open."""

    name: str
    policies: tuple[Json, ...]
    expected: Callable[[Connection], bool]

    def content(self) -> dict[str, bytes]:
        """The feed of the cluster with these policies."""
        return felix_feeds.cluster(*cluster_objects(), *self.policies)


def cluster_objects() -> list[Json]:
    """Namespaces and pods."""
    spaces: list[Json] = [
        {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": space, "labels": _space_labels(space)}}
        for space in SPACES
    ]
    return [*spaces, *map(_pod, PODS)]


def _space_labels(space: str) -> dict[str, str]:
    return {"ns": space, "kubernetes.io/metadata.name": space}


def _pod(pod: str) -> Json:
    space, _, name = pod.partition("/")
    ports = [
        {"name": f"serve-{port}-{protocol}", "containerPort": port, "protocol": protocol.upper()}
        for protocol, numbers in PORTS.items()
        for port in numbers
    ]
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": name, "namespace": space, "labels": {"pod": name}},
        "spec": {"nodeName": felix_feeds.NODE, "containers": [{"name": "c", "image": "i", "ports": ports}]},
        "status": {"phase": "Running", "podIP": address(pod), "podIPs": [{"ip": address(pod)}]},
    }


# The tables


def _expect(*exceptions: Except) -> Callable[[Connection], bool]:
    """All connections are open but for the exceptions. The last one that concerns a connection decides."""

    def is_open(connection: Connection) -> bool:
        return next((found.open for found in reversed(exceptions) if found.concerns(connection)), True)

    return is_open


def _policy(
    name: str,
    space: str = "x",
    *,
    pod: Json | None = None,
    ingress: Sequence[Json] | None = None,
    egress: Sequence[Json] | None = None,
) -> Json:
    """A policy. A direction that is None is not restricted; an empty one is closed."""
    spec: dict[str, Any] = {"podSelector": pod or {}, "policyTypes": []}
    for direction, rules in (("Ingress", ingress), ("Egress", egress)):
        if rules is not None:
            spec["policyTypes"].append(direction)
            spec[direction.lower()] = list(rules)
    return {
        "apiVersion": "networking.k8s.io/v1",
        "kind": "NetworkPolicy",
        "metadata": {"name": name, "namespace": space},
        "spec": spec,
    }


def _pods(*names: str) -> Json:
    return {"matchExpressions": [{"key": "pod", "operator": "In", "values": list(names)}]}


def _spaces(*names: str, operator: str = "In") -> Json:
    return {"matchExpressions": [{"key": "ns", "operator": operator, "values": list(names)}]}


A: Json = {"matchLabels": {"pod": "a"}}
B: Json = {"matchLabels": {"pod": "b"}}
SPACE_Y: Json = {"matchLabels": {"ns": "y"}}


def _from(*peers: Json, ports: Sequence[Json] | None = None) -> Json:
    return {"from": list(peers)} | ({} if ports is None else {"ports": list(ports)})


def _to(*peers: Json, ports: Sequence[Json] | None = None) -> Json:
    return {"to": list(peers)} | ({} if ports is None else {"ports": list(ports)})


def _port(port: int | str | None, protocol: str = "TCP", end: int | None = None) -> Json:
    found: dict[str, Any] = {"protocol": protocol}
    if port is not None:
        found["port"] = port
    if end is not None:
        found["endPort"] = end
    return found


def _net(cidr: str, *excepted: str) -> Json:
    return {"ipBlock": {"cidr": cidr, "except": list(excepted)} if excepted else {"cidr": cidr}}


TO_A = Except(False, destination="x/a")
FROM_A = Except(False, source="x/a")

NETPOL = (
    Case("no policy", (), _expect()),
    Case("default-deny-ingress", (_policy("p", ingress=[]),), _expect(Except(False, destination="x/*"))),
    Case(
        "default-deny-all",
        (_policy("p", ingress=[], egress=[]),),
        _expect(Except(False, destination="x/*"), Except(False, source="x/*")),
    ),
    Case(
        "from pods of the own namespace",
        (_policy("p", pod=A, ingress=[_from({"podSelector": B})]),),
        _expect(TO_A, Except(True, "x/b", "x/a")),
    ),
    Case(
        "from a namespace",
        (_policy("p", pod=A, ingress=[_from({"namespaceSelector": SPACE_Y})]),),
        _expect(TO_A, Except(True, "y/*", "x/a")),
    ),
    Case(
        "from pods, by an expression",
        (_policy("p", pod=A, ingress=[_from({"podSelector": _pods("b")})]),),
        _expect(TO_A, Except(True, "x/b", "x/a")),
    ),
    Case(
        "from namespaces, by an expression",
        (_policy("p", pod=A, ingress=[_from({"namespaceSelector": _spaces("y")})]),),
        _expect(TO_A, Except(True, "y/*", "x/a")),
    ),
    Case(
        "from namespaces or pods",
        (
            _policy(
                "p",
                pod=A,
                ingress=[_from({"namespaceSelector": _spaces("x", operator="NotIn")}, {"podSelector": B})],
            ),
        ),
        _expect(TO_A, Except(True, "y/*", "x/a"), Except(True, "z/*", "x/a"), Except(True, "x/b", "x/a")),
    ),
    Case(
        "from pods of namespaces",
        (
            _policy(
                "p",
                pod=A,
                ingress=[_from({"namespaceSelector": _spaces("x", operator="NotIn"), "podSelector": B})],
            ),
        ),
        _expect(TO_A, Except(True, "y/b", "x/a"), Except(True, "z/b", "x/a")),
    ),
    Case(
        "from several pods of several namespaces",
        (
            _policy(
                "p", pod=A, ingress=[_from({"namespaceSelector": _spaces("y", "z"), "podSelector": _pods("b", "c")})]
            ),
        ),
        _expect(TO_A, *(Except(True, f"{space}/{name}", "x/a") for space in "yz" for name in "bc")),
    ),
    Case(
        "from any of several pod selectors",
        (_policy("p", pod=A, ingress=[_from({"podSelector": _pods("b")}, {"podSelector": _pods("c")})]),),
        _expect(TO_A, Except(True, "x/b", "x/a"), Except(True, "x/c", "x/a")),
    ),
    Case(
        "from one pod of one namespace",
        (_policy("p", pod=A, ingress=[_from({"namespaceSelector": SPACE_Y, "podSelector": A})]),),
        _expect(TO_A, Except(True, "y/a", "x/a")),
    ),
    Case(
        "by the default label of the namespace",
        (
            _policy(
                "p",
                pod=A,
                ingress=[_from({"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "y"}}})],
            ),
        ),
        _expect(TO_A, Except(True, "y/*", "x/a")),
    ),
    Case(
        "to a port from a namespace",
        (_policy("p", pod=A, ingress=[_from({"namespaceSelector": SPACE_Y}, ports=[_port(81)])]),),
        _expect(TO_A, Except(True, "y/*", "x/a", "tcp", 81)),
    ),
    Case(
        "stacked policies with overlapping selectors",
        (
            _policy("p", pod=A, ingress=[_from({"namespaceSelector": SPACE_Y}, ports=[_port(81)])]),
            _policy("q", pod=A, ingress=[_from({"namespaceSelector": SPACE_Y}, ports=[_port(80)])]),
        ),
        _expect(TO_A, Except(True, "y/*", "x/a", "tcp")),
    ),
    Case("allow all ingress", (_policy("p", ingress=[{}]),), _expect()),
    Case("allow all wins over deny", (_policy("p", ingress=[]), _policy("q", ingress=[{}])), _expect()),
    Case("allow all egress wins over deny", (_policy("p", egress=[]), _policy("q", egress=[{}])), _expect()),
    Case(
        "to a named port",
        (_policy("p", pod=A, ingress=[{"ports": [_port("serve-81-tcp")]}]),),
        _expect(TO_A, Except(True, "*", "x/a", "tcp", 81)),
    ),
    Case(
        "to a named port from a namespace",
        (_policy("p", pod=A, ingress=[_from({"namespaceSelector": SPACE_Y}, ports=[_port("serve-80-tcp")])]),),
        _expect(TO_A, Except(True, "y/*", "x/a", "tcp", 80)),
    ),
    Case(
        "a named port of another protocol opens nothing",
        (_policy("p", pod=A, ingress=[{"ports": [_port("serve-80-udp", "TCP")]}]),),
        _expect(TO_A),
    ),
    Case(
        "egress to a named port",
        (_policy("p", pod=A, egress=[{"ports": [_port("serve-80-tcp")]}]),),
        _expect(FROM_A, *(Except(True, "x/a", pod, "tcp", 80) for pod in PODS)),
    ),
    Case("no egress from a pod", (_policy("p", pod=A, egress=[]),), _expect(FROM_A)),
    Case("no egress from a namespace", (_policy("p", "y", egress=[]),), _expect(Except(False, "y/*"))),
    Case(
        "egress to pods of another namespace",
        (_policy("p", pod=A, egress=[_to({"namespaceSelector": SPACE_Y, "podSelector": A})]),),
        _expect(FROM_A, Except(True, "x/a", "y/a")),
    ),
    Case(
        "ingress and egress together",
        (
            _policy(
                "p",
                pod=A,
                ingress=[_from({"podSelector": B}, ports=[_port(80)])],
                egress=[_to({"podSelector": _pods("c")}, ports=[_port(81, "UDP")])],
            ),
        ),
        _expect(TO_A, FROM_A, Except(True, "x/b", "x/a", "tcp", 80), Except(True, "x/a", "x/c", "udp", 81)),
    ),
    Case(
        "the client's egress decides too",
        (_policy("p", "y", pod=A, egress=[]), _policy("q", pod=A, ingress=[_from({"namespaceSelector": SPACE_Y})])),
        _expect(TO_A, Except(True, "y/*", "x/a"), Except(False, "y/a")),
    ),
    Case(
        "egress to a net",
        (_policy("p", pod=A, egress=[_to(_net(f"{address('y/b')}/32"))]),),
        _expect(FROM_A, Except(True, "x/a", "y/b")),
    ),
    Case(
        "egress to a net but for one address",
        (_policy("p", pod=A, egress=[_to(_net("10.65.0.0/16", f"{address('y/b')}/32"))]),),
        _expect(FROM_A, *(Except(pod != "y/b", "x/a", pod) for pod in PODS)),
    ),
    Case(
        "an excepted address that another policy allows",
        (
            _policy("p", pod=A, egress=[_to(_net("10.65.0.0/16", f"{address('y/b')}/32"))]),
            _policy("q", pod=A, egress=[_to(_net(f"{address('y/b')}/32"))]),
        ),
        _expect(FROM_A, *(Except(True, "x/a", pod) for pod in PODS)),
    ),
    Case(
        "ingress from a net outside",
        (_policy("p", pod=A, ingress=[_from(_net("203.0.113.0/24"))]),),
        _expect(TO_A, Except(True, OUTSIDE, "x/a")),
    ),
    Case(
        "only UDP",
        (_policy("p", pod=A, ingress=[{"ports": [_port(None, "UDP")]}]),),
        _expect(TO_A, Except(True, "*", "x/a", "udp")),
    ),
    Case(
        "only a port of SCTP",
        (_policy("p", pod=A, ingress=[{"ports": [_port(81, "SCTP")]}]),),
        _expect(TO_A, Except(True, "*", "x/a", "sctp", 81)),
    ),
    Case(
        "a range of ports",
        (_policy("p", pod=A, ingress=[{"ports": [_port(79, "TCP", 80), _port(81, "UDP", 90)]}]),),
        _expect(TO_A, Except(True, "*", "x/a", "tcp", 80), Except(True, "*", "x/a", "udp", 81)),
    ),
)
"""The situations of Kubernetes' end-to-end tests of network policies."""


def _cluster_policy(
    name: str,
    priority: int,
    *,
    tier: str = "Admin",
    subject: Json | None = None,
    ingress: Sequence[Json] = (),
    egress: Sequence[Json] = (),
) -> Json:
    spec = {"priority": priority, "tier": tier, "subject": subject or {"namespaces": {"matchLabels": {"ns": "x"}}}}
    return {
        "apiVersion": "policy.networking.k8s.io/v1alpha2",
        "kind": "ClusterNetworkPolicy",
        "metadata": {"name": name},
        "spec": {**spec, "ingress": list(ingress), "egress": list(egress)},
    }


def _rule(action: str, peers: str, selected: Json, **more: Any) -> Json:
    return {"action": action, peers: [{"namespaces": selected}], **more}


IN_Y, IN_Z, EVERYWHERE = {"matchLabels": {"ns": "y"}}, {"matchLabels": {"ns": "z"}}, dict[str, Any]()

CLUSTER_POLICIES = (
    Case(
        "deny ingress from a namespace",
        (_cluster_policy("p", 10, ingress=[_rule("Deny", "from", IN_Y)]),),
        _expect(Except(False, "y/*", "x/*")),
    ),
    Case(
        "deny egress to a namespace",
        (_cluster_policy("p", 10, egress=[_rule("Deny", "to", IN_Y)]),),
        _expect(Except(False, "x/*", "y/*")),
    ),
    Case(
        "the first rule that matches decides",
        (_cluster_policy("p", 10, ingress=[_rule("Accept", "from", IN_Y), _rule("Deny", "from", EVERYWHERE)]),),
        _expect(*(Except(False, f"{space}/*", "x/*") for space in "xz")),
    ),
    Case(
        "the policy with the lower number decides",
        (
            _cluster_policy("later", 20, ingress=[_rule("Deny", "from", IN_Y)]),
            _cluster_policy("first", 5, ingress=[_rule("Accept", "from", IN_Y)]),
        ),
        _expect(),
    ),
    Case(
        "accept wins over network policies",
        (
            _cluster_policy("p", 10, ingress=[_rule("Accept", "from", IN_Y)]),
            _policy("closed", ingress=[]),
        ),
        _expect(Except(False, "*", "x/*"), Except(True, "y/*", "x/*")),
    ),
    Case(
        "pass leaves it to network policies",
        (
            _cluster_policy("p", 10, ingress=[_rule("Pass", "from", IN_Y), _rule("Deny", "from", EVERYWHERE)]),
            _policy("b", pod=A, ingress=[_from({"namespaceSelector": SPACE_Y, "podSelector": B})]),
        ),
        _expect(
            *(Except(False, f"{space}/*", "x/*") for space in "xz"),
            TO_A,
            Except(True, "y/b", "x/a"),
        ),
    ),
    Case(
        "pass without network policies leaves it to the baseline",
        (
            _cluster_policy("p", 10, ingress=[_rule("Pass", "from", IN_Y)]),
            _cluster_policy("q", 20, ingress=[_rule("Accept", "from", IN_Y)]),
            _cluster_policy("base", 1, tier="Baseline", ingress=[_rule("Deny", "from", IN_Y)]),
        ),
        _expect(Except(False, "y/*", "x/*")),
    ),
    Case(
        "network policies win over the baseline",
        (
            _cluster_policy("base", 1, tier="Baseline", ingress=[_rule("Deny", "from", EVERYWHERE)]),
            _policy("open", pod=A, ingress=[_from({"namespaceSelector": SPACE_Y})]),
        ),
        _expect(*(Except(False, f"{space}/*", "x/*") for space in SPACES), TO_A, Except(True, "y/*", "x/a")),
    ),
    Case(
        "only some pods are concerned",
        (
            _cluster_policy(
                "p",
                10,
                subject={"pods": {"namespaceSelector": {"matchLabels": {"ns": "x"}}, "podSelector": A}},
                ingress=[
                    {"action": "Deny", "from": [{"pods": {"namespaceSelector": IN_Z, "podSelector": B}}]},
                ],
            ),
        ),
        _expect(Except(False, "z/b", "x/a")),
    ),
    Case(
        "egress to nets",
        (
            _cluster_policy(
                "p",
                10,
                egress=[
                    {"action": "Accept", "to": [{"networks": [f"{address('y/a')}/32"]}]},
                    {"action": "Deny", "to": [{"networks": ["10.65.1.0/24", "203.0.113.0/24"]}]},
                ],
            ),
        ),
        _expect(Except(False, "x/*", "y/*"), Except(False, "x/*", OUTSIDE), Except(True, "x/*", "y/a")),
    ),
)
"""The situations of the network-policy-api's conformance tests."""


# The judge


def combinations() -> Iterator[Case]:
    """Every kind of peer with every kind of port, in both directions, as Cyclonus combines them."""
    peers: Mapping[str, Sequence[Json] | None] = {
        "anyone": None,
        "nobody's selector": [{"podSelector": {"matchLabels": {"pod": "none"}}}],
        "pods": [{"podSelector": B}],
        "all pods of the namespace": [{"podSelector": {}}],
        "a namespace": [{"namespaceSelector": SPACE_Y}],
        "all namespaces": [{"namespaceSelector": {}}],
        "pods of namespaces": [{"namespaceSelector": _spaces("y", "z"), "podSelector": _pods("a", "c")}],
        "pods by negation": [
            {"podSelector": {"matchExpressions": [{"key": "pod", "operator": "NotIn", "values": ["b"]}]}}
        ],
        "pods by existence": [
            {"podSelector": {"matchExpressions": [{"key": "pod", "operator": "Exists"}]}, "namespaceSelector": {}}
        ],
        "namespaces without a label": [
            {"namespaceSelector": {"matchExpressions": [{"key": "ns", "operator": "DoesNotExist"}]}}
        ],
        "a net": [_net("10.65.1.0/24")],
        "a net with exceptions": [_net("10.65.0.0/16", "10.65.1.0/24", f"{address('x/c')}/32")],
        "everything but pods": [_net("0.0.0.0/0", "10.65.0.0/16")],
        "several": [{"podSelector": B}, {"namespaceSelector": SPACE_Y}, _net("203.0.113.0/24")],
    }
    ports: Mapping[str, Sequence[Json] | None] = {
        "any port": None,
        "a port": [_port(80)],
        "a port without a protocol": [{"port": 81}],
        "a protocol": [_port(None, "UDP")],
        "a named port": [_port("serve-81-udp", "UDP")],
        "a range": [_port(80, "TCP", 100)],
        "several ports": [_port(80, "SCTP"), _port("serve-81-tcp"), _port(80, "UDP", 81)],
    }
    for (peer, selected), (port, numbers) in itertools.product(peers.items(), ports.items()):
        rule: dict[str, Any] = {} if numbers is None else {"ports": list(numbers)}
        for direction, key in (("ingress", "from"), ("egress", "to")):
            rules = [rule if selected is None else {key: list(selected), **rule}]
            found = (
                _policy("p", pod=_pods("a", "b"), ingress=rules)
                if direction == "ingress"
                else _policy("p", pod=_pods("a", "b"), egress=rules)
            )
            yield Case(f"{direction}, {peer}, {port}", (found,), judged([found]))


def judged(policies: Iterable[Json]) -> Callable[[Connection], bool]:
    """What network policies mean, by the words of their documentation."""
    known = [(policy["metadata"]["namespace"], policy["spec"]) for policy in policies]

    def is_open(connection: Connection) -> bool:
        return all(
            _direction_allows(known, connection, *direction)
            for direction in (
                ("Egress", "to", connection.source, connection.destination),
                ("Ingress", "from", connection.destination, connection.source),
            )
        )

    return is_open


def _direction_allows(
    known: Iterable[tuple[str, Json]], connection: Connection, type: str, key: str, pod: str, peer: str
) -> bool:
    own_space, _, name = pod.partition("/")
    selecting = [
        (space, spec)
        for space, spec in known
        if space == own_space and type in spec["policyTypes"] and _selects(spec["podSelector"], {"pod": name})
    ]
    return not selecting or any(
        _peers_include(rule.get(key), space, peer) and _ports_include(rule.get("ports"), connection)
        for space, spec in selecting
        for rule in spec[type.lower()]
    )


def _peers_include(peers: Sequence[Json] | None, space: str, peer: str) -> bool:
    return not peers or any(_peer_is(found, space, peer) for found in peers)


def _peer_is(found: Json, space: str, peer: str) -> bool:
    if "ipBlock" in found:
        at = ipaddress.ip_address(address(peer))
        block = found["ipBlock"]
        return at in ipaddress.ip_network(block["cidr"]) and not any(
            at in ipaddress.ip_network(net) for net in block.get("except", ())
        )
    peer_space, _, name = peer.partition("/")
    if peer == OUTSIDE:
        return False
    in_space = (
        _selects(found["namespaceSelector"], _space_labels(peer_space))
        if "namespaceSelector" in found
        else peer_space == space
    )
    return in_space and _selects(found.get("podSelector", {}), {"pod": name})


def _ports_include(ports: Sequence[Json] | None, connection: Connection) -> bool:
    return not ports or any(_port_is(found, connection) for found in ports)


def _port_is(found: Json, connection: Connection) -> bool:
    if found.get("protocol", "TCP").lower() != connection.protocol:
        return False
    port = found.get("port")
    if port is None:
        return True
    if isinstance(port, str):
        # Only pods have ports with names.
        return connection.destination != OUTSIDE and port == f"serve-{connection.port}-{connection.protocol}"
    return bool(port <= connection.port <= found.get("endPort", port))


def _selects(selector: Json, labels: Mapping[str, str]) -> bool:
    for key, value in selector.get("matchLabels", {}).items():
        if labels.get(key) != value:
            return False
    for expression in selector.get("matchExpressions", ()):
        value = labels.get(expression["key"])
        holds = {
            "In": value is not None and value in expression.get("values", ()),
            "NotIn": value not in expression.get("values", ()),
            "Exists": value is not None,
            "DoesNotExist": value is None,
        }[expression["operator"]]
        if not holds:
            return False
    return True
