"""Which API group Calico's feeds come from, and what happens while the API server does not answer."""

import asyncio
import json
from collections.abc import AsyncIterator

import pytest
import structlog

from cache.feeds.calico import syncers
from tests.harness import scripted_server
from tests.harness.hub_stand import LIMITS
from tests.harness.scripted_server import ScriptedServer, session_to
from typha import settings
from typha.hub import bootstrap, hub

V1, V3 = syncers.Group.V1, syncers.Group.V3
OTHERS = frozenset({"apps", "batch"})


@pytest.fixture
async def server() -> AsyncIterator[ScriptedServer]:
    """An API server that answers by a script."""
    opened = ScriptedServer()
    await opened.start()
    yield opened
    await opened.stop()


@pytest.mark.parametrize(
    ("variable", "listed", "group", "is_listed"),
    [
        ("", OTHERS, V1, False),
        ("", OTHERS | {V3.group}, V3, True),
        ("", OTHERS | {V1.group}, V1, True),
        ("", OTHERS | {V1.group, V3.group}, V1, True),
        ("", None, V1, False),
        ("projectcalico.org/v3", OTHERS | {V1.group}, V3, True),
        ("ProjectCalico.ORG/V3", None, V3, False),
        ("projectcalico.org", OTHERS | {V3.group}, V1, True),
        ("anything", None, V1, False),
    ],
)
def test_the_choice_of_the_group(
    variable: str, listed: frozenset[str] | None, group: syncers.Group, *, is_listed: bool
) -> None:
    choice = bootstrap.choose(variable, listed)
    assert (choice.group, choice.is_listed) == (group, is_listed)
    assert choice.reason


@pytest.mark.parametrize(("value", "count"), [("auto", 4), ("true", 4), ("false", 0), ("", 0)])
def test_the_feeds_that_may_come(value: str, count: int) -> None:
    assert len(bootstrap.awaited_names(settings.Settings(calico_feeds=value))) == count


class StartStand:
    """A hub without feeds, and Calico's start, which adds some."""

    def __init__(self, *, calico_feeds: str = "auto", feeds_file: str = "", use_pod_cidr: bool = False) -> None:
        configured = settings.Settings(calico_feeds=calico_feeds, feeds_file=feeds_file, read_only=True)
        self.hub = hub.Hub([], LIMITS, awaited=bootstrap.awaited_names(configured))
        self.calico = bootstrap.CalicoStart(
            configured,
            self.hub,
            max_value_bytes=1 << 20,
            use_pod_cidr=use_pod_cidr,
            retry_seconds=0.01,
            look_seconds=0.01,
        )

    async def decide(self, server: ScriptedServer) -> None:
        """Decides with a session of its own."""
        session = session_to(server)
        await session.start()
        try:
            await self.calico.decide(session)
        finally:
            await session.close()


def groups(*names: str) -> bytes:
    """The API server's list of groups."""
    return json.dumps({"groups": [{"name": name} for name in names]}).encode()


@pytest.fixture(autouse=True)
def _no_group_in_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CALICO_API_GROUP", raising=False)


async def test_an_api_server_that_does_not_answer_is_asked_again(server: ScriptedServer) -> None:
    server.script = [
        server.body(b"starting", status=503),
        server.body(b"slowly", status=429),
        server.stream(then="abort"),
        server.body(groups(V3.group)),
    ]
    stand = StartStand()
    with structlog.testing.capture_logs() as lines:
        await stand.decide(server)
    assert [line["event"] for line in lines].count("The API server does not answer, trying again every second") == 1
    assert {type.group for type in stand.calico.types} == {V3.group}
    assert set(stand.hub.feeds) == set(syncers.NAMES)
    assert stand.hub.awaited == ()


async def test_v1_if_the_api_server_refuses_to_list_its_groups(server: ScriptedServer) -> None:
    server.script = [server.body(b"no", status=403)]
    stand = StartStand()
    await stand.decide(server)
    assert {type.group for type in stand.calico.types} == {V1.group}


async def test_questions_that_fail_again_and_again_are_logged_once(server: ScriptedServer) -> None:
    server.script = [server.body(groups()), *(server.body(b"no", status=400) for _ in range(200))]
    stand = StartStand(calico_feeds="true")
    session = session_to(server)
    await session.start()
    with structlog.testing.capture_logs() as lines:
        await stand.calico.decide(session)
        waiting = asyncio.create_task(stand.calico.installed(session))
        await scripted_server.eventually(lambda: len(server.requests) > 20)
        waiting.cancel()
        await session.close()
    assert [line["event"] for line in lines].count("The API server does not list its resources") == 1


async def test_a_configured_group_needs_no_list(server: ScriptedServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CALICO_API_GROUP", V3.value)
    stand = StartStand()
    await stand.decide(server)
    assert {type.group for type in stand.calico.types} == {V3.group}
    assert server.requests == []


@pytest.mark.parametrize(
    ("value", "listed", "is_on"), [("auto", (), False), ("auto", (V1.group,), True), ("true", (), True)]
)
async def test_calico_feeds_beside_a_feeds_file(
    server: ScriptedServer, value: str, listed: tuple[str, ...], *, is_on: bool
) -> None:
    server.script = [server.body(groups(*listed))]
    stand = StartStand(calico_feeds=value, feeds_file="feeds.yaml")
    await stand.decide(server)
    assert stand.hub.names == (list(syncers.NAMES) if is_on else [])
    assert bool(stand.calico.types) is is_on


async def test_no_request_when_the_feeds_are_off(server: ScriptedServer) -> None:
    stand = StartStand(calico_feeds="false")
    await stand.decide(server)
    assert stand.hub.names == []
    assert server.requests == []


async def test_waits_until_no_more_types_come(server: ScriptedServer) -> None:
    stand = StartStand(calico_feeds="true")
    server.script = [server.body(groups())]
    await stand.decide(server)

    def types(*names: str) -> bytes:
        """The API server's list of a group's resources."""
        return json.dumps({"resources": [{"name": name} for name in names]}).encode()

    session = session_to(server)
    await session.start()
    answers = [server.body(b"", status=404)] * 5 + [server.body(types("tiers"))] * 2
    answers += [server.body(types("tiers", "ippools"))] * 3
    server.script = [*answers, server.body(b"", status=500)]
    try:
        await asyncio.wait_for(stand.calico.installed(session), 180)
    finally:
        await session.close()
    assert len(server.script) == 1


async def test_no_kind_of_calicos_ipam_is_watched_with_pod_cidrs(server: ScriptedServer) -> None:
    server.script = [server.body(groups(V3.group))]
    stand = StartStand(use_pod_cidr=True)
    await stand.decide(server)
    watched = {type.resource for type in stand.calico.types}
    assert "ippools" in watched
    assert not watched & {"ipamblocks", "blockaffinities"}
