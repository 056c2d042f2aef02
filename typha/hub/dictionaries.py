"""Dictionaries for the compression of small frames: when one is trained, and of what.

A feed has one dictionary, for all channels whose clients understand it. It is trained in a thread once there is such a
channel; until then, and where it would not pay, frames are compressed without. It is replaced when the feed has become
another one: after a day, or with four times as many keys. The record is docs/decisions/dictionary-compression.md.
"""

import asyncio
import itertools
from collections.abc import Iterable
from typing import NamedTuple

import structlog

from cache.feeds import feed
from cache.state import store
from protocol.native import codec, dictionary
from typha import clock
from typha.hub import policy

_log = structlog.get_logger("typha.hub")
_monotonic = clock.monotonic
_NUMBERS = 255
"""Numbers are reused after so many: up to 255, a frame names its dictionary in one byte. Clients keep the newest."""


class _Known(NamedTuple):
    trained: dictionary.Compression | None
    """None if it would not pay."""
    keys: int
    at: float
    """Monotonic time."""


class Job(NamedTuple):
    """A dictionary to be trained."""

    source: feed.Feed
    number: int
    keys: int
    entries: list[store.Entry]
    """The samples. They are immutable, so another thread may read them."""

    def train(self) -> dictionary.Compression | None:
        """Trains it. None if it would not pay. Takes some 60 ms, most of them without the interpreter."""
        return dictionary.train(
            [codec.encode_updates(one.sequence - 1, one.sequence, [one.as_change()]) for one in self.entries],
            self.number,
        )


class Dictionaries:
    """`look` decides which feeds need another dictionary, `next` gives the job, and `trained` takes the result."""

    def __init__(self, limits: policy.HubPolicy) -> None:
        self._policy = limits
        self._known: dict[str, _Known] = {}
        self._queue: dict[str, feed.Feed] = {}
        self._under_way = ""
        """The feed whose dictionary is being trained."""
        self._wake = asyncio.Event()
        self._numbers = itertools.count()

    def __repr__(self) -> str:
        return f"<Dictionaries known={list(self._known)} waiting={list(self._queue)}>"

    def of(self, feed_name: str) -> dictionary.Compression | None:
        """The newest dictionary of a feed; None if there is none."""
        known = self._known.get(feed_name)
        return None if known is None else known.trained

    def look(self, used: Iterable[feed.Feed]) -> None:
        """Asks for what the feeds need whose clients understand dictionaries, and forgets those of others."""
        now = _monotonic()
        sources = {source.name: source for source in used}
        self._known = {name: known for name, known in self._known.items() if name in sources}
        for name, source in sources.items():
            if name != self._under_way and self._is_due(source, self._known.get(name), now):
                self._queue[name] = source
                self._wake.set()

    def _is_due(self, source: feed.Feed, known: _Known | None, now: float) -> bool:
        limits, keys = self._policy, len(source.store)
        if keys < limits.dictionary_keys_min or not source.synced_once:
            return False
        return (
            known is None
            or keys >= known.keys * limits.dictionary_growth
            or now - known.at >= limits.dictionary_seconds
        )

    async def next(self) -> Job:
        """Waits for the next dictionary that is due. The keys are a sample by hash: all kinds by their shares."""
        while not self._queue:
            self._wake.clear()
            await self._wake.wait()
        name = next(iter(self._queue))
        source = self._queue.pop(name)
        self._under_way = name
        entries: list[store.Entry] = []
        total_bytes = 0
        chunks = map(source.store.chunk_entries, range(source.store.chunk_count))
        for entry in itertools.chain.from_iterable(chunks):
            if len(entry.value) <= dictionary.PAYLOAD_BYTES_MAX:
                entries.append(entry)
                total_bytes += len(entry.value)
            if len(entries) >= self._policy.dictionary_samples or total_bytes >= self._policy.dictionary_sample_bytes:
                break
        return Job(source, 1 + next(self._numbers) % _NUMBERS, len(source.store), entries)

    def failed(self, job: Job, error: Exception) -> None:
        """The job could not be done, for lack of memory or a thread. Frames stay larger until it is tried again."""
        self._under_way = ""
        limits = self._policy
        at = _monotonic() - limits.dictionary_seconds + limits.dictionary_retry_seconds
        self._known[job.source.name] = _Known(self.of(job.source.name), job.keys, at)
        _log.warning("Cannot train a dictionary", feed=job.source.name, error=repr(error))

    def trained(self, job: Job, made: dictionary.Compression | None) -> None:
        """The job is done. Where a dictionary would not pay, it is tried again by the same rules."""
        self._under_way = ""
        self._known[job.source.name] = _Known(made, job.keys, _monotonic())
        _log.info(
            "Trained a dictionary" if made is not None else "A dictionary would not pay",
            feed=job.source.name,
            keys=job.keys,
            samples=len(job.entries),
            bytes=0 if made is None else len(made.message.data),
        )
