"""What a seed stands for: a service's size and numbers, its clients, and which faults come how often."""

import random
from dataclasses import dataclass

from tests.simulation import network
from typha import policy

WIRES = ("native", "native+zstd", "typha", "typha+snappy")


@dataclass(frozen=True)
class AgentPlan:
    """A client: what it speaks, over what, and how it reads."""

    wire: str
    link: network.Link
    think_seconds_max: float
    """Between bytes that come and their reading."""
    read_bytes_max: int
    bytes_per_second: int
    """How fast it reads; 0 for as fast as it can."""
    is_steady: bool
    """No fault of its own befalls it: what it gets must not depend on the others."""


@dataclass(frozen=True)
class Plan:
    """One run."""

    workers: int
    tls: bool
    seconds: float
    """Faults come for so long; then everything must converge."""
    limits: policy.Policy
    log_budget_bytes: int
    segment_bytes: int
    snapshot_log_bytes_min: int
    frame_bytes: int
    chunk_keys: int
    link_datagrams: int
    read_clock_seconds: float
    wake_seconds_max: float
    drain_seconds: float
    drains: bool
    """Whether the run ends with a drain."""
    keys: int
    writes_per_second: float
    value_bytes_max: int
    agents: tuple[AgentPlan, ...]
    strangers: int
    """Connections that speak no protocol, or not to its end."""
    faults: tuple[tuple[float, str], ...]
    """(seconds from the start, what)."""


AGENT_FAULTS = ("stall", "stall", "stall", "slow", "leave", "reset", "cut", "mute")
SERVICE_FAULTS = (
    "worker-hang",
    "worker-hang",
    "worker-kill",
    "hub-hang",
    "hub-kill",
    "api-compact",
    "api-break",
    "api-silence",
    "api-down",
    "api-down",
    "api-errors",
    "burst",
    "burst",
    "burst",
    "storm",
)
LONG_HANG_SECONDS = 40.0


def make(seed: int) -> Plan:
    """The plan of a seed."""
    draw = random.Random(seed ^ 0x5EED)
    seconds = draw.choice((4.0, 8.0, 16.0))
    faults = _faults(draw, seconds)
    if draw.random() < 0.06:
        faults.append((draw.uniform(1.0, seconds), "hub-long-hang"))
        seconds += LONG_HANG_SECONDS
    if draw.random() < 0.04:
        faults.append((draw.uniform(1.0, seconds), "worker-long-hang"))
    segment_bytes = draw.choice((1500, 3000, 6000, 20_000))
    return Plan(
        workers=draw.choice((1, 1, 2)),
        tls=draw.random() < 0.4,
        seconds=seconds,
        limits=_limits(draw),
        log_budget_bytes=segment_bytes * draw.choice((2, 3, 6)),
        segment_bytes=segment_bytes,
        snapshot_log_bytes_min=draw.choice((500, 3000, 20_000)),
        frame_bytes=draw.choice((300, 1200, 20_000)),
        chunk_keys=draw.choice((2, 6, 30)),
        link_datagrams=draw.choice((2, 6, 100, 100)),
        read_clock_seconds=draw.choice((1e-6, 1e-6, 5e-5, 5e-4)),
        wake_seconds_max=draw.choice((1e-4, 1e-3, 2e-2)),
        drain_seconds=draw.choice((1.0, 4.0)),
        drains=draw.random() < 0.25,
        keys=draw.choice((3, 12, 40)),
        writes_per_second=draw.choice((0.5, 3.0, 10.0)),
        value_bytes_max=draw.choice((20, 300, 2500)),
        agents=tuple(_agent(draw, number) for number in range(draw.choice((2, 3, 4, 6)))),
        strangers=draw.choice((0, 0, 1, 2)),
        faults=tuple(sorted(faults)),
    )


def _faults(draw: random.Random, seconds: float) -> list[tuple[float, str]]:
    kinds = draw.sample(AGENT_FAULTS, 3) + draw.sample(SERVICE_FAULTS, 3)
    return [(draw.uniform(0.5, seconds), draw.choice(kinds)) for _ in range(draw.randint(0, int(seconds / 2)))]


def _limits(draw: random.Random) -> policy.Policy:
    return policy.Policy(
        ping_interval_seconds=draw.choice((2.0, 5.0)),
        pong_timeout_seconds=20.0,
        handshake_timeout_seconds=4.0,
        no_progress_timeout_seconds=draw.choice((12.0, 20.0)),
        refusal_hold_seconds=1.0,
        goodbye_linger_seconds=0.5,
        max_held_refusals=2,
        pass_seconds=draw.choice((0.005, 0.0005)),
        send_bytes=draw.choice((700, 5000, 256 * 1024)),
        accept_batch=draw.choice((1, 32)),
        ping_slots=2,
        stats_interval_seconds=2.0,
    )


def _agent(draw: random.Random, number: int) -> AgentPlan:
    is_steady = number < 2
    send_buffer_bytes = draw.choice((1500, 6000, 40_000))
    return AgentPlan(
        wire=draw.choice(WIRES),
        link=network.Link(
            send_buffer_bytes=40_000 if is_steady else send_buffer_bytes,
            receive_buffer_bytes=40_000 if is_steady else draw.choice((1000, 6000, 40_000)),
            latency_seconds=draw.choice((1e-4, 2e-3, 3e-2)),
            partial_probability=draw.choice((0.0, 0.2, 0.7)),
        ),
        think_seconds_max=draw.choice((0.0, 1e-3, 2e-2)),
        read_bytes_max=draw.choice((200, 3000, 65_536)),
        bytes_per_second=0 if is_steady else draw.choice((0, 0, 0, 3000)),
        is_steady=is_steady,
    )
