"""The limits and times of the hub, in one place. The records named here have the measurements behind them."""

import msgspec

from protocol.native import frames
from typha import settings
from typha.ipc import messages, selections


class HubPolicy(msgspec.Struct, frozen=True, kw_only=True):
    """Limits and times of the hub. The first three come from settings."""

    log_budget_bytes: int
    """Memory for all logs together."""
    segment_bytes: int
    max_frame_bytes: int = frames.MAX_FRAME_BYTES
    """Of the native protocol."""

    # Channels and their snapshots: docs/decisions/snapshots.md, docs/decisions/snapshots-for-felix.md.
    channel_idle_seconds: float = 60.0
    """A channel without clients is encoded for no one, and is closed after this time."""
    selections_max: int = selections.SELECTIONS_MAX
    snapshot_log_share: float = 0.25
    """A new snapshot is built when the log after the last one is this part of it. A newcomer is sent at most this much
    more, and snapshots cost at most four times what the updates cost."""
    unread_snapshot_log_share: float = 1.0
    """The same while no client has taken the last snapshot: for a fleet that stays connected it is not worth the work.
    The first newcomer brings the other share back."""
    snapshot_log_bytes_min: int = 256 * 1024
    """Less log after a snapshot asks for no new one."""
    snapshot_fresh_seconds: float = messages.SNAPSHOT_FRESH_SECONDS
    rebuild_share_max: float = 0.1
    """The largest part of the time that may go into snapshots that newcomers ask for."""
    slice_seconds: float = 0.005
    """How long a snapshot or block is built before other work gets its turn."""

    # Catch-up: docs/decisions/slow-clients-are-caught-up.md.
    tombstone_looks: int = 10
    """Deletions are forgotten when this many checks in a row, a second apart, have found that no client needs them."""
    resumable_deletions_max: int = 20_000
    """Deletions of each feed that are kept for native clients that come back by their position: some 5 MB. Without
    them, such a client gets the chunks that differ. docs/decisions/resume.md."""
    catch_up_rest_share: float = 3.0
    """Rest for each second of work on blocks: they take a quarter of the hub's time at most."""
    kept_block_bytes_max: int = 8 * 1024 * 1024
    kept_block_seconds: float = 10.0
    """How long a block is kept that no worker asks for."""
    stale_log_bytes: int = 1024 * 1024
    """A block is built again when the log has grown by this much since its cut: keys that changed again would be sent
    twice."""
    snapshot_is_cheaper_share: float = 0.5
    """When more of the keys have changed, a client that can take a snapshot gets one instead of blocks."""

    # Coalescing: docs/decisions/coalescing.md.
    coalesce_seconds_max: float = 0.1
    """Updates wait no longer for busy workers. A worker that is busy for longer has a storm of newcomers to serve, or
    too many clients."""
    coalesced_updates_max: int = 2_000
    """This many updates are published whatever the workers do: the hub must not hold more than a burst."""
    publishes_under_way_max: int = 2
    """A worker that has not finished the first publish gets no more of them. The record compares it with 1, 3 and
    no limit."""

    confirmed_told_seconds: float = 3.0
    """Workers hear of a feed's confirmation when it is so much newer. Other replicas ask for times that differ by more
    than 5 s (`typha.peers.freshness`)."""
    retry_seconds: float = 1.0
    """How soon what failed for lack of a resource is tried again."""

    # One turn of the hub: docs/decisions/store-changes-in-take.md.
    batch_changes_max: int = 2_000
    """A commit takes this many changes of each feed, 10 to 25 ms with their encoding, and goes on in the next turn."""
    batch_bytes_max: int = 4 * 1024 * 1024
    """The same for the bytes of values: 1 MiB takes about 3 ms to compress."""
    batch_split_keys: int = 4_000
    """Keys of a store that a commit moves to new chunks: 4 ms."""

    # Dictionaries: docs/decisions/dictionary-compression.md.
    dictionary_keys_min: int = 200
    """With fewer keys there is too little to learn from, and too little to save."""
    dictionary_samples: int = 1_000
    """Keys that a dictionary is trained from. With 5,000 it saves 1 % more, for three times the CPU."""
    dictionary_sample_bytes: int = 4 * 1024 * 1024
    """The same for the bytes of their values: 0.2 s of CPU."""
    dictionary_growth: int = 4
    """With so many times the keys, a feed gets another dictionary: new kinds of objects may be most of it."""
    dictionary_seconds: float = 86_400.0
    """The same after a day, as labels, images and rules change. It costs each client 16 KiB."""

    dictionary_retry_seconds: float = 600.0
    """How soon it is tried again what failed for lack of memory: saving bytes is not urgent then."""

    # Conversions: docs/decisions/expensive-conversions.md.
    conversion_share_max: float = 0.1
    """The part of the time in which one type's expensive objects in one namespace may be converted."""
    charged_conversion_seconds: float = 0.005
    """CPU time from which a conversion counts as expensive, and its type and namespace rest after it."""
    named_conversion_seconds: float = 0.1
    """CPU time from which a conversion is logged and counted."""

    # Workers: docs/decisions/hub-and-workers.md.
    worker_silence_seconds_max: float = 20.0
    """A worker reports every second. One that has not for this long, without what it waited for a CPU, is stuck. Its
    clients leave by themselves after some 30 s without a ping."""
    worker_start_seconds_max: float = 60.0
    """The same for a worker that has not been ready yet: it reads its files and has no clients. Doubled for each start
    in a row that failed, at most eightfold."""
    wanted_blocks_max: int = 256
    """Blocks that one worker may wait for: four times what it asks for (`typha.worker.policy.Policy`)."""


def from_settings(configured: settings.Settings) -> HubPolicy:
    """The policy that the settings ask for."""
    return HubPolicy(
        log_budget_bytes=configured.log_budget_bytes,
        segment_bytes=configured.segment_bytes,
        max_frame_bytes=configured.max_frame_bytes,
    )
