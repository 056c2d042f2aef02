"""When clients are handed over to another replica, and when not."""

from hypothesis import given
from hypothesis import strategies as st

from typha.peers import freshness
from typha.peers.freshness import Answer, Stance

POLICY = freshness.HandOverPolicy(after_seconds=30.0, spread_seconds=60.0, again_seconds=300.0)

UNNOTICED_SECONDS_MAX = freshness.CONFIRMED_SECONDS_MAX + freshness.ANSWER_SECONDS_MAX + 5.0
"""For how long a replica that loses the API server in silence can be taken for fresh."""


def stale_since(now: float) -> freshness.Freshness:
    one = freshness.Freshness(POLICY)
    one.look(now, is_stale=True)
    return one


def test_a_fresh_replica_asks_nobody_and_moves_nobody() -> None:
    one = freshness.Freshness(POLICY)
    one.note_answers(10.0, {"a:1": Answer(10.0, 10.0)})
    assert one.look(10.0, is_stale=False) == freshness.Decision(Stance.FRESH)
    assert not one.wants_answers(10.0)


def test_a_short_loss_moves_nobody() -> None:
    one = stale_since(100.0)
    assert not one.wants_answers(114.0)
    assert one.wants_answers(115.0)
    one.note_answers(115.0, {"a:1": Answer(115.0, 114.0)})
    one.note_answers(129.0, {"a:1": Answer(129.0, 128.0)})
    assert one.look(129.0, is_stale=True).stance is Stance.WAITING
    assert one.look(130.0, is_stale=False).stance is Stance.FRESH
    assert not one.wants_answers(1000.0)


def test_clients_are_moved_to_replicas_that_are_fresh() -> None:
    one = stale_since(100.0)
    for now in (115.0, 130.0):
        one.note_answers(now, {"b:1": Answer(now, now - 1.0), "a:1": Answer(now, 105.0), "c:1": Answer(now, None)})
    assert one.look(130.0, is_stale=True) == freshness.Decision(Stance.HANDING_OVER, ("a:1", "b:1"), True)
    assert one.look(131.0, is_stale=True) == freshness.Decision(Stance.HANDING_OVER, ("a:1", "b:1"), False)
    assert one.stance is Stance.HANDING_OVER


def test_a_replica_that_may_not_have_noticed_yet_is_not_fresh() -> None:
    one = stale_since(100.0)
    for now in (115.0, 130.0):
        one.note_answers(now, {"a:1": Answer(now, 104.0)})
    assert one.look(130.0, is_stale=True).stance is Stance.ALL_STALE


def test_a_replica_that_was_not_confirmed_for_long_is_not_fresh() -> None:
    one = stale_since(100.0)
    for now in (290.0, 300.0):
        one.note_answers(now, {"a:1": Answer(now, now - 91.0)})
    assert one.look(300.0, is_stale=True).stance is Stance.ALL_STALE
    for now in (290.0, 300.0, 305.0):
        one.note_answers(now, {"a:1": Answer(now, now - 89.0)})
    assert one.look(305.0, is_stale=True).stance is Stance.HANDING_OVER


def test_nobody_is_moved_while_nobody_answers() -> None:
    one = stale_since(100.0)
    assert one.look(200.0, is_stale=True).stance is Stance.ALONE
    for now in (200.0, 205.0, 215.0):
        one.note_answers(now, {"a:1": Answer(now, now)})
    assert one.look(215.0, is_stale=True).stance is Stance.HANDING_OVER
    one.note_answers(220.0, {})
    assert one.look(220.0, is_stale=True).stance is Stance.HANDING_OVER  # one that did not answer in time
    assert one.look(231.0, is_stale=True).stance is Stance.ALONE  # the answer is too old
    one.note_answers(232.0, {})
    assert one.look(232.0, is_stale=True).stance is Stance.ALONE


def test_the_first_that_finds_the_api_server_again_does_not_get_the_clients_of_all() -> None:
    one = stale_since(100.0)
    one.note_answers(200.0, {"a:1": Answer(200.0, None)})
    assert one.look(200.0, is_stale=True).stance is Stance.ALL_STALE
    for now in (205.0, 210.0, 215.0):
        one.note_answers(now, {"a:1": Answer(now, now)})
        assert one.look(now, is_stale=True) == freshness.Decision(Stance.WAITING)
    one.note_answers(220.0, {"a:1": Answer(220.0, None)})  # it has lost it again, and the count begins anew
    assert one.look(220.0, is_stale=True).stance is Stance.ALL_STALE
    for now in (225.0, 230.0, 235.0):
        one.note_answers(now, {"a:1": Answer(now, now)})
        assert one.look(now, is_stale=True).stance is Stance.WAITING
    one.note_answers(240.0, {"a:1": Answer(240.0, 240.0)})
    assert one.look(240.0, is_stale=True).stance is Stance.HANDING_OVER


def test_another_round_begins_later() -> None:
    one = stale_since(100.0)
    rounds = []
    for second in range(100, 1100):
        one.note_answers(float(second), {"a:1": Answer(float(second), float(second))})
        if one.look(float(second), is_stale=True).begins_round:
            rounds.append(second)
    assert rounds == [130, 220, 520, 820]  # after the first one, all know that the replica is not ready


class Fleet:
    """Replicas, of which some cannot reach the API server, and some not each other."""

    def __init__(self, count: int) -> None:
        self.replicas = [freshness.Freshness(POLICY) for _ in range(count)]
        self.confirmed_at = [0.0] * count
        self.is_cut_off = [False] * count
        self.noticed_after = [0.0] * count
        self.cut_off_at = [0.0] * count
        self.is_reachable = [True] * count
        self.handed_over: list[tuple[float, int, tuple[str, ...]]] = []
        self.stale_for = [0] * count

    def is_stale(self, number: int, now: float) -> bool:
        return self.is_cut_off[number] and now - self.cut_off_at[number] >= self.noticed_after[number]

    def second(self, now: float) -> None:
        for number, one in enumerate(self.replicas):
            if not self.is_cut_off[number]:
                self.confirmed_at[number] = now
            if one.wants_answers(now) and int(now) % 5 == number % 5:
                one.note_answers(
                    now,
                    {
                        str(peer): Answer(now, None if self.is_stale(peer, now) else self.confirmed_at[peer])
                        for peer in range(len(self.replicas))
                        if peer != number and self.is_reachable[peer] and self.is_reachable[number]
                    },
                )
        for number, one in enumerate(self.replicas):
            decision = one.look(now, is_stale=self.is_stale(number, now))
            if decision.stance is Stance.HANDING_OVER:
                self.handed_over.append((now, number, decision.fresh))
            self.stale_for[number] = self.stale_for[number] + 1 if self.is_stale(number, now) else 0


EVENTS = st.lists(
    st.tuples(
        st.integers(1, 120),
        st.integers(0, 3),
        st.sampled_from(("cut off", "connect", "cut from peers", "join peers")),
        st.integers(0, 150),
    ),
    max_size=20,
)


@given(EVENTS)
def test_whatever_is_cut_off_clients_are_moved_to_replicas_that_were_fresh_a_moment_ago(
    events: list[tuple[int, int, str, int]],
) -> None:
    fleet, now = Fleet(4), 0.0
    contact = [[0.0] for _ in range(4)]
    for seconds, number, what, noticed_after in events:
        if what == "cut off" and not fleet.is_cut_off[number]:
            fleet.is_cut_off[number], fleet.cut_off_at[number] = True, now
            fleet.noticed_after[number] = float(noticed_after)
        elif what == "connect":
            fleet.is_cut_off[number] = False
        elif what in ("cut from peers", "join peers"):
            fleet.is_reachable[number] = what == "join peers"
        for _ in range(seconds):
            now += 1.0
            fleet.second(now)
            for one in range(4):
                if not fleet.is_cut_off[one]:
                    contact[one].append(now)
                lacks = all(fleet.is_cut_off) and min(now - at for at in fleet.cut_off_at) > UNNOTICED_SECONDS_MAX
                assert not (lacks and fleet.replicas[one].stance is Stance.HANDING_OVER)
    for at, number, fresh in fleet.handed_over:
        since = fleet.replicas[number].stale_since
        assert fresh
        for peer in fresh:
            # It was in contact after this replica had lost it; and, but for a loss in silence, a moment ago.
            assert since is None or any(since < moment <= at for moment in contact[int(peer)]) or at < since


def test_a_replica_that_alone_is_cut_off_moves_its_clients_within_the_limit() -> None:
    fleet = Fleet(3)
    fleet.is_cut_off[0], fleet.cut_off_at[0] = True, 0.0
    for second in range(1, 60):
        fleet.second(float(second))
    first, number, fresh = fleet.handed_over[0]
    assert (number, fresh) == (0, ("1", "2"))
    assert first <= POLICY.after_seconds + 6.0
    assert {number for _, number, _ in fleet.handed_over} == {0}


def test_the_pause_is_jittered() -> None:
    pauses = {freshness.jittered(5.0) for _ in range(50)}
    assert len(pauses) > 10
    assert all(4.0 <= pause <= 6.0 for pause in pauses)
