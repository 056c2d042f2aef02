"""The settings of this node as the feed has them, and what they mean for the calculation. Pure."""

from typing import NamedTuple

from clients.agents.node import desired, feed
from clients.agents.node.nets import Net

_TRUE = frozenset({"true", "1", "yes", "y", "t"})
_FALSE = frozenset({"false", "0", "no", "n", "f"})
_ROUTES_OF_BOTH, _ROUTES_OF_IPIP, _ROUTES_OF_PLAIN = "enabled", "enabledipiponly", "enablednoencaponly"


class Meaning(NamedTuple):
    """What the calculation needs to know."""

    settings: desired.Settings
    routes: bool
    """Whether the node programs routes to other nodes' workloads."""
    workload_routes: bool
    """Whether routes come from the addresses of workloads, instead of from blocks."""
    spoofing: bool
    """Whether workloads may have more source addresses than their own."""


class SettingsOfNode:
    """The settings of the cluster, those of this node, and the pools that some of them depend on."""

    def __init__(self) -> None:
        self.ready = False
        self._cluster: dict[str, str] = {}
        self._node: dict[str, str] = {}
        self._pools: dict[Net, tuple[bool, bool]] = {}
        """Whether a pool uses IP-in-IP, and VXLAN."""

    def set(self, name: str, value: str | None, *, of_node: bool) -> None:
        """Sets a setting; None removes it."""
        settings = self._node if of_node else self._cluster
        if value is None:
            settings.pop(name, None)
        else:
            settings[name] = value

    def set_pool(self, net: Net, pool: feed.Pool | None) -> None:
        """Sets a pool; None removes it."""
        if pool is None:
            self._pools.pop(net, None)
        else:
            self._pools[net] = bool(pool.ipip_mode), bool(pool.vxlan_mode)

    def meaning(self) -> Meaning:
        """What all of it comes to."""
        values = {**self._cluster, **self._node}
        known = {name.lower(): value.strip() for name, value in values.items()}
        flags = {name: _flag(value) for name, value in known.items()}
        programs = known.get("programclusterroutes", _ROUTES_OF_IPIP).lower()
        ipip = flags.get("ipinipenabled")
        vxlan = flags.get("vxlanenabled")
        settings = desired.Settings(
            ready=self.ready,
            vxlan=vxlan
            if vxlan is not None
            else any(net.version == desired.IPV4 for net, (_, uses) in self._pools.items() if uses),
            vxlan_v6=any(net.version == desired.IPV6 for net, (_, uses) in self._pools.items() if uses),
            ipip=ipip if ipip is not None else any(uses for uses, _ in self._pools.values()),
            no_encapsulation=programs in (_ROUTES_OF_BOTH, _ROUTES_OF_PLAIN)
            and any(not any(modes) for modes in self._pools.values()),
            values=values,
        )
        return Meaning(
            settings,
            routes=settings.vxlan
            or settings.vxlan_v6
            or settings.no_encapsulation
            or (settings.ipip and programs in (_ROUTES_OF_BOTH, _ROUTES_OF_IPIP))
            or any(flags.get(name) for name in ("bpfenabled", "wireguardenabled", "wireguardenabledv6")),
            workload_routes=known.get("routesource", "").lower() == "workloadips",
            spoofing=known.get("workloadsourcespoofing", "").lower() == "any",
        )


def _flag(value: str) -> bool | None:
    """A boolean; None if the text is none, which counts as not set."""
    value = value.lower()
    return True if value in _TRUE else False if value in _FALSE else None
