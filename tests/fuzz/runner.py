"""Runs targets in chunks that depend on nothing but their seed and number, so that each can be repeated."""

import itertools
import math
import multiprocessing
import random
import signal
import time
from collections.abc import Iterator, Sequence
from types import FrameType
from typing import NamedTuple

from tests.fuzz import cost, targets

CHUNK_INPUTS = 20_000
SLOWEST = 10
_POOL = 1_000
"""Limit of the inputs that a chunk keeps because they ended in a new way, to change them further."""
_REPEATS = 3
_MAX_SECONDS = 5.0
"""CPU time after which an input counts as failed: some decoder does not end."""


class Slow(NamedTuple):
    """An input, and the CPU time that it took at best."""

    milliseconds: float
    target: str
    data: bytes
    outcome: str


class Failure(NamedTuple):
    """An input that raised an undeclared error, and where it came up."""

    target: str
    place: str
    error: str
    data: bytes


class Chunk(NamedTuple):
    """Some inputs of one target."""

    target: str
    seed: int
    number: int
    inputs: int


class Result(NamedTuple):
    """What came of a chunk, or of several."""

    done: int
    accepted: int
    """Inputs that raised nothing."""
    slowest: list[Slow]
    failures: list[Failure]


NOTHING = Result(0, 0, [], [])


def merge(first: Result, second: Result) -> Result:
    """The results of both."""
    slowest = sorted((*first.slowest, *second.slowest), key=lambda slow: -slow.milliseconds)[:SLOWEST]
    failures = [*first.failures, *second.failures]
    return Result(first.done + second.done, first.accepted + second.accepted, slowest, failures)


class Endless(BaseException):
    """An input takes more than `_MAX_SECONDS`. No decoder catches this."""


def _give_up(signum: int, frame: FrameType | None) -> None:
    raise Endless(f"more than {_MAX_SECONDS} s of CPU time")


def run_chunk(chunk: Chunk) -> Result:
    """Changes inputs at random and feeds them. Inputs that end in a new way are changed further."""
    before = signal.signal(signal.SIGVTALRM, _give_up)
    try:
        return _run_chunk(chunk)
    finally:
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)
        signal.signal(signal.SIGVTALRM, before)


def _run_chunk(chunk: Chunk) -> Result:
    target = targets.TARGETS[chunk.target]
    rng = random.Random(f"{chunk.seed}/{chunk.target}/{chunk.number}")
    pool = target.inputs()
    seen: set[str] = set()
    slowest: list[Slow] = []
    failures: list[Failure] = []
    accepted = 0
    enough = 0.0
    for number in range(chunk.inputs):
        data = target.mutate(rng.choice(pool), rng)
        signal.setitimer(signal.ITIMER_VIRTUAL, _MAX_SECONDS)
        began = time.thread_time_ns()
        try:
            ended, raised = targets.outcome(target, data)
        except (Exception, Endless) as error:
            place = f"seed {chunk.seed}, chunk {chunk.number}, input {number}"
            failures.append(Failure(target.name, place, f"{type(error).__name__}: {error}"[:300], data))
            continue
        took = (time.thread_time_ns() - began) / 1e6
        accepted += not raised
        if ended not in seen:
            seen.add(ended)
            if len(pool) < _POOL:
                pool.append(data)
        if took > enough:
            again = cost.cpu_milliseconds(lambda: targets.outcome(target, data), times=_REPEATS)  # noqa: B023
            slowest = sorted((*slowest, Slow(min(took, again), target.name, data, ended)), reverse=True)[:SLOWEST]
            enough = slowest[-1].milliseconds if len(slowest) == SLOWEST else 0.0
    return Result(chunk.inputs, accepted, slowest, failures)


def chunks(names: Sequence[str], seed: int, inputs: int) -> list[Chunk]:
    """At least `inputs` inputs in chunks, shared among the targets by weight. All targets come early."""
    weights = {name: targets.TARGETS[name].weight for name in names}
    size = min(CHUNK_INPUTS, math.ceil(inputs / sum(weights.values())))
    turns = [
        [Chunk(name, seed, number, math.ceil(size * min(1, weight))) for number in range(math.ceil(weight))]
        for name, weight in weights.items()
    ]
    one_round = [chunk for chunk in itertools.chain.from_iterable(itertools.zip_longest(*turns)) if chunk]
    rounds = math.ceil(inputs / sum(chunk.inputs for chunk in one_round))
    return [
        chunk._replace(number=chunk.number + turn * math.ceil(weights[chunk.target]))
        for turn in range(rounds)
        for chunk in one_round
    ]


def run(work: Sequence[Chunk], jobs: int) -> Iterator[tuple[Chunk, Result]]:
    """Runs chunks in `jobs` processes, and yields the results as they come."""
    if jobs == 1:
        for chunk in work:
            yield chunk, run_chunk(chunk)
        return
    with multiprocessing.get_context("spawn").Pool(jobs) as pool:
        yield from pool.imap_unordered(_numbered, work)


def _numbered(chunk: Chunk) -> tuple[Chunk, Result]:
    return chunk, run_chunk(chunk)
