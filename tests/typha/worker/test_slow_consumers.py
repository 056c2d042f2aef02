"""The pace of slow consumers, in virtual time."""

import contextlib
import math
import socket
from collections import Counter
from collections.abc import Iterator

import pytest

from typha import clock
from typha.worker import client, policy, slow_consumers

SECONDS = 10.0
PASS_SECONDS = 0.02
LIMITS = policy.Policy(
    slow_consumers_time_share=0.1, slow_consumers_bytes_per_second=1_000_000, slow_consumers_patience_seconds=1000.0
)


class Sender:
    """A worker that only sends to slow consumers, and passes that go on meanwhile."""

    def __init__(self, stack: contextlib.ExitStack, limits: policy.Policy = LIMITS) -> None:
        self._stack = stack
        self.now = 1000.0
        stack.enter_context(clock.replaced(monotonic=lambda: self.now, time_ns=lambda: 0))
        self.queue = slow_consumers.SlowConsumers(limits)
        self.is_live = True
        self.passes = 0
        self.passed_at = 0.0
        self.live_bytes = 0
        """In every pass, to each client that is up to date."""
        self.sent: Counter[int] = Counter()
        self.busy_seconds = 0.0

    def slow_consumer(self, number: int = 0) -> client.Client:
        """A client that waits for its turn."""
        ends = socket.socketpair()
        for end in ends:
            self._stack.callback(end.close)
        made = client.Client(ends[0], "peer", number=number, slot=0, now=self.now)
        self.queue.add(made)
        return made

    def run(self, seconds: float, *, send_bytes: int, send_seconds: float) -> None:
        """Sends as soon as the queue allows it, to clients that take everything and always need more."""
        end = self.now + seconds
        while self.now < end:
            if self.is_live and self.now - self.passed_at >= PASS_SECONDS:
                self.passes += 1
                self.passed_at = self.now
                self.queue.note_pass(self.now, bytes_each=self.live_bytes, clients=1000)
            current = self.queue.take(self.now)
            if current is None:
                self.now += min(max(self.queue.due_at - self.now, 1e-6), PASS_SECONDS)
                continue
            begun = self.now
            self.now += send_seconds
            self.queue.spent(begun, self.now, send_bytes)
            self.busy_seconds += send_seconds
            self.sent[current.number] += send_bytes
            self.queue.add(current)


@pytest.fixture
def stack() -> Iterator[contextlib.ExitStack]:
    """Closes after the test what it opens."""
    with contextlib.ExitStack() as opened:
        yield opened


def test_while_others_are_sent_something_slow_consumers_share_the_bytes_per_second_equally(
    stack: contextlib.ExitStack,
) -> None:
    sender = Sender(stack)
    for number in range(5):
        sender.slow_consumer(number)
    sender.run(SECONDS, send_bytes=10_000, send_seconds=0.00001)
    assert sender.sent.total() == pytest.approx(SECONDS * LIMITS.slow_consumers_bytes_per_second, rel=0.02)
    assert max(sender.sent.values()) - min(sender.sent.values()) <= 10_000


def test_while_others_are_sent_something_slow_consumers_keep_to_their_time_share(
    stack: contextlib.ExitStack,
) -> None:
    sender = Sender(stack)
    sender.slow_consumer()
    sender.run(SECONDS, send_bytes=100, send_seconds=0.0005)  # as with many small TLS records
    assert sender.busy_seconds == pytest.approx(SECONDS * LIMITS.slow_consumers_time_share, rel=0.02)


def test_many_slow_consumers_get_more_than_is_added_to_their_backlog(stack: contextlib.ExitStack) -> None:
    sender = Sender(stack)
    for number in range(900):
        sender.slow_consumer(number)
    sender.live_bytes = 1000
    sender.run(SECONDS, send_bytes=100_000, send_seconds=0.00001)
    assert sender.sent.total() > 2 * 900 * sender.live_bytes * sender.passes
    assert sender.busy_seconds < 0.5 * SECONDS


def test_slow_consumers_get_everything_while_nothing_else_is_sent(stack: contextlib.ExitStack) -> None:
    sender = Sender(stack)
    sender.slow_consumer()
    sender.run(1.0, send_bytes=100_000, send_seconds=0.0005)
    assert sender.busy_seconds < 0.2
    sender.is_live = False
    sender.run(1.0, send_bytes=100_000, send_seconds=0.0005)
    assert sender.busy_seconds > 0.7


def test_a_client_that_pacing_has_delayed_for_long_is_paced_no_longer(stack: contextlib.ExitStack) -> None:
    sender = Sender(
        stack, policy.Policy(slow_consumers_bytes_per_second=1_000_000, slow_consumers_patience_seconds=2.0)
    )
    late = sender.slow_consumer()
    sender.run(1.9, send_bytes=100_000, send_seconds=0.0001)
    assert sender.busy_seconds < 0.1
    sender.run(1.0, send_bytes=100_000, send_seconds=0.0001)
    assert late.held_up_seconds == pytest.approx(2.0, rel=0.1)
    assert sender.busy_seconds > 0.7


def test_no_client_waits_longer_for_a_turn_than_a_quarter_of_the_ping_interval(stack: contextlib.ExitStack) -> None:
    sender = Sender(stack)
    waits = []
    for number in range(200):
        sender.slow_consumer(number)
    for _ in range(2000):
        sender.queue.note_pass(sender.now, bytes_each=0, clients=1000)
        current = sender.queue.take(sender.now)
        if current is None:
            sender.now = max(sender.queue.due_at, sender.now + 1e-6)
            continue
        waits.append(current.held_up_seconds)
        current.held_up_seconds = 0.0
        sender.queue.spent(sender.now, sender.now + 0.0001, 100_000)
        sender.now += 0.0001
        sender.queue.add(current)
    assert max(waits) == pytest.approx(LIMITS.ping_interval_seconds / 4, rel=0.05)


def test_a_client_has_one_place_in_the_queue(stack: contextlib.ExitStack) -> None:
    sender = Sender(stack)
    first, second = sender.slow_consumer(1), sender.slow_consumer(2)
    sender.queue.add(first)
    assert len(sender.queue) == 2
    assert [sender.queue.take(sender.now), sender.queue.take(sender.now)] == [first, second]
    assert sender.queue.take(sender.now) is None
    assert sender.queue.due_at == math.inf
