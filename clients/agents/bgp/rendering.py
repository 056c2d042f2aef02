"""BIRD's configuration for a node, from the objects of the feed. Pure."""

import functools
import importlib.resources
from dataclasses import dataclass
from typing import Final

import jinja2

from clients.agents.bgp import policy, resources, sessions
from clients.agents.bgp.resources import Network, Node, State

_LOG_CLASSES: Final = {
    "none": "fatal, bug",
    "fatal": "fatal, bug",
    "error": "error, fatal, bug",
    "warning": "warning, error, auth, fatal, bug",
    "info": "info, remote, warning, error, auth, fatal, bug",
    "debug": "all",
}
_WORKLOADS: Final = ("cali*", "kube-ipvs*")


@dataclass(frozen=True)
class Rendered:
    """The configuration, and what of the cluster's wishes it does not fulfil, by subject."""

    text: str
    problems: dict[str, str]
    sessions: tuple[sessions.Session, ...]


@dataclass(frozen=True)
class _Encapsulated:
    """A pool whose remote routes BIRD does not put into the kernel, unless a condition holds."""

    network: Network
    unless: str


@dataclass(frozen=True)
class _Filtered:
    it: sessions.Session
    is_own_only: bool
    """Whether routes of other nodes are kept from the neighbor. An external one would else get each node's routes from
    all nodes, and might send everything through one of them."""
    imports: list[policy.Step]
    exports: list[policy.Step]


class UnknownNode(Exception):
    """The feed has no BGP address for the node: there is nothing to configure yet."""


def render(state: State, name: str) -> Rendered:
    """The configuration of a node. Raises UnknownNode."""
    node = state.nodes.get(name)
    if node is None:
        raise UnknownNode(name)
    planned = sessions.plan(state, node)
    problems = {**state.problems, **planned.problems}
    filtered = []
    for session in planned.sessions:
        imports, bad_imports = policy.steps(state, session, "import")
        exports, bad_exports = policy.steps(state, session, "export")
        problems |= bad_imports | bad_exports
        filtered.append(_Filtered(session, not session.is_internal and node.cluster_id is None, imports, exports))
    markings, bad_markings = policy.markings(state, node)
    pools = sorted(state.pools.values(), key=lambda pool: pool.network)
    problems |= bad_markings | _unsupported(state, node)
    text = _template().render(
        node=node,
        log_classes=_log_classes(state, node),
        interfaces=_interfaces(state, node),
        port=sessions.listen_port(state, node.name),
        is_strict=any(one.is_strict for one in resources.configured(state, name)),
        blocks=sorted(state.blocks.get(name, ())),
        encapsulated=[_encapsulated(pool, node) for pool in pools if _is_encapsulated(pool)],
        hidden=[pool.network for pool in pools if not pool.is_exported],
        exported=[pool.network for pool in pools if pool.is_exported],
        markings=markings,
        reachable=sorted({(one.address, one.reachable_by) for one in planned.sessions if one.reachable_by}),
        sessions=filtered,
    )
    return Rendered(text, problems, planned.sessions)


def _is_encapsulated(pool: resources.Pool) -> bool:
    return pool.vxlan_mode != "never" or pool.ipip_mode != "never"


def _encapsulated(pool: resources.Pool, node: Node) -> _Encapsulated:
    """VXLAN's routes are all the node agent's. Of IPIP, only those within a subnet work: they are not encapsulated."""
    is_direct = pool.vxlan_mode == "never" and pool.ipip_mode == "crosssubnet"
    return _Encapsulated(pool.network, f" && !(bgp_next_hop ~ {node.subnet})" if is_direct else "")


def _unsupported(state: State, node: Node) -> dict[str, str]:
    problems = {}
    for pool in state.pools.values():
        if pool.ipip_mode != "never" and pool.vxlan_mode == "never":
            problems[f"IPPool {pool.network}"] = "IPIP is not supported: routes that need it are left out"
    for configuration in resources.configured(state, node.name):
        for member in configuration.advertised_services:
            problems[member] = "addresses of services are not advertised: no feed of this agent has services"
    return problems


def _log_classes(state: State, node: Node) -> str:
    levels = (one.log_level for one in resources.configured(state, node.name))
    return next((_LOG_CLASSES[level] for level in levels if level in _LOG_CLASSES), _LOG_CLASSES["info"])


def _interfaces(state: State, node: Node) -> str:
    """The pattern of the interfaces whose subnets BIRD knows."""
    ignored = list(_WORKLOADS)
    for configuration in resources.configured(state, node.name):
        ignored += configuration.ignored_interfaces
    return ", ".join([*(f'-"{pattern}"' for pattern in ignored), '"*"'])


@functools.cache
def _template() -> jinja2.Template:
    environment = jinja2.Environment(
        autoescape=False, trim_blocks=True, lstrip_blocks=True, undefined=jinja2.StrictUndefined
    )
    source = importlib.resources.files("clients.agents.bgp").joinpath("bird.conf.j2").read_text()
    return environment.from_string(source)
