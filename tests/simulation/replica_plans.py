"""The plan of a seed with several replicas: who may follow whom, the clients, and the faults between replicas."""

import dataclasses
import enum
import random

import msgspec

from tests.simulation import plans


class Topology(enum.StrEnum):
    """Where replicas may take their data from."""

    EACH = "each"
    """Each watches the API server."""
    STAR = "star"
    """The first one watches; the others follow it."""
    CHAIN = "chain"
    """Each may follow the two before it."""
    MUTUAL = "mutual"
    """Each may follow each other one."""
    ELECTED = "elected"
    """A Lease says who watches."""


@dataclasses.dataclass(frozen=True)
class ReplicaPlan:
    """The plan of one run."""

    base: plans.Plan
    """That of each replica, and of the clients."""
    topology: Topology
    replicas: int
    fallback_seconds: float
    latency_seconds: float
    """Between replicas."""
    faults: tuple[tuple[float, str], ...]


FAULTS = (
    "crash",
    "crash",
    "crash",
    "wedge",
    "wedge",
    "wedge",
    "way-silent",
    "way-silent",
    "way-error",
    "way-one",
    "way-one",
    "api-lost",
    "api-lost",
    "api-lost-silent",
    "api-down",
    "api-long-down",
    "api-compact",
    "api-restore",
    "api-errors",
    "clock",
    "drain",
    "worker-kill",
    "worker-hang",
    "hub-hang",
    "burst",
    "burst",
    "leave",
    "stall",
    "cut",
)
_SECONDS = (30.0, 60.0, 90.0)
_FAULTS_MAX = 8
_WIRES = plans.WIRES


def make(seed: int) -> ReplicaPlan:
    """Make the plan of a seed."""
    draw = random.Random(seed ^ 0xF1EE7)
    base = plans.make(seed * 7 + 1)  # not each fifth, so that clients report nothing: the other simulation has that
    seconds = draw.choice(_SECONDS)
    replicas = draw.choice((2, 2, 3, 3, 4))
    kinds = draw.sample(FAULTS, 6)
    faults = [(draw.uniform(5.0, seconds), draw.choice(kinds)) for _ in range(draw.randint(1, _FAULTS_MAX))]
    agents = tuple(plans.make_agent(draw, number, _WIRES) for number in range(draw.choice((2, 3, 5))))
    base = dataclasses.replace(
        base,
        workers=draw.choice((1, 1, 2)),
        seconds=seconds,
        limits=msgspec.structs.replace(
            base.limits,
            connections_max=1000,
            unproven_bytes_max=1 << 20,
            ping_interval_seconds=draw.choice((2.0, 5.0)),
        ),
        read_clock_seconds=draw.choice((1e-6, 5e-5)),
        wake_seconds_max=draw.choice((1e-4, 1e-3, 2e-2)),
        step_seconds=draw.choice((0.0, 0.0, 2e-3)),
        link_datagrams=draw.choice((6, 100)),
        keys=draw.choice((3, 12, 40)),
        writes_per_second=draw.choice((0.5, 2.0, 5.0)),
        value_bytes_max=draw.choice((20, 300)),
        agents=agents,
        strangers=0,
        faults=(),
        drains=False,
    )
    return ReplicaPlan(
        base=dataclasses.replace(base, hot_keys=base.keys),
        topology=draw.choice(list(Topology)[1:] * 3 + [Topology.EACH]),
        replicas=replicas,
        fallback_seconds=draw.choice((5.0, 20.0, 60.0)),
        latency_seconds=draw.choice((1e-3, 2e-2)),
        faults=tuple(sorted(faults)),
    )
