"""A running simulator with a few pods, and a client of it."""

from collections.abc import AsyncIterator

import aiohttp
import pytest

from loadtest.apiserver import resources
from loadtest.apiserver.settings import SimulatorSettings
from loadtest.apiserver.simulator import Simulator
from tests.harness.apiserver_client import Api


@pytest.fixture
def settings() -> SimulatorSettings:
    return SimulatorSettings(fresh_wait_seconds=0.1, history_events=1000)


@pytest.fixture
async def simulator(settings: SimulatorSettings) -> AsyncIterator[Simulator]:
    async with Simulator(settings) as running:
        for number in range(10):
            running.store.create(resources.PODS, pod(f"p{number}"))
        yield running


@pytest.fixture
async def api(simulator: Simulator) -> AsyncIterator[Api]:
    async with aiohttp.ClientSession() as session:
        yield Api(session, simulator.url)


def pod(name: str, namespace: str = "default", **labels: str) -> dict[str, object]:
    return {"metadata": {"name": name, "namespace": namespace, "labels": labels}, "spec": {"nodeName": "n1"}}
