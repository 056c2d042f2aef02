"""A number in memory that two processes share."""

import os

from tests.harness import worker_stand
from typha.ipc import shared_counters


def test_both_sides_see_one_number_and_leave_nothing_open() -> None:
    before = worker_stand.descriptors_before()
    ours, descriptor = shared_counters.SharedCounter.create()
    theirs = shared_counters.SharedCounter.attach(os.dup(descriptor))
    os.close(descriptor)
    assert (ours.value, theirs.value) == (0, 0)
    theirs.value = 2**63
    assert ours.value == 2**63
    ours.close()
    theirs.close()
    assert worker_stand.open_descriptors() == before
