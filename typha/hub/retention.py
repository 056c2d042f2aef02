"""What is kept of the past: logs within one budget, and deletions as long as a client may ask for them."""

from collections import deque
from collections.abc import Mapping

from typha.hub import policy, snapshot_scheduler, worker_link
from typha.hub.channel import ChannelKey, HubChannel, Source
from typha.ipc import messages


class Retention:
    """Frees what no client needs. `channels` and `workers` are those of the hub, and change."""

    def __init__(
        self,
        channels: Mapping[ChannelKey, HubChannel],
        workers: worker_link.WorkerLinks,
        snapshots: snapshot_scheduler.SnapshotScheduler,
        limits: policy.HubPolicy,
    ) -> None:
        self._channels = channels
        self._workers = workers
        self._snapshots = snapshots
        self._policy = limits
        self.resumable: set[str] = set()
        """Feeds that have had native clients."""
        self._sequences_needed: dict[Source, deque[int]] = {}
        """For each feed and selection, the lowest sequence from which a client may have to be caught up, as of the last
        checks."""

    def forget(self, source: Source) -> None:
        """The feed or selection is gone."""
        self._sequences_needed.pop(source, None)

    def forget_deletions(self, source: Source) -> None:
        """Drops tombstones that no connected client needs. Some are kept for native clients that may come back.

        As of some seconds ago: a client that no report has counted yet may have begun with the snapshot before.
        """
        needed = [source.store.sequence]
        for channel in self._channels.values():
            if channel.feed is source:
                reports = self._workers.channel_reports(channel)
                needed += [0 if report is None else report.min_sequence for report in reports]
                needed.append(channel.snapshot.sequence if channel.snapshot is not None else 0)
        looks = self._policy.tombstone_looks
        lately = self._sequences_needed.setdefault(source, deque(maxlen=looks))
        lately.append(min(needed))
        if len(lately) == looks:
            keep = 0
            if source.name in self.resumable:
                # With more deletions, too many keys have changed for anything but a snapshot.
                most = self._policy.resumable_deletions_max
                keep = min(most, int(len(source.store) * self._policy.snapshot_is_cheaper_share))
            source.store.forget_deletions(min(lately), keep=keep)

    @property
    def log_bytes(self) -> int:
        """Bytes of all logs."""
        return sum(channel.log.used_bytes for channel in self._channels.values())

    def keep_budget(self) -> None:
        """Frees the oldest segments of the largest log until all logs are within the budget."""
        budget_bytes = self._policy.log_budget_bytes
        for channel in sorted(self._channels.values(), key=lambda channel: -channel.log.used_bytes):
            while self.log_bytes > budget_bytes and len(channel.log.segments) > 1:
                if not self.trim(channel, channel.log.segments[0].end):
                    break
        # A log of one segment has nothing to free: a new snapshot would not change that, and ask for the next one.
        long_logs = [channel for channel in self._channels.values() if len(channel.log.segments) > 1]
        if long_logs and self.log_bytes > budget_bytes:
            largest = max(long_logs, key=lambda channel: channel.log.used_bytes)
            if not largest.building:
                self._snapshots.request(largest)

    def trim(self, channel: HubChannel, before_offset: int) -> bool:
        """Frees a log's segments before an offset, as far as they may go; whether it has freed one."""
        start = channel.log.start
        channel.log.trim(channel.trim_limit(before_offset))
        if channel.log.start == start:
            return False
        self._workers.send(messages.TrimLog(channel.number, channel.log.start))
        return True
