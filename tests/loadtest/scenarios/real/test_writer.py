"""Tests of loadtest.scenarios.real.writer, on a real API server."""

import dataclasses

import pytest

from loadtest.environment import kubeconfig
from loadtest.environment.control_plane import ControlPlane
from loadtest.scenarios.real import writer
from loadtest.verification import expected_state

pytestmark = pytest.mark.control_plane


async def test_creates_changes_and_records_deletions(control_plane: ControlPlane) -> None:
    access = await kubeconfig.load(control_plane.kubeconfig)
    async with expected_state.ApiClient(access) as client:
        one = writer.Writer(client, namespaces=2, seed=3)
        await one.populate({"pods": 20, "services": 3, "endpointslices": 3, "widgets": 3})
        before = await client.read_state(expected_state.specs(writer.TYPES))
        await one.churn(writes_per_second=60, seconds=2)
        while not one.counts["delete"] or one.counts["update"] < 20:  # a busy API server takes few writes in that time
            await one.churn(writes_per_second=60, seconds=2)
        await one.touch_all()
        after = await client.read_state(expected_state.specs(writer.TYPES))
    assert one.counts["create"] > 29
    assert one.counts["update"] > 5
    assert one.counts["delete"] == len(one.asked) > 0
    gone = {(key, entry.uid) for key, entry in before.live.items()} - {
        (key, entry.uid) for key, entry in after.live.items()
    }
    assert gone
    assert gone <= one.asked.keys()
    assert not {(key, entry.uid) for key, entry in after.live.items()} & one.asked.keys()


async def test_a_refusal_is_an_error(control_plane: ControlPlane, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(writer, "GIVE_UP_SECONDS", 1.0)
    access = await kubeconfig.load(control_plane.kubeconfig)
    unknown_user = dataclasses.replace(access, headers={"Authorization": "Bearer wrong"})
    async with expected_state.ApiClient(unknown_user) as client:
        with pytest.raises(writer.WriteError, match="401"):
            await writer.Writer(client, namespaces=1).populate(
                {"pods": 1, "services": 0, "endpointslices": 0, "widgets": 0}
            )
