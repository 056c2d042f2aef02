"""Every decoder takes some thousand changed inputs. It may raise declared errors only."""

import pathlib

import pytest

from protocol.gob import decoder
from tests.fuzz import cost, mutation, runner, targets, worst

INPUTS = 300
"""For a weight of 1."""
CALLS_OF_A_HELLO = 16_000
"""Of the worst hellos that were found, with some room. A usual one takes 50 calls, or 130 in Typha's protocol."""


@pytest.mark.slow
@pytest.mark.parametrize("name", targets.TARGETS)
def test_changed_inputs(name: str) -> None:
    inputs = max(60, int(INPUTS * targets.TARGETS[name].weight))
    result = runner.run_chunk(runner.Chunk(name, seed=1, number=0, inputs=inputs))
    assert result.failures == []
    assert result.accepted > 0, "the changes hit too hard to get anywhere"
    assert len(result.slowest) == runner.SLOWEST


@pytest.mark.parametrize("name", targets.TARGETS)
def test_inputs_to_begin_from_are_declared(name: str) -> None:
    target = targets.TARGETS[name]
    outcomes = [targets.outcome(target, data) for data in target.inputs()]
    assert not all(raised for _, raised in outcomes)


def kept(name: str) -> list[pathlib.Path]:
    return sorted((targets.CORPUS / name).glob("*"))


@pytest.mark.parametrize("path", [*kept("native-server"), *kept("typha-server")], ids=lambda path: path.name)
def test_the_worst_hellos_cost_little(path: pathlib.Path) -> None:
    """The hellos of the security review, and those that the search found."""
    data = path.read_bytes()
    worst.feed(data)
    assert cost.calls(lambda: worst.feed(data)) <= CALLS_OF_A_HELLO
    assert cost.peak_bytes(lambda: worst.feed(data)) <= 10 * len(data) + 50_000


def test_an_undeclared_error_is_a_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(data: bytes) -> None:
        raise ZeroDivisionError(len(data))

    target = targets.Target("gob", fail, lambda: [b"x"], mutation.mutate_bytes, ())
    monkeypatch.setitem(targets.TARGETS, "gob", target)
    result = runner.run_chunk(runner.Chunk("gob", seed=1, number=0, inputs=3))
    assert len(result.failures) == 3
    assert "ZeroDivisionError" in result.failures[0].error


def test_an_input_without_end_is_a_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    def loop(data: bytes) -> None:
        while data:
            pass

    monkeypatch.setitem(
        targets.TARGETS, "gob", targets.Target("gob", loop, lambda: [b"x" * 64], mutation.mutate_bytes, ())
    )
    monkeypatch.setattr(runner, "_MAX_SECONDS", 0.01)
    result = runner.run_chunk(runner.Chunk("gob", seed=1, number=0, inputs=2))
    assert ["Endless" in failure.error for failure in result.failures] == [True, True]


def test_chunks_cover_all_targets_and_repeat() -> None:
    names = list(targets.TARGETS)
    work = runner.chunks(names, 1, 1_000_000)
    assert sum(chunk.inputs for chunk in work) >= 1_000_000
    assert {chunk.target for chunk in work[: len(names)]} == set(names)
    assert len({(chunk.target, chunk.number) for chunk in work}) == len(work)
    again = runner.run_chunk(runner.Chunk("zstd", 7, 3, 200))
    assert runner.run_chunk(runner.Chunk("zstd", 7, 3, 200))[:2] == again[:2]


@pytest.mark.parametrize("kind", worst.KINDS, ids=lambda kind: kind.name)
def test_the_search_finds_costly_hellos_within_the_limits(kind: worst.Kind) -> None:
    usual, *_ = (kind.build([part]) for part in kind.parts)
    found = worst.search(kind, seconds=0.5, seed=1)
    assert found.milliseconds > cost.cpu_milliseconds(lambda: worst.feed(usual), times=3)
    assert (
        len(found.data) <= worst.MAX_NATIVE_BYTES + 100 if kind.name == "native" else decoder.HELLO_LIMITS.message_bytes
    )
