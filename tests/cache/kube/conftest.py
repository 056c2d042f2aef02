"""Fixtures for the tests of the watch driver: a scripted API server on a real socket."""

from collections.abc import AsyncIterator

import pytest

from tests.harness.scripted_server import ScriptedServer


@pytest.fixture
async def server() -> AsyncIterator[ScriptedServer]:
    server = ScriptedServer()
    await server.start()
    yield server
    await server.stop()
