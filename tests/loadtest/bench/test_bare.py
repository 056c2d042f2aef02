"""Tests of the bare loop: its updates from a watch, and the maps of its agents."""

import json
from pathlib import Path

import pytest

from loadtest.bench import targets
from loadtest.bench.bare import greeting, sources
from loadtest.environment import kubeconfig, measurement, processes
from loadtest.reporting import report
from loadtest.swarm import control, supervisor
from loadtest.verification import convergence, expected_state
from protocol import messages

AGENTS = 12


def line(kind: str, *, name: str = "web") -> bytes:
    content = {"kind": "Pod", "apiVersion": "v1", "metadata": {"name": name, "namespace": "shop", "managedFields": []}}
    return json.dumps({"type": kind, "object": content}).encode()


def test_a_line_of_a_watch_is_the_update_that_the_service_sends() -> None:
    value = b'{"apiVersion":"v1","kind":"Pod","metadata":{"name":"web","namespace":"shop"}}'
    key = "/core/v1/pods/shop/web"
    assert sources.raw_updates([line("MODIFIED")]) == [messages.Update(key, value, "1", messages.UpdateType.UPDATED)]
    [deleted] = sources.raw_updates([line("DELETED")])
    assert (deleted.key, deleted.value) == (key, None)
    assert sources.raw_updates([b'{"type":"BOOKMARK","object":{"metadata":{"resourceVersion":"7"}}}']) == []


def test_a_schedule_gives_as_many_updates_as_it_is_asked_for() -> None:
    schedule = sources.Schedule(objects=3)
    assert schedule.due_in_seconds() is None
    schedule.start(updates_per_second=10_000.0, seconds=0.001)
    count = 0
    while schedule.due_in_seconds() is not None:
        [update] = schedule.take()
        assert update.value is not None
        count += 1
    assert count == 10


def test_a_recording_is_kept(tmp_path: Path) -> None:
    made = greeting.Recording(control.Protocol.TYPHA, [b"hello", b"snapshot"], 17)
    made.save(tmp_path / "recording")
    assert greeting.load(tmp_path / "recording") == made


@pytest.mark.slow
@pytest.mark.parametrize("protocol", list(control.Protocol))
async def test_its_agents_hold_the_api_servers_state(protocol: control.Protocol, tmp_path: Path) -> None:
    """Recorded snapshot, own watch, new agents after updates: the same map as from the service."""
    report.prepare_folder(tmp_path)
    calico = protocol is control.Protocol.TYPHA
    async with processes.SimulatorProcess(tmp_path, nodes=5, pods=50, calico=calico) as simulator:
        setup = targets.Setup(folder=tmp_path, simulator=simulator, protocol=protocol)
        async with targets.open_target(targets.Side.BARE, setup) as bare:
            assert isinstance(bare, targets.BareProcess)
            assert not bare.has_schedule
            plan = supervisor.SwarmPlan(feed=setup.feed, agents=AGENTS, protocols=[protocol])
            async with supervisor.Swarm([bare.address], plan) as swarm:
                await swarm.wait_in_sync(timeout_seconds=180)

                # Calico's built-in profile comes with the first change: two keys that no object has.
                churned = (52 if setup.is_calico else 50) * AGENTS

                async def change() -> None:
                    await simulator.update_pods(50.0, 1.0)
                    await swarm.wait_for(lambda now: now.updates >= churned, timeout_seconds=180)
                    await swarm.storm(timeout_seconds=30)

                window = await measurement.observe(bare, swarm, change)
                assert window.deliveries >= 50 * AGENTS
                assert window.latency.total >= 50 * AGENTS
                assert window.peak_bytes > 0
                async with expected_state.ApiClient(await kubeconfig.load(simulator.kubeconfig)) as client:

                    async def expected() -> expected_state.ExpectedState:
                        if setup.is_calico:
                            return await client.read_calico_state(setup.feed)
                        return await client.read_state(expected_state.specs(processes.SIMULATED_TYPES))

                    verdict = await convergence.when_quiet(swarm, expected, timeout_seconds=180)
                assert verdict.converged == AGENTS, verdict.line()
                assert swarm.totals().protocol_errors == []
