"""The limits and times of a worker, in one place; most of them come from settings.

The records named here have the measurements behind the numbers that are not settings.
"""

import msgspec

from cache.feeds.calico import releases
from typha import settings
from typha.ipc import messages

_SEALED_SNAPSHOT_UNSENT_BYTES = 512 * 1024
"""More made no difference next to the cost of TLS. It is also what one client is sent before it is the next one's turn,
as much as `TlsTransport.write` seals."""
_UNPROVEN_BYTES_MAX_WITH_TLS = 64 * 1024 * 1024
"""Room for some 1,300 unfinished handshakes."""


class Policy(msgspec.Struct, frozen=True, kw_only=True):
    """Limits and times of one worker. Every field is explained by its setting or here."""

    # Keepalive and deadlines: docs/decisions/keepalive-and-deadlines.md, docs/decisions/connections-and-refusals.md.
    ping_interval_seconds: float = 10.0
    pong_timeout_seconds: float = 60.0
    handshake_timeout_seconds: float = 10.0
    no_progress_timeout_seconds: float = 60.0
    refusal_hold_seconds: float = 10.0
    """How long a refused client may stay before it is closed. One of Typha's protocol would come back at once, over and
    over; a native one reads its goodbye and closes."""
    goodbye_linger_seconds: float = 2.0
    """How long an accepted client may take to read its goodbye and close; the goodbye says when to come back."""
    max_held_refusals: int = 1000
    release_overrides: tuple[releases.Override, ...] = ()
    """Which agents get another projection of felix than they would by their own words."""
    ping_slots: int = 16
    """Clients are pinged in this many groups: 5,000 pongs at the same moment cost 25 ms."""
    unread_seconds: float = 2.0
    """A client that leaves a probe unanswered for longer counts as lagging since the probe."""
    handshake_timeouts_max: int = 12
    """A connection without a hello ends after this many handshake timeouts, even if it waited for the worker: a peer
    that keeps the worker busy with a byte at a time must not live forever."""
    expired_at_a_time: int = 200
    """Overdue connections that are closed in one go: some 4 ms."""
    stats_interval_seconds: float = 1.0

    # Accepting: docs/decisions/storms-are-paced.md, docs/decisions/tls.md.
    handshake_given_up_seconds: float = 1.0
    """A connection that waited longer for its TLS handshake is checked for a hang-up before its turn. For others a step
    says more about their end."""
    accept_batch: int = 64
    """Connections accepted in one turn, some 2 ms; between turns another worker may take the next."""
    accept_seconds: float = 0.005
    """How long one turn may accept, if connections must be closed to make room for others."""
    connections_max: int = 1 << 20
    """Connections that may be open. `typha.open_files` computes it from the limit of open files."""
    newcomers_share: float = 0.125
    """The part of them that is kept for connections without a hello, and for those that are being refused."""
    unproven_bytes_max: int = 32 * 1024 * 1024
    """What connections without a hello, unfinished handshakes and unfinished messages may take together. A real hello
    has 0.1 to 0.5 kB, and is there at once."""
    out_of_resources_pause_seconds: float = 1.0
    """How long no connection is accepted after the process has run out of descriptors."""
    over_share_pause_seconds: float = 0.05
    """How long a worker with more connections than its share leaves new ones to the others."""
    hello_seconds: float = 0.004
    """How long one turn may answer hellos: a storm of them must not keep deliveries waiting."""
    read_seconds: float = 0.005
    """How long one turn may read from clients: as long as it may send."""
    keepalive_seconds: float = 0.005
    """How long one turn may look after clients that get pings. 10,000 that need one all at once take 19 ms."""
    costly_hello_seconds: float = 0.005
    """A hello that takes more CPU time than this is logged, and its address waits behind all others from then on. The
    usual one takes 0.1 ms."""

    # Resume: docs/decisions/resume.md.
    chunk_digests_max: int = 1 << 22
    """Digests of chunks, 8 bytes each, that a channel keeps for clients that wait for their snapshot: 32 MB. A client
    tells as many as its last snapshot had chunks, some 256 for 20,000 pods, and 4,096 at most."""

    # Sending: docs/decisions/delivery.md, docs/decisions/sockets.md.
    max_frame_bytes: int = 16 * 1024 * 1024
    notsent_lowat_bytes: int = 128 * 1024
    """What the kernel may hold unsent for a client. Further bytes stay in the log, where they are counted."""
    pass_seconds: float = 0.005
    """How long one turn may send before reads, pings and accepts get their time."""
    send_bytes: int = 256 * 1024
    """What one client outside the live set is sent before it is the next one's turn. At least what TLS
    seals at a time, because that must be offered again whole."""

    # Snapshots: docs/decisions/storms-are-paced.md, docs/decisions/snapshots-for-felix.md.
    snapshot_fresh_seconds: float = messages.SNAPSHOT_FRESH_SECONDS
    """A newcomer of a format in key order waits for a newer snapshot if the newest is older and has log after it."""
    snapshot_unsent_bytes: int = 2 * 1024 * 1024
    """`notsent_lowat_bytes` for a client that takes its snapshot: sent whole, it costs two thirds of what it costs in
    pieces. The kernel holds references to the file's pages, but copies with TLS: `_SEALED_SNAPSHOT_UNSENT_BYTES`
    there."""
    snapshot_send_bytes: int = 2 * 1024 * 1024
    """`send_bytes` for a client that takes its snapshot: what the kernel takes in one call, 0.2 ms for a megabyte. With
    TLS, which seals it first, `_SEALED_SNAPSHOT_UNSENT_BYTES`."""
    snapshots_deep_max: int = 128
    """Clients for which the kernel may hold `snapshot_unsent_bytes`; all others get `notsent_lowat_bytes`."""
    snapshot_drain_seconds: float = 0.005
    """Between two looks at which clients have taken their snapshot: a wake-up for each client costs a quarter more
    CPU."""
    snapshot_slots: int = 64
    """Clients that take their snapshot at the same time; the others are held."""
    snapshot_patience_seconds: float = 0.1
    """How long a client with a full socket keeps its slot: its link sets the pace of that client alone."""
    snapshot_slot_seconds: float = 2.0
    """How long a client with a full socket keeps its slot if it takes a little now and then."""
    snapshots_open_max: int = 512
    """Clients in the middle of a snapshot: up to a few hundred megabytes of kernel memory."""
    snapshot_stall_seconds: float = 5.0
    """A client that takes nothing for longer does not count towards `snapshots_open_max`."""
    snapshot_open_seconds: float = 20.0
    """Nor does a client with a full socket that began longer ago."""

    # Slow consumers and catch-up: docs/decisions/slow-consumers-are-paced.md,
    # docs/decisions/slow-clients-are-caught-up.md.
    slow_consumer_bytes: int = 512 * 1024
    """A client further behind the end of the log, or catching up, is a slow consumer. A socket that is full for a
    moment makes no client one."""
    slow_consumers_time_share: float = 0.1
    """Of the worker's time, for all slow consumers together, while other clients are sent something."""
    slow_consumers_bytes_per_second: int = 64 * 1024 * 1024
    """For all slow consumers together, in the same situation: half a gigabit."""
    slow_consumers_patience_seconds: float = 15.0
    """Stop pacing a client after this much total delay."""
    slow_consumers_seconds: float = 0.001
    """How long one turn may send to slow consumers: a pass is delayed by as much."""
    catch_up_blocks: int = 64
    """Catch-up blocks, some 256 KiB each, that are open at once; clients that need further ones wait."""
    catch_up_patience_seconds: float = 10.0
    """While clients wait for a block, a block that has been read for longer is left; at 256 KiB that is 26 kB/s."""
    catch_up_rest_bytes: int = 16 * 1024 * 1024
    """What may be kept of frames inside which readers left a block: as much as the blocks."""


def from_settings(configured: settings.Settings) -> Policy:
    """The policy that the settings ask for.

    A pong timeout of at most two ping intervals becomes six of them (docs/reference/typha-behaviour.md, section 2).
    """
    ping_interval_seconds = configured.server_ping_interval_seconds
    pong_timeout_seconds = configured.server_pong_timeout_seconds
    if pong_timeout_seconds <= 2 * ping_interval_seconds:
        pong_timeout_seconds = 6 * ping_interval_seconds
    limits = Policy(
        ping_interval_seconds=ping_interval_seconds,
        pong_timeout_seconds=pong_timeout_seconds,
        handshake_timeout_seconds=configured.server_handshake_timeout_seconds,
        no_progress_timeout_seconds=configured.no_progress_timeout_seconds,
        refusal_hold_seconds=configured.refusal_hold_seconds,
        max_held_refusals=configured.max_held_refusals,
        release_overrides=releases.parse_overrides(configured.agent_releases),
        max_frame_bytes=configured.max_frame_bytes,
    )
    if not configured.server_key_file:
        return limits
    return msgspec.structs.replace(
        limits,
        snapshot_unsent_bytes=_SEALED_SNAPSHOT_UNSENT_BYTES,
        snapshot_send_bytes=_SEALED_SNAPSHOT_UNSENT_BYTES,
        unproven_bytes_max=_UNPROVEN_BYTES_MAX_WITH_TLS,
    )
