"""Random states of a node, with all conditions that rules can have, and what the calculation says about packets."""

import dataclasses
import random
from collections.abc import Sequence
from typing import TypeVar

from clients.agents.node import desired, nets, verdict
from clients.agents.node.desired import Action, AddressPort, Direction, Icmp, Peer, PortRange, Rule, SetType
from clients.agents.node.nets import parse_net
from tests.harness import packet_cases, packet_lab

Item = TypeVar("Item")

LOCAL = tuple(f"10.65.0.{number}" for number in (1, 2, 3, 4))
REMOTE = ("10.65.1.1", "10.65.1.2", "203.0.113.7", "198.51.100.200")
NETS = (
    "0.0.0.0/0",
    "10.65.0.0/24",
    "10.65.0.2/31",
    "10.65.0.3/32",
    "10.65.0.0/16",
    "203.0.113.0/24",
    "198.51.100.128/25",
    "fd00::/8",
)
PORTS = (53, 80, 81, 8080, 65535)
PROTOCOLS = (1, 6, 17, 132, 47)
RANGES = ((53, 53), (80, 80), (80, 81), (81, 8080), (0, 65535), (1, 79), (8080, 65535), (90, 95))
SETS = tuple(f"set-{number}" for number in range(5))
PORT_SETS = tuple(f"port-set-{number}" for number in range(3))


class Generator:
    """Makes states from a seed."""

    def __init__(self, seed: int) -> None:
        self._random = random.Random(seed)

    def state(self) -> desired.State:
        """A state with a workload for each local address."""
        policies = {f"NetworkPolicy/p{number}": self._policy() for number in range(6)}
        keys = [*policies, "StagedNetworkPolicy/p"]
        policies["StagedNetworkPolicy/p"] = self._policy()
        return desired.State(
            endpoints={
                f"k8s/default/pod-{number}/eth0": desired.Endpoint(
                    f"cali{number}", (f"{address}/32",), ("first", "second"), self._tiers(keys)
                )
                for number, address in enumerate(LOCAL)
            },
            policies=policies,
            profiles={
                "first": desired.Profile(self._rules(2), self._rules(2)),
                # Most states would otherwise drop almost everything.
                "second": desired.Profile((Rule(Action.ALLOW),), (Rule(Action.ALLOW),)),
            },
            sets={
                **{name: desired.AddressSet(SetType.NET, _disjoint(self._some(self._members(), 4))) for name in SETS},
                **{name: desired.AddressSet(SetType.IP_AND_PORT, set(self._some(_PAIRS, 6))) for name in PORT_SETS},
            },
            settings=desired.Settings(ready=True),
        )

    def cases(self, state: desired.State, count: int) -> list[packet_cases.Case]:
        """Random packets from and to local workloads, with the verdicts of the calculation."""
        judge = verdict.Judge(state)
        found: list[packet_cases.Case] = []
        while len(found) < count:
            source, destination = self._random.choice(LOCAL + REMOTE), self._random.choice(LOCAL + REMOTE)
            if source != destination and (source in LOCAL or destination in LOCAL):
                found.append(self._case(state, judge, source, destination))
        return found

    def _case(self, state: desired.State, judge: verdict.Judge, source: str, destination: str) -> packet_cases.Case:
        flow = self._flow()
        icmp = Icmp(flow.icmp_type, flow.icmp_code) if flow.protocol == 1 else None
        ports = (0, 0) if icmp is not None else (flow.source_port, flow.destination_port)
        packet = verdict.Packet(parse_net(source), parse_net(destination), verdict.Flow(flow.protocol, *ports, icmp))
        local = packet_cases.Workloads(state).by_address()
        allowed, because = True, []
        for address, direction in ((source, Direction.EGRESS), (destination, Direction.INGRESS)):
            if address in local:
                endpoint = state.endpoints[local[address]]
                found = judge.verdict(endpoint.tiers, endpoint.profiles, direction, packet)
                allowed &= found.allowed
                because.append(f"{direction}: {found}")
        via, to = (
            state.endpoints[local[address]].interface if address in local else packet_lab.UPLINK
            for address in (source, destination)
        )
        return packet_cases.Case(
            packet_lab.Probe(via, source, destination, flow), to if allowed else None, "; ".join(because)
        )

    def _flow(self) -> packet_lab.Flow:
        protocol = self._random.choice(PROTOCOLS)
        if protocol == 1:
            return packet_lab.Flow(1, icmp_type=self._random.choice((3, 8, 13)), icmp_code=self._random.choice((0, 1)))
        return packet_lab.Flow(protocol, self._random.choice(PORTS), self._random.choice((53, 40000)))

    def _tiers(self, keys: Sequence[str]) -> tuple[desired.Tier, ...]:
        return tuple(
            desired.Tier(
                f"tier-{number}",
                self._random.choice((Action.DENY, Action.PASS, Action.PASS, Action.PASS)),
                tuple(self._some(keys, 3)),
                tuple(self._some(keys, 3)),
            )
            for number in range(self._random.randrange(4))
        )

    def _policy(self) -> desired.Policy:
        return desired.Policy("tier", "", self._rules(4), self._rules(4), "")

    def _rules(self, most: int) -> tuple[Rule, ...]:
        return tuple(self._rule() for _ in range(self._random.randrange(most + 1)))

    def _rule(self) -> Rule:
        often = self._random.random
        protocol = self._random.choice(PROTOCOLS) if often() < 0.6 else None
        return Rule(
            self._random.choice((*Action, Action.ALLOW)),
            self._random.choice(((4,), (4, 6), (4, 6), (4, 6), (6,))),
            protocol,
            self._random.choice(PROTOCOLS) if often() < 0.1 else None,
            Icmp(8, self._random.choice((None, 0))) if often() < (0.5 if protocol == 1 else 0.05) else None,
            Icmp(13, self._random.choice((None, 1))) if often() < (0.3 if protocol == 1 else 0.05) else None,
            self._peer(0.3),
            self._peer(0.4),
            dataclasses.replace(self._peer(0.08), service_sets=()),  # services are never negated
            dataclasses.replace(self._peer(0.1), service_sets=()),
            "http" if often() < 0.05 else "",
        )

    def _peer(self, chance: float) -> Peer:
        """Each part is there with some chance."""

        def part(values: Sequence[Item], most: int) -> tuple[Item, ...]:
            return tuple(self._some(values, most)) if self._random.random() < chance else ()

        return Peer(
            part(NETS, 6),
            part(SETS, 2),
            tuple(PortRange(*ports) for ports in part(RANGES, 6)),
            part(PORT_SETS, 2),
            part(PORT_SETS, 1) if self._random.random() < 0.3 else (),
        )

    def _members(self) -> list[str]:
        """Sometimes single addresses only."""
        addresses = [f"{address}/32" for address in LOCAL + REMOTE]
        return addresses if self._random.random() < 0.5 else [*addresses, *NETS]

    def _some(self, values: Sequence[Item], most: int) -> list[Item]:
        return self._random.sample(values, self._random.randrange(min(most, len(values)) + 1))


def _disjoint(members: Sequence[str]) -> set[str]:
    """The members that lie within no other, as the calculation hands sets over."""
    cover = nets.Cover()
    for member in members:
        cover.add(member)
    return cover.visible


_PAIRS = [
    AddressPort(address, protocol, port)
    for address in LOCAL + REMOTE
    for protocol in (6, 17)
    for port in (53, 80, 8080)
]
