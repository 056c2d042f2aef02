"""Networks as numbers, and the cover of a set of networks."""

import ipaddress
import random

import pytest

from clients.agents.node import nets


@pytest.mark.parametrize(
    ("text", "parsed"),
    [
        ("10.0.0.1", "10.0.0.1/32"),
        ("10.1.2.3/8", "10.0.0.0/8"),
        ("0.0.0.0/0", "0.0.0.0/0"),
        ("fd00::1", "fd00::1/128"),
        ("fd00::1/64", "fd00::/64"),
    ],
)
def test_networks_are_printed_as_they_are_parsed(text: str, parsed: str) -> None:
    assert str(nets.parse_net(text)) == parsed


@pytest.mark.parametrize("text", ["", "10.0.0", "10.0.0.1/33", "x", "10.0.0.1 ", "::/129"])
def test_what_is_no_network_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"\S"):
        nets.parse_net(text)


@pytest.mark.parametrize("text", ["", "x/32", "10.0.0.256", "fe80::1%eth0\n", "1.2.3.4.5"])
def test_what_is_no_address_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"\S"):
        nets.host_net(text)


def test_a_network_sorts_just_before_those_within_it() -> None:
    chance = random.Random(1)
    found = [random_net(chance) for _ in range(300)]
    ordered = sorted(set(map(nets.parse_net, found)))
    for number, net in enumerate(ordered):
        within = [other for other in ordered if net.contains(other)]
        assert within == ordered[number : number + len(within)]
        assert all(other < net.after() for other in within)
        assert not any(net < other < net.after() for other in ordered if other not in within)


def random_net(chance: random.Random) -> str:
    if chance.random() < 0.8:
        length = chance.choice((0, 8, 24, 28, 30, 31, 32, 32, 32))
        return str(ipaddress.ip_network((0x0A000000 + chance.randrange(24), length), strict=False))
    length = chance.choice((0, 32, 120, 126, 127, 128, 128))
    return str(ipaddress.ip_network((0xFD << 120 | chance.randrange(8), length), strict=False))


def visible(members: set[str]) -> set[str]:
    """The members that lie within no other, by brute force."""
    networks = [(text, bits(text)) for text in members]
    return {text for text, own in networks if not any(own != other and own.startswith(other) for _, other in networks)}


def bits(text: str) -> str:
    """A network as the bits of its prefix."""
    net = ipaddress.ip_network(text)
    return f"{net.version}:{int(net.network_address):0{net.max_prefixlen}b}"[: 2 + net.prefixlen]


def test_a_cover_equals_a_scan_and_says_what_changes() -> None:
    chance = random.Random(2)
    cover, members, told = nets.Cover(), set[str](), set[str]()
    for _ in range(1000):
        text = random_net(chance)
        if text in members:
            members.remove(text)
            shown, hidden = cover.remove(text)
        else:
            members.add(text)
            shown, hidden = cover.add(text)
        assert not shown & told
        assert hidden <= told
        told = (told | shown) - hidden
        assert cover.visible == visible(members) == told
