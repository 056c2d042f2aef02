"""From the `felix` feed to what this node must have, incrementally. Pure: no I/O, no clock, no tasks.

Feed every change of a key to `Calculation.update`, and take the differences of the desired state with
`Calculation.take` whenever the map is one that a server had (after each batch, once in sync). The result depends on the
map only, never on the order of the changes.

What does not decode counts as absent, as the original treats it. It is returned as a text to log and count.
"""

import contextlib
import functools
import re
from collections.abc import Callable

from clients.agents.node import desired, feed, nets, nodes
from clients.agents.node.feed import Key, Kind
from clients.agents.node.policies import LocalEndpoint, Policies
from clients.agents.node.routes import Routes, block_destinations, pool_info
from clients.agents.node.rules import check_port
from clients.agents.node.sections import Section
from clients.agents.node.sets import AddressSets, Item
from clients.agents.node.settings import SettingsOfNode

_INTERFACE = re.compile(r"[A-Za-z0-9_.-]{1,15}")
"""Names of interfaces that the kernel takes and that are safe in paths and rules."""
_DOTS = frozenset({".", ".."})
_ALL_INTERFACES = "*"
_SHARED_PORTS = 4096
"""How many different lists of named ports are shared: more than a cluster has kinds of pods."""
_PORTS_OF_MOST_PODS = 8
"""Longer lists are rare, and are not kept for sharing: the list of one value could be as large as a frame."""


class Calculation:
    """What one node must have."""

    def __init__(self, node: str) -> None:
        self.node = node
        self._settings = SettingsOfNode()
        self._meaning = self._settings.meaning()
        self._settings_taken = desired.Settings()
        self._sets = AddressSets()
        self._policies = Policies(self._sets)
        self._routes = Routes(node)
        self._pools: Section[desired.Pool] = Section()
        self._nodes: Section[desired.Node] = Section()
        self._vteps: Section[desired.Vtep] = Section()
        self._bgp: dict[str, feed.NodeBgp] = {}
        """The addresses of nodes that their tunnels lead to."""
        self._tunnels: dict[str, dict[str, str]] = {}
        """The settings of each node about its VXLAN tunnel."""
        self._spoofers: dict[str, tuple[Key, bytes]] = {}
        """Workloads that ask for more source addresses than their own."""
        self._handlers: dict[Kind, Callable[[str, Key, bytes | None], None]] = {
            Kind.WORKLOAD: self._update_workload,
            Kind.HOST_ENDPOINT: self._update_host_endpoint,
            Kind.HOST_SETTING: self._update_host_setting,
            Kind.SETTING: self._update_setting,
            Kind.READY: self._update_ready,
            Kind.POOL: self._update_pool,
            Kind.BLOCK: self._update_block,
            Kind.NETWORK_SET: self._update_network_set,
            Kind.TIER: self._update_tier,
            Kind.POLICY: self._update_policy,
            Kind.PROFILE: self._update_profile,
            Kind.PROFILE_RULES: self._update_profile_rules,
            Kind.NODE: self._update_node,
            Kind.SLICE: self._update_slice,
        }

    def update(self, key: str, value: bytes | None) -> str | None:
        """Sets the value of a key; None, or an empty value, removes it.

        Returns why the value was refused, in which case the key counts as absent, or None.
        """
        parsed = feed.parse_key(key)
        if parsed is None:
            return None
        handle = self._handlers[parsed.kind]
        try:
            handle(key, parsed, value or None)
        except ValueError as error:
            with contextlib.suppress(ValueError):  # The key itself can be the cause.
                handle(key, parsed, None)
            return f"{key}: {error}"
        return None

    def take(self) -> tuple[desired.Update, list[str]]:
        """The differences since the last call, and what was refused because it is needed only now."""
        self._policies.flush()
        self._routes.flush()
        sets, members = self._sets.take()
        settings = self._meaning.settings
        update = desired.Update(
            endpoints=self._policies.endpoints.take(),
            host_endpoints=self._policies.host_endpoints.take(),
            policies=self._policies.policies.take(),
            profiles=self._policies.profiles.take(),
            sets=sets,
            members=members,
            routes=self._routes.routes.take(),
            vteps=self._vteps.take(),
            pools=self._pools.take(),
            nodes=self._nodes.take(),
            settings=settings if settings != self._settings_taken else None,
        )
        self._settings_taken = settings
        refusals = [f"{name}: {reason}" for name, reason in self._policies.refusals]
        self._policies.refusals.clear()
        return update, refusals

    # Endpoints and network sets

    def _update_workload(self, key: str, parsed: Key, value: bytes | None) -> None:
        endpoint = None if value is None else feed.decode_workload(value)
        self._spoofers.pop(key, None)
        if endpoint is not None and value is not None and endpoint.allow_spoofed_source_ips:
            self._spoofers[key] = parsed, value
            if not self._meaning.spoofing:
                endpoint = None
        if endpoint is None:
            self._sets.remove_item(key)
            self._routes.set_workload(key, parsed.node, ())
            if parsed.node == self.node:
                self._policies.remove_endpoint(key)
            return
        _check_interface(endpoint.name)
        addresses = tuple(map(nets.host_net, (*(endpoint.ipv4_nets or ()), *(endpoint.ipv6_nets or ()))))
        profiles = tuple(endpoint.profile_ids or ())
        labels = endpoint.labels or {}
        self._sets.set_item(key, Item(addresses, _ports(endpoint)), labels, profiles)
        self._set_workload_routes(key, parsed.node, addresses)
        if parsed.node == self.node:
            local = LocalEndpoint(parsed.name, endpoint.name, addresses, profiles, _translations(endpoint))
            self._policies.set_endpoint(key, local, labels)

    def _set_workload_routes(self, key: str, node: str, addresses: tuple[str, ...]) -> None:
        """Sets the routes to a workload. Those to remote ones come from blocks, unless the settings say otherwise."""
        if node == self.node or self._meaning.workload_routes:
            self._routes.set_workload(key, node, tuple(map(nets.parse_net, addresses)))
        else:
            self._routes.set_workload(key, node, ())

    def _update_host_endpoint(self, key: str, parsed: Key, value: bytes | None) -> None:
        if value is None:
            self._sets.remove_item(key)
            if parsed.node == self.node:
                self._policies.remove_endpoint(key)
            return
        endpoint = feed.decode_host_endpoint(value)
        if endpoint.name not in ("", _ALL_INTERFACES):
            _check_interface(endpoint.name)
        texts = (*(endpoint.expected_ipv4_addrs or ()), *(endpoint.expected_ipv6_addrs or ()))
        addresses = tuple(map(nets.host_net, texts))
        profiles = tuple(endpoint.profile_ids or ())
        labels = endpoint.labels or {}
        self._sets.set_item(key, Item(addresses, _ports(endpoint)), labels, profiles)
        if parsed.node == self.node:
            bare = tuple(address.partition("/")[0] for address in addresses)
            local = LocalEndpoint(parsed.name, endpoint.name, bare, profiles, is_host=True)
            self._policies.set_endpoint(key, local, labels)

    def _update_network_set(self, key: str, parsed: Key, value: bytes | None) -> None:
        if value is None:
            self._sets.remove_item(key)
            return
        network_set = feed.decode_network_set(value)
        networks = tuple(str(nets.parse_net(text)) for text in network_set.nets or ())
        self._sets.set_item(key, Item(networks), network_set.labels or {}, tuple(network_set.profile_ids or ()))

    def _update_slice(self, key: str, parsed: Key, value: bytes | None) -> None:
        found = None if value is None else feed.decode_slice(value)
        for port in (found.ports or ()) if found is not None else ():
            if port.port is not None:
                check_port(port.port)
        self._sets.set_slice(key, found)

    # Policies

    def _update_tier(self, key: str, parsed: Key, value: bytes | None) -> None:
        self._policies.set_tier(parsed.name, None if value is None else feed.decode_tier(value))

    def _update_policy(self, key: str, parsed: Key, value: bytes | None) -> None:
        if value is None:
            self._policies.remove_policy(parsed.name)
        else:
            self._policies.set_policy(parsed.name, value)

    def _update_profile(self, key: str, parsed: Key, value: bytes | None) -> None:
        labels = {} if value is None else feed.decode_profile(value).spec.labelsToApply or {}
        self._sets.set_parent(parsed.name, labels)
        self._policies.set_parent(parsed.name, labels)

    def _update_profile_rules(self, key: str, parsed: Key, value: bytes | None) -> None:
        self._policies.set_profile_rules(parsed.name, value)

    # Nodes, pools, blocks

    def _update_node(self, key: str, parsed: Key, value: bytes | None) -> None:
        node = feed.Node() if value is None else feed.decode_node(value)
        info, net = (None, None) if value is None else (nodes.node_info(node), nodes.node_nets(node))
        self._routes.set_node(parsed.name, info)
        self._nodes.put(parsed.name, net)
        if node.spec.bgp is None:
            self._bgp.pop(parsed.name, None)
        else:
            self._bgp[parsed.name] = node.spec.bgp
        self._set_vtep(parsed.name)

    def _set_vtep(self, node: str) -> None:
        vtep = None
        if self._meaning.settings.vxlan or self._meaning.settings.vxlan_v6:
            bgp = self._bgp.get(node)
            vtep = None if bgp is None else nodes.vtep(node, bgp, self._tunnels.get(node, {}))
        self._vteps.put(node, vtep)

    def _update_pool(self, key: str, parsed: Key, value: bytes | None) -> None:
        net = nets.parse_net(parsed.name)
        pool = None if value is None else feed.decode_pool(value)
        info = None if pool is None else pool_info(pool)
        self._routes.set_pool(net, info)
        self._pools.put(
            str(net),
            None
            if pool is None
            else desired.Pool(pool.masquerade, pool.vxlan_mode, pool.ipip_mode, pool.allowed_uses == ["LoadBalancer"]),
        )
        self._settings.set_pool(net, pool)
        self._settings_changed()

    def _update_block(self, key: str, parsed: Key, value: bytes | None) -> None:
        destinations = {} if value is None else block_destinations(feed.decode_block(value))
        self._routes.set_block(key, destinations)

    # Settings

    def _update_host_setting(self, key: str, parsed: Key, value: bytes | None) -> None:
        text = _text(value)
        name = parsed.name.lower()
        if name in nodes.VXLAN_SETTINGS:
            settings = self._tunnels.setdefault(parsed.node, {})
            settings.pop(name, None)
            if text is not None:
                settings[name] = text
            elif not settings:
                del self._tunnels[parsed.node]
            self._set_vtep(parsed.node)
        if parsed.node == self.node:
            self._settings.set(parsed.name, text, of_node=True)
            self._settings_changed()

    def _update_setting(self, key: str, parsed: Key, value: bytes | None) -> None:
        self._settings.set(parsed.name, _text(value), of_node=False)
        self._settings_changed()

    def _update_ready(self, key: str, parsed: Key, value: bytes | None) -> None:
        self._settings.ready = value == b"true"
        self._settings_changed()

    def _settings_changed(self) -> None:
        before, self._meaning = self._meaning, self._settings.meaning()
        now = self._meaning
        self._routes.enable(now.routes)
        if (before.settings.vxlan, before.settings.vxlan_v6) != (now.settings.vxlan, now.settings.vxlan_v6):
            for node in self._bgp.keys() | self._tunnels.keys():
                self._set_vtep(node)
        if before.workload_routes != now.workload_routes:
            self._routes.use_blocks(not now.workload_routes)
            for key, item in self._sets.items():
                known = feed.parse_key(key)
                if known is not None and known.kind is Kind.WORKLOAD:
                    self._set_workload_routes(key, known.node, item.nets)
        if before.spoofing != now.spoofing:
            for key, (parsed, value) in list(self._spoofers.items()):
                self._update_workload(key, parsed, value)


def _ports(endpoint: feed.Workload | feed.HostEndpoint) -> tuple[feed.EndpointPort, ...]:
    ports = tuple(endpoint.ports or ())
    for port in ports:
        check_port(port.port)
    return _shared_ports(ports) if len(ports) <= _PORTS_OF_MOST_PODS else ports


@functools.lru_cache(maxsize=_SHARED_PORTS)
def _shared_ports(ports: tuple[feed.EndpointPort, ...]) -> tuple[feed.EndpointPort, ...]:
    """Returns the first of equal values, so that pods of one kind share it."""
    return ports


def _check_interface(name: str) -> None:
    if not _INTERFACE.fullmatch(name) or name in _DOTS:
        raise ValueError(f"not the name of an interface: {name!r}")


def _translations(endpoint: feed.Workload) -> tuple[desired.AddressTranslation, ...]:
    return tuple(
        desired.AddressTranslation(nets.parse_address(entry.ext_ip).host, nets.parse_address(entry.int_ip).host)
        for entry in (*(endpoint.ipv4_nat or ()), *(endpoint.ipv6_nat or ()))
    )


def _text(value: bytes | None) -> str | None:
    return None if value is None else value.decode(errors="replace")
