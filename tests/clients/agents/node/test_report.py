"""What the agent says about itself."""

import dataclasses

import pytest

from clients.agents.node import desired, report

POLICY = desired.Policy("default", "", (desired.Rule(desired.Action.ALLOW, unsupported="HTTP"),), (), "")
NOTHING = desired.State()


@pytest.mark.parametrize(
    ("state", "word"),
    [
        (desired.State(settings=desired.Settings(ipip=True)), "IP-in-IP"),
        (desired.State(settings=desired.Settings(values={"BPFEnabled": "true"})), "eBPF"),
        (desired.State(settings=desired.Settings(values={"WireguardEnabled": "true"})), "WireGuard"),
        (desired.State(host_endpoints={"h": desired.HostEndpoint("eth0", (), (), ())}), "host endpoints"),
        (desired.State(endpoints={"e": desired.Endpoint("cali1", ("fd00::1/128",), (), ())}), "IPv6"),
        (desired.State(policies={"NetworkPolicy/a/b": POLICY}), "NetworkPolicy/a/b"),
    ],
)
def test_what_is_not_supported_is_named(state: desired.State, word: str) -> None:
    (text,) = report.unsupported(state)
    assert word in text


def test_staged_policies_and_ordinary_states_are_supported() -> None:
    assert report.unsupported(NOTHING) == frozenset()
    assert report.unsupported(dataclasses.replace(NOTHING, policies={"StagedNetworkPolicy/a": POLICY})) == frozenset()


def test_lines_are_limited_each_minute() -> None:
    now = 0.0
    limit = report.LineLimit(2, now=lambda: now)
    assert [limit.allows() for _ in range(4)] == [True, True, False, False]
    now = 60.0
    assert limit.allows()
