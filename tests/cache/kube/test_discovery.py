"""The API groups and resource types that the API server serves."""

import json
from collections.abc import AsyncIterator

import pytest

from cache import resources
from cache.kube import api, discovery
from cache.watch.policy import Failure
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


DEEP = b"[" * 13_000 + b"]" * 13_000


@pytest.mark.parametrize(
    "body",
    [
        b"[]",
        b"{",
        b'{"groups": 1}',
        b'{"x":%s}' % DEEP,
        b'{"groups":[{"name":"\\ud800"}]}',
        b'{"groups":[{"name":"\xff"}]}',
    ],
)
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


async def test_an_answer_that_drips_is_given_up(server: ScriptedServer, session: api.KubeApi) -> None:
    server.script = [server.drip(b'{"groups":['), server.drip(status=500, byte=b"!")]
    with pytest.raises(api.Interrupted, match=r"/apis: no whole answer within 0\.2 s") as caught:
        await discovery.exchange(session, "GET", "/apis", answer_seconds=0.2)
    assert caught.value.failure is Failure.DEADLINE
    answer = await discovery.exchange(session, "GET", "/apis", answer_seconds=0.5)
    assert answer.status == 500
    assert answer.body.startswith(b"!")


async def test_the_body_of_an_error_is_read_up_to_a_limit(server: ScriptedServer, session: api.KubeApi) -> None:
    server.script = [server.body(b"x" * 1_000_000, status=500)]
    answer = await discovery.exchange(session, "GET", "/apis")
    assert (answer.status, len(answer.body)) == (500, 4096)
