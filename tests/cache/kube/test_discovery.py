"""The API groups and resource types that the API server serves."""

import json
from collections.abc import AsyncIterator

import pytest

from cache import resources
from cache.kube import api, discovery
from tests.harness.scripted_server import ScriptedServer, session_to

TIERS = resources.ResourceType("projectcalico.org", "v3", "tiers")
POOLS = resources.ResourceType("projectcalico.org", "v3", "ippools")


@pytest.fixture
async def session(server: ScriptedServer) -> AsyncIterator[api.KubeApi]:
    opened = session_to(server)
    await opened.start()
    yield opened
    await opened.close()


def listed(member: str, *names: str) -> bytes:
    return json.dumps({member: [{"name": name, "more": 1} for name in names]}).encode()


async def test_group_names(server: ScriptedServer, session: api.KubeApi) -> None:
    server.script = [server.body(listed("groups", "apps", "projectcalico.org"))]
    assert await discovery.group_names(session) == {"apps", "projectcalico.org"}
    assert server.requests[0].path == "/apis"


@pytest.mark.parametrize("body", [b"[]", b"{", b'{"groups": 1}'])
async def test_an_invalid_list_of_groups_raises(server: ScriptedServer, session: api.KubeApi, body: bytes) -> None:
    server.script = [server.body(body)]
    with pytest.raises(api.Interrupted, match="/apis"):
        await discovery.group_names(session)


async def test_a_refusal_carries_the_http_status(server: ScriptedServer, session: api.KubeApi) -> None:
    server.script = [server.body(b"no", status=403)]
    with pytest.raises(discovery.Refused, match="403: no") as caught:
        await discovery.group_names(session)
    assert caught.value.status == 403


async def test_installed_types(server: ScriptedServer, session: api.KubeApi) -> None:
    server.script = [server.body(listed("resources", "tiers", "tiers/status")), server.body(b"", status=404)]
    assert await discovery.installed_types(session, [TIERS, POOLS]) == {TIERS}
    assert await discovery.installed_types(session, [TIERS, POOLS]) == frozenset()


async def test_types_are_probed_if_they_cannot_be_listed(server: ScriptedServer, session: api.KubeApi) -> None:
    server.script = [server.body(b"", status=403), server.body(b"", status=404), server.body(b'{"items": []}')]
    assert await discovery.installed_types(session, [TIERS, POOLS]) == {POOLS}
    assert server.requests[-1].query == {"limit": "1"}
