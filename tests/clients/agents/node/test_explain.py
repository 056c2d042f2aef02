"""Explanations: what decides at either end, in words."""

from collections.abc import Iterator
from typing import Any

import pytest

from clients.agents.node import explain, verdict
from tests.harness import felix_recordings as recordings


@pytest.fixture(scope="module")
def values() -> dict[str, bytes]:
    """The feed of a cluster with tiers, policies of all kinds, sets and services."""
    [changes] = recordings.steps_of(recordings.load("scenarios")["mix-everything"])
    return {key: value for key, value in changes if value is not None}


def text_of(values: dict[str, bytes], source: str, destination: str, flow: str) -> str:
    return explain.render(explain.explain(values, source, destination, verdict.parse_flow(flow)))


def test_both_ends_are_explained(values: dict[str, bytes]) -> None:
    assert text_of(values, "lab/batch", "shop/web-1", "tcp/8080") == (
        "lab/batch (10.65.0.41) -> shop/web-1 (10.65.0.11), tcp port 8080: DENIED\n"
        "\n"
        "Egress of lab/batch, on node n1: allowed\n"
        "  tier default: not enforced: StagedGlobalNetworkPolicy next\n"
        "  tier default: allowed by GlobalNetworkPolicy last, rule 2: allow everything\n"
        "\n"
        "Ingress of shop/web-1, on node n1: denied\n"
        "  tier guard: passed by its default action: no rule matches of GlobalNetworkPolicy guard.feeds\n"
        "  tier kube-admin: denied by KubernetesClusterNetworkPolicy admin, rule 1: "
        'deny from pcns.env == "dev" (10.65.0.41, 10.65.1.31)\n'
    )


def test_an_allowed_connection(values: dict[str, bytes]) -> None:
    """From another node, by a named port."""
    text = text_of(values, "vault/keys", "shop/web-1", "tcp/8080")
    assert text.startswith("vault/keys (10.65.1.51) -> shop/web-1 (10.65.0.11), tcp port 8080: ALLOWED\n")
    assert "Egress of vault/keys, on node n2: allowed\n" in text
    assert (
        "  tier default: allowed by NetworkPolicy shop/web, rule 1: allow tcp "
        "to tcp port http of all() (10.65.0.11 port 8080, 10.65.1.12 port 8081)\n"
    ) in text


def test_profiles_decide_where_no_policy_selects(values: dict[str, bytes]) -> None:
    text = text_of(values, "shop/db", "203.0.113.1", "udp/53")
    assert "shop/db (10.65.0.21) -> 203.0.113.1, udp port 53: ALLOWED\n" in text
    assert "  no enforced policy selects it for egress: its profiles decide\n" in text
    assert "  profile kns.shop: allowed by rule 1: allow everything\n" in text


def test_the_default_action_of_a_tier(values: dict[str, bytes]) -> None:
    text = text_of(values, "shop/web-1", "shop/db", "tcp/5432")
    assert "  tier default: denied by its default action: no rule matches of NetworkPolicy shop/web\n" in text


def test_an_address_is_taken_for_the_pod_that_has_it(values: dict[str, bytes]) -> None:
    assert text_of(values, "10.65.0.41", "10.65.0.11", "tcp/8080") == text_of(
        values, "lab/batch", "shop/web-1", "tcp/8080"
    )


def test_addresses_that_are_no_pods(values: dict[str, bytes]) -> None:
    text = text_of(values, "203.0.113.70", "shop/web-1", "icmp/8/0")
    assert text.startswith("203.0.113.70 -> shop/web-1 (10.65.0.11), icmp type 8 code 0: DENIED\n")
    assert "Egress" not in text
    assert 'deny from threat == "feed" (203.0.113.64/26)' in text
    assert text_of(values, "203.0.113.1", "203.0.113.2", "tcp/1").endswith("no policy of a workload applies.\n")


def test_a_node_always_reaches_its_own_pods(values: dict[str, bytes]) -> None:
    """Kubelets probe them. Other nodes are addresses like any other."""
    text = text_of(values, "172.20.0.11", "shop/db", "tcp/1")
    assert text.startswith("172.20.0.11 -> shop/db (10.65.0.21), tcp port 1: ALLOWED\n")
    assert "a node always reaches its own pods" in text
    assert "DENIED" in text_of(values, "172.20.0.12", "shop/db", "tcp/1")


@pytest.mark.parametrize(
    ("setting", "allowed"), [(None, False), (b"Accept", True), (b"return", True), (b"Drop", False)]
)
def test_a_setting_decides_about_packets_to_the_own_node(
    values: dict[str, bytes], setting: bytes | None, allowed: bool
) -> None:
    if setting is not None:
        values = {**values, "/calico/v1/config/DefaultEndpointToHostAction": setting}
    found = explain.explain(values, "lab/batch", "172.20.0.11", verdict.parse_flow("tcp/22"))
    assert found.allowed is allowed
    assert f"to its own node: DefaultEndpointToHostAction is {(setting or b'Drop').decode()}\n" in explain.render(found)
    assert explain.explain(values, "lab/batch", "172.20.0.12", verdict.parse_flow("tcp/22")).allowed
    denied = explain.explain(values, "shop/web-1", "172.20.0.11", verdict.parse_flow("tcp/22"))
    assert not denied.allowed, "a setting opens nothing that policies close"


@pytest.mark.parametrize(
    ("source", "destination", "message"),
    [
        ("web-1", "shop/db", "no pod web-1 in the feed"),
        ("shop/web-1", "shop/none", "no pod shop/none in the feed"),
        ("shop/web-1", "fd00::1", "no addresses between which"),
    ],
)
def test_ends_that_are_not_there(values: dict[str, bytes], source: str, destination: str, message: str) -> None:
    with pytest.raises(explain.NotThere, match=message):
        text_of(values, source, destination, "tcp/80")


def test_an_explanation_agrees_with_the_recorded_verdicts(values: dict[str, bytes]) -> None:
    """At either end, for all pairs of pods, with one of the recorded flows each."""
    recording = recordings.load("scenarios")["mix-everything"]
    compared = 0
    for expected in recording["expect"].values():
        verdicts = expected["verdicts"]
        flows = verdicts["flows"]
        for direction, own, peer, letters in pairs_of_pods(verdicts):
            ends = (peer, own) if direction == "ingress" else (own, peer)
            number = compared % len(flows)
            found = explain.explain(values, *ends, verdict.parse_flow(flows[number]))
            [side] = [side for side in found.sides if side.direction.value == direction]
            assert side.verdict.allowed is (letters[number].upper() == "A"), (direction, ends, flows[number])
            compared += 1
    assert compared > 50


def pairs_of_pods(verdicts: dict[str, Any]) -> Iterator[tuple[str, str, str, str]]:
    """Direction, local pod, other pod, and letters."""
    for direction in ("ingress", "egress"):
        for endpoint, rows in verdicts[direction].items():
            own = endpoint.removeprefix("k8s/").removesuffix("/eth0")
            for peer, letters in rows.items():
                if "/" in peer and "/" in own:
                    yield direction, own, peer, letters
