"""Feeds changed inputs to the decoders: `make fuzz`, or `python -m tests.fuzz --inputs 10000000 --targets gob,watch`.

Prints the slowest inputs with their CPU time, and writes them to build/fuzz. An input that raises an undeclared error
fails the run, and is written to the target's folder in tests/fuzz/corpus, where later runs begin from it. With
`--worst-hello SECONDS` it searches for the hello that costs most CPU time instead, in each protocol.
"""

import argparse
import functools
import hashlib
import signal
import sys
import time
from pathlib import Path

from tests.fuzz import cost, runner, targets, worst
from tests.harness import repository

BUILD = repository.ROOT / "build" / "fuzz"
_REPORT_SECONDS = 60.0


def _run(names: list[str], arguments: argparse.Namespace) -> int:
    work = runner.chunks(names, arguments.seed, arguments.inputs)
    _say(f"{sum(chunk.inputs for chunk in work):,} inputs for {', '.join(names)}")
    total = runner.NOTHING
    by_target = dict.fromkeys(names, runner.NOTHING)
    began = reported = time.monotonic()
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        for chunk, result in runner.run(work, arguments.jobs):
            total = runner.merge(total, result)
            by_target[chunk.target] = runner.merge(by_target[chunk.target], result)
            for failure in result.failures[:3]:
                _say(f"FAILED {failure.target}: {failure.error} ({failure.place}): {_keep(failure)}")
            if time.monotonic() - reported >= _REPORT_SECONDS:
                reported = time.monotonic()
                _say(f"{total.done:,} inputs after {reported - began:.0f} s, slowest:")
                _print_slowest(total.slowest[:3])
    except KeyboardInterrupt:
        _say("interrupted")
    for name, result in by_target.items():
        slowest = result.slowest[0].milliseconds if result.slowest else 0.0
        _say(f"{name:14} {result.done:10,} inputs {result.accepted:10,} accepted {slowest:9.3f} ms at worst")
    _say(f"{total.done:,} inputs in all, {len(total.failures):,} failures. The slowest:")
    _print_slowest(total.slowest)
    return 1 if total.failures else 0


def _say(text: str) -> None:
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


def _print_slowest(slowest: list[runner.Slow]) -> None:
    BUILD.mkdir(parents=True, exist_ok=True)
    for slow in slowest:
        path = BUILD / f"{slow.target}-{_digest(slow.data)}"
        path.write_bytes(slow.data)
        target = targets.TARGETS[slow.target]
        peak = cost.peak_bytes(functools.partial(targets.outcome, target, slow.data))
        _say(
            f"{slow.milliseconds:9.3f} ms {peak / 1024:8.0f} KiB of memory {len(slow.data):6} bytes "
            f"{slow.target:14} {slow.outcome[:60]!r} {path.relative_to(repository.ROOT)}"
        )


def _keep(failure: runner.Failure) -> Path:
    folder = targets.CORPUS / failure.target
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"failed-{_digest(failure.data)}"
    path.write_bytes(failure.data)
    return path.relative_to(repository.ROOT)


def _digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()[:10]


def _search(arguments: argparse.Namespace) -> int:
    BUILD.mkdir(parents=True, exist_ok=True)
    for kind in worst.KINDS:
        found = worst.search(kind, seconds=arguments.worst_hello, seed=arguments.seed)
        path = BUILD / f"worst-hello-{kind.name}"
        path.write_bytes(found.data)
        peak = cost.peak_bytes(functools.partial(worst.feed, found.data))
        where = path.relative_to(repository.ROOT)
        _say(
            f"{kind.name}: {found.milliseconds:.3f} ms of CPU time, {peak:,} bytes of memory, {len(found.data):,} bytes"
        )
        _say(f"  after {found.tries:,} tries: {where}")
    return 0


def main() -> int:
    """Parses the command line and runs. Returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--inputs", type=int, default=200_000, help="of all targets together")
    parser.add_argument("--targets", default="", help=f"some of {','.join(targets.TARGETS)}; default: all")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--jobs", type=int, default=2, help="processes")
    parser.add_argument("--worst-hello", type=float, metavar="SECONDS", help="search this long in each protocol")
    arguments = parser.parse_args()
    if arguments.worst_hello:
        return _search(arguments)
    names = arguments.targets.split(",") if arguments.targets else list(targets.TARGETS)
    unknown = set(names) - targets.TARGETS.keys()
    if unknown:
        parser.error(f"unknown targets: {', '.join(sorted(unknown))}")
    return _run(names, arguments)


if __name__ == "__main__":
    sys.exit(main())
