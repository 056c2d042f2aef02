"""Measures what a zstd dictionary would save on the deltas of Calico's felix feed.

Figures for docs/decisions/dictionary-compression.md. PYTHONPATH=. .venv/bin/python tools/measure_dictionary.py

The dictionary is trained from the updates of a snapshot, as a service could do it. The deltas are changes of labels of
pods, as a roll-out makes them, and new pods.
"""

import sys
import time

import zstandard

from cache.feeds.calico import feed
from protocol import messages
from protocol.native import codec, frames
from tools import measure_calico

PODS = 5_000
BATCHES = (1, 5, 20)
DICTIONARY_KILOBYTES = (4, 16, 64)
ROUNDS = 20


def updates_of(
    target: feed.CalicoFeed, *, version: int, first: int, count: int, marker: str = ""
) -> list[messages.Update]:
    """The feed's updates when these pods come, or change a label."""
    for number in range(first, first + count):
        content = measure_calico.MAKER.pod(number)
        if marker:
            content["metadata"].setdefault("labels", {})["pod-template-hash"] = f"{marker}{number % 7}"
        target.apply(measure_calico.event(measure_calico.POD_TYPE, "Pod", content, version=version))
    taken = target.take()
    return taken.updates if taken is not None else []


def payloads(updates: list[messages.Update], batch: int) -> list[bytes]:
    """Messages of so many updates each."""
    return [
        codec.encode_updates(start, start + batch, updates[start : start + batch])
        for start in range(0, len(updates) - batch + 1, batch)
    ]


def framed(data: list[bytes], compressor: zstandard.ZstdCompressor, *, least_bytes: int) -> list[bytes]:
    """What is sent: compressed where that is shorter."""
    packed = [compressor.compress(one) if len(one) >= least_bytes else one for one in data]
    return [min(one, plain, key=len) for one, plain in zip(packed, data, strict=True)]


def microseconds(data: list[bytes], compressor: zstandard.ZstdCompressor) -> float:
    """CPU time for one message, the best of some rounds."""
    best = float("inf")
    for _ in range(ROUNDS):
        begun = time.process_time()
        for one in data:
            compressor.compress(one)
        best = min(best, time.process_time() - begun)
    return best / len(data) * 1e6


def main() -> None:
    """Measure and print a table in Markdown."""
    target = measure_calico.felix()
    created = updates_of(target, version=1, first=0, count=PODS)
    samples = payloads(created, 1)
    cases = {
        "changed pods": updates_of(target, version=2, first=0, count=1_000, marker="5d9f8c7b6"),
        "new pods": updates_of(target, version=3, first=PODS, count=1_000),
    }
    plain = frames.make_compressor()
    sys.stdout.write(
        "| Deltas | Updates in each | Raw | zstd | Dictionary | With it | Less | CPU zstd | CPU with it |\n"
    )
    sys.stdout.write("|---|---|---|---|---|---|---|---|---|\n")
    for kilobytes in DICTIONARY_KILOBYTES:
        trained = zstandard.train_dictionary(kilobytes * 1024, samples)
        trained.precompute_compress(level=frames.ZSTD_LEVEL)
        with_it = zstandard.ZstdCompressor(
            level=frames.ZSTD_LEVEL,
            dict_data=trained,
            write_content_size=True,
            write_checksum=False,
            write_dict_id=False,
        )
        for name, updates in cases.items():
            for batch in BATCHES:
                data = payloads(updates, batch)
                before = framed(data, plain, least_bytes=frames.ZSTD_MIN_BYTES)
                after = framed(data, with_it, least_bytes=0)
                raw, small, smaller = (sum(map(len, one)) / len(data) for one in (data, before, after))
                cpu = microseconds(data, plain)
                cpu_with_it = microseconds(data, with_it)
                cells = (name, batch, f"{raw:.0f} B", f"{small:.0f} B", f"{kilobytes} KiB", f"{smaller:.0f} B")
                cells += (f"{1 - smaller / small:.0%}", f"{cpu:.1f} us", f"{cpu_with_it:.1f} us")
                sys.stdout.write(f"| {' | '.join(map(str, cells))} |\n")


if __name__ == "__main__":
    main()
