"""What decides whether a client is alive: the time of its own that a hello takes, and its signs of life."""

import pytest

from protocol import errors
from typha.worker import client


def test_a_hello_is_not_charged_for_its_wait() -> None:
    arrived_at = 100.0
    pending = client.PendingHello(arrived_at)
    pending.begin_queueing(arrived_at + 3.0)
    pending.begin_queueing(arrived_at + 5.0)  # more bytes change nothing
    assert pending.own_seconds(arrived_at + 50.0) == pytest.approx(3.0)
    pending.end_queueing(arrived_at + 60.0)
    assert pending.own_seconds(arrived_at + 62.0) == pytest.approx(5.0)
    pending.restart(arrived_at + 70.0)
    assert pending.own_seconds(arrived_at + 71.0) == pytest.approx(1.0)


def test_a_hello_that_gets_its_time_again_while_it_waits_is_not_charged_for_the_rest_of_the_wait() -> None:
    pending = client.PendingHello(100.0)
    pending.begin_queueing(110.0)
    pending.restart(130.0)
    assert pending.own_seconds(170.0) == 0.0
    pending.end_queueing(180.0)
    assert pending.own_seconds(181.0) == pytest.approx(1.0)


def test_a_pong_answers_the_oldest_ping() -> None:
    liveness = client.Liveness(100.0)
    assert liveness.note_pong() == 0.0
    liveness.await_pong(101.0)
    liveness.await_pong(105.0)
    liveness.await_probe(106.0, 7000)
    assert (liveness.pinged_at, liveness.probed_at, liveness.probed_offset) == (101.0, 106.0, 7000)
    assert liveness.note_pong() == 101.0
    assert (liveness.pinged_at, liveness.probed_at) == (0.0, 0.0)
    liveness.await_probe(107.0, 8000)
    assert liveness.note_pong() == 107.0
    liveness.await_pong(108.0)
    liveness.excuse_pong()
    assert liveness.note_pong() == 0.0


def test_a_slow_reader_acknowledges_bytes_while_its_pong_is_overdue() -> None:
    liveness = client.Liveness(100.0)
    liveness.await_pong(100.0)
    assert liveness.overdue_seconds(5000, 110.0, ignored_bytes=256) == 10.0
    assert liveness.overdue_seconds(5256, 120.0, ignored_bytes=256) == 20.0  # no more than another ping
    assert liveness.overdue_seconds(5513, 130.0, ignored_bytes=256) == 0.0
    assert liveness.overdue_seconds(5513, 135.0, ignored_bytes=256) == 5.0
    liveness.note_pong()
    liveness.await_pong(140.0)
    assert liveness.overdue_seconds(9000, 141.0, ignored_bytes=256) == 1.0  # what came before this ping says nothing


def test_only_more_acknowledged_bytes_are_progress() -> None:
    liveness = client.Liveness(100.0)
    liveness.note_acked(0, 101.0)
    assert liveness.progress_at == 100.0
    liveness.note_acked(10, 102.0)
    liveness.note_acked(10, 103.0)
    assert liveness.progress_at == 102.0
    liveness.restart_progress(104.0)
    assert liveness.progress_at == 104.0


def test_a_window_is_wide_as_long_as_it_is_nearly_as_wide_as_ever() -> None:
    liveness = client.Liveness(100.0)
    assert not liveness.is_window_wide(0, unread_bytes=2048)  # unknown
    assert liveness.is_window_wide(65536, unread_bytes=2048)
    assert liveness.is_window_wide(65536 - 2047, unread_bytes=2048)
    assert not liveness.is_window_wide(65536 - 2048, unread_bytes=2048)
    assert liveness.is_window_wide(131072, unread_bytes=2048)
    assert not liveness.is_window_wide(65536, unread_bytes=2048)


def test_a_client_answers_pings_and_a_few_times_more() -> None:
    liveness = client.Liveness(100.0)
    for _ in range(10):
        liveness.note_pinged()
    for _ in range(14):
        liveness.note_pong()
    with pytest.raises(errors.RemoteProtocolError, match="more pongs than pings"):
        liveness.note_pong()


def test_a_message_may_come_in_pieces_but_not_in_any_number() -> None:
    liveness = client.Liveness(100.0)
    for _ in range(100):
        liveness.note_incomplete_read()
    liveness.note_greeted()
    for _ in range(3):  # each look gives it back
        for _ in range(16):
            liveness.note_incomplete_read()
        liveness.note_asked(101.0)
    for _ in range(16):
        liveness.note_incomplete_read()
    with pytest.raises(errors.RemoteProtocolError, match="too many pieces"):
        liveness.note_incomplete_read()
