"""Places for subscriptions, and how addresses share them."""

import itertools

from typha.ipc import selections


def take_all(places: int, hosts: list[str]) -> list[str]:
    """Addresses that take all that they can, one after the other."""
    askers: list[str] = []
    for host in hosts:
        while selections.has_room(askers, host, places=places):
            askers.append(host)
    return askers


def test_each_address_leaves_as_much_as_it_takes() -> None:
    askers = take_all(16, ["a", "b", "c", "d", "e", "f"])
    assert [askers.count(host) for host in "abcdef"] == [8, 4, 2, 1, 1, 0]


def test_no_order_gives_one_address_more_than_half_or_anyone_more_than_there_is() -> None:
    for hosts in itertools.product("ab", repeat=10):
        askers: list[str] = []
        for host in hosts:
            if selections.has_room(askers, host, places=6):
                askers.append(host)
        assert len(askers) < 6  # two addresses cannot take all
        assert max(askers.count(host) for host in "ab") <= 3
