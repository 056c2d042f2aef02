"""Measures what the dictionary saves on the deltas of Calico's felix feed, as the hub trains and uses it.

Figures for docs/decisions/dictionary-compression.md. PYTHONPATH=. .venv/bin/python tools/measure_dictionary.py

The deltas are changes of labels of pods, as a roll-out makes them, and new pods.
"""

import functools
import itertools
import sys
import time
from collections.abc import Callable, Sequence

from cache.feeds.calico import feed
from protocol import messages
from protocol.native import codec, dictionary, encoder, frames
from tools import measure_calico
from typha.hub import policy

PODS = 5_000
BATCHES = (1, 5, 20, 50)
SAMPLES: int = policy.HubPolicy(log_budget_bytes=1, segment_bytes=1).dictionary_samples
SIZES_BYTES = (4 * 1024, 16 * 1024, 64 * 1024)
CHUNK_KEYS = 128
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


def microseconds(work: Callable[[], object], count: int) -> float:
    """CPU time for one of `count` things, the best of some rounds."""
    best = float("inf")
    for _ in range(ROUNDS):
        begun = time.process_time()
        work()
        best = min(best, time.process_time() - begun)
    return best / count * 1e6


def deltas(made: encoder.NativeEncoder, updates: Sequence[messages.Update], batch: int) -> list[bytes]:
    """The frames of deltas of so many updates each."""
    return [
        frame.data
        for start in range(0, len(updates) - batch + 1, batch)
        for frame in made.updates(start, updates[start : start + batch])
    ]


def read(packed: Sequence[bytes], decompression: dictionary.Decompression) -> None:
    """What a client does before it decodes them."""
    for frame in packed:
        frames.unpack_payload(frame[4], frame[frames.HEADER.size :], decompress=decompression.decompress)


def chunk(made: encoder.NativeEncoder, trained: dictionary.Compression, updates: Sequence[messages.Update]) -> str:
    """A chunk of a snapshot, without and with the dictionary."""
    plain = made.snapshot_chunk(0, 0, updates)
    shorter = trained.pack_frame(codec.encode_chunk(0, 0, updates, more=False))
    return f"chunk of {len(updates)} keys: {len(plain)} B with zstd, {len(shorter)} B with the dictionary\n"


def main() -> None:
    """Measure and print a table in Markdown."""
    target = measure_calico.felix()
    created = updates_of(target, version=1, first=0, count=PODS)
    samples = [codec.encode_updates(0, 1, [one]) for one in itertools.islice(created, 0, None, PODS // SAMPLES)]
    cases = {
        "changed pods": updates_of(target, version=2, first=0, count=1_000, marker="5d9f8c7b6"),
        "new pods": updates_of(target, version=3, first=PODS, count=1_000),
    }
    plain = encoder.NativeEncoder(zstd=True)
    sys.stdout.write(
        "| Dictionary | Deltas | Updates in each | Raw | zstd | With it | Less | Hub: zstd | with it | Client: zstd "
        "| with it |\n|---|---|---|---|---|---|---|---|---|---|---|\n"
    )
    for size_bytes in SIZES_BYTES:
        begun = time.process_time()
        trained = dictionary.train(samples, 1, max_bytes=size_bytes)
        seconds = time.process_time() - begun
        if trained is None:
            raise SystemExit("nothing was trained")
        made = encoder.NativeEncoder(zstd=True, takes_dictionary=True)
        made.use_dictionary(trained, 0)
        decompression = dictionary.Decompression(trained.message)
        for (name, updates), batch in itertools.product(cases.items(), BATCHES):
            packed = [deltas(one, updates, batch) for one in (plain, made)]
            count = len(packed[0])
            raw, before, after = (
                sum(sizes) / count
                for sizes in (map(frames.raw_length, packed[0]), map(len, packed[0]), map(len, packed[1]))
            )
            hub = [microseconds(functools.partial(deltas, one, updates, batch), count) for one in (plain, made)]
            client = [microseconds(functools.partial(read, one, decompression), count) for one in packed]
            cells = [str(len(trained.message.data)), name, str(batch), f"{raw:.0f} B", f"{before:.0f} B"]
            cells += [f"{after:.0f} B", f"{1 - after / before:.0%}", *(f"{each:.1f} us" for each in (*hub, *client))]
            sys.stdout.write(f"| {' | '.join(cells)} |\n")
        sys.stdout.write(f"trained in {seconds:.3f} s of CPU; its frame has {len(trained.frame)} B\n")
        sys.stdout.write(chunk(plain, trained, created[:CHUNK_KEYS]))


if __name__ == "__main__":
    main()
