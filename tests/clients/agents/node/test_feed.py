"""The part of the feed that the agent asks for."""

from clients.agents.node import feed
from clients.agents.node.agent import SUBSCRIPTION
from protocol import subscriptions
from tests.harness import felix_recordings as recordings


def test_the_agent_asks_for_every_key_that_it_uses_and_for_no_services() -> None:
    selects = subscriptions.Selector(SUBSCRIPTION).selects
    keys = {
        key
        for part in ("scenarios", "sequences")
        for recording in recordings.load(part).values()
        for changes in recordings.steps_of(recording)
        for key, _ in changes
    }
    assert {key for key in keys if feed.parse_key(key) is not None and not selects(key)} == set()
    left_out = {key.split("/")[5] for key in keys if not selects(key)}
    assert left_out == {"bgpconfigurations", "kubernetesservice"}
