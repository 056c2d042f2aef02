"""The election by a Lease: several replicas with clocks of their own, of which some stop, or lose the API server."""

import dataclasses
import itertools
import random

import msgspec
from hypothesis import given, settings
from hypothesis import strategies as st

from typha.upstream import election

PLACE = election.Place("kube-system", "calico-typha-source")


def made(name: str) -> election.Election:
    ticks = itertools.count()
    return election.Election(name, PLACE, timestamp=lambda: f"2026-11-29T00:00:00.{next(ticks):06}Z")


class Server:
    """Keeps the Lease, and refuses what is written over something that the writer has not seen."""

    def __init__(self) -> None:
        self.lease: election.Lease | None = None
        self.version = 0

    def write(self, lease: election.Lease) -> election.Lease | None:
        present = "" if self.lease is None else self.lease.metadata.resource_version
        if lease.metadata.resource_version != present:
            return None
        self.version += 1
        metadata = msgspec.structs.replace(lease.metadata, resource_version=str(self.version))
        self.lease = msgspec.structs.replace(lease, metadata=metadata)
        return self.lease


def take_part(one: election.Election, server: Server, now: float) -> None:
    seen = server.lease
    one.observe(now, seen)
    wanted = one.wanted(now, seen)
    if wanted is not None:
        stored = server.write(wanted)
        if stored is not None:
            one.written(now, stored)


def test_the_first_takes_it_and_the_second_waits_until_it_is_not_renewed() -> None:
    server, first, second = Server(), made("first"), made("second")
    take_part(first, server, 0.0)
    take_part(second, server, 500.0)  # its clock is another one
    assert first.holds(1.0)
    assert not second.holds(500.0)
    take_part(second, server, 500.0 + election.DURATION_SECONDS - 0.1)
    assert not second.holds(510.0)
    take_part(second, server, 500.0 + election.DURATION_SECONDS)
    assert second.holds(511.0)
    assert server.lease is not None
    assert server.lease.spec.lease_transitions == 1
    take_part(first, server, 20.0)
    assert not first.holds(20.0)


def test_a_holder_that_cannot_renew_it_does_not_count_on_it() -> None:
    server, one = Server(), made("one")
    take_part(one, server, 0.0)
    assert one.holds(election.RENEW_SECONDS_MAX - 0.1)
    assert not one.holds(election.RENEW_SECONDS_MAX)


def test_a_released_lease_is_taken_at_once() -> None:
    server, first, second = Server(), made("first"), made("second")
    take_part(first, server, 0.0)
    take_part(second, server, 0.0)
    assert server.lease is not None
    stored = server.write(first.released(server.lease))
    assert stored is not None
    first.written(1.0, stored)
    assert not first.holds(1.0)
    take_part(second, server, 1.0)
    assert second.holds(1.0)


def test_what_others_write_is_read_with_limits() -> None:
    server, one = Server(), made("one")
    spec = election.Spec("x" * 100_000, 10**9)
    server.lease = election.Lease(election.Metadata("a", "b", "7"), spec)
    take_part(one, server, 0.0)
    assert not one.holds(0.0)
    take_part(one, server, election.DURATION_SECONDS)  # not after 30 years
    assert one.holds(election.DURATION_SECONDS)
    decoded = msgspec.json.decode(b'{"metadata":{"name":"a"},"spec":{"holderIdentity":null}}', type=election.Lease)
    assert one.wanted(0.0, decoded) is not None


@dataclasses.dataclass
class Member:
    """A replica whose clock begins anywhere."""

    election: election.Election
    clock_offset: float
    is_stopped: bool = False


@settings(max_examples=100, deadline=None)
@given(st.integers(1, 5), st.integers(0, 2**32))
def test_there_is_one_holder_again_within_a_lease_and_a_look(count: int, seed: int) -> None:
    rng = random.Random(seed)
    server = Server()
    members = [Member(made(str(number)), rng.uniform(0, 1e6)) for number in range(count)]
    looks = dict.fromkeys(range(count), 0.0)
    alone_since = 0.0
    for tick in range(2000):
        now = tick * 0.1
        if rng.random() < 0.01:
            rng.choice(members).is_stopped ^= True
            alone_since = now
        for number, one in enumerate(members):
            if now >= looks[number] and not one.is_stopped:
                take_part(one.election, server, now + one.clock_offset)
                looks[number] = now + election.RENEW_SECONDS * rng.uniform(0.8, 1.2)
        running = [one for one in members if not one.is_stopped]
        holders = [one for one in running if one.election.holds(now + one.clock_offset)]
        assert len(holders) <= 1
        if running and now - alone_since > election.DURATION_SECONDS + 2 * election.RENEW_SECONDS:
            assert len(holders) == 1
