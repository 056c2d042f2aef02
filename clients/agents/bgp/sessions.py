"""Whom a node talks BGP with, and how: the mesh, BGPPeers, route reflectors. Pure."""

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final

from clients.agents.bgp import resources
from clients.agents.bgp.resources import Address, JsonObject, Node, State
from protocol import selector

BGP_PORT: Final = 179


@dataclass(frozen=True, kw_only=True)
class Session:
    """One BGP session."""

    name: str
    address: Address
    port: int = BGP_PORT
    as_number: int
    local_as_number: int
    is_passive: bool = False
    is_reflector_client: bool = False
    uses_node_address: bool = True
    next_hop: str = "auto"
    """auto, self or keep."""
    restart_seconds: int = 0
    keepalive_seconds: int = 0
    allowed_local_as: int = 0
    ttl_hops: int = 0
    """Number of hops that TTL security allows; 0 means without it."""
    reachable_by: Address | None = None
    filters: tuple[str, ...] = ()

    @property
    def is_internal(self) -> bool:
        """Whether both ends are in one AS."""
        return self.as_number == self.local_as_number


@dataclass(frozen=True)
class Plan:
    """The sessions of one node, sorted, and what could not be planned."""

    sessions: tuple[Session, ...]
    problems: dict[str, str]


def plan(state: State, node: Node) -> Plan:
    """The sessions of a node. Where several concern one neighbor, the one that names the node counts, the mesh last."""
    problems: dict[str, str] = {}
    found: dict[tuple[Address, int], Session] = {}
    if _default(state).has_mesh_password:
        problems["nodeMeshPassword"] = "passwords are not supported: the mesh has no sessions"
    else:
        for session in _mesh(state, node):
            found[session.address, session.port] = session
    for name in sorted(state.peers, key=lambda name: (bool(state.peers[name].get("node")), name)):
        try:
            for session in _peer(state, node, name, state.peers[name]):
                found[session.address, session.port] = session
        except _Unsupported as error:
            problems[f"BGPPeer {name}"] = str(error)
        except (ValueError, TypeError, LookupError, AttributeError) as error:
            problems[f"BGPPeer {name}"] = f"malformed: {error!r}"[:200]
    return Plan(tuple(sorted(found.values(), key=lambda session: session.name)), problems)


def cluster_as_number(state: State) -> int:
    """The AS number of nodes that have none of their own."""
    return _default(state).as_number or resources.DEFAULT_AS_NUMBER


def node_as_number(state: State, node: Node) -> int:
    """The AS number of a node."""
    return node.as_number or cluster_as_number(state)


class _Unsupported(Exception):
    pass


def _default(state: State) -> resources.Configuration:
    return state.configurations.get("default", resources.Configuration())


def listen_port(state: State, node: str) -> int:
    """The port on which a node's BIRD listens."""
    return next((one.listen_port for one in resources.configured(state, node) if one.listen_port), BGP_PORT)


def _mesh(state: State, node: Node) -> Iterator[Session]:
    """Sessions with all nodes that are no route reflectors; the node with the lower address waits to be called."""
    if node.cluster_id or not _default(state).is_mesh:
        return
    for other in state.nodes.values():
        if other.address != node.address and other.cluster_id is None:
            yield Session(
                name=_name("mesh", other.address),
                address=other.address,
                port=listen_port(state, other.name),
                as_number=node_as_number(state, other),
                local_as_number=node_as_number(state, node),
                is_passive=node.address < other.address,
                restart_seconds=_default(state).mesh_restart_seconds,
            )


def _peer(state: State, node: Node, name: str, spec: JsonObject) -> Iterator[Session]:
    """The sessions that one BGPPeer means for a node."""
    is_mine = _concerns(spec, node)
    is_reverse = _selects(spec.get("peerSelector"), node) and spec.get("reversePeering") != "Manual"
    if not is_mine and not is_reverse:
        return
    if spec.get("localWorkloadSelector"):
        raise _Unsupported("sessions with workloads are not supported")
    if (spec.get("password") or {}).get("secretKeyRef", {}).get("name"):
        raise _Unsupported("passwords are not supported: no session")
    common = _common(state, node, name, spec)
    if spec.get("peerSelector"):
        for other in state.nodes.values():
            is_theirs = is_mine and _selects(spec["peerSelector"], other)
            if other.address != node.address and (is_theirs or (is_reverse and _concerns(spec, other))):
                yield dataclasses.replace(
                    common,
                    name=_name("node", other.address),
                    address=other.address,
                    port=listen_port(state, other.name),
                    as_number=node_as_number(state, other),
                    is_reflector_client=_reflects(state, node, other),
                )
    elif is_mine:
        text, _, port = str(spec["peerIP"]).partition(":")
        address = Address(text)  # an IPv6 peer is malformed here, and named so
        if address != node.address:
            number = resources.as_number(spec.get("asNumber")) or cluster_as_number(state)
            known = next((one for one in state.nodes.values() if one.address == address), None)
            yield dataclasses.replace(
                common,
                name=_name("node" if spec.get("node") else "global", address, port),
                address=address,
                port=resources.port(port) if port else BGP_PORT,
                as_number=number,
                is_reflector_client=_reflects(state, node, known) if number == common.local_as_number else False,
            )


def _common(state: State, node: Node, name: str, spec: JsonObject) -> Session:
    """What all sessions of a BGPPeer have in common; its neighbor is filled in later."""
    hops = int(spec.get("ttlSecurity") or 0)
    allowed = int(spec.get("numAllowedLocalASNumbers") or 0)
    if not (0 <= hops < 256 and 0 <= allowed < 256):
        raise ValueError("ttlSecurity or numAllowedLocalASNumbers")
    mode = str(spec.get("nextHopMode") or "Auto").lower()
    if spec.get("keepOriginalNextHop"):
        mode = "keep"
    if mode not in ("auto", "self", "keep"):
        raise ValueError(f"nextHopMode {mode[:20]!r}")
    reachable_by = spec.get("reachableBy")
    return Session(
        name=name,
        address=node.address,
        as_number=resources.DEFAULT_AS_NUMBER,
        local_as_number=resources.as_number(spec.get("localASNumber")) or node_as_number(state, node),
        uses_node_address=spec.get("sourceAddress") != "None",
        next_hop=mode,
        restart_seconds=resources.seconds(spec.get("maxRestartTime")),
        keepalive_seconds=resources.seconds(spec.get("keepaliveTime")),
        allowed_local_as=allowed,
        ttl_hops=hops,
        reachable_by=Address(str(reachable_by)) if reachable_by else None,
        filters=tuple(map(str, spec.get("filters") or ())),
    )


def _concerns(spec: JsonObject, node: Node) -> bool:
    if spec.get("node"):
        return bool(spec["node"] == node.name)
    return _selects(spec["nodeSelector"], node) if spec.get("nodeSelector") else True


def _selects(text: Any, node: Node) -> bool:
    return bool(text) and selector.parse(str(text)).matches(node.labels)


def _reflects(state: State, node: Node, other: Node | None) -> bool:
    """Whether a node reflects routes to its neighbor: it is a reflector, and the neighbor none of the same cluster."""
    if node.cluster_id is None:
        return False
    if other is None:
        return True
    is_internal = node_as_number(state, node) == node_as_number(state, other)
    return is_internal and other.cluster_id != node.cluster_id


def _name(kind: str, address: Address, port: str = "") -> str:
    """The name of a session in BIRD, such as mesh_172_30_1_11."""
    return "_".join([kind, *str(address).split("."), *(["port", str(resources.port(port))] if port else [])])
