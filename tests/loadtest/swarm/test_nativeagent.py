"""Tests of loadtest.swarm.nativeagent."""

import pytest

from loadtest.swarm import agent, control, nativeagent
from protocol import errors, messages
from tests.harness import swarm_peers
from tests.harness.swarm_peers import NOW_NS, Source, connect, feed, frame, value


def population(count: int) -> dict[str, bytes]:
    return {f"/core/v1/pods/default/p{number}": value(f"uid-{number}") for number in range(count)}


@pytest.mark.parametrize("step", [None, 1, 7, 100])
@pytest.mark.parametrize("compress", [False, True])
def test_holds_the_servers_map_whatever_the_reads(step: int | None, compress: bool) -> None:
    source = Source(population(40))
    one = connect(agent.Shared())
    feed(one, source.snapshot(compress=compress), step=step)
    assert (one.map.digest, one.map.keys, one.in_sync) == (source.digest, 40, True)
    feed(one, source.change(("/core/v1/pods/default/p1", None), ("/core/v1/pods/default/p2", value("u"))), step=step)
    assert (one.map.digest, one.map.keys, one.sequence) == (source.digest, 39, 2)


def test_agents_with_the_same_frames_share_maps() -> None:
    shared = agent.Shared()
    source = Source(population(30))
    agents = [connect(shared, f"a-{number}") for number in range(5)]
    stream = b"".join(source.snapshot())
    for one in agents:
        feed(one, stream)
    decoded = shared.cache.distinct
    change = source.change(("k", b"v"))
    for one in agents:
        feed(one, change)
    assert shared.cache.distinct == decoded + 1
    assert len({id(one.map) for one in agents}) == 1
    assert agents[0].map.digest == source.digest


def test_an_agent_with_other_bytes_has_another_map() -> None:
    shared = agent.Shared()
    source = Source(population(30))
    good, bad = connect(shared), connect(shared)
    stream = b"".join(source.snapshot())
    for one in (good, bad):
        feed(one, stream)
    twin = Source(source.content, sequence=source.sequence)
    feed(good, source.change(("k", b"v")))
    feed(bad, twin.change(("k", b"w")))
    assert good.map.digest == source.digest
    assert bad.map.digest == twin.digest != source.digest


def test_a_missing_frame_is_noticed_by_the_agent_that_misses_it() -> None:
    shared = agent.Shared()
    source = Source(population(3))
    good, bad = connect(shared), connect(shared)
    stream = b"".join(source.snapshot())
    feed(good, stream)
    feed(bad, stream)
    first, second = source.change(("k", b"1")), source.change(("k", b"2"))
    feed(good, first)
    feed(good, second)
    with pytest.raises(errors.RemoteProtocolError, match=r"2\.\.3 do not follow on 1"):
        feed(bad, second)


def test_pings_are_answered_with_the_sequence_in_every_phase() -> None:
    source = Source(population(10), sequence=7)
    one = connect(agent.Shared())
    ping = frame(messages.Ping())
    assert feed(one, ping) == frame(messages.Pong(0))
    parts = source.snapshot()
    assert feed(one, [*parts[:2], ping, *parts[2:], ping]) == frame(messages.Pong(0)) + frame(messages.Pong(7))
    assert feed(one, ping) == frame(messages.Pong(7))


@pytest.mark.parametrize(
    ("break_it", "problem"),
    [
        (lambda parts: parts[:2] + parts[3:], "has digest|inside chunk"),
        (lambda parts: [parts[0], parts[-2]], "has 0"),
        (lambda parts: [*parts[:3], parts[-2]], "has 6|more|keys"),
        (lambda parts: [*parts[:2], parts[-2]], "inside chunk 0"),
        (lambda parts: [parts[0], parts[3], parts[4], parts[1]], "follows"),
        (lambda parts: parts[1:], "unexpected SnapshotChunk while ready"),
        (lambda parts: parts[-1:], "unexpected Status while ready"),
        (lambda parts: [parts[0], parts[0]], "unexpected SnapshotBegin while snapshot"),
        (lambda parts: [*parts, parts[-2]], "unexpected SnapshotEnd while following"),
    ],
)
def test_a_broken_snapshot_is_refused(break_it: object, problem: str) -> None:
    assert callable(break_it)
    one = connect(agent.Shared())
    with pytest.raises(errors.RemoteProtocolError, match=problem):
        feed(one, break_it(Source(population(12)).snapshot()))


def test_a_snapshot_with_a_wrong_digest_is_refused() -> None:
    source = Source(population(4))
    parts = source.snapshot()
    parts[-2] = frame(messages.SnapshotEnd(source.sequence, 4, source.digest ^ 1))
    with pytest.raises(errors.RemoteProtocolError, match="announced"):
        feed(connect(agent.Shared()), parts)


def test_deletions_are_recorded_of_every_kind() -> None:
    shared = agent.Shared()
    one = connect(shared)
    source = Source({"gone": value("1"), "replaced": value("2"), "missing": value("3"), "stays": value("4")})
    feed(one, source.snapshot())
    feed(one, source.change(("gone", None), ("unknown", None)), now_ns=NOW_NS + 1)
    feed(one, source.change(("replaced", value("20")), ("stays", value("4", content=1))), now_ns=NOW_NS + 2)
    del source.content["missing"]
    source.sequence += 1
    feed(one, source.snapshot(), now_ns=NOW_NS + 3)
    assert shared.table.deletions == {
        ("gone", "1"): NOW_NS + 1,
        ("replaced", "2"): NOW_NS + 2,
        ("missing", "3"): NOW_NS + 3,
    }
    assert one.deletions == one.group.deletions == 3
    assert one.map.digest == source.digest


def test_the_map_outlives_the_connection() -> None:
    shared = agent.Shared()
    one = connect(shared)
    source = Source(population(5))
    feed(one, source.snapshot())
    one.disconnected(NOW_NS)
    assert one.map.digest == source.digest
    assert not one.in_sync
    del source.content["/core/v1/pods/default/p3"]
    one.connected(feed="f", compressed=False, now_ns=NOW_NS)
    feed(one, [swarm_peers.hello(2, bytes(16)), *source.snapshot()])
    assert one.map.digest == source.digest
    assert list(shared.table.deletions) == [("/core/v1/pods/default/p3", "uid-3")]


def test_latency_counts_what_was_written_while_in_sync() -> None:
    one = connect(agent.Shared())
    source = Source()
    feed(one, source.snapshot())
    before, after = NOW_NS - 10**9, NOW_NS + 10**9
    feed(one, source.change(("old", value("1", written_at_ns=before))), now_ns=after)
    assert one.group.latency.total == 0
    feed(one, source.change(("new", value("2", written_at_ns=NOW_NS + 1))), now_ns=NOW_NS + 5_000_001)
    quantile = one.group.latency.quantile(1.0)
    assert quantile is not None
    assert abs(quantile - 0.005) < 0.0003


def test_a_goodbye_ends_it() -> None:
    one = connect(agent.Shared())
    feed(one, frame(messages.Goodbye("shutting-down", "", 1500)) + b"whatever")
    assert one.phase == agent.Phase.ENDED
    assert one.group.goodbyes == {"shutting-down": 1}
    assert one.retry_after_seconds == 1.5


def test_a_foreign_server_is_refused() -> None:
    one = nativeagent.NativeAgent("a-0", agent.Shared(), control.Group())
    one.connected(feed="f", compressed=False, now_ns=NOW_NS)
    with pytest.raises(errors.RemoteProtocolError, match="first bytes"):
        one.receive(b"HTTP/1.1", NOW_NS)


def test_a_snapshot_replaces_the_map_at_the_first_status_after_it() -> None:
    shared = agent.Shared()
    one = connect(shared)
    source = Source(population(5))
    *old_snapshot, old_status = source.snapshot()
    feed(one, [*old_snapshot, old_status])
    deltas = [source.change(("new", value("n"))), source.change(("newer", value("m"))), source.change(("p", b"{}"))]
    feed(one, deltas[:2])
    before = one.map
    one.disconnected(NOW_NS)
    one.connected(feed="f", compressed=False, now_ns=NOW_NS)
    feed(one, [swarm_peers.hello(2), *old_snapshot])
    assert (one.phase, one.in_sync, one.map) == (agent.Phase.RETURNING, False, before)
    assert feed(one, [deltas[0], frame(messages.Ping())]) == frame(messages.Pong(2))
    assert (one.in_sync, one.map) == (False, before)
    feed(one, [deltas[1], frame(messages.Status(one.sequence + 1, messages.SyncStatus.IN_SYNC))])
    assert (one.in_sync, one.map) == (True, before)
    feed(one, deltas[2])
    assert one.map.digest == source.digest
    assert shared.table.deletions == {}


def test_catching_up_sets_the_sequence_back_and_ends_in_sync() -> None:
    shared = agent.Shared()
    one = connect(shared)
    source = Source(population(5))
    feed(one, source.snapshot())
    begun = one.sequence
    deltas = [source.change(("new", value("n"))), source.change(("newer", value("m")))]
    feed(one, [deltas[0], frame(messages.Status(begun, messages.SyncStatus.CATCHING_UP))])
    assert (one.sequence, one.in_sync) == (begun, False)
    feed(one, [*deltas, frame(messages.Status(begun + 2, messages.SyncStatus.IN_SYNC))])
    assert (one.in_sync, one.map.digest) == (True, source.digest)
    with pytest.raises(errors.RemoteProtocolError, match="does not follow on"):
        feed(one, [frame(messages.Status(begun, messages.SyncStatus.IN_SYNC))])


def test_a_snapshot_does_not_replace_the_map_while_catching_up() -> None:
    shared = agent.Shared()
    one = connect(shared)
    source = Source(population(5))
    *snapshot, status = source.snapshot()
    feed(one, [*snapshot, frame(messages.Status(source.sequence, messages.SyncStatus.CATCHING_UP))])
    assert (one.phase, one.in_sync) == (agent.Phase.RETURNING, False)
    feed(one, [status])
    assert (one.phase, one.in_sync, one.map.digest) == (agent.Phase.FOLLOWING, True, source.digest)


def test_another_server_may_be_behind() -> None:
    one = connect(agent.Shared())
    source = Source(population(5))
    old_snapshot = source.snapshot()
    old_digest = source.digest
    feed(one, [*old_snapshot, source.change(("new", value("n")))])
    one.disconnected(NOW_NS)
    one.connected(feed="f", compressed=False, now_ns=NOW_NS)
    feed(one, [swarm_peers.hello(2, bytes(16)), *old_snapshot])
    assert (one.map.digest, one.in_sync, one.deletions) == (old_digest, True, 1)
