"""The plan of a seed: the size and the policy of the service, its clients, and the faults."""

import dataclasses
import random

import msgspec

from cache.state import catchup
from protocol.subscriptions import Subscription
from tests.simulation import network
from typha.hub import policy as hub_policy
from typha.worker import policy

WIRES = ("native", "native+zstd", "typha", "typha+snappy")


@dataclasses.dataclass(frozen=True)
class AgentPlan:
    """A client: its protocol, its network, and how it reads."""

    wire: str
    link: network.Link
    think_seconds_max: float
    """Longest time between the arrival of bytes and reading them."""
    read_bytes_max: int
    bytes_per_second: int
    """Reading speed; 0 means unlimited."""
    is_steady: bool
    """No fault strikes this client. The service must serve it well whatever the other clients do."""
    subscription: Subscription | None = None
    node: str = ""
    apply_seconds_max: float | None = None
    """Longest time until the client has applied what has come; None if it does not report that."""


@dataclasses.dataclass(frozen=True)
class Plan:
    """The plan of one run."""

    workers: int
    tls: bool
    seconds: float
    """Duration of the phase of faults. Afterwards everything must converge."""
    limits: policy.Policy
    log_budget_bytes: int
    segment_bytes: int
    snapshot_log_bytes_min: int
    frame_bytes: int
    chunk_keys: int
    block_bytes: int
    """Target size of a catch-up block."""
    stale_log_bytes: int
    """The hub rebuilds a catch-up block after this growth of the log."""
    kept_block_bytes: int
    """Size of the catch-up blocks that the hub keeps."""
    tombstones_min: int
    step_seconds: float
    """Duration of a step of a snapshot. A step of a catch-up block takes a quarter."""
    link_datagrams: int
    read_clock_seconds: float
    wake_seconds_max: float
    drain_seconds: float
    drains: bool
    """The run ends with a drain."""
    keys: int
    hot_keys: int
    """Number of keys that change more often than the others."""
    deletions_share: float
    """Share of deletions among the writes."""
    writes_per_second: float
    value_bytes_max: int
    agents: tuple[AgentPlan, ...]
    strangers: int
    """Number of connections with an unknown protocol or an incomplete hello."""
    faults: tuple[tuple[float, str], ...]
    """(seconds since the start, kind of fault)."""

    @property
    def fresh_seconds(self) -> float:
        """Time within which an update must reach every client without faults. It is longer for slow processes."""
        is_link_slow = self.link_datagrams < _LINK_DATAGRAMS_SWIFT and self.wake_seconds_max > _WAKE_SECONDS_SWIFT
        slow = self.read_clock_seconds > _READ_CLOCK_SECONDS_SWIFT, is_link_slow, self.step_seconds > 0.0
        return _FRESH_SECONDS * (1, 3, 9, 27)[sum(slow)]

    @property
    def hub_limits(self) -> hub_policy.HubPolicy:
        """The hub's numbers."""
        return hub_policy.HubPolicy(
            log_budget_bytes=self.log_budget_bytes,
            segment_bytes=self.segment_bytes,
            snapshot_log_bytes_min=self.snapshot_log_bytes_min,
            stale_log_bytes=self.stale_log_bytes,
            kept_block_bytes_max=self.kept_block_bytes,
            batch_changes_max=2 * self.chunk_keys,
            dictionary_keys_min=1,
            dictionary_seconds=_DICTIONARY_SECONDS,
            batch_split_keys=self.chunk_keys,
        )

    @property
    def has_swift_catch_ups(self) -> bool:
        """Whether catch-ups are fast: few blocks, built quickly, without waiting for the blocks of other clients."""
        is_large = self.block_bytes >= _BLOCK_BYTES
        return is_large and self.limits.catch_up_blocks >= _BLOCKS_MAX and not self.step_seconds


_REPORTING_EACH = 5
"""In each fifth seed, clients say what they have applied."""
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
    "drain",
    "herd",
    "herd",
    "relist",
)
LONG_HANG_SECONDS = 40.0
NODES = ("o0", "o1")
SUBSCRIPTIONS = (
    Subscription(own_node=True),
    Subscription(own_node=True),
    Subscription(prefixes=("/core/v1/pods/",), own_node=True),
    Subscription(prefixes=("/core/v1/pods/default/o1", "/core/v1/pods/default/o2")),
)
_SUBSCRIBERS_SHARE = 0.3
_FRESH_SECONDS = 1.0
_DICTIONARY_SECONDS = 7.0
"""Short, so that a client sees several in a run."""
_READ_CLOCK_SECONDS_SWIFT = 1e-4
_LINK_DATAGRAMS_SWIFT = 100
_WAKE_SECONDS_SWIFT = 1e-2
_LAGGARDS_SHARE = 0.15
_RELISTS_SHARE = 0.08
_PLACES_TIGHT = 7
_UNPROVEN_BYTES_TIGHT = 3000
_BLOCKS_MAX = policy.Policy().catch_up_blocks
_BLOCK_BYTES = catchup.BLOCK_TARGET_BYTES
"""Outside of any run, which replaces the size by the plan's."""


def make(seed: int) -> Plan:
    """Make the plan of a seed."""
    draw = random.Random(seed ^ 0x5EED)
    seconds = draw.choice((4.0, 8.0, 16.0))
    faults = _faults(draw, seconds)
    if draw.random() < 0.06:
        faults.append((draw.uniform(1.0, seconds), "hub-long-hang"))
        seconds += LONG_HANG_SECONDS
    if draw.random() < 0.04:
        faults.append((draw.uniform(1.0, seconds), "worker-long-hang"))
    faults += _shortages(random.Random(seed ^ 0x1ACC), seconds)
    keys = draw.choice((3, 12, 40))
    wires = WIRES if draw.random() < 0.6 else (draw.choice(WIRES),)
    segment_bytes = draw.choice((1500, 3000, 6000, 20_000))
    plan = Plan(
        workers=draw.choice((1, 1, 2)),
        tls=draw.random() < 0.4,
        seconds=seconds,
        limits=_room(random.Random(seed ^ 0x600D), _limits(draw)),
        log_budget_bytes=segment_bytes * draw.choice((2, 3, 6)),
        segment_bytes=segment_bytes,
        snapshot_log_bytes_min=draw.choice((500, 3000, 20_000)),
        frame_bytes=draw.choice((300, 1200, 20_000)),
        chunk_keys=draw.choice((2, 6, 30)),
        block_bytes=draw.choice((100, 1000, catchup.BLOCK_TARGET_BYTES, catchup.BLOCK_TARGET_BYTES)),
        stale_log_bytes=draw.choice((300, 3000, 1024 * 1024)),
        kept_block_bytes=draw.choice((500, 8 * 1024 * 1024)),
        tombstones_min=draw.choice((3, 200_000, 200_000)),
        step_seconds=draw.choice((0.0, 0.0, 2e-3, 2e-2)),
        link_datagrams=draw.choice((2, 6, 100, 100)),
        read_clock_seconds=draw.choice((1e-6, 1e-6, 5e-5, 5e-4)),
        wake_seconds_max=draw.choice((1e-4, 1e-3, 2e-2)),
        drain_seconds=draw.choice((1.0, 4.0)),
        drains=draw.random() < 0.25,
        keys=keys,
        hot_keys=draw.choice((keys, keys, keys // 3)),
        deletions_share=draw.choice((0.25, 0.25, 0.5)),
        writes_per_second=draw.choice((0.5, 3.0, 10.0)),
        value_bytes_max=draw.choice((20, 300, 2500)),
        agents=tuple(make_agent(draw, number, wires) for number in range(draw.choice((2, 3, 4, 6)))),
        strangers=draw.choice((0, 0, 1, 2)),
        faults=tuple(sorted(faults)),
    )
    subscribers = _subscribers(random.Random(seed ^ 0x5B5C))
    if len(plan.agents) + len(subscribers) < plan.limits.connections_max:
        plan = dataclasses.replace(plan, agents=plan.agents + subscribers)
    kind = draw.random()
    if kind < _LAGGARDS_SHARE:
        plan = _of_laggards(draw, plan)
    elif kind < _LAGGARDS_SHARE + _RELISTS_SHARE:
        plan = _of_relists(draw, plan)
    return plan if seed % _REPORTING_EACH else _of_reporting(random.Random(seed ^ 0xA991), plan)


def _of_reporting(draw: random.Random, plan: Plan) -> Plan:
    """The same plan with clients that say what they have applied, drawn apart like shortages."""
    agents = [
        dataclasses.replace(one, apply_seconds_max=draw.choice((0.0, 0.1, 2.0))) if draw.random() < 0.7 else one
        for one in plan.agents
    ]
    return dataclasses.replace(plan, agents=tuple(agents))


def _of_relists(draw: random.Random, plan: Plan) -> Plan:
    """A plan with repeated relists. Clients reconnect during each one, and building their snapshot takes long."""
    relists = [(second + draw.random(), "relist") for second in (1.5, 4.0, 7.0, 10.0) if second + 1.0 < plan.seconds]
    return dataclasses.replace(
        plan,
        workers=1,
        chunk_keys=2,
        step_seconds=0.02,
        keys=40,
        hot_keys=40,
        agents=tuple(make_agent(draw, number, (WIRES[draw.randrange(2)],)) for number in range(6)),
        faults=tuple(sorted((*plan.faults, *relists))),
    )


def _of_laggards(draw: random.Random, plan: Plan) -> Plan:
    """A plan with many slow clients of one format, which fall behind together and recover one by one.

    They share catch-up blocks, and some blocks are old when the last clients need them.
    """
    wire = draw.choice(WIRES)
    link = network.Link(1500, 1000, latency_seconds=draw.choice((1e-4, 2e-3)), partial_probability=0.2)
    agents = [
        dataclasses.replace(
            make_agent(draw, number, (wire,)),
            link=link,
            bytes_per_second=draw.choice((0, 0, 500, 2000)),
            is_steady=False,
        )
        for number in range(6)
    ]
    herds = [(second, "herd") for second in (1.0, 6.0, 11.0) if second < plan.seconds]
    return dataclasses.replace(
        plan,
        workers=1,
        log_budget_bytes=3000,
        segment_bytes=1500,
        frame_bytes=draw.choice((300, 1200)),
        block_bytes=draw.choice((100, 1000, 4000)),
        keys=40,
        hot_keys=draw.choice((5, 13)),
        writes_per_second=10.0,
        value_bytes_max=draw.choice((300, 1000)),
        agents=tuple(agents),
        faults=tuple(sorted((*plan.faults, *herds))),
    )


def _subscribers(draw: random.Random) -> tuple[AgentPlan, ...]:
    """Clients with a part of the feed in some plans, drawn apart like shortages."""
    if draw.random() > _SUBSCRIBERS_SHARE:
        return ()
    wire = draw.choice(WIRES[:2])
    subscriptions = draw.choices(SUBSCRIPTIONS, k=draw.choice((1, 2)))
    return tuple(
        dataclasses.replace(
            make_agent(draw, draw.choice((0, 5, 5)), (wire,)),
            subscription=draw.choice(subscriptions),
            node=draw.choice(NODES),
        )
        for _ in range(draw.choice((2, 3, 4)))
    )


def _faults(draw: random.Random, seconds: float) -> list[tuple[float, str]]:
    kinds = draw.sample(AGENT_FAULTS, 3) + draw.sample(SERVICE_FAULTS, 3)
    return [(draw.uniform(0.5, seconds), draw.choice(kinds)) for _ in range(draw.randint(0, int(seconds / 2)))]


def _shortages(draw: random.Random, seconds: float) -> list[tuple[float, str]]:
    """Drawn apart, so that the rest of the plan does not depend on them."""
    count = draw.randint(1, 4) if draw.random() < 0.2 else 0
    return [(draw.uniform(0.0, seconds), "shortage") for _ in range(count)]


def _limits(draw: random.Random) -> policy.Policy:
    limits = policy.Policy(
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
        snapshot_slots=draw.choice((1, 2, 64)),
        catch_up_blocks=draw.choice((1, 2, _BLOCKS_MAX, _BLOCKS_MAX)),
        catch_up_patience_seconds=1.0,
        ping_slots=2,
        stats_interval_seconds=2.0,
    )
    return msgspec.structs.replace(limits, snapshot_send_bytes=limits.send_bytes)


def _room(draw: random.Random, limits: policy.Policy) -> policy.Policy:
    """The limits of what peers may take. Where they are tight, there is a place for every client, and few more."""
    return msgspec.structs.replace(
        limits,
        connections_max=draw.choice((limits.connections_max, limits.connections_max, _PLACES_TIGHT)),
        unproven_bytes_max=draw.choice((limits.unproven_bytes_max, _UNPROVEN_BYTES_TIGHT)),
        read_seconds=draw.choice((limits.read_seconds, 0.0)),
    )


def make_agent(draw: random.Random, number: int, wires: tuple[str, ...]) -> AgentPlan:
    is_steady = number < 2
    send_buffer_bytes = draw.choice((1500, 6000, 40_000))
    return AgentPlan(
        wire=draw.choice(wires),
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
