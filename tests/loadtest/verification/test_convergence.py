"""Tests of loadtest.verification.convergence."""

import pytest

from loadtest.swarm import control
from loadtest.verification import convergence, expected_state

LIVE = expected_state.ExpectedState(
    {"a": expected_state.Live(5, "uid-a", "1"), "b": expected_state.Live(7, "uid-b", "2")}
)


def agent(name: str = "agent-0", *, digest: int = 12, keys: int = 2) -> control.AgentDigest:
    return control.AgentDigest(name=name, digest=digest, keys=keys, sequence=1, in_sync=True, deletions=0)


def report(
    *agents: control.AgentDigest, deletions: tuple[tuple[str, str, int], ...] = (), lost: int = 0
) -> control.Digests:
    seen = [control.Deletion(*deletion) for deletion in deletions]
    return control.Digests(agents=list(agents), deletions=seen, deletions_lost=lost)


def test_all_agents_must_hold_the_api_servers_state() -> None:
    verdict = convergence.judge([report(agent(), agent("agent-1")), report(agent("public-0"))], LIVE)
    assert verdict.passed
    assert (verdict.agents, verdict.converged, verdict.public_agents, verdict.public_converged) == (3, 3, 1, 1)
    assert verdict.line().startswith("3 of 3 agents hold the API server's state: 2 keys, digest 000000000000000c")


@pytest.mark.parametrize("other", [agent("agent-1", digest=13), agent("agent-1", keys=3), agent("public-1", digest=0)])
def test_one_agent_with_another_map_fails(other: control.AgentDigest) -> None:
    verdict = convergence.judge([report(agent(), other)], LIVE)
    assert not verdict.passed
    assert verdict.converged == 1
    assert verdict.differing[0].startswith(other.name)


@pytest.mark.parametrize(
    ("deletion", "phantom"),
    [
        (("gone", "uid-g", 100), None),
        (("gone", "uid-g", 99), "was deleted only 0.0 ms later"),
        (("gone", "another uid", 200), "was never deleted"),
        (("a", "uid-a", 100), "is live"),
        (("a", "the uid before", 300), None),
    ],
)
def test_deletions_are_judged_by_key_and_uid(deletion: tuple[str, str, int], phantom: str | None) -> None:
    asked = {("gone", "uid-g"): 100, ("a", "the uid before"): 250}
    verdict = convergence.judge([report(agent(), deletions=(deletion,))], LIVE, deletions_asked=asked)
    assert verdict.passed == (phantom is None)
    assert [text.endswith(phantom or "") for text in verdict.phantom_deletions] == [True] * (phantom is not None)


def test_the_first_agent_to_see_a_deletion_counts() -> None:
    asked = {("gone", "uid-g"): 100}
    late, early = (("gone", "uid-g", 150),), (("gone", "uid-g", 50),)
    reports = [report(agent(), deletions=late), report(agent("public-0"), deletions=early)]
    verdict = convergence.judge(reports, LIVE, deletions_asked=asked)
    assert "by a public client" in verdict.phantom_deletions[0]
    assert verdict.deletions_seen == 1


def test_without_a_known_writer_only_live_objects_are_phantoms() -> None:
    assert convergence.judge([report(agent(), deletions=(("gone", "u", 1),))], LIVE).passed
    assert not convergence.judge([report(agent(), deletions=(("b", "uid-b", 1),))], LIVE).passed


def test_lost_deletions_prove_nothing() -> None:
    assert not convergence.judge([report(agent(), lost=1)], LIVE).passed


def test_only_what_did_not_change_is_compared() -> None:
    after = expected_state.ExpectedState(
        {
            "a": expected_state.Live(5, "uid-a", "1"),
            "b": expected_state.Live(8, "uid-b", "3"),
            "c": expected_state.Live(1, "uid-c", "4"),
        }
    )
    assert convergence.unchanged(LIVE, after).live == {"a": LIVE.live["a"]}
    assert convergence.unstable_keys(LIVE, after) == {"b", "c"}
    assert convergence.unstable_keys(after, LIVE) == {"b", "c"}
