"""The clocks: those of the system, and replacements."""

import time

from typha import clock


def test_the_clocks_are_the_systems_except_while_they_are_replaced() -> None:
    bound = clock.monotonic  # modules on the hot path bind it at import
    assert abs(bound() - time.monotonic()) < 60
    assert abs(clock.time_ns() - time.time_ns()) < 60 * 10**9
    with clock.replaced(monotonic=lambda: -5.0, time_ns=lambda: 7):
        assert (bound(), clock.time_ns()) == (-5.0, 7)
    assert bound() >= 0
