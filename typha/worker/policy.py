"""The numbers by which a worker acts; the hub fills them in from the settings and hands them on as JSON."""

from typing import Any

import msgspec

from typha import settings
from typha.worker import tls

_SEALED_SNAPSHOT_UNSENT_BYTES = 512 * 1024
"""More made no difference beside what sealing costs."""


class Policy(msgspec.Struct, frozen=True, kw_only=True):
    """Limits and times of one worker's connections; every field is a number that a setting or this text explains."""

    ping_interval_seconds: float = 10.0
    pong_timeout_seconds: float = 60.0
    handshake_timeout_seconds: float = 10.0
    no_progress_timeout_seconds: float = 60.0
    refusal_hold_seconds: float = 10.0
    """How long a refused Typha client is kept before it is closed: it comes back at once, over and over."""
    goodbye_linger_seconds: float = 2.0
    """How long a native client may take to read its goodbye and close; it knows when to come back."""
    max_held_refusals: int = 1000
    max_frame_bytes: int = 16 * 1024 * 1024
    notsent_lowat_bytes: int = 128 * 1024
    """What the kernel may hold unsent for a client; beyond it the bytes stay where they are counted, in the log."""
    snapshot_unsent_bytes: int = 2 * 1024 * 1024
    """The same for a client that takes its snapshot: whole, it costs two thirds of what it costs in pieces. The kernel
    holds references to the file's pages; through TLS copies, so there it is `_SEALED_SNAPSHOT_UNSENT_BYTES`."""
    snapshots_deep_max: int = 128
    """Clients of whose snapshots the kernel may hold so much: the others get as little as everybody."""
    snapshot_drain_seconds: float = 0.005
    """Between two looks at who has taken its snapshot: a wake-up for each client costs a quarter more CPU."""
    pass_seconds: float = 0.005
    """How long one turn may flush before reads, pings and accepts get theirs."""
    send_bytes: int = 256 * 1024
    """What one client that catches up gets before it is the next one's turn; a TLS record at least, for what is sealed
    must be offered again whole."""
    snapshot_send_bytes: int = 2 * 1024 * 1024
    """The same for a client that takes its snapshot: what the kernel takes of it, in one call, 0.2 ms for a megabyte.
    Through TLS, which seals it first, `send_bytes`."""
    laggard_bytes: int = 512 * 1024
    """Who is further behind the end of the log, or catches up, is a laggard; a socket that is full for a moment makes
    nobody one."""
    laggards_time_share: float = 0.1
    """Of a worker's time, for all its laggards, while others are sent something."""
    laggards_bytes_per_second: int = 64 * 1024 * 1024
    """The same: half a gigabit."""
    laggards_patience_seconds: float = 15.0
    """Who has been held up by that for so long in all need wait no longer."""
    laggards_seconds: float = 0.001
    """How long one turn may send to laggards: as much longer a pass takes."""
    accept_batch: int = 64
    """Connections accepted in one turn, some 2 ms; between turns another worker may take the next."""
    hello_seconds: float = 0.004
    """How long one turn may answer hellos: a storm of them must not keep deliveries waiting."""
    snapshot_places: int = 64
    """Clients that take their snapshot at the same time; the others are held."""
    snapshot_patience_seconds: float = 0.1
    """How long a full socket may keep its place: a slow client's link sets the pace of that client alone."""
    snapshot_place_seconds: float = 2.0
    """How long a client whose socket is full, but takes a little now and then, may keep it."""
    snapshots_open_max: int = 512
    """Clients in the middle of a snapshot: up to a few hundred megabytes of kernel memory."""
    snapshot_stall_seconds: float = 5.0
    """Who has taken nothing of its snapshot for so long does not count among those."""
    snapshot_open_seconds: float = 20.0
    """Nor who has been at it for so long, and has a full socket."""
    catch_up_blocks: int = 64
    """Catch-up blocks (256 KiB each as a rule) that are held at once; clients that need other ones are held."""
    catch_up_patience_seconds: float = 10.0
    """Where they are held for lack of blocks, one that has been read for so long (at 26 kB/s, as a rule) is left."""
    catch_up_rest_bytes: int = 16 * 1024 * 1024
    """What the frames may take together that readers of such blocks stood in: as much as the blocks."""
    ping_slots: int = 16
    """Clients are looked after in so many groups: 5,000 pongs in one lump cost 25 ms."""
    stats_interval_seconds: float = 1.0


class WorkerConfig(msgspec.Struct, frozen=True, kw_only=True):
    """What a worker is started with."""

    number: int
    feeds: tuple[str, ...]
    incarnation: str
    """32 hexadecimal digits."""
    settings: dict[str, Any]
    """As `typha.settings.to_dict` gives them."""
    client_tls: tls.ClientTls | None = None
    """None for plain text."""


def from_settings(configured: settings.Settings) -> Policy:
    """The numbers of the settings, and ours for the rest.

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
        max_frame_bytes=configured.max_frame_bytes,
    )
    if not configured.server_key_file:
        return limits
    return msgspec.structs.replace(
        limits, snapshot_unsent_bytes=_SEALED_SNAPSHOT_UNSENT_BYTES, snapshot_send_bytes=limits.send_bytes
    )
