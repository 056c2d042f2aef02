"""What one node must have, as plain values: the interface between the calculation and the data plane. Pure.

The calculation hands over an `Update`: the differences since the previous one. `State` is what all updates add up to.

How the parts fit together, for one packet of a local workload in one direction:

1. The tiers of its endpoint are asked in order. A tier counts in a direction only if it has enforced policies there
   (`Tier.enforced`). Their rules are asked in order.
2. The first rule that matches and whose action is not `Action.LOG` decides. `Action.PASS` leaves the tier: the next
   tier that counts is asked, and after the last one the profiles.
3. If no rule of the tier matches, `Tier.default_action` decides: `Action.DENY`, or `Action.PASS` as above.
4. The profiles are asked in order. No match in any profile is a drop. A profile that the feed lacks denies everything:
   its name stands in `Endpoint.profiles`, and `State.profiles` does not have it.

Policies and profiles that no endpoint of the node uses are absent, and so are sets that no rule names.
"""

import enum
from collections.abc import Mapping, Set
from dataclasses import dataclass, field
from typing import Generic, NamedTuple, TypeVar

Value = TypeVar("Value")

STAGED_PREFIX = "Staged"
"""The kinds of policies that are calculated and never enforced begin with this."""

IPV4, IPV6 = 4, 6


class Action(enum.StrEnum):
    """What a rule, or the end of a tier, does with a packet."""

    ALLOW = "allow"
    DENY = "deny"
    PASS = "pass"
    LOG = "log"
    """Decides nothing: the next rule is asked."""


class Direction(enum.StrEnum):
    """From the workload's point of view."""

    INGRESS = "ingress"
    EGRESS = "egress"


class PortRange(NamedTuple):
    """Ports from `first` to `last`, both included."""

    first: int
    last: int


class Icmp(NamedTuple):
    """A type of ICMP or ICMPv6; `code` None is any."""

    type: int
    code: int | None


@dataclass(frozen=True, slots=True)
class Peer:
    """Conditions for the source or the destination of a packet; an empty part is no condition.

    As `Rule.source` and `Rule.destination`: every part that is not empty must match. Of `nets` one must contain the
    address. All of `sets` must contain it. `ports` and `port_sets` are one part: any one must match. All of
    `service_sets` must contain address, protocol and port.

    As `Rule.not_source` and `Rule.not_destination`: nothing in any part may match.
    """

    nets: tuple[str, ...] = ()
    sets: tuple[str, ...] = ()
    """Names of sets of type NET."""
    ports: tuple[PortRange, ...] = ()
    port_sets: tuple[str, ...] = ()
    """Names of sets of type IP_AND_PORT, from named ports."""
    service_sets: tuple[str, ...] = ()
    """Names of sets of type IP_AND_PORT, from services."""


ANY = Peer()


@dataclass(frozen=True, slots=True)
class Rule:
    """One rule: all conditions are ANDed."""

    action: Action
    versions: tuple[int, ...] = (IPV4, IPV6)
    """The IP versions that the rule can match, with everything taken into account: its version, its protocol, its nets.

    Nets that are all of one version, also negated ones, limit the rule to that version. It may be empty.
    """
    protocol: int | None = None
    """Number of the IP protocol."""
    not_protocol: int | None = None
    icmp: Icmp | None = None
    """Its protocol is in `protocol`; without one, the type means ICMP in IPv4 and ICMPv6 in IPv6."""
    not_icmp: Icmp | None = None
    source: Peer = ANY
    destination: Peer = ANY
    not_source: Peer = ANY
    not_destination: Peer = ANY
    unsupported: str = ""
    """A condition that a packet filter cannot check, such as one on HTTP: such a rule must not allow anything."""

    @property
    def set_names(self) -> frozenset[str]:
        """Names of all sets that the rule needs."""
        peers = (self.source, self.destination, self.not_source, self.not_destination)
        return frozenset(name for peer in peers for name in (*peer.sets, *peer.port_sets, *peer.service_sets))


@dataclass(frozen=True, slots=True)
class Policy:
    """The rules of an enforced policy that applies to an endpoint of this node."""

    tier: str
    namespace: str
    """Empty for policies of the whole cluster."""
    ingress: tuple[Rule, ...]
    egress: tuple[Rule, ...]
    selector: str
    """Canonical, for people."""
    untracked: bool = False
    pre_dnat: bool = False


@dataclass(frozen=True, slots=True)
class Profile:
    """The rules of a profile."""

    ingress: tuple[Rule, ...] = ()
    egress: tuple[Rule, ...] = ()


@dataclass(frozen=True, slots=True)
class Tier:
    """One tier of an endpoint, with the keys of its policies in order. Staged policies are among them."""

    name: str
    default_action: Action
    ingress: tuple[str, ...] = ()
    egress: tuple[str, ...] = ()

    def policies(self, direction: Direction) -> tuple[str, ...]:
        """All policies that count in a direction, staged ones included."""
        return self.ingress if direction is Direction.INGRESS else self.egress

    def enforced(self, direction: Direction) -> tuple[str, ...]:
        """The policies that are enforced in a direction. If there are none, the tier is skipped in this direction.

        `State.policies` has the rules of these, and of no others.
        """
        return tuple(key for key in self.policies(direction) if not is_staged(key))


class AddressTranslation(NamedTuple):
    """A floating address of a workload."""

    outside: str
    inside: str


@dataclass(frozen=True, slots=True)
class Endpoint:
    """A local workload. Its key is `k8s/NAMESPACE/POD/eth0`."""

    interface: str
    """Name of the interface on the host."""
    nets: tuple[str, ...]
    """Its addresses, as CIDRs of both versions."""
    profiles: tuple[str, ...]
    """In order. The first one whose rules match decides."""
    tiers: tuple[Tier, ...]
    translations: tuple[AddressTranslation, ...] = ()
    """Floating addresses. Not part of the policy."""


@dataclass(frozen=True, slots=True)
class HostEndpoint:
    """An interface of the host itself, or all of them."""

    interface: str
    """`*` means all; empty means the one with an address of `addresses`."""
    addresses: tuple[str, ...]
    profiles: tuple[str, ...]
    tiers: tuple[Tier, ...]
    untracked_tiers: tuple[Tier, ...] = ()
    pre_dnat_tiers: tuple[Tier, ...] = ()
    forward_tiers: tuple[Tier, ...] = ()


class SetType(enum.StrEnum):
    """What the members of a set are."""

    NET = "NET"
    """CIDRs as texts, of both IP versions. No member lies within another."""
    IP_AND_PORT = "IP_AND_PORT"
    """`AddressPort` values."""


class AddressPort(NamedTuple):
    """An address with a protocol and a port."""

    address: str
    protocol: int
    port: int


Member = str | AddressPort


@dataclass(frozen=True, slots=True)
class AddressSet:
    """A set of addresses that rules name. Its key is readable and can be long."""

    type: SetType
    members: Set[Member]
    """No net lies within another one: kernels refuse sets of intervals that overlap."""


class MemberChange(NamedTuple):
    """How a set that is already there changes. After that no net lies within another one, either."""

    added: frozenset[Member]
    removed: frozenset[Member]


class RouteType(enum.StrEnum):
    """What is at the destination of a route. One can be of several types."""

    CIDR_INFO = "CIDR_INFO"
    REMOTE_WORKLOAD = "REMOTE_WORKLOAD"
    LOCAL_WORKLOAD = "LOCAL_WORKLOAD"
    REMOTE_HOST = "REMOTE_HOST"
    LOCAL_HOST = "LOCAL_HOST"
    REMOTE_TUNNEL = "REMOTE_TUNNEL"
    LOCAL_TUNNEL = "LOCAL_TUNNEL"


class PoolType(enum.StrEnum):
    """How packets to addresses of a pool travel between nodes."""

    NONE = ""
    NO_ENCAPSULATION = "NO_ENCAP"
    VXLAN = "VXLAN"
    IPIP = "IPIP"


@dataclass(frozen=True, slots=True)
class Route:
    """What is known about a destination. Its key is the destination as a CIDR."""

    types: tuple[RouteType, ...]
    pool_type: PoolType = PoolType.NONE
    node: str = ""
    """The node that the destination is on."""
    node_address: str = ""
    same_subnet: bool = False
    """The pool's mode is cross-subnet, and the node is in this node's subnet: no encapsulation."""
    nat_outgoing: bool = False
    local_workload: bool = False
    """A workload of this node has this very address, also if `types` says both local and remote."""
    borrowed: bool = False
    """The address belongs to a block of another node."""
    tunnels: tuple[str, ...] = ()
    """Which tunnels of the node have this address: `ipip`, `vxlan`, `wireguard`."""


@dataclass(frozen=True, slots=True)
class Vtep:
    """The VXLAN tunnel end of a node, this one included. Its key is the node's name."""

    ipv4_address: str = ""
    mac: str = ""
    parent_ipv4_address: str = ""
    """The node's own address, where encapsulated packets go."""
    ipv6_address: str = ""
    mac_v6: str = ""
    parent_ipv6_address: str = ""


@dataclass(frozen=True, slots=True)
class Pool:
    """A pool of addresses for workloads. Its key is its CIDR."""

    masquerade: bool = False
    """Packets from the pool to destinations outside of all pools get the node's address."""
    vxlan_mode: str = ""
    """Empty, `always` or `cross-subnet`."""
    ipip_mode: str = ""
    load_balancer_only: bool = False
    """Its addresses are of no workloads: packets to them are masqueraded like those to the outside."""


@dataclass(frozen=True, slots=True)
class Node:
    """A node of the cluster, this one included."""

    ipv4_net: str = ""
    """Its address, with the mask of its subnet where that is known."""
    ipv6_net: str = ""


@dataclass(frozen=True, slots=True)
class Settings:
    """What the feed's configuration says to this node."""

    ready: bool = False
    """Whether the datastore is ready to be acted on. While it is not, what is programmed stays as it is."""
    vxlan: bool = False
    """Whether VXLAN for IPv4 is needed."""
    vxlan_v6: bool = False
    ipip: bool = False
    no_encapsulation: bool = False
    """Whether this node programs routes for pools without encapsulation."""
    values: Mapping[str, str] = field(default_factory=dict)
    """All settings by name as texts, those of the node over those of the cluster: names as in FelixConfiguration,
    first letter upper case (`DefaultEndpointToHostAction`, `VXLANPort`, `VXLANVNI`, `VXLANMTU`)."""


@dataclass(frozen=True, slots=True)
class Changes(Generic[Value]):
    """Differences of one section: keys with their new values, and keys that are gone."""

    set: Mapping[str, Value] = field(default_factory=dict)
    removed: frozenset[str] = frozenset()

    def __bool__(self) -> bool:
        return bool(self.set or self.removed)


@dataclass(frozen=True, slots=True)
class Update:
    """The differences between two states. Each section holds what really differs, and nothing else.

    Safe order of programming: `sets.set` and `members`, then policies and profiles, then endpoints; removals in the
    reverse order.
    """

    endpoints: Changes[Endpoint] = field(default_factory=Changes)
    host_endpoints: Changes[HostEndpoint] = field(default_factory=Changes)
    policies: Changes[Policy] = field(default_factory=Changes)
    profiles: Changes[Profile] = field(default_factory=Changes)
    sets: Changes[AddressSet] = field(default_factory=Changes)
    """Sets that are new (with all members) or gone."""
    members: Mapping[str, MemberChange] = field(default_factory=dict)
    """Changes of sets that were there before and stay."""
    routes: Changes[Route] = field(default_factory=Changes)
    vteps: Changes[Vtep] = field(default_factory=Changes)
    pools: Changes[Pool] = field(default_factory=Changes)
    nodes: Changes[Node] = field(default_factory=Changes)
    settings: Settings | None = None
    """The settings if they changed."""

    def __bool__(self) -> bool:
        return bool(self.members or self.settings is not None or any(getattr(self, name) for name in SECTIONS))


@dataclass(slots=True)
class State:
    """Everything this node must have."""

    endpoints: dict[str, Endpoint] = field(default_factory=dict)
    host_endpoints: dict[str, HostEndpoint] = field(default_factory=dict)
    policies: dict[str, Policy] = field(default_factory=dict)
    """Keys: `KIND/NAME` or `KIND/NAMESPACE/NAME`."""
    profiles: dict[str, Profile] = field(default_factory=dict)
    sets: dict[str, AddressSet] = field(default_factory=dict)
    routes: dict[str, Route] = field(default_factory=dict)
    vteps: dict[str, Vtep] = field(default_factory=dict)
    pools: dict[str, Pool] = field(default_factory=dict)
    nodes: dict[str, Node] = field(default_factory=dict)
    settings: Settings = field(default_factory=Settings)

    def apply(self, update: Update) -> None:
        """Applies the differences."""
        for section in SECTIONS:
            values, changes = getattr(self, section), getattr(update, section)
            for key in changes.removed:
                values.pop(key, None)
            values.update(changes.set)
        for key, change in update.members.items():
            self._members_of(key).difference_update(change.removed)
            self._members_of(key).update(change.added)
        if update.settings is not None:
            self.settings = update.settings

    def _members_of(self, key: str) -> set[Member]:
        """The members of a set, for changing them in place: sets can be large, and changes are small."""
        known = self.sets[key]
        if not isinstance(known.members, set):  # as the update brought it, which others may hold too
            known = self.sets[key] = AddressSet(known.type, set(known.members))
        members = known.members
        assert isinstance(members, set)
        return members


SECTIONS = ("endpoints", "host_endpoints", "policies", "profiles", "sets", "routes", "vteps", "pools", "nodes")
"""The sections of `State` and `Update` that are maps of values."""


def is_staged(policy_key: str) -> bool:
    """Whether a policy is never enforced."""
    return policy_key.startswith(STAGED_PREFIX)
